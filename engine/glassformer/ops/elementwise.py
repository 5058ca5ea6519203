"""Arithmetic and functions of one argument, each beside its derivative."""

from __future__ import annotations

import builtins
import math
from typing import Any

from glassformer.dtypes import bool_, result_type
from glassformer.ops.choice import eq, logical_and, where
from glassformer.ops.conversion import as_float, promoted
from glassformer.primitive import Primitive
from glassformer.tensor import Tensor

# ---- arithmetic ---------------------------------------------------------------------------------

_add = Primitive("add", lambda xp, x, y: xp.add(x, y))
_add.defvjp(
    lambda g, _out, _x, _y: g,
    lambda g, _out, _x, _y: g,
)

_subtract = Primitive("sub", lambda xp, x, y: xp.subtract(x, y))
_subtract.defvjp(
    lambda g, _out, _x, _y: g,
    lambda g, _out, _x, _y: -g,
)

_multiply = Primitive("mul", lambda xp, x, y: xp.multiply(x, y))
_multiply.defvjp(
    lambda g, _out, _x, y: g * y,
    lambda g, _out, x, _y: g * x,
)

_divide = Primitive("div", lambda xp, x, y: xp.divide(x, y))
_divide.defvjp(
    lambda g, _out, _x, y: g / y,
    lambda g, out, _x, y: -g * out / y,
)

_power = Primitive("pow", lambda xp, x, y: xp.power(x, y))
_power.defvjp(
    lambda g, _out, x, y: where(_equals(y, 0), 0.0, g * y * x ** (y - 1)),
    # d x^y / dy = x^y log x, and 0 at x = 0, y >= 0
    lambda g, out, x, y: where(_both(_equals(x, 0), y >= 0), 0.0, g * out * _log(x)),
)

_floor_divide = Primitive("floor_divide", lambda xp, x, y: xp.floor_divide(x, y))

_remainder = Primitive("remainder", lambda xp, x, y: xp.remainder(x, y))
_remainder.defvjp(
    lambda g, _out, _x, _y: g,
    lambda g, _out, x, y: -g * floor(x / y),
)


def _equals(x: Any, value: Any) -> Any:
    return eq(x, value) if isinstance(x, Tensor) else x == value


def _both(x: Any, y: Any) -> Any:
    return logical_and(x, y) if isinstance(x, Tensor) else y if x else logical_and(y, False)


def _log(x: Any) -> Any:
    return (
        log(x)
        if isinstance(x, Tensor)
        else math.log(x)
        if x > 0
        else -math.inf
        if x == 0
        else math.nan
    )


def add(x: Any, y: Any, *, alpha: Any = 1) -> Tensor:
    """Return x + alpha·y."""
    return _add(*promoted(x, y if alpha == 1 else y * alpha))


def sub(x: Any, y: Any) -> Tensor:
    """Return x - y."""
    return _subtract(*promoted(x, y))


def rsub(x: Any, y: Any) -> Tensor:
    """Return y - x."""
    return sub(y, x)


def mul(x: Any, y: Any) -> Tensor:
    """Return x · y, elementwise."""
    return _multiply(*promoted(x, y))


def div(x: Any, y: Any) -> Tensor:
    """Return x / y; integers give floats."""
    return _divide(*promoted(x, y, at_least_float=True))


def rdiv(x: Any, y: Any) -> Tensor:
    """Return y / x."""
    return div(y, x)


def floor_divide(x: Any, y: Any) -> Tensor:
    """Return ⌊x / y⌋; not differentiable.

    Raises:
        ZeroDivisionError: integers are divided by 0.
    """
    return _floor_divide(*_divisible("floor_divide", *promoted(x, y)))


def rfloor_divide(x: Any, y: Any) -> Tensor:
    """Return ⌊y / x⌋."""
    return floor_divide(y, x)


def remainder(x: Any, y: Any) -> Tensor:
    """Return x - y·⌊x / y⌋, which has the sign of y.

    Raises:
        ZeroDivisionError: integers are divided by 0.
    """
    return _remainder(*_divisible("remainder", *promoted(x, y)))


def rremainder(x: Any, y: Any) -> Tensor:
    """Return y - x·⌊y / x⌋."""
    return remainder(y, x)


def _divisible(name: str, x: Any, y: Any) -> tuple[Any, Any]:
    """Check that no integer is divided by 0: there is no integer to stand for infinity."""
    if _integers(name, x, y) and _any(y == 0):
        raise ZeroDivisionError(f"{name} of integers by 0; convert to float first")
    return x, y


def _integers(name: str, x: Any, y: Any) -> builtins.bool:
    """Tell whether operands of one dtype are integers. Bools are refused: they don't divide."""
    dtype = result_type((x, y))
    if dtype is bool_:
        raise TypeError(f"{name} takes numbers, not bools; call .long() first")
    return not dtype.is_floating_point


def _any(truth: Any) -> builtins.bool:
    return builtins.bool(truth.array.any() if isinstance(truth, Tensor) else truth)


