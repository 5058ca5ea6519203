"""layer_norm and rms_norm: kernel against reference and PyTorch, and rows that are special."""

import numpy as np
import pytest
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import glassformer as gf
from glassformer.backends import threads
from glassformer.fused.norm import layer_norm, rms_norm
from tests.fused_calls import (
    check_derivatives,
    check_kernel,
    check_torch,
    drawn,
    dtypes,
    layouts,
    run,
    seeds,
    shapes,
)
from tests.tolerances import assert_close

KERNEL = "numpy-tiled"

parts = st.integers(0, 3)  # which of weight and bias there are


def served_by(shape):
    return "reference" if 0 in shape else KERNEL


def affine(op, which, rng, size, dtype):
    weight = drawn(rng, (size,), dtype) if which & 1 else None
    bias = drawn(rng, (size,), dtype) if which & 2 else None
    return [weight, bias] if op == "layer_norm" else [weight]


@given(
    st.sampled_from(("layer_norm", "rms_norm")),
    shapes(),
    dtypes,
    st.sampled_from((0.01, 1.0, 30.0)),
    parts,
    layouts,
    layouts,
    seeds,
)
def test_kernel_equals_reference(
    op, shape, dtype, scale, which, layout, gradient_layout, seed
):  # fmt: skip
    rng = np.random.default_rng(seed)
    x = layout(drawn(rng, shape, dtype, scale) + np.asarray(1.5 * scale, dtype))
    arrays = [x, *affine(op, which, rng, shape[-1], dtype)]
    # The rounding of a nearly constant row is divided by √eps: eps in proportion keeps it small.
    eps = 1e-3 * max(1.0, scale**2)
    check_kernel(op, arrays, {"eps": eps}, served_by(shape), gradient_layout, seed)


@given(shapes(min_side=1), parts, seeds)
def test_layer_norm_equals_pytorch(shape, which, seed):
    rng = np.random.default_rng(seed)
    arrays = [drawn(rng, shape) + 1, *affine("layer_norm", which, rng, shape[-1], "float64")]
    check_torch(
        "layer_norm",
        arrays,
        {"eps": 1e-5},
        lambda x, weight, bias: F.layer_norm(x, shape[-1:], weight, bias, 1e-5),
    )


@given(shapes(min_side=1), st.booleans(), seeds)
def test_rms_norm_equals_pytorch(shape, weighted, seed):
    rng = np.random.default_rng(seed)
    arrays = [drawn(rng, shape) + 1, *affine("rms_norm", weighted, rng, shape[-1], "float64")]
    check_torch(
        "rms_norm",
        arrays,
        {"eps": 1e-5},
        lambda x, weight: F.rms_norm(x, shape[-1:], weight, 1e-5),
    )


@pytest.mark.parametrize("value", [0.0, 3.0, -1000.0])
def test_a_constant_row_gives_the_bias(value):
    bias = gf.randn(384)
    out = layer_norm(gf.full((5, 384), value), gf.randn(384), bias)
    assert_close(out.numpy(), np.broadcast_to(bias.numpy(), (5, 384)))


def test_the_mean_may_be_far_from_zero():
    x = drawn(np.random.default_rng(0), (50, 384), "float32") + np.float32(1000)
    expected = layer_norm(gf.from_numpy(x.astype(np.float64))).numpy()
    # x itself is rounded to 6e-5 there; centring must not lose more than that again.
    np.testing.assert_allclose(layer_norm(gf.from_numpy(x)).numpy(), expected, atol=1e-4)


def test_nan_stays_in_its_row():
    x = drawn(np.random.default_rng(0), (4, 8), "float32")
    x[1, 2] = np.nan
    for op in ("layer_norm", "rms_norm"):
        out, (gradient,) = run(op, [x], {"eps": 1e-5})[:2]
        for result in (out, gradient):
            assert np.isnan(result[1]).all()
            assert np.isfinite(result[[0, 2, 3]]).all()


@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
def test_many_chunks_on_any_number_of_threads(op):
    rng = np.random.default_rng(0)
    arrays = [drawn(rng, (3001, 200), "float32"), *affine(op, 3, rng, 200, "float32")]
    check_kernel(op, arrays, {"eps": 1e-5}, KERNEL)
    two = run(op, arrays, {"eps": 1e-5})[:2]
    before = threads.get_num_threads()
    threads.set_num_threads(1)
    try:
        one = run(op, arrays, {"eps": 1e-5})[:2]
    finally:
        threads.set_num_threads(before)
    for a, b in zip((one[0], *one[1]), (two[0], *two[1]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_change_of_the_result_does_not_reach_backward():
    x = gf.randn(3, 4).requires_grad_()
    first = layer_norm(x)
    (expected,) = gf.grad(first.sum(), [x], retain_graph=True)
    with gf.no_grad():
        first.zero_()
    (again,) = gf.grad(first.sum(), [x])
    np.testing.assert_array_equal(again.numpy(), expected.numpy())


@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
def test_first_and_second_derivatives(op):
    rng = np.random.default_rng(0)
    x = drawn(rng, (2, 3, 4))
    check_derivatives(op, [x, *affine(op, 3, rng, 4, "float64")], {"eps": 1e-5})
    check_derivatives(op, [x], {"eps": 1e-5})


def test_errors():
    with pytest.raises(ValueError, match=r"weight and bias must be \(4,\).*got \(3,\)"):
        layer_norm(gf.zeros(2, 4), gf.zeros(3))
    with pytest.raises(TypeError, match="int64"):
        rms_norm(gf.tensor([1, 2]), eps=1e-5)
