"""One vector for each text, as sentence-transformers makes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from glassformer.pipelines.base import Array, Item, Pipeline, Settings
from glassformer.pipelines.sentence_dense import Dense
from glassformer.tensor import Tensor


def _weighted_mean(x: Array) -> Array:
    weights = np.arange(1, len(x) + 1, dtype=x.dtype)
    mean: Array = weights @ x / weights.sum()
    return mean


_WAYS: dict[str, Callable[[Array], Array]] = {  # (T, C) -> (C,)
    "cls": lambda x: x[0],
    "max": lambda x: x.max(0),
    "mean": lambda x: x.mean(0),
    "mean_sqrt_len_tokens": lambda x: x.sum(0) / np.sqrt(len(x), dtype=x.dtype),
    "weightedmean": _weighted_mean,
    "lasttoken": lambda x: x[-1],
}
POOLINGS = tuple(_WAYS)


@dataclass(frozen=True, kw_only=True)
class SentenceEmbeddingSettings(Settings):
    """Settings of `SentenceEmbeddingPipeline`; the defaults are what the folder says.

    Args:
        pooling: over the tokens x[1] … x[T], special ones included: "mean", "max",
            "mean_sqrt_len_tokens" Σ x[t] / √T, "weightedmean" Σ t·x[t] / Σ t (Muennighoff 2022,
            "SGPT: GPT Sentence Embeddings for Semantic Search"), "cls" the first one, "lasttoken"
            the last one; or several of these, joined.
        dense: layers that the pooled vector goes through.
        normalize: divide each vector by its length.
        do_lower_case: lower the texts' case first.
    """

    pooling: str | tuple[str, ...] = "mean"
    dense: tuple[Dense, ...] = ()
    normalize: bool = False
    do_lower_case: bool = False

    def __post_init__(self) -> None:
        for one in self.poolings:
            if one not in POOLINGS:
                raise ValueError(f"pooling must be of {', '.join(POOLINGS)}, got {one!r}")

    @property
    def poolings(self) -> tuple[str, ...]:
        """The ways of pooling, in the order in which their vectors are joined."""
        return (self.pooling,) if isinstance(self.pooling, str) else self.pooling


class SentenceEmbeddingPipeline(Pipeline):
    """A text gives a vector (C,), a list of texts a matrix (N, C), as NumPy arrays.

    Reimers and Gurevych 2019, "Sentence-BERT", section 3: the tokens' states pooled over the text.
    """

    settings_class = SentenceEmbeddingSettings

    def together(self, answers: list[Any]) -> Any:  # noqa: D102
        return np.stack(answers) if answers else np.zeros((0, self._width()), np.float32)

    def encode(self, inputs: list[Any], settings: Any) -> list[Item]:  # noqa: D102
        lowers = settings.do_lower_case
        texts = [one.lower() if lowers and isinstance(one, str) else one for one in inputs]
        return super().encode(texts, settings)

    def forward(self, batch: dict[str, Tensor], settings: Any) -> list[Any]:  # noqa: D102
        states = self.model(**batch).last_hidden_state
        rows = self.unpadded(states, batch["attention_mask"])
        vectors = np.stack([_pooled(row, settings.poolings) for row in rows])  # (B, C)
        for layer in settings.dense:
            vectors = layer(vectors)
        if settings.normalize:
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
        return list(vectors)

    def _width(self) -> int:
        settings = self.settings(self.defaults)
        if settings.dense:
            return int(settings.dense[-1].out_features)
        return len(settings.poolings) * int(getattr(self.model.config, "hidden_size", 0))

    def finish(self, item: Item, settings: Any) -> Any:  # noqa: D102
        return item.outputs[0]


def _pooled(states: Array, ways: Iterable[str]) -> Array:
    """(T, C) -> (C,), or several times C."""
    return np.concatenate([_WAYS[way](states) for way in ways])