def pow(x: Any, exponent: Any) -> Tensor:
    """Return x to the power of `exponent`.

    Raises:
        ValueError: an integer to a negative integer power.
        TypeError: both are bool.
    """
    x, exponent = promoted(x, exponent)
    if _integers("pow", x, exponent) and _any(exponent < 0):
        raise ValueError(
            "integers can't be raised to negative integer powers; convert to float first"
        )
    return _power(x, exponent)


def rpow(x: Any, base: Any) -> Tensor:
    """Return `base` to the power of x."""
    return pow(base, x)


# ---- functions of one argument ------------------------------------------------------------------

_neg = Primitive("neg", lambda xp, x: xp.negative(x))
_neg.defvjp(lambda g, _out, _x: -g)

_exp = Primitive("exp", lambda xp, x: xp.exp(x))
_exp.defvjp(lambda g, out, _x: g * out)

_log_primitive = Primitive("log", lambda xp, x: xp.log(x))
_log_primitive.defvjp(lambda g, _out, x: g / x)

_sqrt = Primitive("sqrt", lambda xp, x: xp.sqrt(x))
_sqrt.defvjp(lambda g, out, _x: g / (2 * out))

_rsqrt = Primitive("rsqrt", lambda xp, x: xp.divide(1, xp.sqrt(x)))
_rsqrt.defvjp(lambda g, out, _x: -0.5 * g * out * out * out)

_sin = Primitive("sin", lambda xp, x: xp.sin(x))
_sin.defvjp(lambda g, _out, x: g * cos(x))

_cos = Primitive("cos", lambda xp, x: xp.cos(x))
_cos.defvjp(lambda g, _out, x: -g * sin(x))

_tanh = Primitive("tanh", lambda xp, x: xp.tanh(x))
_tanh.defvjp(lambda g, out, _x: g * (1 - out * out))  # tanh' = 1 - tanh²


def _stable_sigmoid(xp: Any, x: Any) -> Any:
    e = xp.exp(xp.negative(xp.abs(x)))  # never overflows
    return xp.divide(xp.where(x >= 0, xp.astype(x >= 0, xp.dtype_of(e)), e), xp.add(e, 1))


_sigmoid = Primitive("sigmoid", _stable_sigmoid)
_sigmoid.defvjp(lambda g, out, _x: g * out * (1 - out))

_erf = Primitive("erf", lambda xp, x: xp.erf(x))
_erf.defvjp(lambda g, _out, x: g * (2 / math.sqrt(math.pi)) * exp(-x * x))

_relu = Primitive("relu", lambda xp, x: xp.maximum(x, 0))
_relu.defvjp(lambda g, out, _x: where(out <= 0, 0.0, g))

_abs = Primitive("abs", lambda xp, x: xp.abs(x))
_abs.defvjp(lambda g, _out, x: g * sign(x))

_sign = Primitive("sign", lambda xp, x: xp.sign(x))
_floor = Primitive("floor", lambda xp, x: xp.floor(x))
_ceil = Primitive("ceil", lambda xp, x: xp.ceil(x))
_round = Primitive("round", lambda xp, x: xp.round(x))
for _step in (_sign, _floor, _ceil, _round):
    _step.defvjp(lambda g, _out, _x: g * 0)


def neg(x: Tensor) -> Tensor:
    """Return -x."""
    return _neg(x)


def exp(x: Tensor) -> Tensor:
    """Return eˣ."""
    return _exp(as_float(x))


def log(x: Tensor) -> Tensor:
    """Return the natural logarithm; -inf at 0, NaN below."""
    return _log_primitive(as_float(x))


def sqrt(x: Tensor) -> Tensor:
    """Return √x; NaN below 0. The gradient at 0 is infinite."""
    return _sqrt(as_float(x))


def rsqrt(x: Tensor) -> Tensor:
    """Return 1/√x."""
    return _rsqrt(as_float(x))


def sin(x: Tensor) -> Tensor:
    """Return the sine of x, in radians."""
    return _sin(as_float(x))


def cos(x: Tensor) -> Tensor:
    """Return the cosine of x, in radians."""
    return _cos(as_float(x))


def tanh(x: Tensor) -> Tensor:
    """Return the hyperbolic tangent."""
    return _tanh(as_float(x))


def sigmoid(x: Tensor) -> Tensor:
    """Return 1 / (1 + e⁻ˣ)."""
    return _sigmoid(as_float(x))


def erf(x: Tensor) -> Tensor:
    """Return the error function 2/√π ∫₀ˣ e^(-t²) dt."""
    return _erf(as_float(x))


def relu(x: Tensor) -> Tensor:
    """Return max(x, 0); the gradient at 0 is 0."""
    return _relu(x)


def abs(x: Tensor) -> Tensor:
    """Return |x|; the gradient at 0 is 0."""
    return _abs(x)


def sign(x: Tensor) -> Tensor:
    """Return -1, 0 or 1; NaN stays NaN. The gradient is 0."""
    return _sign(x)


def floor(x: Tensor) -> Tensor:
    """Round down. The gradient is 0."""
    return _floor(x)


def ceil(x: Tensor) -> Tensor:
    """Round up. The gradient is 0."""
    return _ceil(x)


def round(x: Tensor) -> Tensor:
    """Round to the nearest integer, halves to even. The gradient is 0."""
    return _round(x)
