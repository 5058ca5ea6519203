"""erf against the C library's, over a dense grid and at the ends."""

import math

import numpy as np
import pytest

from glassformer.backends.erf import erf

GRID = np.concatenate(
    [
        np.linspace(-7, 7, 200_001),
        np.geomspace(1e-300, 10, 50_001),
        np.linspace(6, 1e4, 5_001),
        np.geomspace(1e4, 3e38, 500),
    ]
)


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 2e-15), ("float32", 5e-7)])
def test_relative_error(dtype, bound):
    with np.errstate(under="ignore"):
        x = GRID.astype(dtype)
    expected = np.array([math.erf(v) for v in x.tolist()])
    out = erf(x)
    assert out.dtype == dtype
    # Below the smallest normal number the spacing is fixed, and the error half of it.
    tiny = np.finfo(dtype).tiny
    assert (np.abs(out - expected) <= bound * np.maximum(np.abs(expected), tiny)).all()


def test_half_precision_is_correctly_rounded_to_one_unit():
    x = np.arange(-5, 5, 2**-10, dtype=np.float16)
    expected = np.array([math.erf(v) for v in x.tolist()], np.float16)
    assert erf(x).dtype == np.float16
    np.testing.assert_allclose(erf(x), expected, rtol=2**-10)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_ends(dtype):
    smallest = np.finfo(dtype).smallest_subnormal
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, smallest, -smallest], dtype)
    out = erf(x)
    np.testing.assert_array_equal(out[:5], [1, -1, np.nan, 0, 0])
    assert np.signbit(out[4])
    np.testing.assert_allclose(out[5:], x[5:])  # 1.128 units round to one


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_odd_monotone_and_within_one(dtype):
    x = np.linspace(0, 8, 100_001, dtype=dtype)
    np.testing.assert_array_equal(erf(-x), -erf(x))
    steps = np.diff(erf(x).astype(np.float64))
    assert (steps >= -4 * np.finfo(dtype).eps).all()
    assert (np.abs(erf(x)) <= 1).all()


def test_any_layout_and_size():
    x = np.random.default_rng(0).standard_normal((600, 500)).astype(np.float32)
    np.testing.assert_array_equal(erf(x.T), erf(x).T)
    np.testing.assert_array_equal(erf(x[::-2, 3:]), erf(x)[::-2, 3:])
    assert erf(x[:0]).shape == (0, 500)
    assert erf(np.array(0.5)).shape == ()
