"""The CPU backend: array functions over `numpy.ndarray`.

Large results are written into reused memory (`memory.empty`), because a fresh large array costs
more in page faults than most operations cost in arithmetic.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy import (  # noqa: F401 - re-exported: these have the backend's semantics as they are
    broadcast_to,
    ceil,
    cos,
    equal,
    flip,
    floor,
    floor_divide,
    greater,
    greater_equal,
    isfinite,
    isinf,
    isnan,
    less,
    less_equal,
    logical_and,
    logical_not,
    logical_or,
    not_equal,
    power,
    remainder,
    roll,
    sign,
    sin,
    transpose,
    tril,
    triu,
    where,
)

from glassformer.backends import half, memory
from glassformer.backends.erf import erf  # noqa: F401
from glassformer.backends.products import matmul  # noqa: F401
from glassformer.dtypes import (
    BFLOAT16_STORAGE,
    FROM_NUMPY,
    DType,
    as_dtype,
    bfloat16,
    float32,
)

Array = Any
Axis = int | tuple[int, ...] | None

_REUSE_FROM = 16384  # elements: from here on an output buffer is worth asking for


def _binary(ufunc: np.ufunc) -> Callable[[Array, Array], Array]:
    def call(x: Array, y: Array) -> Array:
        large = x if isinstance(x, np.ndarray) and x.size >= _REUSE_FROM else y
        if isinstance(large, np.ndarray) and large.size >= _REUSE_FROM:
            other = y if large is x else x
            if isinstance(other, float | int) or (
                other.dtype == large.dtype and other.shape == large.shape
            ):
                return ufunc(x, y, out=memory.empty(large.shape, large.dtype))
        return ufunc(x, y)

    return call


def _unary(ufunc: np.ufunc) -> Callable[[Array], Array]:
    def call(x: Array) -> Array:
        if x.size >= _REUSE_FROM:
            return ufunc(x, out=memory.empty(x.shape, x.dtype))
        return ufunc(x)

    return call


add, subtract, multiply = _binary(np.add), _binary(np.subtract), _binary(np.multiply)
maximum, minimum = _binary(np.maximum), _binary(np.minimum)
negative, abs = _unary(np.negative), _unary(np.abs)
exp, log, sqrt, tanh = _unary(np.exp), _unary(np.log), _unary(np.sqrt), _unary(np.tanh)
divide = np.divide


def round(x: Array) -> Array:
    """Round to the nearest integer, halves to even; integers stay integers."""
    return np.rint(x) if x.dtype.kind == "f" else x.copy()


def asarray(data: Any, dtype: DType | None = None) -> Array:
    """Return `data` as an array, without a copy where it is one already."""
    if dtype is None:
        return np.asarray(data)
    with quiet():
        return np.asarray(data, dtype=dtype.numpy)


def is_array(data: Any) -> bool:
    """Tell whether `data` is this backend's kind of array."""
    return isinstance(data, np.ndarray)


def to_numpy(x: Array) -> Array:
    """Return the same memory as a `numpy.ndarray`."""
    return x


def dtype_of(x: Array) -> DType:
    """Return the element type of an array."""
    return FROM_NUMPY.get(x.dtype) or as_dtype(x.dtype)


def astype(x: Array, dtype: DType) -> Array:
    """Convert to `dtype` (always a new array)."""
    if x.dtype == BFLOAT16_STORAGE and dtype is bfloat16:
        return x.copy()
    if half.is_half(x.dtype) and x.dtype != dtype.numpy:
        x = half.widened(x)
        return x if dtype is float32 else x.astype(dtype.numpy)
    return x.astype(dtype.numpy)


def copy(x: Array) -> Array:
    """Return a C-contiguous copy."""
    out = memory.empty(x.shape, x.dtype)
    np.copyto(out, x)
    return out


def owner(x: Array) -> int:
    """Return an identity shared by all arrays that view the same memory."""
    while (base := getattr(x, "base", None)) is not None:  # not all are arrays
        x = base
    return id(x)


def is_contiguous(x: Array) -> bool:
    """Tell whether elements lie in memory in row-major order."""
    return bool(x.flags.c_contiguous)


def quiet() -> AbstractContextManager[Any]:
    """Silence floating-point warnings: infinities and NaNs are values, as in PyTorch."""
    return np.errstate(all="ignore")


