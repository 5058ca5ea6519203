"""Reading and writing elements by index, each operation beside its derivative."""

from __future__ import annotations

from types import EllipsisType
from typing import Any, NamedTuple

import numpy as np

from glassformer.dtypes import bool_, int64
from glassformer.graph import Like, wants_grad
from glassformer.primitive import Primitive
from glassformer.tensor import Tensor


def _dim(x: Tensor | Like, dim: int) -> int:
    if not -max(x.ndim, 1) <= dim < max(x.ndim, 1):
        raise IndexError(f"dim {dim} is out of range for a tensor of shape {x.shape}")
    return dim % x.ndim if x.ndim else 0


def _require_integers(name: str, index: Tensor) -> None:
    if index.dtype.category != "int":
        raise TypeError(f"{name} takes integer indices, got {index.dtype}; call .long() first")


def check_range(name: str, index: Any, limit: int) -> None:
    """Check that every element of an index array lies in [0, limit).

    Raises:
        IndexError: with the first offending value and the limit.
    """
    if 0 not in index.shape and (index.min() < 0 or index.max() >= limit):
        wrong = index[(index < 0) | (index >= limit)].reshape(-1)[0]
        raise IndexError(f"{name}: index {int(wrong)} is out of range, the limit is {limit}")


# ---- x[index] -----------------------------------------------------------------------------------

_getitem = Primitive("getitem", lambda xp, x, index: xp.getitem(x, index), view=True)
_getitem.defvjp(lambda g, _out, _x, index: _index_put_add(g, shape=_x.shape, index=index))

_index_put_add: Primitive = Primitive(
    "index_put_add", lambda xp, values, shape, index: xp.index_put_add(shape, index, values)
)
_index_put_add.defvjp(lambda g, _out, _values, shape, index: _getitem(g, index=index))


def getitem(x: Tensor, index: Any) -> Tensor:
    """Return `x[index]`: slices, integers, `...`, None, integer and bool tensors, lists.

    Slices give views; integer and bool tensors give copies, and repeated indices add up in the
    gradient.

    Raises:
        IndexError: an index is out of range, or there are more than dimensions.
        TypeError: an index is a floating point tensor or something else.
    """
    shape = x.shape
    try:
        for step in _steps(index):
            x = _getitem(x, index=step)
    except IndexError as error:
        raise IndexError(f"{error} (indexing a tensor of shape {shape})") from None
    return x


def setitem(x: Tensor, index: Any, value: Any) -> None:
    """Write `value`, a number or a tensor that broadcasts, into `x[index]`, in place; not recorded.

    Raises:
        IndexError, TypeError: as `getitem`.
        RuntimeError: a gradient would have to flow.
    """
    *first, last = _steps(index)
    array, backend = x.change("assignment", value), x.device.backend
    if isinstance(value, Tensor):
        value = value.detach().to(device=x.device).array
    try:
        with backend.quiet():
            for step in first:
                array = backend.getitem(array, step)
            backend.assign(array, last, value)
    except IndexError as error:
        raise IndexError(f"{error} (indexing a tensor of shape {x.shape})") from None


def _steps(index: Any) -> tuple[tuple[Any, ...], ...]:
    """Return what to index by, and what to index the result by, if both must be told apart.

    NumPy counts integers among the arrays, and moves the arrays' dimensions to the front when
    there is a slice between them. In PyTorch integers are like slices: here, they are taken first.
    """
    parts = tuple(map(_index_part, index if isinstance(index, tuple) else (index,)))
    kinds = [type(part) for part in parts]
    if int not in kinds or np.ndarray not in kinds:
        return (parts,)
    before: list[Any] = []
    after: list[Any] = []
    for part in parts:
        if isinstance(part, np.ndarray):
            before += [slice(None)] * (part.ndim if part.dtype == bool else 1)
            after.append(part)
        else:
            before.append(part)
            if not isinstance(part, int):
                after.append(part if part is Ellipsis else slice(None))
    return tuple(before), tuple(after)


