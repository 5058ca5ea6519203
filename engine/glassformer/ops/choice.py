"""Comparison, logic, and choosing between elements."""

from __future__ import annotations

from typing import Any

from glassformer.devices import Device
from glassformer.dtypes import DType, bool_, result_type
from glassformer.graph import common_device
from glassformer.ops.conversion import as_number, promoted, to
from glassformer.primitive import Primitive
from glassformer.tensor import Tensor

# ---- comparison and logic: not differentiable ---------------------------------------------------


def _comparison(name: str) -> Primitive:
    return Primitive(name, lambda xp, x, y: getattr(xp, name)(x, y))


_equal, _not_equal = _comparison("equal"), _comparison("not_equal")
_less, _less_equal = _comparison("less"), _comparison("less_equal")
_greater, _greater_equal = _comparison("greater"), _comparison("greater_equal")
_and, _or = _comparison("logical_and"), _comparison("logical_or")
_not = Primitive("logical_not", lambda xp, x: xp.logical_not(x))
_isnan = Primitive("isnan", lambda xp, x: xp.isnan(x))
_isinf = Primitive("isinf", lambda xp, x: xp.isinf(x))
_isfinite = Primitive("isfinite", lambda xp, x: xp.isfinite(x))


def eq(x: Any, y: Any) -> Tensor:
    """Return x == y, elementwise."""
    return _equal(*promoted(x, y))


def ne(x: Any, y: Any) -> Tensor:
    """Return x != y, elementwise."""
    return _not_equal(*promoted(x, y))


def lt(x: Any, y: Any) -> Tensor:
    """Return x < y, elementwise."""
    return _less(*promoted(x, y))


def le(x: Any, y: Any) -> Tensor:
    """Return x <= y, elementwise."""
    return _less_equal(*promoted(x, y))


def gt(x: Any, y: Any) -> Tensor:
    """Return x > y, elementwise."""
    return _greater(*promoted(x, y))


def ge(x: Any, y: Any) -> Tensor:
    """Return x >= y, elementwise."""
    return _greater_equal(*promoted(x, y))


def logical_and(x: Any, y: Any) -> Tensor:
    """Return whether x and y are both not zero, elementwise."""
    return _and(x, y)


def logical_or(x: Any, y: Any) -> Tensor:
    """Return whether x or y is not zero, elementwise."""
    return _or(x, y)


def logical_not(x: Tensor) -> Tensor:
    """Return whether x is zero, elementwise."""
    return _not(x)


def mask_and(x: Any, y: Any) -> Tensor:
    """Return `x & y` of bool tensors; of integers it would mean their bits, which is not here."""
    return logical_and(*_masks("&", x, y))


def mask_or(x: Any, y: Any) -> Tensor:
    """Return `x | y` of bool tensors."""
    return logical_or(*_masks("|", x, y))


def mask_not(x: Tensor) -> Tensor:
    """Return `~x` of a bool tensor."""
    return logical_not(*_masks("~", x))


def _masks(symbol: str, *values: Any) -> tuple[Any, ...]:
    for value in values:
        if result_type((value,)) is not bool_:
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{symbol} takes bool tensors, got {kind}; compare with != 0 first")
    return values


def isnan(x: Tensor) -> Tensor:
    """Return where x is NaN."""
    return _isnan(x)


def isinf(x: Tensor) -> Tensor:
    """Return where x is infinite."""
    return _isinf(x)


def isfinite(x: Tensor) -> Tensor:
    """Return where x is neither infinite nor NaN."""
    return _isfinite(x)


# ---- choice -------------------------------------------------------------------------------------


def _share_at_ties(g: Tensor, mine: Any, other: Any, larger: bool) -> Tensor:
    behind = mine < other if larger else mine > other  # never true of a NaN, which wins
    return where(eq(mine, other), g * 0.5, where(behind, 0.0, g))


