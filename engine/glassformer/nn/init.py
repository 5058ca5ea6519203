"""Initialisers: fill a tensor in place, from an explicit generator or the default one.

Names and rules are those of `torch.nn.init`. The numbers are drawn in float64 and then cast, so
that one seed gives the same values, up to rounding, in every dtype.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import numpy.typing as npt

from glassformer.grad_mode import no_grad
from glassformer.random import Generator, as_generator
from glassformer.tensor import Tensor, from_numpy

FanMode = Literal["fan_in", "fan_out"]

_thread = threading.local()


@contextmanager
def skip() -> Iterator[None]:
    """Leave tensors as they are, on this thread: whoever builds a model here fills it afterwards.

    Random numbers for weights that a checkpoint replaces would cost more than reading it.
    """
    before = is_skipped()
    _thread.skipped = True
    try:
        yield
    finally:
        _thread.skipped = before


def is_skipped() -> bool:
    """Whether initialisers do nothing now."""
    return getattr(_thread, "skipped", False)


def uniform_(
    tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Fill with draws from U(a, b)."""
    return _fill(tensor, lambda: as_generator(generator).numpy.uniform(a, b, tensor.shape))


def normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Fill with draws from N(mean, std²)."""
    return _fill(tensor, lambda: as_generator(generator).numpy.normal(mean, std, tensor.shape))


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Generator | None = None,
) -> Tensor:
    """Fill with draws from N(mean, std²) that lie in [a, b]; what falls outside is drawn again.

    Raises:
        ValueError: [a, b] begins more than two standard deviations from the mean, where nearly
            every draw would be thrown away.
    """
    if not a < b or mean < a - 2 * std or mean > b + 2 * std:
        raise ValueError(
            f"trunc_normal_ got mean {mean}, std {std} and the interval [{a}, {b}]; the interval "
            "must reach to within two standard deviations of the mean"
        )

    def drawn() -> npt.NDArray[np.float64]:
        draws = as_generator(generator).numpy
        values = draws.normal(mean, std, tensor.shape)
        outside = (values < a) | (values > b)
        while outside.any():
            values[outside] = draws.normal(mean, std, int(outside.sum()))
            outside = (values < a) | (values > b)
        return values

    return _fill(tensor, drawn)


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Fill with `val`."""
    return _fill(tensor, lambda: np.full(tensor.shape, val))


def zeros_(tensor: Tensor) -> Tensor:
    """Fill with 0."""
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Fill with 1."""
    return constant_(tensor, 1.0)


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """Return the factor that keeps the variance of activations from layer to layer.

    Args:
        nonlinearity: "linear", "sigmoid", "tanh", "relu" or "leaky_relu".
        param: the negative slope of leaky_relu; 0.01 by default.

    Raises:
        ValueError: `nonlinearity` is none of these.
    """
    slope = 0.01 if param is None else param
    gains = {
        "linear": 1.0,
        "sigmoid": 1.0,
        "tanh": 5 / 3,
        "relu": math.sqrt(2),
        "leaky_relu": math.sqrt(2 / (1 + slope**2)),
    }
    if nonlinearity not in gains:
        raise ValueError(f"no gain for nonlinearity {nonlinearity!r}; known are {', '.join(gains)}")
    return gains[nonlinearity]


def xavier_uniform_(
    tensor: Tensor, gain: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Fill with U(-r, r), r = gain·√(6 / (fan_in + fan_out)).

    Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural
    networks", equation 16.
    """
    bound = gain * math.sqrt(6 / sum(_fans(tensor)))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Fill with N(0, σ²), σ = gain·√(2 / (fan_in + fan_out)); same source as `xavier_uniform_`."""
    return normal_(tensor, 0.0, gain * math.sqrt(2 / sum(_fans(tensor))), generator)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0.0,
    mode: FanMode = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Fill with U(-r, r), r = gain·√(3 / fan); `a` is the slope of leaky_relu.

    He et al. 2015, "Delving Deep into Rectifiers", section 2.2.
    """
    bound = math.sqrt(3) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0.0,
    mode: FanMode = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Fill with N(0, σ²), σ = gain / √fan; same source as `kaiming_uniform_`."""
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity), generator)


def _kaiming_std(tensor: Tensor, a: float, mode: FanMode, nonlinearity: str) -> float:
    fan_in, fan_out = _fans(tensor)
    fan = fan_in if mode == "fan_in" else fan_out
    return calculate_gain(nonlinearity, a) / math.sqrt(fan)


def _fans(tensor: Tensor) -> tuple[int, int]:
    """Return how many numbers feed one output, and how many outputs one number feeds."""
    if tensor.ndim < 2:
        raise ValueError(
            f"this initialiser needs a weight of 2 or more dimensions, got shape {tensor.shape}; "
            "use zeros_, ones_ or normal_ for biases and gains"
        )
    field = math.prod(tensor.shape[2:])  # of a convolution: the window's size
    return tensor.shape[1] * field, tensor.shape[0] * field


def _fill(tensor: Tensor, values: Callable[[], npt.NDArray[np.float64]]) -> Tensor:
    if not is_skipped():
        with no_grad():
            tensor.copy_(from_numpy(values()))
    return tensor
