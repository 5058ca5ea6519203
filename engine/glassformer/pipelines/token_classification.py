"""Judging each token: entities and where they are."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from glassformer.data.batch_encoding import BatchEncoding
from glassformer.pipelines.base import Array, Item, Pipeline, Settings
from glassformer.pipelines.entities import STRATEGIES, Piece, entities_of, without_overlaps
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
        stride: read a long text in windows of which neighbours share so many tokens, instead of
            cutting it; of entities that overlap then, the longer stays, or the surer.
        is_split_into_words: texts are lists of words, such as of a corpus; places are those in the
            words joined.
        delimiter: what words are joined by.
    """

    aggregation_strategy: str = "none"
    ignore_labels: list[str] | tuple[str, ...] = ("O",)
    stride: int | None = None
    is_split_into_words: bool = False
    delimiter: str = " "

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(
                f"aggregation_strategy must be one of {', '.join(STRATEGIES)}, got "
                f"{self.aggregation_strategy!r}"
            )
        if self.stride is not None and self.strategy == "none":
            raise ValueError(
                f"stride={self.stride!r} joins the entities of overlapping windows, which needs "
                "another aggregation_strategy than 'none', such as 'simple'"
            )

    @property
    def strategy(self) -> str:
        """`aggregation_strategy` in lower case."""
        return str(self.aggregation_strategy).lower()


class TokenClassificationPipeline(Pipeline):
    """A text gives its entities in order, with their places in it.

    Token by token they are {"entity", "score", "index", "word", "start", "end"}; joined ones have
    an "entity_group" instead of "entity" and "index". With `is_split_into_words` a list of words is
    a text, but as in Hugging Face's pipeline its answer comes in a list, as that of a list of them.
    """

    settings_class = TokenClassificationSettings

    def __call__(self, inputs: Any, *, batch_size: int | None = None, **settings: Any) -> Any:
        """Return the entities of a text, or of several; see `Pipeline.__call__`."""
        if self.settings({**self.defaults, **settings}).is_split_into_words and _is_words(inputs):
            inputs = [inputs]
        return super().__call__(inputs, batch_size=batch_size, **settings)

    def encode(self, inputs: list[Any], settings: Any) -> list[Item]:  # noqa: D102
        return [self._encoded(one, settings) for one in inputs]

    def _encoded(self, given: Any, settings: Any) -> Item:
        words, limit = settings.is_split_into_words, self.limit(settings)
        if not (_is_words(given) if words else isinstance(given, str)):
            wanted = "a list of words, each a str" if words else "a str"
            raise TypeError(f"token-classification: a text must be {wanted}, got {given!r:.80}")
        cuts = settings.truncation is not False or settings.stride is not None  # into parts
        encoded = self.tokenizer(
            [given],
            is_split_into_words=words,
            truncation=cuts,
            max_length=min(limit, sys.maxsize) if cuts else None,
            stride=settings.stride or 0,
            return_overflowing_tokens=settings.stride is not None,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_attention_mask=True,
        )
        length = len(encoded["input_ids"][0])
        if length > limit:
            self.tell_of_long([length], 1, limit, settings)
        rows = self.rows_of(encoded)
        if not rows[0]["input_ids"]:
            raise ValueError(
                f"token-classification: {given!r:.80} has no tokens, and this tokenizer adds no "
                "special ones"
            )
        starts: list[int] = []
        if words:  # where each is in the text that they make
            lengths = [len(word) + len(settings.delimiter) for word in given]
            starts = list(accumulate(lengths, initial=0))
            given = settings.delimiter.join(given)
        notes = [self._pieces(given, encoded, index, starts) for index in range(len(rows))]
        return Item(given, rows, notes)

    def _pieces(
        self, text: str, encoded: BatchEncoding, row: int, starts: list[int]
    ) -> list[Piece]:
        """Return the tokens of a row, special ones left out; `starts` are those of given words."""
        prefixed = bool(getattr(self.tokenizer.backend.model, "continuing_subword_prefix", None))
        ids = encoded["input_ids"][row]
        places = encoded["offset_mapping"][row]
        words = encoded.word_ids(row)
        pieces = []
        for index, token in enumerate(self.tokenizer.convert_ids_to_tokens(ids)):
            if encoded["special_tokens_mask"][row][index]:
                continue
            start, end = places[index]
            if starts:
                begin = starts[words[index] or 0]  # None is the word of special tokens alone
                start, end = begin + start, begin + end
            written = text[start:end]
            if ids[index] == self.tokenizer.unk_token_id:
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
        labels, ignored = self.model.config.id2label, set(settings.ignore_labels)
        found = []
        for logits, pieces in zip(item.outputs, item.notes, strict=True):
            scores: Array = softmax(np.asarray(logits))  # (T, num_labels)
            for one in entities_of(pieces, scores, labels, settings.strategy, self._joined):
                if one.get("entity", one.get("entity_group")) not in ignored:
                    found.append(one)
        return without_overlaps(found) if len(item.rows) > 1 else found

    def _joined(self, tokens: list[str]) -> str:
        decoder = self.tokenizer.backend.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(tokens))


def _is_words(given: Any) -> bool:
    return isinstance(given, (list, tuple)) and all(isinstance(word, str) for word in given)
