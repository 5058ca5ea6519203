"""Tensors from nothing: constants and random numbers. Names and arguments are PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from glassformer.devices import as_device
from glassformer.dtypes import DEFAULT_FLOAT, DType, as_dtype, float16, int64
from glassformer.random import Generator, as_generator
from glassformer.tensor import Tensor


def _sizes(size: tuple[Any, ...]) -> tuple[int, ...]:
    if len(size) == 1 and isinstance(size[0], list | tuple):
        size = tuple(size[0])
    if any(n < 0 for n in size):
        raise ValueError(f"a tensor can't have the negative size in {size}")
    return tuple(int(n) for n in size)


def _finish(array: Any, dtype: DType, device: Any, requires_grad: bool) -> Tensor:
    place = as_device(device)
    out = Tensor(place.backend.asarray(array, dtype), place)
    return out.requires_grad_() if requires_grad else out


def full(
    size: Any,
    fill_value: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return a tensor filled with a number, of the number's kind unless `dtype` says otherwise."""
    kind = as_dtype(dtype) if dtype is not None else as_dtype(type(fill_value))
    place = as_device(device)
    shape = _sizes((size,) if isinstance(size, int) else tuple(size))
    out = Tensor(place.backend.full(shape, fill_value, kind), place)
    return out.requires_grad_() if requires_grad else out


def zeros(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Return a tensor of zeros (float32 by default)."""
    kind = as_dtype(dtype or DEFAULT_FLOAT)
    return full(_sizes(size), 0, dtype=kind, device=device, requires_grad=requires_grad)


def ones(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Return a tensor of ones (float32 by default)."""
    kind = as_dtype(dtype or DEFAULT_FLOAT)
    return full(_sizes(size), 1, dtype=kind, device=device, requires_grad=requires_grad)


def empty(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Return a tensor with arbitrary contents (float32 by default)."""
    place = as_device(device)
    out = Tensor(place.backend.empty(_sizes(size), as_dtype(dtype or DEFAULT_FLOAT)), place)
    return out.requires_grad_() if requires_grad else out


def _like(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(input: Tensor, *args: Any, dtype: Any = None, **kwargs: Any) -> Tensor:
        kind = input.dtype if dtype is None else dtype
        device = kwargs.pop("device", None) or input.device
        return make(input.shape, *args, dtype=kind, device=device, **kwargs)

    call.__name__ = call.__qualname__ = f"{make.__name__}_like"
    call.__doc__ = f"`{make.__name__}` with the shape, dtype and device of `input`."
    return call


def arange(
    start: Any, end: Any = None, step: Any = 1, *, dtype: Any = None, device: Any = None
) -> Tensor:
    """Return start, start + step, … up to but without `end`; `arange(n)` counts from 0."""
    if end is None:
        start, end = 0, start
    whole = all(isinstance(value, int | np.integer) for value in (start, end, step))
    kind = as_dtype(dtype) if dtype is not None else int64 if whole else DEFAULT_FLOAT
    return _finish(np.arange(start, end, step), kind, device, False)


def linspace(
    start: float, end: float, steps: int, *, dtype: Any = None, device: Any = None
) -> Tensor:
    """Return `steps` evenly spaced numbers from `start` to `end`, both included."""
    return _finish(np.linspace(start, end, steps), as_dtype(dtype or DEFAULT_FLOAT), device, False)


def eye(n: int, m: int | None = None, *, dtype: Any = None, device: Any = None) -> Tensor:
    """Return the identity matrix (n, m)."""
    return _finish(np.eye(n, m), as_dtype(dtype or DEFAULT_FLOAT), device, False)


def _drawn(
    draw: Callable[..., Any], size: tuple[Any, ...], dtype: Any, device: Any, requires_grad: bool
) -> Tensor:
    kind = as_dtype(dtype or DEFAULT_FLOAT)
    if not kind.is_floating_point:
        raise TypeError(f"random numbers of this kind are floating point, not {kind}")
    wide = np.float64 if kind.itemsize == 8 else np.float32
    return _finish(np.asarray(draw(_sizes(size), dtype=wide)), kind, device, requires_grad)


def rand(
    *size: Any,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return numbers uniform on [0, 1)."""
    random = as_generator(generator).numpy.random

    def draw(shape: Any, dtype: Any) -> Any:
        if kind.itemsize == 2:  # rounding would make 1 of the largest numbers
            steps = 2048 if kind is float16 else 256
            return np.floor(random(shape, dtype=dtype) * steps) / steps
        return random(shape, dtype=dtype)

    kind = as_dtype(dtype or DEFAULT_FLOAT)
    return _drawn(draw, size, kind, device, requires_grad)


def randn(
    *size: Any,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return numbers from the normal distribution with mean 0 and variance 1."""
    draw = as_generator(generator).numpy.standard_normal
    return _drawn(draw, size, dtype, device, requires_grad)


def randint(
    low: int,
    high: Any,
    size: Any = None,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
) -> Tensor:
    """Return integers uniform on [low, high); `randint(high, size)` starts at 0."""
    if size is None:
        low, high, size = 0, low, high
    drawn = as_generator(generator).numpy.integers(low, high, _sizes((size,)))
    return _finish(drawn, as_dtype(dtype or int64), device, False)


def randperm(n: int, *, generator: Generator | None = None, device: Any = None) -> Tensor:
    """Return 0 … n-1 in random order."""
    return _finish(as_generator(generator).numpy.permutation(n), int64, device, False)


zeros_like, ones_like, full_like, empty_like = _like(zeros), _like(ones), _like(full), _like(empty)
rand_like, randn_like = _like(rand), _like(randn)
