"""softmax and log_softmax: kernel against reference and PyTorch, and the rows that are special."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import glassformer as gf
from glassformer import fused
from glassformer.backends import threads
from glassformer.fused.softmax import log_softmax, softmax
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
from tests.tolerances import assert_close

KERNEL = "numpy-tiled"
OPS = ("softmax", "log_softmax")
ops = st.sampled_from(OPS)


def served_by(shape):
    return "reference" if 0 in shape else KERNEL


@given(ops, shapes(max_dims=4), dtypes, scales, layouts, layouts, seeds, st.data())
def test_kernel_equals_reference(op, shape, dtype, scale, layout, gradient_layout, seed, data):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = layout(drawn(np.random.default_rng(seed), shape, dtype, scale))
    check_kernel(op, [x], {"dim": dim}, served_by(shape), gradient_layout, seed)


@given(ops, shapes(max_dims=4, min_side=1), scales, seeds, st.data())
def test_equals_pytorch(op, shape, scale, seed, data):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = drawn(np.random.default_rng(seed), shape, "float64", scale)
    function = getattr(torch, op)
    check_torch(op, [x], {"dim": dim}, lambda x: function(x, dim))


@given(ops, st.floats(-700, 700), seeds)
def test_rows_anywhere_on_the_axis(op, offset, seed):
    # Whether a row is shifted depends on where it lies: both ways must meet.
    x = drawn(np.random.default_rng(seed), (5, 7)) + np.linspace(-20, 20, 5)[:, None] + offset
    check_kernel(op, [x], {"dim": -1}, KERNEL)
    check_kernel(op, [x.astype(np.float32)], {"dim": -1}, KERNEL)


@given(ops, scales, seeds)
def test_a_row_does_not_depend_on_its_neighbours(op, scale, seed):
    rng = np.random.default_rng(seed)
    x = drawn(rng, (9, 33), "float32", scale)
    alone = run(op, [x[3:4]], {"dim": -1})[0]
    for neighbours in (0.1, 1000.0, np.nan):
        x[:3], x[4:] = neighbours, -neighbours
        np.testing.assert_array_equal(run(op, [x], {"dim": -1})[0][3:4], alone)


@pytest.mark.parametrize("op", OPS)
def test_special_rows_are_pytorchs(op):
    nan, inf = np.nan, np.inf
    x = np.array([[-inf] * 3, [0, -inf, 1], [inf, 0, 1], [nan, 0, 1], [1, 2, 3]], np.float32)
    out = run(op, [x], {"dim": -1})[0]
    assert fused.last_kernel(op) == KERNEL
    expected = getattr(torch, op)(torch.from_numpy(x), -1).numpy()
    assert_close(out, expected)
    assert np.isnan(out[[0, 2, 3]]).all()
    assert np.isfinite(np.exp(out[[1, 4]])).all()


def test_half_precision_at_its_limits():
    out = softmax(gf.tensor(np.array([6e4, -6e4], np.float16)))
    assert out.tolist() == [1, 0]
    assert out.dtype is gf.float16


def test_half_precision_accumulates_in_single():
    # 5,000 equal logits: summed in half precision, the sum would stop at 2,048.
    x = np.zeros((1, 5000), np.float16)
    assert log_softmax(gf.tensor(x)).numpy()[0, 0] == np.float16(-np.log(5000))


@pytest.mark.parametrize("op", OPS)
def test_precise_on_a_long_row(op):
    x = drawn(np.random.default_rng(0), (3, 50257), "float32", 2.0)
    expected = getattr(torch, op)(torch.from_numpy(x).double(), -1).numpy()
    np.testing.assert_allclose(run(op, [x], {"dim": -1})[0], expected, rtol=3e-6)


@pytest.mark.parametrize("op", OPS)
def test_many_chunks_on_any_number_of_threads(op):
    x = drawn(np.random.default_rng(0), (3001, 200), "float32", 5.0)
    check_kernel(op, [x], {"dim": -1}, KERNEL)
    two = run(op, [x], {"dim": -1})[:2]
    before = threads.get_num_threads()
    threads.set_num_threads(1)
    try:
        one = run(op, [x], {"dim": -1})[:2]
    finally:
        threads.set_num_threads(before)
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1][0], two[1][0])


@pytest.mark.parametrize("op", OPS)
def test_first_and_second_derivatives(op):
    x = drawn(np.random.default_rng(0), (2, 4, 3))
    for dim in (-1, 1):
        check_derivatives(op, [x], {"dim": dim})


def test_scalar_and_errors():
    assert softmax(gf.tensor(3.0)).item() == 1
    assert fused.last_kernel("softmax") == "reference"
    with pytest.raises(IndexError):
        softmax(gf.zeros(2, 3), dim=2)
    with pytest.raises(TypeError, match="int64"):
        softmax(gf.tensor([1, 2]))