def empty(shape: Sequence[int], dtype: DType) -> Array:
    """Return an array with arbitrary contents."""
    return memory.empty(tuple(shape), dtype.numpy)


def zeros(shape: Sequence[int], dtype: DType) -> Array:
    """Return an array of zeros."""
    return full(shape, 0, dtype)


def full(shape: Sequence[int], value: Any, dtype: DType) -> Array:
    """Return an array filled with `value`."""
    out = memory.empty(tuple(shape), dtype.numpy)
    with quiet():
        out.fill(value)
    return out


def reshape(x: Array, shape: Sequence[int]) -> Array:
    """Return `x` with another shape: a view where strides allow, else a copy."""
    return x.reshape(shape)


def concatenate(arrays: Sequence[Array], axis: int) -> Array:
    """Join arrays of one dtype along `axis`."""
    shape = list(arrays[0].shape)
    shape[axis] = 0
    for array in arrays:
        shape[axis] += array.shape[axis]
    return np.concatenate(arrays, axis=axis, out=memory.empty(tuple(shape), arrays[0].dtype))


def pad(x: Array, widths: Sequence[tuple[int, int]], value: Any) -> Array:
    """Surround `x` with `value`: (before, after) elements on each axis."""
    shape = tuple(n + before + after for n, (before, after) in zip(x.shape, widths, strict=True))
    out = memory.empty(shape, x.dtype)
    out.fill(value)
    inside = (slice(before, before + n) for n, (before, _) in zip(x.shape, widths, strict=True))
    out[tuple(inside)] = x
    return out


# In place


def update(operation: str, x: Array, y: Any) -> None:
    """Set x to operation(x, y), "add", "subtract", "maximum" and so on, in the dtype of x."""
    getattr(np, operation)(x, y, out=x, casting="same_kind")


def assign(x: Array, index: Any, value: Any) -> None:
    """Write `value`, an array or a number, into `x[index]`."""
    x[index] = value


def fill_where(x: Array, mask: Array, value: Any) -> None:
    """Write a number into `x` where `mask` is true."""
    np.copyto(x, value, where=mask)


# Reductions. Half precision is summed in float32 and rounded once.


def sum(x: Array, axis: Axis, keepdims: bool) -> Array:
    """Sum over `axis`."""
    if x.dtype == np.float16:
        return np.sum(x, axis=axis, keepdims=keepdims, dtype=np.float32).astype(np.float16)
    return np.sum(x, axis=axis, keepdims=keepdims)


def max(x: Array, axis: Axis, keepdims: bool) -> Array:
    """Return the largest elements over `axis`; NaN wins."""
    return np.max(x, axis=axis, keepdims=keepdims)


def min(x: Array, axis: Axis, keepdims: bool) -> Array:
    """Return the smallest elements over `axis`; NaN wins."""
    return np.min(x, axis=axis, keepdims=keepdims)


def any(x: Array, axis: Axis, keepdims: bool) -> Array:
    """Tell whether any element over `axis` is true."""
    return np.any(x, axis=axis, keepdims=keepdims)


def all(x: Array, axis: Axis, keepdims: bool) -> Array:
    """Tell whether all elements over `axis` are true."""
    return np.all(x, axis=axis, keepdims=keepdims)


def argmax(x: Array, axis: int | None, keepdims: bool) -> Array:
    """Return the index of the (first) largest element over `axis`."""
    return np.argmax(x, axis=axis, keepdims=keepdims)


def argmin(x: Array, axis: int | None, keepdims: bool) -> Array:
    """Return the index of the (first) smallest element over `axis`."""
    return np.argmin(x, axis=axis, keepdims=keepdims)


def cumsum(x: Array, axis: int) -> Array:
    """Return running sums along `axis`."""
    if x.dtype == np.float16:
        return np.cumsum(x, axis=axis, dtype=np.float32).astype(np.float16)
    return np.cumsum(x, axis=axis)


def square_sum(x: Array) -> float:
    """Return Σ x² over all elements; half precision in float32."""
    flat = x.reshape(-1)
    if flat.dtype == np.float16:  # the squares would overflow from 256 on
        flat = flat.astype(np.float32)
    return float(np.dot(flat, flat))


# Indexing


