"""Drawing the next token: each rule as a function on logits (B, V), in Hugging Face's semantics.

Excluded tokens get the logit −inf. The functions return new arrays.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from glassformer.generation.config import GenerationConfig

Logits = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def penalize_repetition(logits: Logits, seen: Mask, penalty: float) -> Logits:
    """Make the tokens in `seen` (B, V) less likely by `penalty` > 1, or likelier by one below 1."""
    penalized = np.where(logits < 0, logits * penalty, logits / penalty)
    return np.where(seen, penalized, logits)


def apply_temperature(logits: Logits, temperature: float) -> Logits:
    """Divide by `temperature` > 0, after moving each row's maximum to 0 (nothing can overflow)."""
    with np.errstate(over="ignore"):  # a far lower logit becomes −inf: its probability is 0
        shifted: Logits = (logits - logits.max(axis=-1, keepdims=True)) / temperature
    return shifted


def keep_top_k(logits: Logits, k: int) -> Logits:
    """Exclude tokens whose logit is below the k-th largest; k may exceed V."""
    k = min(k, logits.shape[-1])
    threshold = np.partition(logits, -k, axis=-1)[:, -k, None]  # (B, 1)
    return np.where(logits < threshold, -np.inf, logits)


def keep_top_p(logits: Logits, p: float) -> Logits:
    """Exclude the unlikeliest tokens as long as their probabilities sum to at most 1 − p."""
    order = np.argsort(logits, axis=-1, kind="stable")  # ascending
    cumulative = np.cumsum(np.take_along_axis(softmax(logits), order, axis=-1), axis=-1)
    excluded = cumulative <= 1 - p
    excluded[:, -1] = False  # the likeliest always stays
    mask = np.empty_like(excluded)
    np.put_along_axis(mask, order, excluded, axis=-1)
    return np.where(mask, -np.inf, logits)


def keep_min_p(logits: Logits, p: float) -> Logits:
    """Exclude tokens less likely than p times the likeliest."""
    probabilities = softmax(logits)
    least = p * probabilities.max(axis=-1, keepdims=True)
    return np.where(probabilities < least, -np.inf, logits)


def softmax(logits: Logits) -> Logits:
    """Return probabilities (B, V)."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Logits = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities


def choose(
    logits: npt.ArrayLike, config: GenerationConfig, random: np.random.Generator | None = None
) -> Ids:
    """Return the next token (B,) of each row of `logits` (B, V).

    Args:
        logits: unnormalised log-probabilities; −inf is a token that cannot be.
        config: the rules of sampling; without them the likeliest token.
        random: one number is drawn from it for each row, if sampling.

    Raises:
        ValueError: a row holds NaN or +inf, or only −inf.
    """
    scores = checked(logits)
    if not config.do_sample or config.temperature == 0:
        greedy: Ids = scores.argmax(axis=-1)
        return greedy
    if random is None:
        raise ValueError("sampling needs a random generator")
    return draw(softmax(narrow(scores, config)), random)


def narrow(scores: Logits, config: GenerationConfig) -> Logits:
    """Apply temperature, top_k, top_p and min_p to `scores` (B, V)."""
    if config.temperature not in (0, 1):
        scores = apply_temperature(scores, config.temperature)
    if config.top_k is not None:
        scores = keep_top_k(scores, config.top_k)
    if config.top_p is not None:
        scores = keep_top_p(scores, config.top_p)
    if config.min_p is not None:
        scores = keep_min_p(scores, config.min_p)
    return scores


def draw(probabilities: Logits, random: np.random.Generator) -> Ids:
    """Draw one index from each row of `probabilities` (B, V), by inverting the cumulative sum."""
    cumulative = np.cumsum(probabilities, axis=-1)
    target = random.random(len(cumulative))[:, None] * cumulative[:, -1:]
    indices: Ids = (cumulative <= target).sum(axis=-1)  # never one of probability 0 ...
    last = probabilities.shape[-1] - 1 - (probabilities[:, ::-1] > 0).argmax(axis=-1)
    within: Ids = np.minimum(indices, last)  # ... nor beyond the last, should the product round up
    return within


def checked(logits: npt.ArrayLike) -> Logits:
    """Return `logits` (B, V) in float64.

    Raises:
        ValueError: a row holds NaN or +inf, or only −inf.
    """
    scores = np.asarray(logits, dtype=np.float64)
    invalid = np.isnan(scores) | (scores == np.inf)
    if invalid.any():
        row, token = (int(i) for i in np.argwhere(invalid)[0])
        raise ValueError(
            f"the logit of token {token} in row {row} is {scores[row, token]}: "
            "no probabilities follow from it; check the model's weights and inputs"
        )
    impossible = np.flatnonzero((scores == -np.inf).all(axis=-1))
    if impossible.size:
        raise ValueError(f"every token of row {impossible[0]} has probability 0 (all logits −inf)")
    return scores
