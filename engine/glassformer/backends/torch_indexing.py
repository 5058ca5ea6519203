"""Indexing of torch tensors with NumPy's semantics, and its transposes, deterministic everywhere.

PyTorch has no slices with negative steps, checks no index on a GPU, and adds to places that are
named twice with atomic operations, in an order that changes from run to run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import EllipsisType
from typing import Any

import numpy as np
import torch

Array = Any


def getitem(x: Array, index: Any) -> Array:
    """Return `x[index]`, NumPy's basic and advanced indexing; a view where no step is negative.

    Raises:
        IndexError: an index is out of range.
    """
    parts, flipped = _plain(x, index)
    return (x.flip(flipped) if flipped else x)[parts]


def assign(x: Array, index: Any, value: Any) -> None:
    """Write `value`, an array or a number, into `x[index]`.

    Raises:
        IndexError: an index is out of range.
    """
    parts, flipped = _plain(x, index)
    if flipped:
        positions = getitem(_numbered(x.shape, x.device), index)
        parts = torch.unravel_index(positions, x.shape)
    x[parts] = value.to(x.dtype) if isinstance(value, torch.Tensor) else value


def index_put_add(shape: Sequence[int], index: Any, values: Array) -> Array:
    """Return zeros of `shape` with `values` added at `index`: the transpose of `getitem`."""
    parts = index if isinstance(index, tuple) else (index,)
    if all(_is_basic(part) for part in parts):
        out = torch.zeros(tuple(shape), dtype=values.dtype, device=values.device)
        assign(out, index, values)  # names no place twice
        return out
    positions = getitem(_numbered(shape, values.device), index)
    return _summed(math.prod(shape), positions, values.broadcast_to(positions.shape)).view(
        tuple(shape)
    )


def take(x: Array, index: Array, axis: int) -> Array:
    """Return the slices of `x` along `axis` that the integer array `index` names."""
    shape = x.shape[:axis] + index.shape + x.shape[axis + 1 :]
    return torch.index_select(x, axis, index.reshape(-1)).view(shape)


def take_add(shape: Sequence[int], index: Array, values: Array, axis: int) -> Array:
    """Return zeros of `shape` with slices added where `index` names them: transpose of `take`."""
    shape = tuple(shape)
    rows = values.reshape(*shape[:axis], index.numel(), *shape[axis + 1 :]).movedim(axis, 0)
    tail = rows.shape[1:]
    total = _summed(shape[axis], index.reshape(-1), rows.reshape(index.numel(), math.prod(tail)))
    return total.view(shape[axis], *tail).movedim(0, axis).contiguous()


def gather(x: Array, axis: int, index: Array) -> Array:
    """Return `out[i, j, k] = x[i, index[i, j, k], k]` (for axis 1)."""
    return torch.gather(x, axis, index.long())


def scatter_add(x: Array, axis: int, index: Array, values: Array) -> Array:
    """Return a copy of `x` with `out[i, index[i, j, k], k] += values[i, j, k]` (for axis 1)."""
    corner = tuple(slice(n) for n in index.shape)
    places = _numbered(x.shape, x.device)[tuple(slice(n) for n in _but(index.shape, axis, None))]
    positions = torch.gather(places, axis, index.long())
    return _summed(x.numel(), positions, values[corner], x).view(x.shape)


def argsort(x: Array, axis: int, descending: bool) -> Array:
    """Return the indices that sort `x` along `axis`, stable in both directions."""
    x = x.to(torch.uint8) if x.dtype is torch.bool else x
    return torch.sort(x, dim=axis, descending=descending, stable=True).indices


def pad(x: Array, widths: Sequence[tuple[int, int]], value: Any) -> Array:
    """Surround `x` with `value`: (before, after) elements on each axis."""
    sizes = list(zip(x.shape, widths, strict=True))
    out = x.new_full([n + before + after for n, (before, after) in sizes], value)
    out[tuple(slice(before, before + n) for n, (before, _) in sizes)] = x
    return out


def windows(
    x: Array, size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> Array:
    """Return every (kh, kw) window of images: (N, C, H, W) -> (N, C, oh, ow, kh, kw)."""
    rows, columns = (d * (k - 1) + 1 for k, d in zip(size, dilation, strict=True))
    view = x.unfold(2, rows, stride[0]).unfold(3, columns, stride[1])
    return view[..., :: dilation[0], :: dilation[1]]


def windows_add(
    shape: Sequence[int], g: Array, stride: tuple[int, int], dilation: tuple[int, int]
) -> Array:
    """Return images with every window's values added in place: the transpose of `windows`."""
    wide = torch.float32 if g.dtype.itemsize == 2 else g.dtype
    out = torch.zeros(tuple(shape), dtype=wide, device=g.device)
    oh, ow, kh, kw = g.shape[2:]
    for i in range(kh):
        for j in range(kw):
            top, left = i * dilation[0], j * dilation[1]
            rows = slice(top, top + (oh - 1) * stride[0] + 1, stride[0])
            columns = slice(left, left + (ow - 1) * stride[1] + 1, stride[1])
            out[:, :, rows, columns] += g[..., i, j]
    return out.to(g.dtype)


