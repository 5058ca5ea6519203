"""Operations that rearrange elements, each beside its derivative. Most results are views."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from glassformer.autograd import unbroadcast
from glassformer.dtypes import result_type
from glassformer.graph import Like
from glassformer.ops import conversion
from glassformer.primitive import Primitive
from glassformer.tensor import Tensor


def _dim(x: Tensor | Like, dim: int, extra: int = 0) -> int:
    """Return `dim` as a non-negative axis of `x` (with `extra` axes added)."""
    ndim = x.ndim + extra
    if not -max(ndim, 1) <= dim < max(ndim, 1):
        raise IndexError(f"dim {dim} is out of range for a tensor of shape {x.shape}")
    return dim % ndim if ndim else 0


def _sizes(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """Accept both `f(x, 2, 3)` and `f(x, (2, 3))`."""
    if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
        sizes = tuple(sizes[0])
    return tuple(int(n) for n in sizes)


# ---- shape --------------------------------------------------------------------------------------

_reshape = Primitive("reshape", lambda xp, x, shape: xp.reshape(x, shape), view=True)
_reshape.defvjp(lambda g, _out, _x, shape: reshape(g, _x.shape))


def _resolved(x: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    count = x.numel()
    known = math.prod(n for n in shape if n != -1)
    if shape.count(-1) == 1 and known and count % known == 0:
        shape = tuple(count // known if n == -1 else n for n in shape)
    if -1 in shape or math.prod(shape) != count:
        raise ValueError(f"a tensor of shape {x.shape} ({count} elements) can't have shape {shape}")
    return shape


def reshape(x: Tensor, *shape: Any) -> Tensor:
    """Return the same elements in another shape (-1: what is left); a view where strides allow.

    Raises:
        ValueError: the shapes hold different numbers of elements.
    """
    sizes = _resolved(x, _sizes(shape))
    return _reshape(x, shape=sizes)


def view(x: Tensor, *shape: Any) -> Tensor:
    """Return the same memory in another shape; see `reshape`.

    Raises:
        ValueError: that takes a copy.
    """
    out = reshape(x, *shape)
    owner = x.device.backend.owner
    if x.numel() and owner(out.array) != owner(x.array):
        raise ValueError(
            f"a tensor of shape {x.shape} can't be viewed as {out.shape} without a copy, because "
            "its elements are not in order in memory; use reshape()"
        )
    return out


def flatten(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Return `x` with the dimensions from `start_dim` to `end_dim` joined into one."""
    if x.ndim == 0:
        return reshape(x, 1)
    start, end = _dim(x, start_dim), _dim(x, end_dim)
    joined = math.prod(x.shape[start : end + 1])
    return reshape(x, *x.shape[:start], joined, *x.shape[end + 1 :])


