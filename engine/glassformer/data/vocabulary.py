"""Vocabularies that need no training: the 256 bytes, and the characters of a text."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


class Vocabulary(Protocol):
    """What a text model needs to know of its tokens."""

    def __len__(self) -> int: ...

    def encode(self, text: str) -> Ids:
        """Return the token ids (T,) of `text`."""

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of token ids (T,)."""

    def stream_decoder(self) -> Callable[[int], str]:
        """Return a function that takes one id after another and gives the text as it completes."""

    def to_dict(self) -> dict[str, Any]:
        """Return a description that JSON can hold and `vocabulary_from_dict` reads."""


class ByteVocabulary:
    """The 256 byte values of UTF-8: every text can be encoded, and nothing has to be stored."""

    def __len__(self) -> int:
        return 256

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByteVocabulary)

    def __hash__(self) -> int:
        return hash(ByteVocabulary)

    def encode(self, text: str) -> Ids:
        """Return the UTF-8 bytes of `text` as int64 ids (T,)."""
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64)

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of byte ids (T,); bytes that are no UTF-8 become U+FFFD.

        Raises:
            IndexError: an id is not in [0, 256).
        """
        return _checked_ids(ids, 256).astype(np.uint8).tobytes().decode("utf-8", "replace")

    def stream_decoder(self) -> Callable[[int], str]:
        """Return a function from id to text, "" until a character's bytes are complete."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return lambda token: decoder.decode(bytes([token]))

    def to_dict(self) -> dict[str, Any]:
        """Return `{"type": "byte"}`."""
        return {"type": "byte"}


class CharVocabulary:
    """One token for each distinct character of a text, numbered by code point.

    Args:
        characters: the characters, in any order and with repetitions: a whole text will do.

    Raises:
        ValueError: there are no characters.
    """

    def __init__(self, characters: str) -> None:
        self._points = np.unique(_code_points(characters))  # (V,), ascending
        if self._points.size == 0:
            raise ValueError("a character vocabulary needs at least one character, got empty text")
        # Code point -> id, -1 where there is none; one extra entry stands for everything beyond.
        self._table = np.full(int(self._points[-1]) + 2, -1, dtype=np.int64)
        self._table[self._points] = np.arange(self._points.size)

    @property
    def characters(self) -> str:
        """The characters, the one with id 0 first."""
        return _text(self._points)

    def __len__(self) -> int:
        return int(self._points.size)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CharVocabulary) and self.characters == other.characters

    def __hash__(self) -> int:
        return hash(self.characters)

    def encode(self, text: str) -> Ids:
        """Return int64 ids (T,), one a character.

        Raises:
            ValueError: the text has characters that the vocabulary lacks; names the first of them.
        """
        points = _code_points(text)
        ids: Ids = self._table[np.minimum(points, self._table.size - 1)]
        unknown = np.flatnonzero(ids < 0)
        if unknown.size:
            distinct = list(dict.fromkeys(text[i] for i in unknown[:1000]))
            named = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in distinct[:5])
            raise ValueError(
                f"the text has characters that this vocabulary of {len(self)} lacks: {named}"
                f"{' and more' if len(distinct) > 5 else ''}, the first at position {unknown[0]}"
            )
        return ids

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of ids (T,).

        Raises:
            IndexError: an id is not in [0, V).
        """
        return _text(self._points[_checked_ids(ids, len(self))])

    def stream_decoder(self) -> Callable[[int], str]:
        """Return a function from id to character."""
        characters = self.characters
        return lambda token: characters[token]

    def to_dict(self) -> dict[str, Any]:
        """Return `{"type": "char", "characters": ...}`."""
        return {"type": "char", "characters": self.characters}


def vocabulary_from_dict(description: Mapping[str, Any]) -> ByteVocabulary | CharVocabulary:
    """Return the vocabulary that `to_dict` described.

    Raises:
        ValueError: the description is not one of ours, or its characters repeat or are unordered.
    """
    kind = description.get("type") if isinstance(description, Mapping) else None
    if kind == "byte":
        return ByteVocabulary()
    if kind == "char":
        characters = description.get("characters")
        if not isinstance(characters, str) or not characters:
            raise ValueError("a character vocabulary needs 'characters', a non-empty string")
        vocabulary = CharVocabulary(characters)
        if vocabulary.characters != characters:  # ids would differ from those trained on
            raise ValueError("the vocabulary's characters are repeated or out of order")
        return vocabulary
    raise ValueError(f"the vocabulary's type must be 'byte' or 'char', got {kind!r}")


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _text(points: npt.NDArray[np.uint32]) -> str:
    return points.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


def _checked_ids(ids: npt.ArrayLike, size: int) -> Ids:
    array = np.asarray(ids, dtype=np.int64).reshape(-1)
    outside = np.flatnonzero((array < 0) | (array >= size))
    if outside.size:
        raise IndexError(
            f"token id {array[outside[0]]} at position {outside[0]} is outside the vocabulary "
            f"of {size} (ids 0 to {size - 1})"
        )
    return array
