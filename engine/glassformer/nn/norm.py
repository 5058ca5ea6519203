"""LayerNorm and RMSNorm."""

from __future__ import annotations

from collections.abc import Sequence

from glassformer.nn import functional as F
from glassformer.nn.module import Module
from glassformer.ops.creation import ones, zeros
from glassformer.tensor import Parameter, Tensor


class LayerNorm(Module):
    """y = (x - mean) / √(var + eps) · weight + bias, over the last dimensions.

    Ba, Kiros and Hinton 2016, "Layer Normalization", section 3. The variance is the biased one.

    Args:
        normalized_shape: the dimensions to normalise over; an int is the last one alone.
        eps: keeps the division finite.
        elementwise_affine: have a weight (starts at 1).
        bias: have a bias as well (starts at 0).
    """

    normalized_shape: tuple[int, ...]
    eps: float
    weight: Parameter | None  # normalized_shape
    bias: Parameter | None  # normalized_shape

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
    ) -> None:
        self.normalized_shape = as_shape(normalized_shape)
        self.eps = eps
        self.weight = Parameter(ones(*self.normalized_shape)) if elementwise_affine else None
        has_bias = elementwise_affine and bias
        self.bias = Parameter(zeros(*self.normalized_shape)) if has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise: (..., *normalized_shape) -> (..., *normalized_shape)."""
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:  # noqa: D102
        return f"{', '.join(map(str, self.normalized_shape))}, eps={self.eps:g}"


class RMSNorm(Module):
    """y = x / √(mean(x²) + eps) · weight, over the last dimensions.

    Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", equation 4.

    Args:
        normalized_shape: the dimensions to normalise over; an int is the last one alone.
        eps: keeps the division finite; None for the spacing of the dtype's numbers at 1.
        elementwise_affine: have a weight (starts at 1).
    """

    normalized_shape: tuple[int, ...]
    eps: float | None
    weight: Parameter | None  # normalized_shape

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
    ) -> None:
        self.normalized_shape = as_shape(normalized_shape)
        self.eps = eps
        self.weight = Parameter(ones(*self.normalized_shape)) if elementwise_affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise: (..., *normalized_shape) -> (..., *normalized_shape)."""
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:  # noqa: D102
        eps = "" if self.eps is None else f", eps={self.eps:g}"
        return f"{', '.join(map(str, self.normalized_shape))}{eps}"


def as_shape(normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    """Return an int or a sequence of ints as a tuple."""
    if isinstance(normalized_shape, int):
        return (normalized_shape,)
    return tuple(normalized_shape)