def _index_part(part: Any) -> Any:
    """Return an int, slice, None, Ellipsis, or an array of its own: backward will read it again."""
    if isinstance(part, Tensor):
        if part.dtype.is_floating_point:
            raise TypeError(f"tensors used as indices must be int or bool, not {part.dtype}")
        single = part.ndim == 0 and part.dtype is not bool_
        return int(part.array) if single else part.detach().clone().cpu().numpy()
    if part is None or isinstance(part, slice | EllipsisType):
        return part
    if isinstance(part, int | np.integer) and not isinstance(part, bool):
        return int(part)
    if isinstance(part, bool | list | np.ndarray | range):
        array = np.array(part)
        if array.dtype.kind in "iub":
            return array
        if array.size == 0:
            return array.astype(np.int64)
    raise TypeError(f"a tensor can't be indexed with {part!r}")


# ---- along one dimension ------------------------------------------------------------------------

_take = Primitive("take", lambda xp, x, index, dim: xp.take(x, index, dim))
_take.defvjp(lambda g, _out, _x, index, dim: _take_add(g, index, shape=_x.shape, dim=dim))

_take_add: Primitive = Primitive(
    "take_add", lambda xp, values, index, shape, dim: xp.take_add(shape, index, values, dim)
)
_take_add.defvjp(lambda g, _out, _values, index, shape, dim: _take(g, index, dim=dim))

_gather = Primitive("gather", lambda xp, x, index, dim: xp.gather(x, dim, index))
_gather.defvjp(lambda g, _out, _x, index, dim: _scatter_add(_zeros(_x), index, g, dim=dim))

_scatter_add: Primitive = Primitive(
    "scatter_add", lambda xp, x, index, source, dim: xp.scatter_add(x, dim, index, source)
)
_scatter_add.defvjp(
    lambda g, _out, _x, _index, _source, dim: g,
    None,
    lambda g, _out, _x, index, _source, dim: _embed(_gather(g, index, dim=dim), _source.shape),
)


def _zeros(like: Any) -> Tensor:
    return Tensor(like.device.backend.zeros(like.shape, like.dtype), like.device)


