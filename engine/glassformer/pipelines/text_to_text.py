"""Translating and summarising texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from glassformer.pipelines.base import Item
from glassformer.pipelines.text_generation import GenerationPipeline, GenerationSettings
from glassformer.tensor import Tensor


@dataclass(frozen=True, kw_only=True)
class TextToTextSettings(GenerationSettings):
    """Settings of `TranslationPipeline` and `SummarizationPipeline`.

    Args:
        prefix: what comes before each text; default: what the config's `task_specific_params` say,
            such as T5's "translate English to French: ".
    """

    prefix: str | None = None


class TextToTextPipeline(GenerationPipeline):
    """The base class of what writes a text about another.

    Settings for `generate` come from the call, else from the config's `task_specific_params` for
    the task, else from the folder's generation_config.json. Else 4 beams write 256 tokens at most.
    """

    settings_class = TextToTextSettings
    key: ClassVar[str]
    usual: ClassVar[dict[str, Any]] = {"max_new_tokens": 256, "num_beams": 4}

    def settings(self, given: dict[str, Any]) -> Any:  # noqa: D102
        params = self.model.config.extra.get("task_specific_params") or {}
        merged = {**(params.get(self.task) or {}), **given}
        if "max_new_tokens" in given:
            merged = {n: value for n, value in merged.items() if n != "max_length" or n in given}
        return super().settings(merged)

    def encode(self, inputs: list[Any], settings: Any) -> list[Item]:  # noqa: D102
        return super().encode([f"{settings.prefix or ''}{one}" for one in inputs], settings)

    def alone(self, answer: Any, settings: Any) -> Any:  # noqa: D102
        return answer if isinstance(answer, list) else [answer]

    def forward(self, batch: dict[str, Tensor], settings: Any) -> list[Any]:  # noqa: D102
        return self.generated(batch, settings.generation)

    def finish(self, item: Item, settings: Any) -> Any:  # noqa: D102
        texts = self.tokenizer.batch_decode(
            item.outputs[0], True, settings.clean_up_tokenization_spaces
        )
        answers = [{self.key: text} for text in texts]
        return answers[0] if len(answers) == 1 else answers


class Text2TextGenerationPipeline(TextToTextPipeline):
    """A text gives [{"generated_text": …}]; a list of texts a list of such dicts."""

    key = "generated_text"


class TranslationPipeline(TextToTextPipeline):
    """A text gives [{"translation_text": …}]; a list of texts a list of such dicts.

    The task may be named with its languages, "translation_en_to_fr".
    """

    key = "translation_text"


class SummarizationPipeline(TextToTextPipeline):
    """A text gives [{"summary_text": …}]; a list of texts a list of such dicts."""

    key = "summary_text"
