"""Continuing texts."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from glassformer.generation.generate import generate
from glassformer.pipelines.base import Item, Pipeline, Settings, position_limit
from glassformer.tensor import Tensor

_NEW_TOKENS = 256  # unless a call or the folder says how many


@dataclass(frozen=True, kw_only=True)
class GenerationSettings(Settings):
    """Settings of pipelines that write; the others are those of `generate`.

    Args:
        clean_up_tokenization_spaces: remove the spaces before punctuation; default: as the
            tokenizer does.
        generation: what goes to `generate`, such as `max_new_tokens=50`.
    """

    clean_up_tokenization_spaces: bool | None = None
    generation: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TextGenerationSettings(GenerationSettings):
    """Settings of `TextGenerationPipeline`.

    Args:
        return_full_text: give the prompt as well.
        prefix: what comes before each prompt, unseen.
    """

    return_full_text: bool = True
    prefix: str = ""


class GenerationPipeline(Pipeline):
    """The base class of pipelines that write."""

    settings_class = GenerationSettings
    usual: ClassVar[dict[str, Any]] = {}  # for `generate`, where neither call nor folder says

    def settings(self, given: dict[str, Any]) -> Any:  # noqa: D102
        own = {one.name for one in fields(self.settings_class)} - {"generation", "max_length"}
        generation = {name: value for name, value in given.items() if name not in own}
        rest = {name: value for name, value in given.items() if name in own}
        return self.settings_class(**rest, generation={**self._unsaid(generation), **generation})

    def _unsaid(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return what is usual, without what the call or the folder says otherwise."""
        said = self.said(given)
        usual = {name: value for name, value in self.usual.items() if name not in said}
        if "max_length" in said:
            usual.pop("max_new_tokens", None)
        if not {**usual, **said}.get("do_sample"):
            usual.pop("temperature", None)
        return usual

    def said(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return what the folder's generation_config.json and a call say."""
        both = {**(getattr(self.model, "generation_settings", None) or {}), **given}
        return {name: value for name, value in both.items() if value is not None}

    def generated(self, batch: dict[str, Tensor], settings: Any) -> list[list[list[int]]]:
        """Return the continuations of each row, all tokens included."""
        ids = generate(
            self.model, batch["input_ids"], attention_mask=batch["attention_mask"], **settings
        ).cpu()
        rows = batch["input_ids"].shape[0]
        several = ids.reshape(rows, ids.shape[0] // rows, ids.shape[1])
        lists: list[list[list[int]]] = several.numpy().tolist()
        return lists


class TextGenerationPipeline(GenerationPipeline):
    """A prompt gives [{"generated_text": …}], one for each of `num_return_sequences`.

    Unless the call or the folder's generation_config.json says otherwise, 256 tokens are drawn at
    temperature 0.7, as in Hugging Face's pipeline, fewer where the model has no more positions.
    """

    settings_class = TextGenerationSettings
    padding_side = "left"  # a text goes on where it ends
    usual: ClassVar[dict[str, Any]] = {"do_sample": True, "temperature": 0.7}

    def encode(self, inputs: list[Any], settings: Any) -> list[Item]:  # noqa: D102
        items = super().encode([f"{settings.prefix}{one}" for one in inputs], settings)
        for item, source in zip(items, inputs, strict=True):
            item.source = source
        return items

    def filler(self) -> int | None:  # noqa: D102
        found = super().filler()
        return 0 if found is None else found  # any will do: the mask says what is real

    def forward(self, batch: dict[str, Tensor], settings: Any) -> list[Any]:  # noqa: D102
        length = batch["input_ids"].shape[1]
        chosen = dict(settings.generation)
        if not self.said(chosen).keys() & {"max_new_tokens", "max_length"}:
            limit = position_limit(self.model)
            room = _NEW_TOKENS if limit is None else limit - length + 1
            chosen["max_new_tokens"] = min(_NEW_TOKENS, room)
        found = self.generated(batch, chosen)
        return [[tokens[length:] for tokens in row] for row in found]

    def finish(self, item: Item, settings: Any) -> Any:  # noqa: D102
        before = item.source if settings.return_full_text else ""
        texts = self.tokenizer.batch_decode(
            item.outputs[0], True, settings.clean_up_tokenization_spaces
        )
        return [{"generated_text": before + text} for text in texts]
