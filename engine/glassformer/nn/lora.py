"""Low-rank updates beside frozen weights: LoRA.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
"""

from __future__ import annotations

import math

from glassformer.nn import functional as F
from glassformer.nn.init import kaiming_uniform_, zeros_
from glassformer.nn.module import Module
from glassformer.ops.creation import empty, zeros
from glassformer.ops.shape import cat, pad
from glassformer.random import Generator
from glassformer.tensor import Parameter, Tensor


class LoraLayer(Module):
    """x -> scaling · dropout(x) Aᵀ Bᵀ: what is added to x Wᵀ.

    A starts as a linear layer does, B at 0: at first the update changes nothing.

    Args:
        in_features: columns of the weight W.
        out_features: its rows.
        r: rank of the update.
        scaling: usually alpha / r.
        dropout: probability of dropping an input of the update while training.
        generator: draws A; the default generator unless given.
    """

    scaling: float
    dropout: float
    lora_A: Parameter  # (r, in_features)
    lora_B: Parameter  # (out_features, r)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        r: int,
        scaling: float,
        dropout: float = 0.0,
        generator: Generator | None = None,
    ) -> None:
        F.check_probability(dropout)
        self.scaling = scaling
        self.dropout = dropout
        self.lora_A = Parameter(empty(r, in_features))
        self.lora_B = Parameter(empty(out_features, r))
        kaiming_uniform_(self.lora_A, a=math.sqrt(5), generator=generator)
        zeros_(self.lora_B)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return F.linear(self.down(x), self.lora_B)

    def down(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., r), scaled: here the numbers are few."""
        x = F.dropout(x, self.dropout, self.training)
        return F.linear(x, self.lora_A) * self.scaling

    def delta(self) -> Tensor:
        """Return the update as a matrix, scaling · B A: (out_features, in_features)."""
        return self.lora_B @ self.lora_A * self.scaling

    def extra_repr(self) -> str:  # noqa: D102
        return f"r={self.lora_A.shape[0]}, scaling={self.scaling:g}"


class LoraAdapter(Module):
    """Updates of one weight, or of some of the matrices that are stacked in it.

    Args:
        parts: an update for each matrix, from the top; None where it has none.
        rows: how many rows each matrix has.
    """

    parts: list[LoraLayer | None]
    rows: tuple[int, ...]

    def __init__(self, parts: list[LoraLayer | None], rows: tuple[int, ...]) -> None:
        self.parts = parts
        self.rows = rows

    def forward(self, x: Tensor, chosen: slice = slice(None)) -> Tensor:
        """(..., in_features) -> (..., sum of the chosen matrices' rows), 0 without an update."""
        parts, rows = self.parts[chosen], self.rows[chosen]
        layers = [part for part in parts if part is not None]
        if not layers:
            return zeros(*x.shape[:-1], sum(rows), dtype=x.dtype, device=x.device)
        if len(parts) == 1:
            alone: Tensor = layers[0](x)
            return alone
        return F.linear(_down(layers, x), _up(parts, rows))


def _down(layers: list[LoraLayer], x: Tensor) -> Tensor:
    """Return what the updates make of x, side by side: (..., in_features) -> (..., sum of r)."""
    first = layers[0]
    if any(layer.scaling != first.scaling for layer in layers) or (
        first.training and any(layer.dropout for layer in layers)
    ):
        return cat([layer.down(x) for layer in layers], dim=-1)
    # One product reads x once, and forward and backward make an array of its size once.
    return F.linear(x, cat([layer.lora_A for layer in layers])) * first.scaling


def _up(parts: list[LoraLayer | None], rows: tuple[int, ...]) -> Tensor:
    """Return the matrices B on the diagonal of one, 0 elsewhere: (sum of rows, sum of r)."""
    width = sum(part.lora_B.shape[1] for part in parts if part is not None)
    like = next(part.lora_B for part in parts if part is not None)
    blocks, start = [], 0
    for part, count in zip(parts, rows, strict=True):
        if part is None:
            blocks.append(zeros(count, width, dtype=like.dtype, device=like.device))
        else:
            end = start + part.lora_B.shape[1]
            blocks.append(pad(part.lora_B, (start, width - end)))
            start = end
    return cat(blocks)