def getitem(x: Array, index: Any) -> Array:
    """Return `x[index]`, NumPy's basic and advanced indexing."""
    return x[index]


def index_put_add(shape: Sequence[int], index: Any, values: Array) -> Array:
    """Return zeros of `shape` with `values` added at `index`: the transpose of `getitem`."""
    out = np.zeros(shape, values.dtype)
    parts = index if isinstance(index, tuple) else (index,)
    if builtins.any(isinstance(part, np.ndarray) and part.dtype != bool for part in parts):
        np.add.at(out, index, values)  # integer arrays may name an element twice
    else:
        out[index] = values
    return out


def take(x: Array, index: Array, axis: int) -> Array:
    """Return the slices of `x` along `axis` that the integer array `index` names."""
    shape = x.shape[:axis] + index.shape + x.shape[axis + 1 :]
    # mode="clip" writes straight into out; callers have checked the range
    return np.take(x, index, axis=axis, out=memory.empty(shape, x.dtype), mode="clip")


def take_add(shape: Sequence[int], index: Array, values: Array, axis: int) -> Array:
    """Return zeros of `shape` with slices added where `index` names them: transpose of `take`.

    Sorted by index and summed run by run: deterministic, and much faster than `np.add.at`.
    """
    out = zeros(shape, dtype_of(values))
    if index.size == 0 or out.size == 0:
        return out
    tail = out.shape[axis + 1 :]
    values = values.reshape(*out.shape[:axis], index.size, *tail)
    flat = index.reshape(-1)
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    wide = np.float32 if values.dtype == np.float16 else values.dtype
    sums = np.add.reduceat(np.take(values, order, axis=axis), starts, axis=axis, dtype=wide)
    out[(slice(None),) * axis + (ordered[starts],)] = sums
    return out


def _along(index: Array, axis: int) -> tuple[Array, ...]:
    """Index every axis by position, except `axis` by `index`."""
    grid: list[Array] = list(np.ogrid[tuple(slice(n) for n in index.shape)])
    grid[axis] = index
    return tuple(grid)


def gather(x: Array, axis: int, index: Array) -> Array:
    """Return `out[i, j, k] = x[i, index[i, j, k], k]` (for axis 1)."""
    return x[_along(index, axis)]


def scatter_add(x: Array, axis: int, index: Array, values: Array) -> Array:
    """Return a copy of `x` with `out[i, index[i, j, k], k] += values[i, j, k]` (for axis 1)."""
    out = x.copy()
    np.add.at(out, _along(index, axis), values[tuple(slice(n) for n in index.shape)])
    return out


def argsort(x: Array, axis: int, descending: bool) -> Array:
    """Return the indices that sort `x` along `axis`, stable in both directions."""
    if not descending:
        return np.argsort(x, axis=axis, kind="stable")
    reversed_order = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
    return x.shape[axis] - 1 - np.flip(reversed_order, axis)


# Products


def einsum(equation: str, *operands: Array) -> Array:
    """Return the Einstein sum; half precision in float32."""
    if operands[0].dtype == np.float16:
        wide = [operand.astype(np.float32) for operand in operands]
        return np.einsum(equation, *wide, optimize=True).astype(np.float16)
    out = np.einsum(equation, *operands, optimize=True)
    return out.copy() if owner(out) == owner(operands[0]) else out  # "ij->ji" gives a view


def windows(
    x: Array, size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> Array:
    """Return every (kh, kw) window of images: x (N, C, H, W) -> (N, C, oh, ow, kh, kw), a view."""
    span = [d * (k - 1) + 1 for k, d in zip(size, dilation, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(x, span, axis=(-2, -1))
    return view[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def windows_add(
    shape: Sequence[int], g: Array, stride: tuple[int, int], dilation: tuple[int, int]
) -> Array:
    """Return images with every window's values added in place: the transpose of `windows`."""
    out = np.zeros(shape, g.dtype)
    oh, ow, kh, kw = g.shape[2:]
    for i in range(kh):
        for j in range(kw):
            top, left = i * dilation[0], j * dilation[1]
            rows = slice(top, top + (oh - 1) * stride[0] + 1, stride[0])
            columns = slice(left, left + (ow - 1) * stride[1] + 1, stride[1])
            out[:, :, rows, columns] += g[..., i, j]
    return out
