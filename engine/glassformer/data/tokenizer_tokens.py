"""The tokens of a tokenizer: their ids, the special ones among them, and new ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

import numpy as np

from glassformer.data.tokenizer_families import SPECIAL_TOKEN_NAMES, TokenizerSettings
from glassformer.data.tokenizer_files import token_content, tokenizers_package
from glassformer.tensor import Tensor


class _SpecialToken:
    """An attribute such as `pad_token`, None while there is no such token."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, tokenizer: TokenTable, owner: type) -> str | None:
        return tokenizer.settings.special_tokens.get(self.name)

    def __set__(self, tokenizer: TokenTable, token: str | None) -> None:
        if token is None:
            tokenizer.settings.special_tokens.pop(self.name, None)
            return
        if tokenizer.backend.token_to_id(token) is None:
            raise ValueError(
                f"{self.name}: {token!r} is not in the vocabulary of {len(tokenizer)}; add it with "
                f"tokenizer.add_special_tokens({{{self.name!r}: {token!r}}})"
            )
        tokenizer.settings.special_tokens[self.name] = token


class _SpecialTokenId:
    """An attribute such as `pad_token_id`, None while there is no such token."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name.removesuffix("_id")

    def __get__(self, tokenizer: TokenTable, owner: type) -> int | None:
        token = tokenizer.settings.special_tokens.get(self.name)
        index: int | None = None if token is None else tokenizer.backend.token_to_id(token)
        return index


class TokenTable:
    """The vocabulary of a tokenizer, with a name for each special token that models rely on.

    Args:
        backend: a `tokenizers.Tokenizer`.
        settings: the special tokens.
    """

    bos_token, bos_token_id = _SpecialToken(), _SpecialTokenId()
    eos_token, eos_token_id = _SpecialToken(), _SpecialTokenId()
    unk_token, unk_token_id = _SpecialToken(), _SpecialTokenId()
    sep_token, sep_token_id = _SpecialToken(), _SpecialTokenId()
    pad_token, pad_token_id = _SpecialToken(), _SpecialTokenId()
    cls_token, cls_token_id = _SpecialToken(), _SpecialTokenId()
    mask_token, mask_token_id = _SpecialToken(), _SpecialTokenId()

    def __init__(self, backend: Any, settings: TokenizerSettings) -> None:
        self.backend = backend
        self.settings = settings

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int | None: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str] | tuple[str, ...]) -> list[int | None]: ...
    def convert_tokens_to_ids(
        self, tokens: str | list[str] | tuple[str, ...]
    ) -> int | None | list[int | None]:
        """Return the id of a token, or of each; unknown ones have that of `unk_token`."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        index: int | None = self.backend.token_to_id(tokens)
        return self.unk_token_id if index is None else index

    @overload
    def convert_ids_to_tokens(self, ids: int, skip_special_tokens: bool = False) -> str | None: ...
    @overload
    def convert_ids_to_tokens(
        self, ids: Iterable[int], skip_special_tokens: bool = False
    ) -> list[str | None]: ...
    def convert_ids_to_tokens(
        self, ids: int | Iterable[int], skip_special_tokens: bool = False
    ) -> str | None | list[str | None]:
        """Return the token of an id, or of each; None beyond the vocabulary."""
        if isinstance(ids, (int, np.integer)):
            token: str | None = self.backend.id_to_token(id_list(ids)[0])
            return token
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self.backend.id_to_token(index) for index in id_list(ids) if index not in skipped]

    def __len__(self) -> int:
        """Return the number of tokens, added ones included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    @property
    def vocab_size(self) -> int:
        """The number of tokens without those added later: `len(tokenizer)` counts all."""
        return int(self.backend.get_vocab_size(with_added_tokens=False))

    def get_vocab(self) -> dict[str, int]:
        """Return the id of every token."""
        return dict(self.backend.get_vocab(with_added_tokens=True))

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return how many special tokens a text, or a pair, gets."""
        return int(self.backend.num_special_tokens_to_add(pair))

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The special tokens that have a name, such as `pad_token`."""
        tokens = self.settings.special_tokens
        return {name: tokens[name] for name in SPECIAL_TOKEN_NAMES if name in tokens}

    @property
    def all_special_tokens(self) -> list[str]:
        """Every special token once."""
        extra = self.settings.extra_special_tokens
        return list(dict.fromkeys([*self.special_tokens_map.values(), *extra]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of all special tokens."""
        indices = (self.backend.token_to_id(token) for token in self.all_special_tokens)
        return [index for index in indices if index is not None]

    def add_tokens(self, tokens: str | Sequence[str], special_tokens: bool = False) -> int:
        """Add tokens to the vocabulary; return how many were new.

        The model then needs as many rows in its embedding: `len(tokenizer)`.
        """
        contents = [tokens] if isinstance(tokens, str) else list(tokens)
        before = len(self)
        make = tokenizers_package().AddedToken
        added = [
            make(token, special=special_tokens, normalized=not special_tokens) for token in contents
        ]
        (self.backend.add_special_tokens if special_tokens else self.backend.add_tokens)(added)
        return len(self) - before

    def add_special_tokens(self, tokens: Mapping[str, str | Sequence[str]]) -> int:
        """Add and name special tokens; return how many were new to the vocabulary.

        Args:
            tokens: such as `{"pad_token": "[PAD]", "additional_special_tokens": ["<user>"]}`.
        """
        allowed = (*SPECIAL_TOKEN_NAMES, "additional_special_tokens")
        added = 0
        for name, value in tokens.items():
            if name not in allowed:
                raise ValueError(f"unknown special token {name!r}; one of {', '.join(allowed)}")
            contents = [value] if isinstance(value, str) else list(value)
            for content in contents:
                token_content("add_special_tokens", name, content)
            added += self.add_tokens(contents, special_tokens=True)
            if name in SPECIAL_TOKEN_NAMES:
                self.settings.special_tokens[name] = contents[0]
            else:
                extra = self.settings.extra_special_tokens
                extra += [token for token in contents if token not in extra]
        return added

    def required_pad_token(self) -> tuple[str, int]:
        """Return the pad token and its id.

        Raises:
            ValueError: there is none; says what to do.
        """
        token, index = self.pad_token, self.pad_token_id
        if token is None or index is None:
            raise ValueError(
                "this tokenizer has no pad_token; choose one, such as "
                "tokenizer.pad_token = tokenizer.eos_token"
            )
        return token, index


def id_list(ids: Any) -> list[int]:
    """Return ids (T,) in a list, an array or a tensor, or one id, as a list.

    Raises:
        ValueError: more than one row, no whole numbers, or below 0.
    """
    array = np.asarray(ids.numpy() if isinstance(ids, Tensor) else ids)
    if array.size == 0:
        return []
    if array.ndim > 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"ids must be whole numbers (T,), got {array.dtype} {array.shape}; "
            "batch_decode takes several rows"
        )
    if array.min() < 0 or array.max() >= 2**32:
        wrong = array.min() if array.min() < 0 else array.max()
        raise ValueError(f"token id {wrong} is none; replace ignored labels (-100) by pad_token_id")
    return [int(index) for index in array.reshape(-1)]