def _embed(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Put `values` in the corner of zeros of `shape`."""
    if values.shape == shape:
        return values
    return _index_put_add(values, shape=shape, index=tuple(slice(n) for n in values.shape))


def _check_gather(name: str, x: Tensor, dim: int, index: Tensor) -> tuple[Tensor, Tensor, int]:
    _require_integers(name, index)
    if x.ndim == 0 or index.ndim == 0:  # PyTorch treats 0-d as one element
        x = x.reshape(1) if x.ndim == 0 else x
        index = index.reshape(1) if index.ndim == 0 else index
    axis = _dim(x, dim)
    fits = index.ndim == x.ndim and all(
        i == axis or n <= m for i, (n, m) in enumerate(zip(index.shape, x.shape, strict=False))
    )
    if not fits:
        raise ValueError(
            f"{name} along dim {dim}: index of shape {index.shape} doesn't fit {x.shape}; it needs "
            "as many dimensions, none longer except along dim"
        )
    check_range(name, index.array, x.shape[axis])
    return x, index, axis


def gather(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """Return `out[i][j][k] = x[i][index[i][j][k]][k]` (for dim 1).

    Raises:
        IndexError: an index is out of range.
        TypeError: `index` is not of integers.
        ValueError: its shape doesn't fit.
    """
    shape = index.shape
    x, index, axis = _check_gather("gather", x, dim, index)
    out: Tensor = _gather(x, index, dim=axis)
    return out if out.shape == shape else out.reshape(shape)


def scatter_add(x: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """Return `x` with `out[i][index[i][j][k]][k] += src[i][j][k]` (for dim 1); duplicates add up.

    Raises:
        IndexError, TypeError, ValueError: as `gather`; or `src` is smaller than `index`, or of
            another dtype than `x`.
    """
    shape = x.shape
    x, index, axis = _check_gather("scatter_add", x, dim, index)
    src = src.reshape(1) if src.ndim == 0 else src
    if src.dtype is not x.dtype:
        raise TypeError(f"scatter_add of {src.dtype} into {x.dtype}; the dtypes must match")
    if src.ndim != index.ndim or any(n > m for n, m in zip(index.shape, src.shape, strict=True)):
        raise ValueError(f"scatter_add: index {index.shape} is larger than src {src.shape}")
    return _scatter_add(x, index, src, dim=axis).reshape(shape)


def index_select(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """Return the slices of `x` along `dim` that the 1-d integer tensor `index` names.

    Raises:
        IndexError: an index is out of range.
    """
    _require_integers("index_select", index)
    if index.ndim > 1:
        raise ValueError(f"index_select takes a 1-d index, got shape {index.shape}")
    if x.ndim == 0:
        return index_select(x.reshape(1), dim, index).reshape(())
    axis = _dim(x, dim)
    check_range("index_select", index.array, x.shape[axis])
    return _take(x, index.reshape(-1), dim=axis)


def take_along_dim(x: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """Return elements of `x` at `indices` along `dim`, other dimensions broadcast together.

    Without `dim` both are flattened first.

    Raises:
        ValueError: they differ in their number of dimensions, or don't broadcast.
    """
    if dim is None:
        return gather(x.reshape(-1), 0, indices.reshape(-1))
    if x.ndim != indices.ndim:
        raise ValueError(
            f"take_along_dim needs as many dimensions in both: {x.shape}, {indices.shape}"
        )
    axis = _dim(x, dim)

    def without(shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[:axis] + shape[axis + 1 :]

    common = np.broadcast_shapes(without(x.shape), without(indices.shape))
    x = x.expand(*common[:axis], x.shape[axis], *common[axis:])
    indices = indices.expand(*common[:axis], indices.shape[axis], *common[axis:])
    return gather(x, axis, indices)


def embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """Look up rows: input (...) of integers, weight (V, C) -> (..., C).

    The row `padding_idx` gets no gradient.

    Raises:
        IndexError: an id is negative or not below V.
    """
    _require_integers("embedding", input)
    if weight.ndim != 2:
        raise ValueError(f"embedding takes a weight (V, C), got shape {weight.shape}")
    check_range("embedding", input.array, weight.shape[0])
    out: Tensor = _take(weight, input, dim=0)
    if padding_idx is None or not wants_grad((weight,)):
        return out
    real = (input != padding_idx % weight.shape[0]).unsqueeze(-1)
    rows: Tensor = out.where(real, out.detach())
    return rows


def one_hot(x: Tensor, num_classes: int = -1) -> Tensor:
    """Return int64 vectors with a 1 at each element of `x`: (...) -> (..., num_classes).

    Raises:
        IndexError: a class is negative or not below `num_classes`.
    """
    _require_integers("one_hot", x)
    if num_classes == -1:
        if x.numel() == 0:
            raise ValueError("one_hot of an empty tensor needs num_classes")
        num_classes = int(x.array.max()) + 1
    check_range("one_hot", x.array, num_classes)
    classes = Tensor(np.arange(num_classes), x.device)
    return (x.unsqueeze(-1) == classes).to(int64)


# ---- order --------------------------------------------------------------------------------------

_argsort = Primitive("argsort", lambda xp, x, dim, descending: xp.argsort(x, dim, descending))


class Sorted(NamedTuple):
    """What `sort` and `topk` return."""

    values: Tensor
    indices: Tensor


def argsort(x: Tensor, dim: int = -1, descending: bool = False) -> Tensor:
    """Return the indices that sort `x` along `dim`; stable, NaN counts as largest."""
    if x.ndim == 0:
        return argsort(x.reshape(1), dim, descending).reshape(())
    return _argsort(x, dim=_dim(x, dim), descending=descending)


def sort(x: Tensor, dim: int = -1, descending: bool = False) -> Sorted:
    """Return (values, indices) sorted along `dim`; stable, NaN counts as largest."""
    indices = argsort(x, dim, descending)
    return Sorted(gather(x, dim, indices), indices)


def topk(x: Tensor, k: int, dim: int = -1, largest: bool = True) -> Sorted:
    """Return the `k` largest (or smallest) elements along `dim`, in order, and their indices.

    Raises:
        ValueError: there are fewer than `k`.
    """
    axis = _dim(x, dim)
    if k < 0 or k > (x.shape[axis] if x.ndim else 1):
        raise ValueError(f"topk: k = {k} is out of range for dim {dim} of shape {x.shape}")
    indices = argsort(x, dim, descending=largest)
    indices = indices[(slice(None),) * axis + (slice(k),)] if x.ndim else indices
    return Sorted(gather(x, dim, indices), indices)
