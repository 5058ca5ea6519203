"""Judging whole texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from glassformer.models.causal import LastTokenClassifier
from glassformer.pipelines.base import Item, Pipeline, Settings
from glassformer.pipelines.scores import check_top_k, function_for, labelled
from glassformer.tensor import Tensor

_BEST = ""  # top_k of a call that doesn't give any: the best label, not in a list


@dataclass(frozen=True, kw_only=True)
class TextClassificationSettings(Settings):
    """Settings of `TextClassificationPipeline`.

    Args:
        top_k: how many labels to return, None for all.
        function_to_apply: "softmax", "sigmoid" or "none"; default: what the config calls for.
    """

    top_k: int | str | None = _BEST
    function_to_apply: str | None = None

    def __post_init__(self) -> None:
        if self.top_k != _BEST:
            check_top_k(self.top_k)


class TextClassificationPipeline(Pipeline):
    """A text, or {"text": …, "text_pair": …}, gives {"label": …, "score": …}.

    With `top_k`, it gives a list of them, best first. A text that is given alone, without `top_k`,
    gives a list of one, as in Hugging Face's pipeline.
    """

    settings_class = TextClassificationSettings

    def settings(self, given: dict[str, Any]) -> Any:  # noqa: D102
        settings = super().settings(given)
        function_for(self.model.config, settings.function_to_apply)
        return settings

    def filler(self) -> int | None:  # noqa: D102
        # A decoder judges by the last token that is not the config's padding, whatever the mask.
        judges_last = isinstance(self.model, LastTokenClassifier)
        return self.model.config.pad_token_id if judges_last else super().filler()

    def rows_at_once(self, lengths: list[int]) -> int:  # noqa: D102
        judges_last = isinstance(self.model, LastTokenClassifier)
        return 1 if judges_last and self.filler() is None else super().rows_at_once(lengths)

    def alone(self, answer: Any, settings: Any) -> Any:  # noqa: D102
        return [answer] if settings.top_k == _BEST else answer

    def forward(self, batch: dict[str, Tensor], settings: Any) -> list[Any]:  # noqa: D102
        logits = self.model(**batch).logits
        return list(logits.to(logits.dtype.wide).cpu().numpy())

    def finish(self, item: Item, settings: Any) -> Any:  # noqa: D102
        best = settings.top_k == _BEST
        (logits,) = item.outputs
        config, function = self.model.config, settings.function_to_apply
        answers = labelled(logits, config, function, 1 if best else settings.top_k)
        return answers[0] if best else answers