def _but(shape: Sequence[int], axis: int, n: Any) -> list[Any]:
    return [n if i == axis else m for i, m in enumerate(shape)]


def _is_basic(part: Any) -> bool:
    return part is None or isinstance(part, int | slice | EllipsisType)


def _numbered(shape: Sequence[int], device: Any) -> Array:
    """0, 1, 2 … in the order of memory."""
    return torch.arange(math.prod(shape), device=device).view(tuple(shape))


def _plain(x: Array, index: Any) -> tuple[tuple[Any, ...], list[int]]:
    """Return an index without negative steps, and the axes of `x` to be reversed before it."""
    parts = list(index if isinstance(index, tuple) else (index,))
    used = sum(_axes_of(part) for part in parts)
    if used > x.ndim:
        raise IndexError(f"too many indices: {used} for {x.ndim} dimensions")
    flipped: list[int] = []
    axis = 0
    for i, part in enumerate(parts):
        if part is Ellipsis:
            axis += x.ndim - used
            continue
        if isinstance(part, slice) and part.step is not None and part.step < 0:
            n = x.shape[axis]
            covered = range(*part.indices(n))
            start = n - 1 - covered.start if covered else 0
            parts[i] = slice(start, start + (len(covered) - 1) * -covered.step + 1, -covered.step)
            if not covered:
                parts[i] = slice(0, 0)
            flipped.append(axis)
        elif not _is_basic(part):
            parts[i] = _checked(part, x, axis)
        axis += _axes_of(part)
    return tuple(parts), flipped


def _axes_of(part: Any) -> int:
    if part is None or part is Ellipsis:
        return 0
    return part.ndim if not _is_basic(part) and part.dtype in (np.bool_, torch.bool) else 1


def _checked(part: Any, x: Array, axis: int) -> Array:
    """Return an index array on the device of `x`, after a look at its range."""
    array = (
        part if isinstance(part, torch.Tensor) else torch.from_numpy(np.asarray(part, order="C"))
    )
    if array.dtype is torch.bool:
        if array.shape != x.shape[axis : axis + array.ndim]:
            raise IndexError(
                f"a mask of shape {tuple(array.shape)} does not match the indexed dimensions "
                f"{tuple(x.shape[axis : axis + array.ndim])}"
            )
        return array.to(x.device)
    n = x.shape[axis]
    if array.numel() and (array.min() < -n or array.max() >= n):
        wrong = array[(array < -n) | (array >= n)].reshape(-1)[0]
        raise IndexError(f"index {int(wrong)} is out of bounds for dimension {axis} of size {n}")
    return array.to(x.device, torch.int64)


_SUMMED_IN = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.bool: torch.int32,
}


def _summed(size: int, positions: Array, values: Array, start: Array | None = None) -> Array:
    """Return `size` sums (or rows of them): of `values` at their `positions`, and of `start`.

    On a GPU `index_put_` sorts by position and sums in that order; on the CPU it is `index_add_`
    whose order is fixed. Half precision is summed in float32.
    """
    wide = _SUMMED_IN.get(values.dtype, values.dtype)
    flat = positions.reshape(-1).long()
    rows = values.reshape(flat.numel(), *values.shape[positions.ndim :]).to(wide)
    if start is None:
        out = torch.zeros((size, *rows.shape[1:]), dtype=wide, device=values.device)
    else:
        out = start.reshape(-1).to(wide, copy=True)
    if out.is_cuda:
        out.index_put_((flat,), rows, accumulate=True)
    else:
        out.index_add_(0, flat, rows)
    return out.to(values.dtype)
