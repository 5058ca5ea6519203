"""Low-rank updates beside frozen weights: LoRA.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
"""

from __future__ import annotations

import math

from glassformer.nn import functional as F
from glassformer.nn.init import kaiming_uniform_, zeros_
from glassformer.nn.module import Module
from glassformer.ops.creation import empty, zeros
from glassformer.ops.shape import cat
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
        x = F.dropout(x, self.dropout, self.training)
        # The scale goes where the numbers are few.
        return F.linear(F.linear(x, self.lora_A) * self.scaling, self.lora_B)

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
        updates = [
            zeros(*x.shape[:-1], rows, dtype=x.dtype, device=x.device) if part is None else part(x)
            for part, rows in zip(self.parts[chosen], self.rows[chosen], strict=True)
        ]
        updated: Tensor = updates[0] if len(updates) == 1 else cat(updates, dim=-1)
        return updated
