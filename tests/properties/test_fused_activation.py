"""gelu, silu and swiglu: kernels against references and PyTorch, and their tails."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import glassformer as gf
from glassformer.backends import threads
from glassformer.fused.activation import gelu, swiglu
from tests.fused_calls import (
    check_derivatives,
    check_kernel,
    check_torch,
    drawn,
    dtypes,
    layouts,
    run,
    scales,
    seeds,
    shapes,
)

KERNEL = "numpy-tiled"
CALLS = {
    "gelu": ("gelu", {"approximate": "none"}, 1, F.gelu),
    "gelu-tanh": (
        "gelu",
        {"approximate": "tanh"},
        1,
        lambda x: F.gelu(x, approximate="tanh"),
    ),
    "silu": ("silu", {}, 1, F.silu),
    "swiglu": ("swiglu", {}, 2, lambda gate, up: F.silu(gate) * up),
}
calls = st.sampled_from(sorted(CALLS))


@given(calls, shapes(min_dims=0), dtypes, scales, layouts, layouts, layouts, seeds)
def test_kernel_equals_reference(
    call, shape, dtype, scale, layout, other_layout, gradient_layout, seed
):
    op, params, count, _ = CALLS[call]
    rng = np.random.default_rng(seed)
    arrays = [drawn(rng, shape, dtype, scale) for _ in range(count)]
    arrays = [lay(x) for lay, x in zip((layout, other_layout), arrays, strict=False)]
    check_kernel(op, arrays, params, KERNEL, gradient_layout, seed)


@given(calls, shapes(min_dims=0), scales, seeds)
def test_equals_pytorch(call, shape, scale, seed):
    op, params, count, function = CALLS[call]
    rng = np.random.default_rng(seed)
    check_torch(op, [drawn(rng, shape, "float64", scale) for _ in range(count)], params, function)


@pytest.mark.parametrize("call", sorted(CALLS))
def test_far_out_and_not_a_number(call):
    op, params, count, function = CALLS[call]
    x = np.array([-1e4, -100, -90, -50, -0.0, 0.0, 1e-40, 50, 100, 1e4, np.nan], np.float32)
    arrays = [x, np.ones_like(x)][:count]
    out, grads, kernel = run(op, arrays, params)
    assert kernel == KERNEL
    expected = function(*(torch.from_numpy(a) for a in arrays)).numpy()
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-30)
    assert np.isfinite(grads[0][:-1]).all()


@pytest.mark.parametrize("op", ["silu", "swiglu"])
def test_left_tail_of_silu_is_relatively_exact(op):
    x = np.linspace(-80, 10, 5001, dtype=np.float32)
    arrays = [x, np.ones_like(x)][: 1 + (op == "swiglu")]
    expected = F.silu(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(run(op, arrays, {})[0], expected, rtol=2e-6)


def test_gelu_is_exact_to_single_precision():
    x = np.linspace(-6, 6, 100_001, dtype=np.float32)
    for approximate in ("none", "tanh"):
        expected = F.gelu(torch.from_numpy(x).double(), approximate=approximate).numpy()
        out = gelu(gf.from_numpy(x), approximate=approximate).numpy()
        # Φ is formed as (1 + b)/2: in the left tail it is exact to the spacing of numbers at 1.
        np.testing.assert_allclose(out, expected, rtol=3e-7, atol=8e-7)


@pytest.mark.parametrize("call", sorted(CALLS))
def test_many_chunks_on_any_number_of_threads(call):
    op, params, count, _ = CALLS[call]
    rng = np.random.default_rng(0)
    arrays = [drawn(rng, (3001, 200), "float32", 3.0) for _ in range(count)]
    check_kernel(op, arrays, params, KERNEL)
    two = run(op, arrays, params)[:2]
    before = threads.get_num_threads()
    threads.set_num_threads(1)
    try:
        one = run(op, arrays, params)[:2]
    finally:
        threads.set_num_threads(before)
    for a, b in zip((one[0], *one[1]), (two[0], *two[1]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("call", sorted(CALLS))
def test_first_and_second_derivatives(call):
    op, params, count, _ = CALLS[call]
    rng = np.random.default_rng(0)
    check_derivatives(op, [drawn(rng, (3, 4)) for _ in range(count)], params)


def test_errors():
    with pytest.raises(ValueError, match="approximate must be 'none' or 'tanh', got 'erf'"):
        gelu(gf.zeros(2), approximate="erf")
    with pytest.raises(ValueError, match=r"gate \(2,\) and up \(3,\)"):
        swiglu(gf.zeros(2), gf.zeros(3))
    with pytest.raises(TypeError, match="int64"):
        gelu(gf.tensor([1]))
