"""Choosing the next token: each rule as a function on logits (B, V), in Hugging Face's semantics.

Excluded tokens get the logit −inf. The functions return new arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class GenerationConfig:
    """How to continue a text, with the names and meanings of Hugging Face's settings.

    The rules apply in the order of their description; each sees what the earlier ones left.

    Args:
        do_sample: draw from the distribution; otherwise take the likeliest token.
        repetition_penalty: divide the positive logits of tokens that occurred by this, multiply
            the negative ones (Keskar et al. 2019, "CTRL", section 4.1); 1 changes nothing.
        temperature: divide the logits by this; 0 takes the likeliest token.
        top_k: keep the k likeliest tokens (and those equal to the k-th).
        top_p: keep the fewest likeliest tokens whose probabilities sum to at least p (Holtzman et
            al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1).
        min_p: keep tokens at least this many times as likely as the likeliest.
        eos_token_id: a token, or several, after which a sequence is finished.
        pad_token_id: what follows in a finished sequence while others of its batch go on; the
            first `eos_token_id` unless told.

    Raises:
        ValueError: a setting is out of range, or has no effect without `do_sample`.
    """

    do_sample: bool = False
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or self.temperature == np.inf:
            raise ValueError(f"temperature must be finite and >= 0, got {self.temperature}")
        if not 0 < self.repetition_penalty < np.inf:
            raise ValueError(f"repetition_penalty must be > 0, got {self.repetition_penalty}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}; None keeps all tokens")
        for name, probability in (("top_p", self.top_p), ("min_p", self.min_p)):
            if probability is not None and not 0 <= probability <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {probability}")
        if not self.do_sample:
            asked = {
                "temperature": self.temperature not in (0, 1),
                "top_k": self.top_k is not None,
                "top_p": self.top_p is not None,
                "min_p": self.min_p is not None,
            }
            if any(asked.values()):
                named = ", ".join(name for name, given in asked.items() if given)
                raise ValueError(f"{named} has no effect without do_sample=True; pass that as well")

    @property
    def stop_tokens(self) -> list[int]:
        """The tokens that finish a sequence, as a list."""
        if self.eos_token_id is None:
            return []
        return [self.eos_token_id] if isinstance(self.eos_token_id, int) else self.eos_token_id


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
    logits: npt.ArrayLike,
    config: GenerationConfig,
    random: np.random.Generator | None = None,
    seen: Mask | None = None,
) -> Ids:
    """Return the next token (B,) of each row of `logits` (B, V).

    Args:
        logits: unnormalised log-probabilities; −inf is a token that cannot be.
        config: the rules.
        random: one number is drawn from it for each row, if sampling.
        seen: (B, V), true for tokens that occurred; needed for `repetition_penalty`.

    Raises:
        ValueError: a row holds NaN or +inf, or only −inf.
    """
    scores = np.asarray(logits, dtype=np.float64)
    _check(scores)
    if config.repetition_penalty != 1 and seen is not None:
        scores = penalize_repetition(scores, seen, config.repetition_penalty)
    if not config.do_sample or config.temperature == 0:
        greedy: Ids = scores.argmax(axis=-1)
        return greedy
    if random is None:
        raise ValueError("sampling needs a random generator")
    if config.temperature != 1:
        scores = apply_temperature(scores, config.temperature)
    if config.top_k is not None:
        scores = keep_top_k(scores, config.top_k)
    if config.top_p is not None:
        scores = keep_top_p(scores, config.top_p)
    if config.min_p is not None:
        scores = keep_min_p(scores, config.min_p)
    return draw(softmax(scores), random)


def draw(probabilities: Logits, random: np.random.Generator) -> Ids:
    """Draw one index from each row of `probabilities` (B, V), by inverting the cumulative sum."""
    cumulative = np.cumsum(probabilities, axis=-1)
    target = random.random(len(cumulative))[:, None] * cumulative[:, -1:]
    indices: Ids = (cumulative <= target).sum(axis=-1)  # never one of probability 0 ...
    last = probabilities.shape[-1] - 1 - (probabilities[:, ::-1] > 0).argmax(axis=-1)
    within: Ids = np.minimum(indices, last)  # ... nor beyond the last, should the product round up
    return within


def _check(scores: Logits) -> None:
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
