"""Conversion between dtypes, and PyTorch's promotion of operands to a common one."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

from glassformer.devices import Device, as_device
from glassformer.dtypes import (
    DEFAULT_FLOAT,
    DType,
    as_dtype,
    bool_,
    float16,
    float32,
    float64,
    int32,
    int64,
    result_type,
)
from glassformer.dtypes import bfloat16 as bfloat16_
from glassformer.graph import record, wants_grad
from glassformer.primitive import Primitive
from glassformer.tensor import Tensor

cast = Primitive("cast", lambda xp, x, dtype: xp.astype(x, dtype))
cast.defvjp(lambda g, _out, _x, dtype: g)  # the walk converts it back to x's dtype

copy = Primitive("clone", lambda xp, x: xp.copy(x))
copy.defvjp(lambda g, _out, _x: g)


def to(x: Tensor, *args: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """Return `x` with another dtype or on another device, or both; `x` itself if nothing changes.

    Takes PyTorch's forms: `x.to("float64")`, `x.to(gf.float64)`, `x.to("cuda")`, `x.to(other)`.

    Raises:
        ValueError: there is no device of that name, or it can't be used here.
        TypeError: there is no such dtype, or the device lacks it.
    """
    for arg in args:
        if isinstance(arg, Tensor):
            dtype, device = arg.dtype, arg.device
        elif isinstance(arg, DType) or (isinstance(arg, str) and arg in _DTYPE_NAMES):
            dtype = arg
        else:
            device = arg
    kind = None if dtype is None else as_dtype(dtype)
    place = x.device if device is None else as_device(device)
    if place is not x.device:
        return _moved(x, kind or x.dtype, place)
    return x if kind is None or kind is x.dtype else cast(x, dtype=kind)


_DTYPE_NAMES = {t.name for t in (bool_, int32, int64, float16, bfloat16_, float32, float64)}


def _moved(x: Tensor, dtype: DType, device: Device) -> Tensor:
    """Copy to another device. No Primitive: those stay on one, and the gradient must go back."""
    home, array = x.device, x.array
    if device.type == "cpu":  # cast first: NumPy lacks bfloat16
        array = array if dtype is x.dtype else home.backend.astype(array, dtype)
        out = Tensor(home.backend.to_numpy(array), device)
    else:
        if home.type == "cpu":
            compact = x.dtype is bfloat16_  # which other backends don't read
            array = home.backend.astype(array, float32) if compact else home.backend.copy(array)
        out = Tensor(device.backend.asarray(array, dtype), device)
    if wants_grad((x,)):

        def rule(grads: Any, _needs: Any, _saved: Any) -> list[Tensor]:
            return [to(grads[0], device=home)]

        record("to", (x,), (out,), rule, ())
    return out


def cpu(x: Tensor) -> Tensor:
    """Return `x` on the CPU, as NumPy's; itself if it is there already."""
    return to(x, device="cpu")


def cuda(x: Tensor, device: Any = None) -> Tensor:
    """Return `x` on a GPU, the first one or that of this number."""
    return to(x, device=f"cuda:{device}" if isinstance(device, builtins.int) else device or "cuda")


def clone(x: Tensor) -> Tensor:
    """Return a copy that gradients flow through."""
    return copy(x)


def half(x: Tensor) -> Tensor:
    """Convert to float16."""
    return to(x, float16)


def bfloat16(x: Tensor) -> Tensor:
    """Convert to bfloat16, which the device `cpu` lacks."""
    return to(x, bfloat16_)


def float(x: Tensor) -> Tensor:
    """Convert to float32."""
    return to(x, float32)


def double(x: Tensor) -> Tensor:
    """Convert to float64."""
    return to(x, float64)


def int(x: Tensor) -> Tensor:
    """Convert to int32."""
    return to(x, int32)


def long(x: Tensor) -> Tensor:
    """Convert to int64."""
    return to(x, int64)


def bool(x: Tensor) -> Tensor:
    """Convert to bool: true where not zero."""
    return to(x, bool_)


def promoted(x: Any, y: Any, *, at_least_float: builtins.bool = False) -> tuple[Any, Any]:
    """Bring two operands to the dtype of their result; a Python number may stay one."""
    x_is, y_is = isinstance(x, Tensor), isinstance(y, Tensor)
    if x_is and y_is and x.dtype is y.dtype and (x.dtype.is_floating_point or not at_least_float):
        return x, y
    dtype = result_type((x, y))
    if at_least_float and not dtype.is_floating_point:
        dtype = DEFAULT_FLOAT
    return (
        to(x, dtype) if x_is else as_number(x, dtype),
        to(y, dtype) if y_is else as_number(y, dtype),
    )


def as_number(value: Any, dtype: DType) -> Any:
    """A Python number of the category of `dtype`."""
    kind: Callable[[Any], Any] = {"float": builtins.float, "int": builtins.int}.get(
        dtype.category, builtins.bool
    )
    return kind(value)


def as_float(x: Tensor) -> Tensor:
    """Return `x` in floating point: integers and bools become float32."""
    if not isinstance(x, Tensor):
        raise TypeError(f"expected a Tensor, got {type(x).__name__}; make one with gf.tensor()")
    return x if x.dtype.is_floating_point else to(x, DEFAULT_FLOAT)
