"""Embedding: a table of vectors looked up by integer."""

from __future__ import annotations

from glassformer.dtypes import DType
from glassformer.grad_mode import no_grad
from glassformer.nn import functional as F
from glassformer.nn.init import normal_
from glassformer.nn.module import Module
from glassformer.ops.creation import empty
from glassformer.tensor import Parameter, Tensor


class Embedding(Module):
    """Row `i` of the table for every integer `i`: (...) -> (..., embedding_dim).

    Args:
        num_embeddings: rows of the table.
        embedding_dim: length of a row.
        padding_idx: a row that starts as zeros and takes no gradient; negative counts from the end.

    The other rows start from N(0, 1).
    """

    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None
    output_dtype: DType | None = None  # of the rows looked up, where the table is more compact
    weight: Parameter  # (num_embeddings, embedding_dim)

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None
    ) -> None:
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(f"padding_idx is {padding_idx}, the table has {num_embeddings} rows")
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = None if padding_idx is None else padding_idx % num_embeddings
        self.weight = Parameter(empty(num_embeddings, embedding_dim))
        normal_(self.weight)
        if self.padding_idx is not None:
            with no_grad():
                self.weight[self.padding_idx] = 0.0

    def forward(self, input: Tensor) -> Tensor:
        """Look up integers: (...) -> (..., embedding_dim).

        Raises:
            IndexError: one of them has no row.
        """
        rows = F.embedding(input, self.weight, self.padding_idx)
        return rows if self.output_dtype is None else rows.to(self.output_dtype)

    def extra_repr(self) -> str:  # noqa: D102
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"
