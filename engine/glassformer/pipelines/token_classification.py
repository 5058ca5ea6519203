"""Judging each token: entities and where they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from glassformer.pipelines.base import Array, Item, Pipeline, Settings
from glassformer.pipelines.entities import STRATEGIES, Piece, entities_of
from glassformer.pipelines.scores import softmax
from glassformer.tensor import Tensor


@dataclass(frozen=True, kw_only=True)
class TokenClassificationSettings(Settings):
    """Settings of `TokenClassificationPipeline`.

    Args:
        aggregation_strategy: "none" judges token by token; "simple" joins neighbours of one
            entity; "first", "average" and "max" give the pieces of a word one label before, that
            of the first piece, of the mean of their scores, or of the surest piece.
        ignore_labels: entities to leave out.
    """

    aggregation_strategy: str = "none"
    ignore_labels: list[str] | tuple[str, ...] = ("O",)

    def __post_init__(self) -> None:
        if str(self.aggregation_strategy).lower() not in STRATEGIES:
            raise ValueError(
                f"aggregation_strategy must be one of {', '.join(STRATEGIES)}, got "
                f"{self.aggregation_strategy!r}"
            )


class TokenClassificationPipeline(Pipeline):
    """A text gives its entities in order, with their places in it.

    Token by token they are {"entity", "score", "index", "word", "start", "end"}; joined ones have
    an "entity_group" instead of "entity" and "index".
    """

    settings_class = TokenClassificationSettings
    warns_of_truncation = False  # as Hugging Face's

    def encode(self, inputs: list[Any], settings: Any) -> list[Item]:  # noqa: D102
        items = super().encode(inputs, settings)
        for item in items:
            if not isinstance(item.source, str):
                raise TypeError(f"token-classification: a text must be a str, got {item.source!r}")
            item.notes = [self._pieces(item.source, len(item.rows[0]["input_ids"]))]
        return items

    def _pieces(self, text: str, length: int) -> list[Piece]:
        """Return the tokens of a text, special ones left out, that a row of this length holds."""
        encoded = self.tokenizer(
            text,
            truncation=True,
            max_length=length,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        prefixed = bool(getattr(self.tokenizer.backend.model, "continuing_subword_prefix", None))
        tokens = self.tokenizer.convert_ids_to_tokens(encoded["input_ids"])
        pieces = []
        for index, (token, (start, end)) in enumerate(
            zip(tokens, encoded["offset_mapping"], strict=True)
        ):
            if encoded["special_tokens_mask"][index]:
                continue
            written = text[start:end]
            if encoded["input_ids"][index] == self.tokenizer.unk_token_id:
                pieces.append(Piece(index, written, start, end, False))
            else:
                # "##ing" is longer than what is written; elsewhere, a word begins after a space.
                continues = (
                    len(str(token)) != len(written)
                    if prefixed
                    else start > 0 and " " not in text[start - 1 : start + 1]
                )
                pieces.append(Piece(index, str(token), start, end, continues))
        return pieces

    def forward(self, batch: dict[str, Tensor], settings: Any) -> list[Any]:  # noqa: D102
        return self.unpadded(self.model(**batch).logits, batch["attention_mask"])

    def finish(self, item: Item, settings: Any) -> Any:  # noqa: D102
        (logits,), (pieces,) = item.outputs, item.notes
        scores: Array = softmax(np.asarray(logits))  # (T, num_labels)
        found = entities_of(
            pieces,
            scores,
            self.model.config.id2label,
            str(settings.aggregation_strategy).lower(),
            self._joined,
        )
        ignored = set(settings.ignore_labels)
        return [one for one in found if one.get("entity", one.get("entity_group")) not in ignored]

    def _joined(self, tokens: list[str]) -> str:
        decoder = self.tokenizer.backend.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(tokens))
