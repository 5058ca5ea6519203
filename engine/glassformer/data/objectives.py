"""Masked and causal language modelling: batches whose labels are made from their own tokens.

Pairs for BERT's next-sentence prediction are made in `sentence_pairs.py`, T5's denoising of spans
in `span_denoising.py`; a decoder's windows with the tokens that follow are in `text.py`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from glassformer.data.collate import PaddingCollator
from glassformer.data.text import IGNORED
from glassformer.random import Generator, as_generator
from glassformer.tensor import Tensor, from_numpy

Array = npt.NDArray[Any]


class MaskingTokenizer(Sized, Protocol):
    """What masking needs of a tokenizer; its length is the size of the vocabulary.

    One that also has `convert_ids_to_tokens(ids) -> list[str]` tells words by their "##" pieces.
    """

    @property
    def pad_token_id(self) -> int | None:
        """The token that fills rows up."""

    @property
    def mask_token_id(self) -> int | None:
        """The token that hides another."""

    @property
    def all_special_ids(self) -> Sequence[int]:
        """The tokens that are no text, and are never hidden."""


class DataCollatorForLanguageModeling:
    """Pad items into a batch and make its labels, as Hugging Face's class does.

    Masked (`mlm`): Devlin et al. 2019, "BERT", section 3.1. Each token that is not special is
    chosen with `mlm_probability`; a chosen one is replaced by the mask token with probability
    `mask_replace_prob`, by a random token with `random_replace_prob`, and else left as it is.
    Labels are the original tokens where one was chosen and -100 elsewhere. A batch in which chance
    chose none gets one chosen token after all, for a loss over none has no value.

    Causal: labels are the tokens themselves, -100 where `attention_mask` is 0; the model shifts.

    Items are mappings with `input_ids` (T,), or the ids alone; see `PaddingCollator` for what else
    they may hold. `special_tokens_mask` (T,), if there, says which tokens are special in place of
    the tokenizer. Words for `whole_word_mask` are the runs of equal `word_ids` (T,), else the runs
    without a gap in `offset_mapping` (T, 2), else tokens with the "##" pieces after them. None of
    the three reaches the batch.

    Args:
        tokenizer: says what is padding, mask and special.
        mlm: masked rather than causal.
        whole_word_mask: choose words rather than tokens, and then each of their tokens; replaced
            token by token.
        mlm_probability: how likely a token (or word) is chosen.
        mask_replace_prob: the share of chosen tokens that become the mask token.
        random_replace_prob: the share that become random tokens.
        pad_to_multiple_of: round the batch's length up to a multiple of this.
        seed: derive each batch's choices from this and the batch's tokens alone: the same batch is
            always masked alike, as an evaluation wants it.
        generator: draws the choices; the default generator unless told. The default one is saved
            in training checkpoints, so a resumed training masks as one that never stopped.

    Raises:
        ValueError: there is no mask token, a probability is out of range, `seed` and `generator`
            are both given, or an option for masking is set without `mlm`.
    """

    def __init__(
        self,
        tokenizer: MaskingTokenizer,
        mlm: bool = True,
        whole_word_mask: bool = False,
        mlm_probability: float = 0.15,
        mask_replace_prob: float = 0.8,
        random_replace_prob: float = 0.1,
        pad_to_multiple_of: int | None = None,
        seed: int | None = None,
        generator: Generator | None = None,
    ) -> None:
        replaced = mask_replace_prob + random_replace_prob
        probabilities = (mlm_probability, mask_replace_prob, random_replace_prob, replaced)
        if not all(0 <= p <= 1 for p in probabilities):
            raise ValueError(
                f"mlm_probability {mlm_probability}, mask_replace_prob {mask_replace_prob}, "
                f"random_replace_prob {random_replace_prob} and the sum of the last two must all "
                "be in [0, 1]"
            )
        if mlm and tokenizer.mask_token_id is None:
            raise ValueError("the tokenizer has no mask token; give mlm=False for causal modelling")
        if whole_word_mask and not mlm:
            raise ValueError("whole_word_mask=True masks words, but mlm=False masks nothing")
        if seed is not None and (seed < 0 or generator is not None):
            raise ValueError(
                f"give a seed of 0 or more, or a generator; got {seed=} and {generator=}"
            )
        self.tokenizer = tokenizer
        self.mlm = mlm
        self.whole_word_mask = whole_word_mask
        self.mlm_probability = mlm_probability
        self.mask_replace_prob = mask_replace_prob
        self.random_replace_prob = random_replace_prob
        self.seed = seed
        self.generator = generator
        pad = tokenizer.pad_token_id
        self._pad = PaddingCollator(0 if pad is None else pad, "right", pad_to_multiple_of)
        self._continues: npt.NDArray[np.bool_] | None = None  # (V,), which tokens begin with "##"

    def __call__(self, items: Sequence[Any]) -> dict[str, Tensor]:
        """Return the items as one batch of tensors with `labels` (B, T)."""
        batch = self._pad([_as_mapping(item) for item in items])
        ids, real = batch["input_ids"].numpy(), batch["attention_mask"].numpy() != 0
        hints = {name: batch.pop(name).numpy() for name in _HINTS if name in batch}
        if self.mlm:
            masked, labels = self._masked(ids, real, hints)
            batch["input_ids"] = from_numpy(masked)
        else:
            labels = np.where(real, ids, IGNORED)
        batch["labels"] = from_numpy(labels)
        return batch

    def _masked(
        self, ids: Array, real: npt.NDArray[np.bool_], hints: Mapping[str, Array]
    ) -> tuple[Array, Array]:
        """The ids (B, T) with tokens replaced, and the labels (B, T)."""
        if "special_tokens_mask" in hints:
            special = hints["special_tokens_mask"] != 0
        else:
            special = np.isin(ids, list(self.tokenizer.all_special_ids))
        candidates = real & ~special
        rng = self._rng(ids)
        units = self._units(ids, candidates, hints)
        chosen = (
            candidates & (rng.random(int(units.max(initial=0)) + 1) < self.mlm_probability)[units]
        )
        if not chosen.any() and candidates.any() and self.mlm_probability > 0:
            chosen = candidates & (units == rng.choice(units[candidates]))
        fate = rng.random(ids.shape)
        to_mask = chosen & (fate < self.mask_replace_prob)
        to_random = chosen & ~to_mask & (fate < self.mask_replace_prob + self.random_replace_prob)
        masked = ids.copy()
        masked[to_mask] = self.tokenizer.mask_token_id
        masked[to_random] = rng.integers(len(self.tokenizer), size=int(to_random.sum()))
        return masked, np.where(chosen, ids, IGNORED)

    def _rng(self, ids: Array) -> np.random.Generator:
        if self.seed is None:
            return as_generator(self.generator).numpy
        return np.random.default_rng([self.seed, zlib.crc32(ids.tobytes())])

    def _units(
        self, ids: Array, candidates: npt.NDArray[np.bool_], hints: Mapping[str, Array]
    ) -> npt.NDArray[np.int64]:
        """For each token (B, T) the number of what is chosen as one: the token or its word."""
        if not self.whole_word_mask:
            return np.arange(ids.size).reshape(ids.shape)
        goes_on = np.zeros(ids.shape, dtype=bool)
        if "word_ids" in hints:
            words = hints["word_ids"]
            goes_on[:, 1:] = words[:, 1:] == words[:, :-1]
        elif "offset_mapping" in hints:
            spans = hints["offset_mapping"]  # (B, T, 2), where each token's text starts and ends
            goes_on[:, 1:] = spans[:, 1:, 0] == spans[:, :-1, 1]
        else:
            goes_on[:] = self._continuations()[ids]
        goes_on &= candidates  # a special token ends the word before it
        goes_on[:, 0] = False
        return (np.cumsum(~goes_on) - 1).reshape(ids.shape)

    def _continuations(self) -> npt.NDArray[np.bool_]:
        """For each token of the vocabulary (V,), whether it begins with "##"."""
        if self._continues is None:
            convert = getattr(self.tokenizer, "convert_ids_to_tokens", None)
            tokens = [] if convert is None else convert(list(range(len(self.tokenizer))))
            self._continues = np.array([str(token).startswith("##") for token in tokens])
            if not self._continues.any():
                raise ValueError(
                    "whole_word_mask finds words by '##' pieces, and the tokenizer has none: give "
                    "every item its word_ids or offset_mapping"
                )
        return self._continues


def group_texts(
    texts: Iterable[npt.ArrayLike], block_size: int
) -> list[dict[str, npt.NDArray[np.int64]]]:
    """Join the token ids of texts and cut them into items `{"input_ids": (block_size,)}`.

    The tokens that fill no block are left out. Put the token that separates texts, if any, into
    the texts.

    Raises:
        ValueError: block_size is not positive, or the tokens fill no block.
    """
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    rows = [np.asarray(text, dtype=np.int64) for text in texts]
    tokens = np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
    if tokens.size < block_size:
        raise ValueError(
            f"{tokens.size} tokens fill no block of {block_size}: give more text, or a smaller "
            "block_size"
        )
    whole = tokens[: tokens.size // block_size * block_size]
    return [{"input_ids": block} for block in whole.reshape(-1, block_size)]


_HINTS = ("special_tokens_mask", "word_ids", "offset_mapping")  # for masking, not for the model


def _as_mapping(item: Any) -> Mapping[str, Any]:
    """An item by its names; a tokenizer's None for "no word" as -1."""
    if not isinstance(item, Mapping):
        return {"input_ids": item}
    if "word_ids" not in item:
        return item
    return {**item, "word_ids": [-1 if word is None else word for word in item["word_ids"]]}
