"""What may follow: each rule as a function on scores (B, V), in Hugging Face's semantics.

Excluded tokens get the score −inf. The functions return new arrays. The tokens so far are (B, T),
−1 where there is padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from glassformer.generation.config import GenerationConfig, as_list
from glassformer.generation.sampling import Ids, Logits, Mask, penalize_repetition


class Lengths(NamedTuple):
    """Numbers of tokens in one sequence, the prompt's included."""

    prompt: int
    minimum: int  # before it, none finishes
    maximum: int


def apply_rules(scores: Logits, tokens: Ids, config: GenerationConfig, lengths: Lengths) -> Logits:
    """Apply all rules that `config` asks for, but those of sampling.

    Raises:
        IndexError: a token that a rule names is not in the vocabulary.
    """
    length, stops = tokens.shape[1], config.stop_tokens
    if config.repetition_penalty != 1:
        seen = occurred(tokens, scores.shape[1])
        scores = penalize_repetition(scores, seen, config.repetition_penalty)
    if config.no_repeat_ngram_size:
        scores = forbid_repeated_ngrams(scores, tokens, config.no_repeat_ngram_size)
    if config.bad_words_ids is not None:
        words = [word for word in config.bad_words_ids if word not in [[stop] for stop in stops]]
        scores = forbid_words(scores, tokens, words)
    if length < lengths.minimum:
        scores = forbid(scores, stops)
    if config.forced_bos_token_id is not None and length == 1:
        scores = force(scores, [config.forced_bos_token_id])
    if config.forced_eos_token_id is not None and length == lengths.maximum - 1:
        scores = force(scores, as_list(config.forced_eos_token_id))
    if config.suppress_tokens is not None:
        scores = forbid(scores, config.suppress_tokens)
    if config.begin_suppress_tokens is not None and length == _first(config, lengths):
        scores = forbid(scores, config.begin_suppress_tokens)
    return scores


def _first(config: GenerationConfig, lengths: Lengths) -> int:
    """The length at which the first token is chosen that no rule forces."""
    forced = config.forced_bos_token_id is not None and lengths.prompt == 1
    return lengths.prompt + forced


def occurred(tokens: Ids, vocabulary: int) -> Mask:
    """Return which tokens (B, V) have occurred."""
    seen = np.zeros((len(tokens), vocabulary), dtype=bool)
    rows, columns = np.nonzero(tokens >= 0)
    seen[rows, tokens[rows, columns]] = True
    return seen


def forbid(scores: Logits, tokens: Sequence[int]) -> Logits:
    """Exclude some tokens."""
    _check_tokens(tokens, scores)
    excluded = scores.copy()
    excluded[:, list(tokens)] = -np.inf
    return excluded


def force(scores: Logits, tokens: Sequence[int]) -> Logits:
    """Give some tokens the score 0, and exclude all others."""
    _check_tokens(tokens, scores)
    forced = np.full_like(scores, -np.inf)
    forced[:, list(tokens)] = 0
    return forced


def forbid_repeated_ngrams(scores: Logits, tokens: Ids, size: int) -> Logits:
    """Exclude what would end a sequence of `size` tokens that has occurred before."""
    if tokens.shape[1] < size:
        return scores
    windows = np.lib.stride_tricks.sliding_window_view(tokens, size, axis=1)  # (B, T-size+1, size)
    prefix = tokens[:, tokens.shape[1] - size + 1 :]  # (B, size-1)
    again = (windows[..., :-1] == prefix[:, None]).all(axis=-1) & (windows[..., -1] >= 0)
    rows, starts = np.nonzero(again)
    excluded = scores.copy()
    excluded[rows, windows[rows, starts, -1]] = -np.inf
    return excluded


def forbid_words(scores: Logits, tokens: Ids, words: Sequence[Sequence[int]]) -> Logits:
    """Exclude what would end one of `words`, sequences of tokens."""
    excluded = scores.copy()
    for *before, last in words:
        _check_tokens([last], scores)
        if len(before) <= tokens.shape[1]:
            begun = (tokens[:, tokens.shape[1] - len(before) :] == before).all(axis=1)
            excluded[begun, last] = -np.inf
    return excluded


def _check_tokens(tokens: Sequence[int], scores: Logits) -> None:
    wrong = [token for token in tokens if not 0 <= token < scores.shape[1]]
    if wrong:
        raise IndexError(
            f"token {wrong[0]}, which a setting of generation names, is not in the vocabulary of "
            f"{scores.shape[1]} tokens"
        )
