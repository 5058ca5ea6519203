"""Reductions, each beside its derivative."""

from __future__ import annotations

import builtins
from typing import Any, NamedTuple

from glassformer.dtypes import DEFAULT_FLOAT, as_dtype, int64
from glassformer.graph import Like
from glassformer.ops import choice, conversion, elementwise, indexing
from glassformer.ops.choice import where
from glassformer.ops.elementwise import exp, log
from glassformer.ops.shape import broadcast_to, flip, reshape
from glassformer.primitive import Primitive
from glassformer.tensor import Tensor

Dims = int | tuple[int, ...] | list[int] | None


def _axes(x: Tensor | Like, dim: Any) -> tuple[int, ...]:
    """Return `dim` (None: all) as sorted, non-negative axes."""
    ndim = x.ndim
    if dim is None:
        return tuple(range(ndim))
    dims = tuple(dim) if isinstance(dim, list | tuple) else (dim,)
    if not dims:
        return tuple(range(ndim))  # as PyTorch: an empty tuple reduces everything
    for d in dims:
        if not -builtins.max(ndim, 1) <= d < builtins.max(ndim, 1):
            raise IndexError(f"dim {d} is out of range for a tensor of shape {x.shape}")
    axes = tuple(sorted(d % ndim for d in dims)) if ndim else ()
    if len(set(axes)) != len(axes):
        raise ValueError(f"dim {dim} names a dimension twice (shape {x.shape})")
    return axes