_maximum = Primitive("maximum", lambda xp, x, y: xp.maximum(x, y))
_maximum.defvjp(
    lambda g, _out, x, y: _share_at_ties(g, x, y, larger=True),
    lambda g, _out, x, y: _share_at_ties(g, y, x, larger=True),
)

_minimum = Primitive("minimum", lambda xp, x, y: xp.minimum(x, y))
_minimum.defvjp(
    lambda g, _out, x, y: _share_at_ties(g, x, y, larger=False),
    lambda g, _out, x, y: _share_at_ties(g, y, x, larger=False),
)


def _clip(xp: Any, x: Any, low: Any, high: Any) -> Any:
    x = x if low is None else xp.maximum(x, low)
    return x if high is None else xp.minimum(x, high)


def _inside(x: Tensor, low: Any, high: Any) -> Tensor:
    inside = eq(x, x) if low is None else x >= low
    return inside if high is None else logical_and(inside, x <= high)


_clamp = Primitive("clamp", _clip)
_clamp.defvjp(lambda g, _out, x, low, high: where(_inside(x, low, high), g, 0.0))

_where = Primitive("where", lambda xp, condition, x, y: xp.where(condition, x, y))
_where.defvjp(
    None,
    lambda g, _out, condition, _x, _y: where(condition, g, 0.0),
    lambda g, _out, condition, _x, _y: where(condition, 0.0, g),
)


def maximum(x: Any, y: Any) -> Tensor:
    """Return the larger of x and y; NaN wins, and ties share the gradient."""
    return _maximum(*promoted(x, y))


def minimum(x: Any, y: Any) -> Tensor:
    """Return the smaller of x and y; NaN wins, and ties share the gradient."""
    return _minimum(*promoted(x, y))


def clamp(x: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """Limit x to [min, max] (numbers; None is no limit); outside, the gradient is 0.

    Raises:
        ValueError: both limits are None.
        TypeError: a limit is a tensor.
    """
    if min is None and max is None:
        raise ValueError("clamp needs min, max or both")
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        raise TypeError("clamp takes numbers as limits; use maximum() and minimum() for tensors")
    dtype = result_type([value for value in (x, min, max) if value is not None])
    return _clamp(to(x, dtype), low=min, high=max)


def where(condition: Any, x: Any, y: Any) -> Tensor:
    """Return x where `condition` (bool) is true and y elsewhere, elementwise.

    Each side gets a gradient only where it was taken: a NaN on the other side stays out, unless
    that side's own derivative is infinite there (0·inf), as in PyTorch.

    Raises:
        TypeError: `condition` is not a bool tensor.
    """
    device = common_device("where", (condition, x, y))
    condition = _as_tensor(condition, None, device)
    if condition.dtype is not bool_:
        raise TypeError(f"where takes a bool condition, got {condition.dtype}; compare with != 0")
    dtype = result_type((x, y))
    return _where(condition, _as_tensor(x, dtype, device), _as_tensor(y, dtype, device))


def _as_tensor(value: Any, dtype: DType | None, device: Device) -> Tensor:
    """Convert to `dtype` (None: leave it); a number becomes a 0-d tensor."""
    if isinstance(value, Tensor):
        return value if dtype is None else to(value, dtype)
    return Tensor(device.backend.full((), value, dtype or result_type((value,))), device)


def where_method(x: Tensor, condition: Tensor, other: Any) -> Tensor:
    """Return `x` where `condition` (bool) is true and `other` elsewhere; `Tensor.where`."""
    return where(condition, x, other)


def masked_fill(x: Tensor, mask: Tensor, value: Any) -> Tensor:
    """Return x with `value` where `mask` (bool, broadcast) is true.

    Raises:
        TypeError: `mask` is not bool.
    """
    if not isinstance(mask, Tensor) or mask.dtype is not bool_:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"masked_fill takes a bool tensor as mask, got {kind}")
    if not isinstance(value, Tensor):
        value = as_number(value, x.dtype)
    return _where(mask, _as_tensor(value, x.dtype, x.device), x)
