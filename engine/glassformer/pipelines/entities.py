"""From the labels of tokens to entities: the ways in which pieces of words are put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
STRATEGIES = ("none", "simple", "first", "average", "max")


@dataclass(frozen=True, slots=True)
class Piece:
    """A token of a text.

    Args:
        index: its position among the tokens.
        word: the token.
        start: where it begins in the text.
        end: where it ends.
        continues: whether it goes on with the word of the token before.
    """

    index: int
    word: str
    start: int
    end: int
    continues: bool


def entities_of(
    pieces: list[Piece],
    scores: Array,
    labels: Mapping[int, str],
    strategy: str,
    joined: Callable[[list[str]], str],
) -> list[dict[str, Any]]:
    """Return the entities of a text.

    Args:
        pieces: its tokens.
        scores: (T, num_labels), of all tokens, special ones included.
        labels: the name of each class.
        strategy: one of `STRATEGIES`.
        joined: makes one text of tokens.
    """
    if strategy == "none":
        return [_token(piece, scores[piece.index], labels) for piece in pieces]
    if strategy == "simple":
        judged = [_token(piece, scores[piece.index], labels) for piece in pieces]
    else:
        words: list[list[Piece]] = []
        for piece in pieces:
            if piece.continues and words:
                words[-1].append(piece)
            else:
                words.append([piece])
        judged = [
            {
                **_token(word[0], _of_word(scores[[p.index for p in word]], strategy), labels),
                "word": joined([piece.word for piece in word]),
                "end": word[-1].end,
            }
            for word in words
        ]
    return [_group(members, joined) for members in _neighbours(judged)]


def without_overlaps(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entities of overlapping windows of a text, each once, in its order.

    Of one that overlaps the one before, the longer stays; of two as long, the surer.
    """
    kept: list[dict[str, Any]] = []
    for one in sorted(found, key=lambda entity: int(entity["start"])):
        if not kept or one["start"] >= kept[-1]["end"]:
            kept.append(one)
        elif _weight(one) > _weight(kept[-1]):
            kept[-1] = one
    return kept


def _weight(entity: dict[str, Any]) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]


def _of_word(scores: Array, strategy: str) -> Array:
    """Return the scores (num_labels,) of a word from those of its pieces (T, num_labels)."""
    if strategy == "average":
        return np.asarray(scores.mean(axis=0))
    surest = 0 if strategy == "first" else int(scores.max(axis=1).argmax())
    return np.asarray(scores[surest])


def _token(piece: Piece, scores: Array, labels: Mapping[int, str]) -> dict[str, Any]:
    best = int(scores.argmax())
    return {
        "entity": labels[best],
        "score": float(scores[best]),
        "index": piece.index,
        "word": piece.word,
        "start": piece.start,
        "end": piece.end,
    }


def _neighbours(judged: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the runs of one entity; "B-" begins a new one, as in the scheme IOB2."""
    groups: list[list[dict[str, Any]]] = []
    for one in judged:
        begins, kind = _kind(one["entity"])
        if groups and not begins and _kind(groups[-1][-1]["entity"])[1] == kind:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _kind(label: str) -> tuple[bool, str]:
    """Return whether a label says that an entity begins, and which: "B-PER" -> (True, "PER")."""
    return label.startswith("B-"), label[2:] if label[:2] in ("B-", "I-") else label


def _group(members: list[dict[str, Any]], joined: Callable[[list[str]], str]) -> dict[str, Any]:
    return {
        "entity_group": members[0]["entity"].split("-", 1)[-1],
        "score": float(np.mean([one["score"] for one in members])),
        "word": joined([one["word"] for one in members]),
        "start": members[0]["start"],
        "end": members[-1]["end"],
    }
