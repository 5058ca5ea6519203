"""FeedForward: the same small network at every position."""

from __future__ import annotations

from collections.abc import Callable

from glassformer.nn import functional as F
from glassformer.nn.dropout import Dropout
from glassformer.nn.linear import Linear
from glassformer.nn.module import Module
from glassformer.ops.elementwise import tanh
from glassformer.tensor import Tensor


def _swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.swiglu(gate, up)


def _geglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return _gelu_new(gate) * up


def _gelu_new(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _quick_gelu(x: Tensor) -> Tensor:
    return F.silu(1.702 * x) / 1.702


# Hugging Face's names, some of which mean the same.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": _gelu_new,
    "gelu_pytorch_tanh": _gelu_new,
    "gelu_fast": _gelu_new,
    "quick_gelu": _quick_gelu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": tanh,
    "swiglu": _swiglu,
    "geglu": _geglu,
}
GATED = ("swiglu", "geglu")  # these take two halves: the gate, then what it gates


class FeedForward(Module):
    """linear2(dropout(activation(linear1(x)))): (..., C) -> (..., hidden) -> (..., C).

    Vaswani et al. 2017, "Attention Is All You Need", section 3.3. With "swiglu" linear1 is twice
    as wide and holds two projections, gate and up: linear2(silu(gate) · up), with "geglu" it is
    linear2(gelu_new(gate) · up); Shazeer 2020, "GLU Variants Improve Transformer", equation 6.

    Args:
        embed_dim: channels C in and out.
        hidden_dim: channels in between.
        activation: "relu", "gelu" (with erf), "gelu_new" (with tanh), "silu", "swiglu" or another
            of `ACTIVATIONS`.
        dropout: probability of dropping a hidden unit while training.
        bias: have biases.
    """

    activation: str
    linear1: Linear
    dropout: Dropout
    linear2: Linear

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int,
        activation: str = "relu",
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is none of {', '.join(ACTIVATIONS)}")
        self.activation = activation
        self.linear1 = Linear(embed_dim, hidden_dim * (1 + (activation in GATED)), bias)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(hidden_dim, embed_dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to every position: (..., C) -> (..., C)."""
        hidden = ACTIVATIONS[self.activation](self.linear1(x))
        output: Tensor = self.linear2(self.dropout(hidden))
        return output

    def extra_repr(self) -> str:  # noqa: D102
        return self.activation
