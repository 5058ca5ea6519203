"""Dropout: random zeros while training."""

from __future__ import annotations

from glassformer.nn import functional as F
from glassformer.nn.module import Module
from glassformer.tensor import Tensor


class Dropout(Module):
    """While training, zero each element with probability `p` and multiply the rest by 1/(1 - p).

    In evaluation mode, and for p = 0, it is the identity. Srivastava et al. 2014, "Dropout: A
    Simple Way to Prevent Neural Networks from Overfitting", with the scaling moved to training.
    """

    p: float

    def __init__(self, p: float = 0.5) -> None:
        F.check_probability(p)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of `x` if the module is training."""
        return F.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:  # noqa: D102
        return f"p={self.p}"
