"""Pairs of segments for next-sentence prediction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from glassformer.random import Generator

Sentences = Sequence[Sequence[int]]


class PairTokenizer(Protocol):
    """The special tokens around and between two segments."""

    @property
    def cls_token_id(self) -> int | None:
        """Begins an item."""

    @property
    def sep_token_id(self) -> int | None:
        """Ends a segment."""


def next_sentence_pairs(
    documents: Sequence[Sentences], tokenizer: PairTokenizer, max_length: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Return items [CLS] A [SEP] B [SEP] to train BERT on, with whether B follows A.

    Devlin et al. 2019, "BERT", section 3.1 and appendix A.2. Sentences of a document are collected
    until they fill an item; A is a random number of the first of them. With probability 1/2 B is
    the rest, and else it comes from a random place in another document, and the rest begins the
    next item. What is too long loses tokens at random ends of the longer segment. Other than in the
    released code, which calls them random, chunks of one sentence are never made: they get a second
    sentence, or are left out at a document's end. So the chance of 1/2 is exact.

    Another seed makes other pairs. The items go into `DataCollatorForLanguageModeling`.

    Args:
        documents: each a list of sentences, each a list of token ids without special tokens.
        tokenizer: has `cls_token_id` and `sep_token_id`.
        max_length: tokens of an item, at most.
        seed: what the choices derive from.

    Returns:
        Mappings of `input_ids` (T,), `token_type_ids` (T,): 0 up to the first [SEP] and 1 after,
        and `next_sentence_label`: 0 if B follows A, 1 if it is random.

    Raises:
        ValueError: less than two documents with text, no room for two segments, or the tokenizer
            lacks one of the special tokens.
    """
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    if cls is None or sep is None:
        raise ValueError(f"pairs need special tokens; got cls_token_id {cls}, sep_token_id {sep}")
    if max_length < 5:
        raise ValueError(f"max_length must be 5 or more, for 3 special tokens, got {max_length}")
    texts = [[list(sentence) for sentence in doc if len(sentence)] for doc in documents]
    texts = [text for text in texts if text]
    if len(texts) < 2:
        raise ValueError(
            f"random pairs need two documents with text or more, got {len(texts)}: give a list of "
            "documents, each a list of sentences, each a list of token ids"
        )
    rng = Generator(seed).numpy
    items = []
    for index in range(len(texts)):
        for first, second, label in _segments(texts, index, max_length - 3, rng):
            _truncate(first, second, max_length - 3, rng)
            items.append(
                {
                    "input_ids": np.array([cls, *first, sep, *second, sep]),
                    "token_type_ids": np.repeat([0, 1], [len(first) + 2, len(second) + 1]),
                    "next_sentence_label": label,
                }
            )
    return items


def _segments(
    texts: list[list[list[int]]], index: int, room: int, rng: np.random.Generator
) -> Iterator[tuple[list[int], list[int], int]]:
    """Yield segments A and B of one document, not yet truncated, and the label."""
    sentences = texts[index]
    start = 0
    while start + 2 <= len(sentences):
        stop = start + 2
        length = len(sentences[start]) + len(sentences[start + 1])
        while stop < len(sentences) and length < room:
            length += len(sentences[stop])
            stop += 1
        middle = int(rng.integers(start + 1, stop))
        first = _join(sentences[start:middle])
        if rng.random() < 0.5:
            yield first, _join(sentences[middle:stop]), 0
            start = stop
        else:
            yield first, _elsewhere(texts, index, max(1, room - len(first)), rng), 1
            start = middle


def _elsewhere(
    texts: list[list[list[int]]], index: int, length: int, rng: np.random.Generator
) -> list[int]:
    """Sentences from a random place in another document, `length` tokens or more if there are."""
    other = int(rng.integers(len(texts) - 1))
    sentences = texts[other + (other >= index)]
    start = stop = int(rng.integers(len(sentences)))
    found = 0
    while stop < len(sentences) and found < length:
        found += len(sentences[stop])
        stop += 1
    return _join(sentences[start:stop])


def _truncate(first: list[int], second: list[int], room: int, rng: np.random.Generator) -> None:
    """Shorten, in place, the longer segment at random ends until both fit."""
    while len(first) + len(second) > room:
        longer = first if len(first) > len(second) else second
        longer.pop(0 if rng.random() < 0.5 else -1)


def _join(sentences: list[list[int]]) -> list[int]:
    return [token for sentence in sentences for token in sentence]
