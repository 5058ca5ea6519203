"""BatchEncoding: what a tokenizer makes of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from glassformer.devices import Device
from glassformer.tensor import Tensor, from_numpy

TENSOR_TYPES = ("gf", "np")


class BatchEncoding(dict[str, Any]):
    """A dict of `input_ids`, `attention_mask`, ... whose entries are attributes too.

    Args:
        data: the entries.
        encodings: what the `tokenizers` package made of each row: tokens, words and characters.
    """

    def __init__(self, data: Mapping[str, Any], encodings: Sequence[Any] | None = None) -> None:
        super().__init__(data)
        self._encodings = encodings

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this encoding has no {name!r}, only {', '.join(self)}") from None

    def to(self, device: str | Device) -> BatchEncoding:
        """Move the tensors to a device, in place, and return the encoding.

        Raises:
            TypeError: there are lists or arrays, which have no device.
        """
        for name, value in self.items():
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"{name} is a {type(value).__name__}, which is on no device; "
                    "tokenizer(…, return_tensors='gf') makes tensors"
                )
        self.update({name: value.to(device) for name, value in self.items()})
        return self

    def tokens(self, batch_index: int = 0) -> list[str]:
        """Return the tokens of one row as strings."""
        return list(self._row(batch_index).tokens)

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """Return the index of the word that each token came from, None for special tokens."""
        return list(self._row(batch_index).word_ids)

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """Return 0 for tokens of the text, 1 for those of the pair, None for special tokens."""
        return list(self._row(batch_index).sequence_ids)

    def char_to_token(
        self, batch_index: int, char_index: int, sequence_index: int = 0
    ) -> int | None:
        """Return the position of the token that holds a character, None where there is none."""
        token: int | None = self._row(batch_index).char_to_token(char_index, sequence_index)
        return token

    def token_to_chars(self, batch_index: int, token_index: int) -> tuple[int, int] | None:
        """Return the (start, end) of a token in its text, None for a special token."""
        span: tuple[int, int] | None = self._row(batch_index).token_to_chars(token_index)
        return span

    def _row(self, index: int) -> Any:
        if self._encodings is None:
            raise ValueError(
                "only what the tokenizer made from text knows its words and characters; "
                "this encoding was made from ids"
            )
        return self._encodings[index]


def as_tensors(data: Mapping[str, Any], tensor_type: str | None) -> dict[str, Any]:
    """Return the entries as int64: "gf" glassformer tensors, "np" NumPy arrays, None unchanged.

    Raises:
        ValueError: an unknown type, or rows of different lengths.
    """
    if tensor_type is None:
        return dict(data)
    if tensor_type not in TENSOR_TYPES:
        raise ValueError(f"return_tensors must be 'gf', 'np' or None, got {tensor_type!r}")
    arrays = {name: _array(name, value) for name, value in data.items()}
    if tensor_type == "np":
        return dict(arrays)
    return {name: from_numpy(array) for name, array in arrays.items()}


def _array(name: str, value: Any) -> npt.NDArray[np.int64]:
    try:
        return np.asarray(value, dtype=np.int64)
    except (TypeError, ValueError):
        lengths = sorted({len(row) for row in value})
        raise ValueError(
            f"{name}: rows of lengths {lengths} don't make one array; "
            "pass padding=True (and truncation=True for long texts)"
        ) from None