def _kept(x: Tensor | Like, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a reduction over `axes` with keepdim."""
    return tuple(1 if i in axes else n for i, n in enumerate(x.shape))


def _count(x: Tensor | Like, axes: tuple[int, ...]) -> int:
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    return count


# ---- sums ---------------------------------------------------------------------------------------

_sum = Primitive("sum", lambda xp, x, axes, keepdim: xp.sum(x, axes, keepdim))
_sum.defvjp(lambda g, _out, _x, axes, keepdim: broadcast_to(reshape(g, _kept(_x, axes)), _x.shape))

_cumsum = Primitive("cumsum", lambda xp, x, axis: xp.cumsum(x, axis))
_cumsum.defvjp(lambda g, _out, _x, axis: flip(cumsum(flip(g, axis), axis), axis))


def sum(x: Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Return the sum over `dim` (None: over everything). Integers and bools sum to int64."""
    if dtype is not None:
        x = conversion.to(x, as_dtype(dtype))
    elif not x.dtype.is_floating_point:
        x = conversion.to(x, int64)
    return _sum(x, axes=_axes(x, dim), keepdim=keepdim)


def _wide(name: str, x: Tensor) -> Tensor:
    """Return half precision as float32: its sums soon leave its range (65,504)."""
    if not x.dtype.is_floating_point:
        raise TypeError(f"{name} takes floating point tensors, got {x.dtype}; call .float() first")
    return conversion.to(x, x.dtype.wide)


def mean(x: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Return the mean over `dim` (None: over everything); of no elements, NaN."""
    wide = _wide("mean", x)
    return conversion.to(sum(wide, dim, keepdim) / _count(x, _axes(x, dim)), x.dtype)


def var(x: Tensor, dim: Dims = None, *, correction: float = 1, keepdim: bool = False) -> Tensor:
    """Return the variance over `dim`: Σ(x - mean)² / (n - correction)."""
    wide = _wide("var", x)
    centered = wide - mean(wide, dim, keepdim=True)
    degrees = builtins.max(_count(x, _axes(x, dim)) - correction, 0)
    return conversion.to(sum(centered * centered, dim, keepdim) / degrees, x.dtype)


def std(x: Tensor, dim: Dims = None, *, correction: float = 1, keepdim: bool = False) -> Tensor:
    """Return the standard deviation over `dim`, the root of `var`.

    Where it is 0 the gradient is 0, as in PyTorch: it points nowhere.
    """
    variance = var(_wide("std", x), dim, correction=correction, keepdim=keepdim)
    flat = variance == 0
    root = where(flat, 0.0, elementwise.sqrt(where(flat, 1.0, variance)))
    return conversion.to(root, x.dtype)


def cumsum(x: Tensor, dim: int) -> Tensor:
    """Return running sums along `dim`. Integers and bools sum to int64."""
    if not x.dtype.is_floating_point:
        x = conversion.to(x, int64)
    if x.ndim == 0:
        return conversion.clone(x)
    return _cumsum(x, axis=_axes(x, dim)[0])


# ---- extremes -----------------------------------------------------------------------------------


def _share_evenly(g: Tensor, out: Tensor, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Divide a gradient evenly among the elements that attain the extreme."""
    kept = _kept(x, axes)
    extreme = reshape(out, kept)
    attained = choice.logical_or(x == extreme, x != x)  # a NaN that won, too
    count = sum(attained, axes, keepdim=True)
    return where(attained, reshape(g, kept) / conversion.to(count, g.dtype), 0.0)


_amax = Primitive("amax", lambda xp, x, axes, keepdim: xp.max(x, axes, keepdim))
_amax.defvjp(lambda g, out, x, axes, keepdim: _share_evenly(g, out, x, axes))

_amin = Primitive("amin", lambda xp, x, axes, keepdim: xp.min(x, axes, keepdim))
_amin.defvjp(lambda g, out, x, axes, keepdim: _share_evenly(g, out, x, axes))

_argmax = Primitive("argmax", lambda xp, x, axis, keepdim: xp.argmax(x, axis, keepdim))
_argmin = Primitive("argmin", lambda xp, x, axis, keepdim: xp.argmin(x, axis, keepdim))


class Extreme(NamedTuple):
    """What `max` and `min` over a dimension return."""

    values: Tensor
    indices: Tensor


def _require_elements(name: str, x: Tensor, dim: Any) -> None:
    if _count(x, _axes(x, dim)) == 0:
        raise ValueError(f"{name} over dim {dim} of a tensor of shape {x.shape}: no elements there")


def amax(x: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Return the largest elements over `dim`; NaN wins, and ties share the gradient evenly."""
    _require_elements("amax", x, dim)
    return _amax(x, axes=_axes(x, dim), keepdim=keepdim)


def amin(x: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Return the smallest elements over `dim`; NaN wins, and ties share the gradient evenly."""
    _require_elements("amin", x, dim)
    return _amin(x, axes=_axes(x, dim), keepdim=keepdim)


def max(x: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    """Return the largest element; over a `dim`, a named tuple (values, indices).

    Without `dim` ties share the gradient evenly; with it, the element at the returned index takes
    it, as in PyTorch. `max(x, other)` is `maximum`.
    """
    return _extreme(x, dim, keepdim, amax, argmax, choice.maximum)


def min(x: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    """Return the smallest element; over a `dim`, a named tuple (values, indices). See `max`."""
    return _extreme(x, dim, keepdim, amin, argmin, choice.minimum)


def _extreme(x: Tensor, dim: Any, keepdim: bool, extreme: Any, arg: Any, pairwise: Any) -> Any:
    if dim is None:
        return extreme(x)
    if isinstance(dim, Tensor):
        return pairwise(x, dim)
    indices = arg(x, dim, keepdim=True)
    values = indexing.gather(x, dim, indices)
    if not keepdim and x.ndim:
        values, indices = (t.squeeze(dim) for t in (values, indices))
    return Extreme(values, indices)


def argmax(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Return the index of the first largest element, in the flattened tensor or along `dim`."""
    _require_elements("argmax", x, dim)
    return _arg(_argmax, x, dim, keepdim)


def argmin(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Return the index of the first smallest element, in the flattened tensor or along `dim`."""
    _require_elements("argmin", x, dim)
    return _arg(_argmin, x, dim, keepdim)


def _arg(primitive: Primitive, x: Tensor, dim: int | None, keepdim: bool) -> Tensor:
    axis = None if dim is None or x.ndim == 0 else _axes(x, dim)[0]
    return primitive(x, axis=axis, keepdim=keepdim)


# ---- log-sum-exp --------------------------------------------------------------------------------


def _log_sum_exp(xp: Any, x: Any, axes: Any, keepdim: bool) -> Any:
    highest = xp.max(x, axes, True)
    nothing = xp.zeros(highest.shape, xp.dtype_of(x))
    highest = xp.where(xp.isfinite(highest), highest, nothing)  # inf - inf would be NaN
    total = xp.sum(xp.exp(xp.subtract(x, highest)), axes, True)
    out = xp.add(xp.log(total), highest)
    return out if keepdim else xp.reshape(out, [n for i, n in enumerate(x.shape) if i not in axes])


_logsumexp = Primitive("logsumexp", _log_sum_exp)
_logsumexp.defvjp(
    lambda g, out, x, axes, keepdim: (
        reshape(g, _kept(x, axes)) * exp(x - _finite(reshape(out, _kept(x, axes))))
    )
)


def _finite(x: Tensor) -> Tensor:
    """Replace -inf, the log-sum-exp of nothing, by 0: its softmax is 0, not NaN."""
    return where(x == -float("inf"), 0.0, x)


def logsumexp(x: Tensor, dim: Dims, keepdim: bool = False) -> Tensor:
    """Return log Σ eˣ over `dim`, without overflow; -inf where every element is -inf."""
    if not x.dtype.is_floating_point:
        x = conversion.to(x, DEFAULT_FLOAT)
    axes = _axes(x, dim)
    if _count(x, axes) == 0:  # the log of an empty sum
        return log(sum(x, dim, keepdim))
    # Half precision in float32: its rounded result would not do for the gradient, exp(x - result).
    out = _logsumexp(_wide("logsumexp", x), axes=axes, keepdim=keepdim)
    return conversion.to(out, x.dtype)


# ---- truth: not differentiable ------------------------------------------------------------------

_any = Primitive("any", lambda xp, x, axes, keepdim: xp.any(x, axes, keepdim))
_all = Primitive("all", lambda xp, x, axes, keepdim: xp.all(x, axes, keepdim))


def any(x: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Return whether any element over `dim` is not zero."""
    return _any(x, axes=_axes(x, dim), keepdim=keepdim)


def all(x: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Return whether all elements over `dim` are not zero."""
    return _all(x, axes=_axes(x, dim), keepdim=keepdim)
