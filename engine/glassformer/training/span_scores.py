"""Scores of spans, such as names in a text, that are written as one tag a token."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_TAG = re.compile(r"O|([BIES])(?:-(.*))?")


class Span(NamedTuple):
    """Tokens `start` to `end`, both included, that are of one type."""

    type: str
    start: int
    end: int


class Scores(NamedTuple):
    """Precision, recall and F1 of spans, and how many there truly are."""

    precision: float
    recall: float
    f1: float
    support: int


class SpanScores(NamedTuple):
    """What `span_f1` returns: scores of all spans together, those of each type, and of tags."""

    precision: float
    recall: float
    f1: float
    support: int
    accuracy: float
    per_type: dict[str, Scores]


def tag_spans(tags: Sequence[str]) -> list[Span]:
    """Return the spans that the tags of one sentence stand for.

    B begins a span, I goes on, E ends it, S is a span of one token, O is outside. As in the
    conlleval script (Tjong Kim Sang and Buchholz 2000, "Introduction to the CoNLL-2000 Shared Task:
    Chunking"), any tag but O begins a span where none goes on, and a change of type ends one; so
    IOB1, IOB2, IOE1, IOE2 and IOBES are all understood.

    Args:
        tags: such as ["B-PER", "I-PER", "O"]; a tag without type is of type "_".

    Raises:
        ValueError: a tag is not of this form.
    """
    spans: list[Span] = []
    begun: Span | None = None
    before = "O"
    for position, tag in enumerate([*tags, "O"]):
        match = _TAG.fullmatch(tag)
        if match is None:
            raise ValueError(f"tag {tag!r} is not 'O', nor B, I, E or S with a type as in 'B-PER'")
        place, kind = match[1] or "O", match[2] or "_"
        ends = place in "BSO" or before in "ES" or (begun is not None and kind != begun.type)
        if begun is not None and ends:
            spans.append(begun._replace(end=position - 1))
            begun = None
        if place != "O" and begun is None:
            begun = Span(kind, position, position)
        before = place
    return spans


def span_f1(y_true: Sequence[Sequence[str]], y_pred: Sequence[Sequence[str]]) -> SpanScores:
    """Return precision, recall and F1 of predicted spans, in all and of each type.

    A span is right if type, first and last token are: of TP right ones, precision = TP / predicted
    spans, recall = TP / true spans, F1 = 2 TP / (predicted + true); 0 / 0 is 0. These are the
    numbers of the conlleval script, and of seqeval in its default mode.

    Args:
        y_true: for each sentence a tag a token; see `tag_spans`.
        y_pred: the predicted tags, equally many in each sentence.

    Raises:
        ValueError: there are no tags, not equally many, or one is malformed.
    """
    if len(y_true) != len(y_pred):
        raise ValueError(f"y_true has {len(y_true)} sentences but y_pred {len(y_pred)}")
    for number, (true, predicted) in enumerate(zip(y_true, y_pred, strict=True)):
        if len(true) != len(predicted):
            raise ValueError(
                f"sentence {number} has {len(true)} true tags but {len(predicted)} predicted ones"
            )
    tokens = sum(map(len, y_true))
    if tokens == 0:
        raise ValueError("y_true holds no tags: there is nothing to score")
    right = sum(
        true == predicted
        for pair in zip(y_true, y_pred, strict=True)
        for true, predicted in zip(*pair, strict=True)
    )
    spans, guesses = _numbered(y_true), _numbered(y_pred)
    hits, found, support = (
        Counter(span.type for _, span in side) for side in (spans & guesses, guesses, spans)
    )
    per_type = {
        kind: _scores(hits[kind], found[kind], support[kind]) for kind in sorted({*found, *support})
    }
    overall = _scores(hits.total(), found.total(), support.total())
    return SpanScores(*overall, right / tokens, per_type)


def _numbered(sentences: Iterable[Sequence[str]]) -> set[tuple[int, Span]]:
    return {(number, span) for number, tags in enumerate(sentences) for span in tag_spans(tags)}


def _scores(hits: int, found: int, support: int) -> Scores:
    return Scores(
        hits / max(found, 1),
        hits / max(support, 1),
        2 * hits / max(found + support, 1),
        support,
    )
