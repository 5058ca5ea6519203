"""The hidden states of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from glassformer.pipelines.base import Item, Pipeline, Settings
from glassformer.tensor import Tensor, from_numpy


@dataclass(frozen=True, kw_only=True)
class FeatureExtractionSettings(Settings):
    """Settings of `FeatureExtractionPipeline`.

    Args:
        return_tensors: give tensors (1, T, C) instead of lists.
    """

    return_tensors: bool = False


class FeatureExtractionPipeline(Pipeline):
    """A text gives the states of its tokens in the last layer, (1, T, C), as lists of lists."""

    settings_class = FeatureExtractionSettings

    def forward(self, batch: dict[str, Tensor], settings: Any) -> list[Any]:  # noqa: D102
        return self.unpadded(self.model(**batch).last_hidden_state, batch["attention_mask"])

    def finish(self, item: Item, settings: Any) -> Any:  # noqa: D102
        states = item.outputs[0][None]
        return from_numpy(states) if settings.return_tensors else states.tolist()
