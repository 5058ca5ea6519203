"""The steps of a tokenizer's call: arguments checked, texts encoded, results gathered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from glassformer.data.tokenizer_files import is_package_error, one_line

if TYPE_CHECKING:
    from glassformer.data.tokenizer import Tokenizer

_PADDING: dict[Any, Any] = {True: "longest", "do_not_pad": False}
_TRUNCATION: dict[Any, Any] = {True: "longest_first", None: False, "do_not_truncate": False}
_UNLIMITED = 10**20  # a model_max_length above this stands for none
_ATTRIBUTES = {
    "input_ids": "ids",
    "token_type_ids": "type_ids",
    "attention_mask": "attention_mask",
    "special_tokens_mask": "special_tokens_mask",
    "offset_mapping": "offsets",
}


@dataclass(frozen=True)
class Limits:
    """How long the rows of a batch become; the names are those of the tokenizer's call."""

    padding: bool | str
    truncation: bool | str | None
    max_length: int | None
    stride: int
    pad_to_multiple_of: int | None

    def resolved(self, model_max_length: int) -> Limits:
        """Return the same with `padding` False, "longest" or "max_length", truncation alike.

        Raises:
            ValueError: a value is none of those allowed, or two don't fit each other.
        """
        padding = _PADDING.get(self.padding, self.padding)
        truncation = _TRUNCATION.get(self.truncation, self.truncation)
        max_length = self.max_length
        if max_length is not None and self.truncation is None and padding is False:
            truncation = "longest_first"
        _one_of("padding", padding, (False, "longest", "max_length"))
        _one_of("truncation", truncation, (False, "longest_first", "only_first", "only_second"))
        for name, value in (("max_length", max_length), ("stride", self.stride)):
            if value is not None and (isinstance(value, bool) or value < 0):
                raise ValueError(f"{name} must be 0 or more, got {value!r}")
        multiple = self.pad_to_multiple_of
        if multiple is not None and multiple < 1:
            raise ValueError(f"pad_to_multiple_of must be at least 1, got {multiple}")
        if max_length is None and model_max_length > _UNLIMITED:
            truncation = False
            padding = False if padding == "max_length" else padding
        elif max_length is None and (truncation or padding == "max_length"):
            max_length = model_max_length
        if truncation and padding and multiple and max_length is not None and max_length % multiple:
            raise ValueError(
                f"max_length={max_length} must be a multiple of pad_to_multiple_of={multiple} "
                "when rows are both cut and padded"
            )
        return replace(self, padding=padding, truncation=truncation, max_length=max_length)

    def padded_length(self, rows: Sequence[Sequence[int]]) -> int | None:
        """Return the length to pad rows to, None for no padding."""
        if not self.padding:
            return None
        longest = max((len(row) for row in rows), default=0)
        length = (
            longest if self.padding == "longest" or self.max_length is None else self.max_length
        )
        multiple = self.pad_to_multiple_of or 1
        return -(-length // multiple) * multiple


def single_and_pairs(text: Any, text_pair: Any, words: bool) -> tuple[bool, list[Any]]:
    """Return whether a batch was given, and a list of texts and pairs of texts.

    A text is a str, or a list of words where `words` is set.
    """
    listed = isinstance(text, (list, tuple))
    batched = listed and (not words or (len(text) > 0 and isinstance(text[0], (list, tuple))))
    if not batched:
        single = _text(text, words) if text_pair is None else _pair((text, text_pair), words)
        return False, [single]
    if text_pair is None:
        return True, [
            _pair(item, words) if _is_pair(item, words) else _text(item, words) for item in text
        ]
    if not isinstance(text_pair, (list, tuple)) or len(text_pair) != len(text):
        count = len(text_pair) if isinstance(text_pair, (list, tuple)) else repr(text_pair)[:40]
        raise ValueError(f"text_pair must be a list as long as text, {len(text)}, got {count}")
    return True, [_pair(item, words) for item in zip(text, text_pair, strict=True)]


def encode_all(
    tokenizer: Tokenizer,
    inputs: list[Any],
    limits: Limits,
    *,
    add_special_tokens: bool,
    words: bool,
) -> list[Any]:
    """Return a `tokenizers.Encoding` for each input, cut and padded.

    Raises:
        ValueError: the limits leave no room, or a text cannot be encoded.
    """
    backend = tokenizer.backend
    try:
        backend.no_truncation()
        if limits.truncation and limits.max_length is not None:
            pairs = any(isinstance(item, tuple) for item in inputs)
            specials = backend.num_special_tokens_to_add(pairs) if add_special_tokens else 0
            _check_room(limits.max_length, limits.stride, specials)
            backend.enable_truncation(
                max_length=limits.max_length,
                stride=limits.stride,
                strategy=limits.truncation,
                direction=tokenizer.truncation_side,
            )
        backend.no_padding()
        if limits.padding:
            token, index = tokenizer.required_pad_token()
            backend.enable_padding(
                length=limits.max_length if limits.padding == "max_length" else None,
                direction=tokenizer.padding_side,
                pad_id=index,
                pad_token=token,
                pad_type_id=0,
                pad_to_multiple_of=limits.pad_to_multiple_of,
            )
        encodings: list[Any] = backend.encode_batch(
            inputs, add_special_tokens=add_special_tokens, is_pretokenized=words
        )
    except ValueError:
        raise
    except BaseException as error:  # the package has no error class of its own, and may panic
        if not is_package_error(error):
            raise
        _refuse_surrogates(inputs)
        raise ValueError(f"the texts cannot be encoded: {one_line(error)}") from error
    return encodings


def rows_of(
    encodings: list[Any], names: list[str], overflowing: bool
) -> tuple[dict[str, list[Any]], list[Any]]:
    """Return the entries of a batch, and the encoding of each of its rows."""
    rows, samples = [], []
    for sample, encoding in enumerate(encodings):
        parts = [encoding, *encoding.overflowing] if overflowing else [encoding]
        rows += parts
        samples += [sample] * len(parts)
    data = {name: [getattr(row, _ATTRIBUTES[name]) for row in rows] for name in names}
    if overflowing:
        data["overflow_to_sample_mapping"] = samples
    return data, rows


def _one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        choices = ", ".join(repr(choice) for choice in (True, *allowed))
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def _check_room(max_length: int, stride: int, specials: int) -> None:
    # Below this the package would return whole texts, or panic.
    if max_length < specials:
        raise ValueError(
            f"max_length={max_length} has no room for the {specials} special tokens of a row; "
            "give more, or add_special_tokens=False"
        )
    if stride and stride >= max_length - specials:
        raise ValueError(
            f"stride={stride} must be less than the {max_length - specials} tokens of text "
            f"that max_length={max_length} leaves beside {specials} special tokens"
        )


def _is_pair(item: Any, words: bool) -> bool:
    if not isinstance(item, (list, tuple)) or len(item) != 2:
        return False
    return not words or all(isinstance(part, (list, tuple)) for part in item)


def _pair(item: Any, words: bool) -> tuple[Any, Any]:
    return _text(item[0], words), _text(item[1], words)


def _text(text: Any, words: bool) -> Any:
    if not words and isinstance(text, str):
        return text
    if words and isinstance(text, (list, tuple)) and all(isinstance(word, str) for word in text):
        return list(text)
    if not words and isinstance(text, (list, tuple)):
        raise TypeError(
            f"a text must be a str or a pair of them, got a list of {len(text)}; "
            "pass is_split_into_words=True for lists of words"
        )
    wanted = "a list of str" if words else "a str"
    raise TypeError(f"a text must be {wanted}, got {type(text).__name__} {text!r:.60}")


def _refuse_surrogates(inputs: list[Any]) -> None:
    """Name the text that holds half a character, which no encoding of Unicode has."""
    for index, item in enumerate(inputs):
        for part in item if isinstance(item, (tuple, list)) else [item]:
            whole = part if isinstance(part, str) else "".join(part)
            try:
                whole.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"text {index} has a lone surrogate, {whole[error.start]!r}, which is no "
                    "character; read the text with errors='replace'"
                ) from None
