"""Calls of fused operations for tests: arrays in awkward layouts, and kernel against reference."""

import numpy as np
from hypothesis import strategies as st

import glassformer as gf
from glassformer import fused
from tests.tolerances import assert_close

DTYPES = ("float64", "float32", "float16")
SCALES = (0.1, 1.0, 30.0, 1000.0)  # from where nothing can overflow to where exp always does

seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(DTYPES)
scales = st.sampled_from(SCALES)


def contiguous(x):
    return np.array(x, order="C")


def transposed(x):
    """The first dimension, not the last, is adjacent in memory."""
    return np.array(x, order="F")


def sliced(x):
    """Every second element of a larger array, with NaN (or a wrong index) between."""
    whole = np.full([2 * n + 1 for n in x.shape], np.nan if x.dtype.kind == "f" else -7, x.dtype)
    part = whole[(*(slice(1, None, 2) for _ in x.shape), ...)]
    part[...] = x
    return part


def backwards(x):
    """Negative strides."""
    return np.flip(np.flip(x).copy()) if x.ndim else x


def expanded(x):
    """Stride 0 along the first dimension, which repeats its first element."""
    return np.broadcast_to(x[:1], x.shape) if x.ndim and len(x) else x


LAYOUTS = (contiguous, transposed, sliced, backwards, expanded)
layouts = st.sampled_from(LAYOUTS)


def shapes(min_dims=1, max_dims=3, max_side=17, min_side=0):
    """Shapes; a side is 0 now and then."""
    sides = st.one_of(st.integers(max(min_side, 1), max_side), st.integers(min_side, max_side))
    return st.lists(sides, min_size=min_dims, max_size=max_dims).map(tuple)


def drawn(rng, shape, dtype="float64", scale=1.0):
    """Normal numbers; scaled so that no square of a float16 sum overflows in the reference."""
    if dtype == "float16":
        scale = min(scale, 30.0)
    return np.asarray(rng.standard_normal(shape) * scale, dtype)


def _tensor(array):
    """A tensor that requires grad if it can; one that is a tensor already stays as it is."""
    if array is None or isinstance(array, gf.Tensor):
        return array
    return gf.from_numpy(array).requires_grad_(array.dtype.kind == "f")


def run(name, arrays, params, gradient_layout=contiguous, seed=0):
    """The output, the gradient of every float array, and the kernel that served the call."""
    tensors = [_tensor(a) for a in arrays]
    before = [None if t is None else t.detach().numpy().copy() for t in tensors]
    out = fused.registry.get(name)(*tensors, **params)
    kernel = fused.last_kernel(name)
    g = gradient_layout(drawn(np.random.default_rng(seed), out.shape, out.dtype.name))
    g_before = g.copy()
    out.backward(gf.from_numpy(g))
    for tensor, then in zip((*tensors, gf.from_numpy(g)), (*before, g_before), strict=True):
        if tensor is not None:
            now = tensor.detach().numpy()
            np.testing.assert_array_equal(now, then, "an argument was changed")
    grads = [None if t is None or t.grad is None else t.grad.numpy() for t in tensors]
    return out.detach().numpy(), grads, kernel


def check_kernel(name, arrays, params, kernel, gradient_layout=contiguous, seed=0):
    """Assert that `kernel` served the call, and that it gives what the reference gives."""
    out, grads, served = run(name, arrays, params, gradient_layout, seed)
    assert served == kernel
    with fused.use(**{name: "reference"}):
        expected, expected_grads, served = run(name, arrays, params, gradient_layout, seed)
    assert served == "reference"
    _agree(name, arrays, (out, *grads), (expected, *expected_grads))
    return out, grads


def check_torch(name, arrays, params, function, seed=0):
    """Assert that the operation agrees with a PyTorch function of the same arrays."""
    import torch

    out, grads, _ = run(name, arrays, params, seed=seed)
    tensors = [
        torch.tensor(a, requires_grad=a.dtype.kind == "f") if isinstance(a, np.ndarray) else None
        for a in arrays
    ]
    expected = function(*tensors)
    g = drawn(np.random.default_rng(seed), tuple(expected.shape), out.dtype.name)
    expected.backward(torch.from_numpy(np.asarray(g)))
    expected_grads = [None if t is None or t.grad is None else t.grad.numpy() for t in tensors]
    _agree(name, arrays, (out, *grads), (expected.detach().numpy(), *expected_grads))


def _agree(name, arrays, results, expected):
    for i, (mine, other) in enumerate(zip(results, expected, strict=True)):
        what = f"{name}: output" if i == 0 else f"{name}: gradient {i - 1}"
        assert (mine is None) == (other is None), what
        if mine is not None:
            assert mine.dtype == other.dtype, what
            assert i == 0 or mine.dtype == arrays[i - 1].dtype, what
            assert_close(mine, other, what)


def check_derivatives(name, arrays, params):
    """Check first and second derivatives with finite differences, in float64."""
    op = fused.registry.get(name)
    floats = [a is not None and a.dtype.kind == "f" for a in arrays]
    fixed = [None if a is None else gf.tensor(a) for a in arrays]

    def function(*inputs):
        given = iter(inputs)
        args = [next(given) if is_float else t for is_float, t in zip(floats, fixed, strict=True)]
        return op(*args, **params)

    inputs = [t.requires_grad_() for is_float, t in zip(floats, fixed, strict=True) if is_float]
    gf.gradcheck(function, inputs)
    assert fused.last_kernel(name) != "reference"
    gf.gradgradcheck(function, inputs)