def unflatten(x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Return `x` with dimension `dim` split into `sizes` (one of them may be -1).

    Raises:
        ValueError: the product of the sizes is not the length of `dim`.
    """
    axis = _dim(x, dim)
    known = math.prod(n for n in sizes if n != -1)
    if -1 in sizes and known:
        sizes = [x.shape[axis] // known if n == -1 else n for n in sizes]
    if math.prod(sizes) != x.shape[axis]:
        raise ValueError(
            f"dim {dim} of shape {x.shape} has {x.shape[axis]} elements, not {tuple(sizes)}"
        )
    return reshape(x, *x.shape[:axis], *sizes, *x.shape[axis + 1 :])


def squeeze(x: Tensor, dim: Any = None) -> Tensor:
    """Remove dimensions of length 1: all, or those in `dim` (others there are left alone)."""
    dims = range(x.ndim) if dim is None else dim if isinstance(dim, list | tuple) else (dim,)
    axes = {_dim(x, d) for d in dims}
    return reshape(x, tuple(n for i, n in enumerate(x.shape) if n != 1 or i not in axes))


def unsqueeze(x: Tensor, dim: int) -> Tensor:
    """Insert a dimension of length 1 at `dim`."""
    axis = _dim(x, dim, extra=1)
    return reshape(x, (*x.shape[:axis], 1, *x.shape[axis:]))


def contiguous(x: Tensor) -> Tensor:
    """Return `x` itself if its elements lie in row-major order, else a copy that does."""
    return x if x.is_contiguous() else conversion.clone(x)


# ---- order of dimensions ------------------------------------------------------------------------

_permute = Primitive("permute", lambda xp, x, dims: xp.transpose(x, dims), view=True)
_permute.defvjp(lambda g, _out, _x, dims: permute(g, *(dims.index(i) for i in range(len(dims)))))


def permute(x: Tensor, *dims: Any) -> Tensor:
    """Return a view with dimension `dims[i]` in place i.

    Raises:
        ValueError: `dims` doesn't name every dimension once.
    """
    axes = tuple(_dim(x, d) for d in _sizes(dims))
    if sorted(axes) != list(range(x.ndim)):
        raise ValueError(f"permute needs each of the {x.ndim} dimensions of {x.shape} once: {dims}")
    return _permute(x, dims=axes)


def transpose(x: Tensor, dim0: int, dim1: int) -> Tensor:
    """Return a view with two dimensions exchanged."""
    axes = list(range(x.ndim))
    first, second = _dim(x, dim0), _dim(x, dim1)
    if axes:
        axes[first], axes[second] = second, first
    return _permute(x, dims=tuple(axes))


def transpose_all(x: Tensor) -> Tensor:
    """Return a view with the dimensions in reverse order (`x.T`)."""
    return permute(x, *reversed(range(x.ndim)))


def transpose_last_two(x: Tensor) -> Tensor:
    """Return a view with the last two dimensions exchanged (`x.mT`)."""
    return transpose(x, -2, -1)


# ---- repetition ---------------------------------------------------------------------------------

_broadcast_to = Primitive("expand", lambda xp, x, shape: xp.broadcast_to(x, shape), view=True)
_broadcast_to.defvjp(lambda g, _out, _x, shape: unbroadcast(g, _x.shape))


def broadcast_to(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a view of `x` repeated to `shape` along dimensions of length 1 and new ones in front.

    Raises:
        ValueError: the shapes don't fit.
    """
    target = tuple(shape)
    padded = (1,) * (len(target) - x.ndim) + x.shape
    if len(padded) != len(target) or any(
        n not in (1, m) for n, m in zip(padded, target, strict=True)
    ):
        raise ValueError(f"a tensor of shape {x.shape} can't be broadcast to {target}")
    return x if target == x.shape else _broadcast_to(x, shape=target)


def expand(x: Tensor, *sizes: Any) -> Tensor:
    """Return a view repeated to `sizes` (-1: leave a dimension as it is); see `broadcast_to`."""
    target = _sizes(sizes)
    added = len(target) - x.ndim
    full = tuple(x.shape[i - added] if n == -1 and i >= added else n for i, n in enumerate(target))
    return broadcast_to(x, full)


# ---- joining and splitting ----------------------------------------------------------------------

_cat = Primitive("cat", lambda xp, *arrays, dim: xp.concatenate(arrays, dim))
_cat.defvjp_each(lambda i, g, _out, *_arrays, dim: _section(g, dim, i, _arrays))


def _section(g: Tensor, dim: int, i: int, likes: Sequence[Any]) -> Tensor:
    start = sum(like.shape[dim] for like in likes[:i])
    return g[(slice(None),) * dim + (slice(start, start + likes[i].shape[dim]),)]


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join tensors along an existing dimension.

    Raises:
        ValueError: there is none, or shapes differ elsewhere than along `dim`.
    """
    tensors = list(tensors)
    if not tensors:
        raise ValueError("cat needs at least one tensor")
    axis = _dim(tensors[0], dim)
    dtype = result_type(tensors)
    first = tensors[0].shape
    for t in tensors:
        if t.ndim == 0 or t.shape[:axis] + t.shape[axis + 1 :] != first[:axis] + first[axis + 1 :]:
            shapes = ", ".join(str(t.shape) for t in tensors)
            raise ValueError(f"cat along dim {dim} needs shapes equal elsewhere, got {shapes}")
    return _cat(*(conversion.to(t, dtype) for t in tensors), dim=axis)


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join tensors of one shape along a new dimension.

    Raises:
        ValueError: there is none, or shapes differ.
    """
    tensors = list(tensors)
    if not tensors:
        raise ValueError("stack needs at least one tensor")
    if any(t.shape != tensors[0].shape for t in tensors):
        shapes = ", ".join(str(t.shape) for t in tensors)
        raise ValueError(f"stack needs tensors of one shape, got {shapes}")
    axis = _dim(tensors[0], dim, extra=1)
    return cat([unsqueeze(t, axis) for t in tensors], axis)


def _split_views(xp: Any, x: Any, sizes: tuple[int, ...], dim: int) -> Any:
    views, start = [], 0
    for size in sizes:
        views.append(xp.getitem(x, (slice(None),) * dim + (slice(start, start + size),)))
        start += size
    return tuple(views)


_split = Primitive("split", _split_views, view=True)
_split.defvjp(lambda g, _out, _x, sizes, dim: cat(_as_tuple(g), dim))


def _as_tuple(g: Any) -> tuple[Tensor, ...]:
    return (g,) if isinstance(g, Tensor) else tuple(g)


def split(
    x: Tensor, split_size_or_sections: int | Sequence[int], dim: int = 0
) -> tuple[Tensor, ...]:
    """Return views along `dim`: of one size (the last may be smaller), or of the sizes listed.

    Raises:
        ValueError: the sizes don't add up to the length of `dim`.
    """
    axis = _dim(x, dim)
    length = x.shape[axis]
    if isinstance(split_size_or_sections, int):
        size = split_size_or_sections
        if size <= 0:
            raise ValueError(f"split needs a positive size, got {size}")
        sizes = [size] * (length // size) + ([length % size] if length % size else [])
        sizes = sizes or [0]
    else:
        sizes = list(split_size_or_sections)
    if sum(sizes) != length:
        raise ValueError(f"split sizes {sizes} don't add up to {length}, dim {dim} of {x.shape}")
    return _as_tuple(_split(x, sizes=tuple(sizes), dim=axis))


def chunk(x: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """Return at most `chunks` views along `dim`, all of one size but the last.

    Raises:
        ValueError: `chunks` is not positive.
    """
    if chunks <= 0:
        raise ValueError(f"chunk needs a positive number of chunks, got {chunks}")
    length = x.shape[_dim(x, dim)]
    return split(x, -(-length // chunks) if length else [0] * chunks, dim)


def unbind(x: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """Return the slices along `dim`, as views without it.

    Raises:
        ValueError: `x` has no dimensions.
    """
    if x.ndim == 0:
        raise ValueError("unbind (iteration) over a 0-d tensor")
    axis = _dim(x, dim)
    return tuple(squeeze(part, axis) for part in split(x, 1, axis)) if x.shape[axis] else ()


def iterate(x: Tensor) -> Iterator[Tensor]:
    """Iterate over the first dimension."""
    return iter(unbind(x))


# ---- moving elements ----------------------------------------------------------------------------

_flip = Primitive("flip", lambda xp, x, dims: xp.copy(xp.flip(x, dims)))
_flip.defvjp(lambda g, _out, _x, dims: flip(g, dims))

_roll = Primitive("roll", lambda xp, x, shifts, dims: xp.roll(x, shifts, dims))
_roll.defvjp(lambda g, _out, _x, shifts, dims: roll(g, tuple(-s for s in shifts), dims))

_pad = Primitive("pad", lambda xp, x, widths, value: xp.pad(x, widths, value))
_pad.defvjp(lambda g, _out, _x, widths, value: _inner(g, widths))

_tril = Primitive("tril", lambda xp, x, diagonal: xp.tril(x, diagonal))
_tril.defvjp(lambda g, _out, _x, diagonal: tril(g, diagonal))

_triu = Primitive("triu", lambda xp, x, diagonal: xp.triu(x, diagonal))
_triu.defvjp(lambda g, _out, _x, diagonal: triu(g, diagonal))


def flip(x: Tensor, *dims: Any) -> Tensor:
    """Return a copy with the order of elements along `dims` reversed."""
    return _flip(x, dims=tuple(_dim(x, d) for d in _sizes(dims)))


def roll(x: Tensor, shifts: Any, dims: Any = None) -> Tensor:
    """Shift elements along `dims`, those pushed out re-entering at the other end.

    Without `dims` the flattened tensor is shifted.

    Raises:
        ValueError: there are not as many shifts as dims.
    """
    if dims is None:
        return reshape(roll(flatten(x), shifts, 0), x.shape)
    by = tuple(shifts) if isinstance(shifts, list | tuple) else (shifts,)
    axes = tuple(_dim(x, d) for d in (dims if isinstance(dims, list | tuple) else (dims,)))
    if len(by) != len(axes):
        raise ValueError(f"roll needs one shift per dim, got shifts {by} for dims {dims}")
    return _roll(x, shifts=by, dims=axes)


def _inner(g: Tensor, widths: Sequence[tuple[int, int]]) -> Tensor:
    inside = tuple(
        slice(before, n - after) for n, (before, after) in zip(g.shape, widths, strict=True)
    )
    return g[inside]


def pad(x: Tensor, pad: Sequence[int], mode: str = "constant", value: float = 0) -> Tensor:
    """Surround `x` with `value`: `pad` counts (before, after) from the last dimension backwards.

    Negative counts cut elements off.

    Raises:
        ValueError: an odd number of counts, or more than the tensor has dimensions for.
    """
    if mode != "constant":
        raise ValueError(f"pad knows the mode 'constant', not {mode!r}")
    if len(pad) % 2 or len(pad) > 2 * x.ndim:
        raise ValueError(f"pad needs pairs for at most {x.ndim} dimensions, got {tuple(pad)}")
    widths = [(0, 0)] * x.ndim
    for i in range(len(pad) // 2):
        widths[x.ndim - 1 - i] = (pad[2 * i], pad[2 * i + 1])
    if any(n + before + after < 0 for n, (before, after) in zip(x.shape, widths, strict=True)):
        raise ValueError(f"pad {tuple(pad)} cuts more than shape {x.shape} has")
    cut = tuple(
        slice(max(-before, 0), n - max(-after, 0))
        for n, (before, after) in zip(x.shape, widths, strict=True)
    )
    x = x if all(count >= 0 for count in pad) else x[cut]
    added = tuple((max(before, 0), max(after, 0)) for before, after in widths)
    return _pad(x, widths=added, value=value)


def tril(x: Tensor, diagonal: int = 0) -> Tensor:
    """Return the last two dimensions' lower triangle (up to `diagonal`), zeros above."""
    _require_matrix("tril", x)
    return _tril(x, diagonal=diagonal)


def triu(x: Tensor, diagonal: int = 0) -> Tensor:
    """Return the last two dimensions' upper triangle (from `diagonal`), zeros below."""
    _require_matrix("triu", x)
    return _triu(x, diagonal=diagonal)


def _require_matrix(name: str, x: Tensor) -> None:
    if x.ndim < 2:
        raise ValueError(f"{name} needs at least two dimensions, got shape {x.shape}")
