"""Making one batch of tensors out of single items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from glassformer.data.text import IGNORED
from glassformer.tensor import Tensor, from_numpy

if TYPE_CHECKING:
    from glassformer.data.tokenizer import Tokenizer

_PADDED = (
    "to pad texts give collate_fn=DataCollatorWithPadding(tokenizer), or "
    "PaddingCollator(pad_token_id) where labels are padded along"
)
LABEL_NAMES = ("labels", "shift_labels")


def default_collate(items: Sequence[Any]) -> Any:
    """Stack items of one shape along a new first dimension, inside mappings and tuples too.

    Numbers, arrays and tensors become a Tensor (B, ...), strings a list.

    Raises:
        ValueError: the shapes, lengths or keys differ.
    """
    first = items[0]
    if isinstance(first, Mapping):
        for item in items:
            if item.keys() != first.keys():
                raise ValueError(
                    f"cannot stack items of keys {sorted(first)} and {sorted(item)}: {_PADDED}"
                )
        return {name: default_collate([item[name] for item in items]) for name in first}
    if isinstance(first, (tuple, list)):
        lengths = {len(item) for item in items}
        if len(lengths) > 1:
            raise ValueError(f"cannot stack items of lengths {sorted(lengths)}: {_PADDED}")
        return tuple(default_collate(column) for column in zip(*items, strict=True))
    if isinstance(first, (str, bytes)):
        return list(items)
    arrays = [_array(item) for item in items]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise ValueError(f"cannot stack items of shapes {sorted(shapes)}: {_PADDED}")
    return from_numpy(_standard(np.stack(arrays)))


def to_tensors(batch: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
    """Return the arrays of a ready batch as tensors."""
    return {name: from_numpy(_standard(array)) for name, array in batch.items()}


class PaddingCollator:
    """Pad sequences of different lengths into one batch, and say where the real tokens are.

    Items are mappings with `input_ids` (T,). Everything else of that length is padded along:
    labels (`labels`, `shift_labels`) with -100, which no loss counts, other arrays with 0. The
    batch gets an `attention_mask` (B, T), 1 at real tokens and 0 at padding. Arrays of one shape
    in all items, such as a class label, are stacked.

    Args:
        pad_token_id: the token that fills `input_ids`.
        padding_side: "right" for training, "left" for generation (the last token is then real).
        pad_to_multiple_of: round the batch's length up to a multiple of this.
    """

    def __init__(
        self,
        pad_token_id: int = 0,
        padding_side: Literal["left", "right"] = "right",
        pad_to_multiple_of: int | None = None,
    ) -> None:
        if isinstance(pad_token_id, bool) or not isinstance(pad_token_id, (int, np.integer)):
            raise TypeError(
                f"pad_token_id must be a whole number, got {type(pad_token_id).__name__}; with a "
                "tokenizer, DataCollatorWithPadding(tokenizer) or PaddingCollator("
                "tokenizer.pad_token_id)"
            )
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right', got {padding_side!r}")
        self.pad_token_id = pad_token_id
        self.padding_side = padding_side
        self.pad_to_multiple_of = pad_to_multiple_of

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return the items as one batch of tensors."""
        rows = [{name: _array(value) for name, value in item.items()} for item in items]
        for row in rows:
            row.setdefault("attention_mask", np.ones(row["input_ids"].shape, dtype=np.int64))
        lengths = [row["input_ids"].shape[0] for row in rows]
        length = max(lengths)
        if self.pad_to_multiple_of:
            length = -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of
        batch = {}
        for name in rows[0]:
            column = [row[name] for row in rows]
            per_token = all(
                array.shape[:1] == (tokens,) for array, tokens in zip(column, lengths, strict=True)
            )
            if per_token:
                column = [self._padded(name, array, length) for array in column]
            batch[name] = default_collate(column)
        return batch

    def _padded(self, name: str, array: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
        fill = self.pad_token_id if name == "input_ids" else IGNORED if name in LABEL_NAMES else 0
        padded = np.full((length, *array.shape[1:]), fill, dtype=array.dtype)
        start = length - len(array) if self.padding_side == "left" else 0
        padded[start : start + len(array)] = array
        return padded


class DataCollatorWithPadding:
    """Pad what a tokenizer made of single texts into one batch, with `tokenizer.pad`.

    Items are mappings. A class label, under "labels", "label" or "label_ids", comes as `labels`.
    (`PaddingCollator` pads labels of every token.)

    Args:
        tokenizer: has a pad token, and says on which side it goes.
        padding: True to the longest of the batch, "max_length" to `max_length`.
        max_length: a length to pad to.
        pad_to_multiple_of: round the batch's length up to a multiple of this.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
    ) -> None:
        if not callable(getattr(tokenizer, "pad", None)):
            raise TypeError(
                f"DataCollatorWithPadding takes a tokenizer, got {type(tokenizer).__name__}; "
                "PaddingCollator(pad_token_id) takes a token's number"
            )
        self.tokenizer = tokenizer
        self.padding = padding
        self.max_length = max_length
        self.pad_to_multiple_of = pad_to_multiple_of

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the items as one batch of tensors.

        Raises:
            ValueError: items have different keys, or entries that are no numbers.
        """
        if any(item.keys() != items[0].keys() for item in items):
            raise ValueError(
                f"items of one batch have different keys: {[sorted(item) for item in items]!s:.200}"
            )
        texts = [{n: v for n, v in item.items() if n not in _CLASS_LABELS} for item in items]
        batch: dict[str, Any] = self.tokenizer.pad(
            texts,
            padding=self.padding,
            max_length=self.max_length,
            pad_to_multiple_of=self.pad_to_multiple_of,
            return_tensors="gf",
        )
        for name in _CLASS_LABELS:
            if name in items[0]:
                batch["labels"] = default_collate([_array(item[name]) for item in items])
        return batch


_CLASS_LABELS = ("label", "label_ids", "labels")


def _array(value: Any) -> npt.NDArray[Any]:
    return value.numpy() if isinstance(value, Tensor) else np.asarray(value)


def _standard(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Integers of any width as int64, the engine's type for ids and labels."""
    return array.astype(np.int64, copy=False) if array.dtype.kind in "iu" else array
