"""T5's objective: spans of a text are replaced by sentinels, and the targets say what they were.

Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer", sections 3.1.4 and 3.3.4, by the counts of their released `random_spans_noise_mask`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from glassformer.random import Generator, as_generator

Array = npt.NDArray[np.int64]


def span_denoising(
    input_ids: npt.ArrayLike,
    sentinel_ids: Sequence[int],
    eos_token_id: int,
    noise_density: float = 0.15,
    mean_noise_span_length: float = 3.0,
    generator: Generator | None = None,
) -> dict[str, Array]:
    """Return `input_ids` with spans replaced by sentinels, and the spans as `labels`.

        tokens   Thank you for inviting me to your party last week
        inputs   Thank you <0> me to your party <1> </s>
        labels   <0> for inviting <1> last week </s>

    Kept and noise spans take turns, beginning with a kept one; how many there are follows from the
    length, and all ways to divide the tokens into them are equally likely. See
    `denoising_lengths` for how long inputs and labels are.

    Args:
        input_ids: the tokens (T,), T >= 2, without end of sequence.
        sentinel_ids: <extra_id_0>, <extra_id_1>, ...; T5's are the last of its tokenizer, counted
            down: `range(n - 1, n - 101, -1)` with n tokens.
        eos_token_id: ends inputs and labels.
        noise_density: share of the tokens that are replaced.
        mean_noise_span_length: their number by that of the spans.
        generator: draws the spans; the default generator unless told.

    Raises:
        ValueError: too few tokens or sentinels, a sentinel among the tokens, or a setting out of
            range.
    """
    ids = np.asarray(input_ids)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"input_ids must be integers (T,), got {ids.dtype} {ids.shape}")
    noise, spans = _counts(ids.size, noise_density, mean_noise_span_length)
    if spans > len(sentinel_ids):
        raise ValueError(
            f"{ids.size} tokens at this density have {spans} spans, but there are "
            f"{len(sentinel_ids)} sentinel_ids: give more of them, or a shorter text"
        )
    taken = np.intersect1d(ids, list(sentinel_ids))
    if taken.size:
        raise ValueError(f"input_ids hold sentinels: {taken[:5].tolist()}; leave them out")
    rng = as_generator(generator).numpy
    noise_lengths = _random_partition(noise, spans, rng)
    kept_lengths = _random_partition(ids.size - noise, spans, rng)
    inputs: list[int] = []
    labels: list[int] = []
    position = 0
    for sentinel, kept, hidden in zip(sentinel_ids, kept_lengths, noise_lengths, strict=False):
        begin, end = position + kept, position + kept + hidden
        inputs += [*ids[position:begin], sentinel]
        labels += [sentinel, *ids[begin:end]]
        position = end
    return {
        "input_ids": np.array([*inputs, eos_token_id], dtype=np.int64),
        "labels": np.array([*labels, eos_token_id], dtype=np.int64),
    }


def denoising_lengths(
    length: int, noise_density: float = 0.15, mean_noise_span_length: float = 3.0
) -> tuple[int, int]:
    """Return how long `span_denoising` makes inputs and labels of so many tokens.

    With N = round(length * density) noise tokens in S = round(N / mean) spans, both at least 1:
    inputs have length - N + S + 1 tokens and labels N + S + 1.

    Raises:
        ValueError: the length is below 2, or a setting out of range.
    """
    noise, spans = _counts(length, noise_density, mean_noise_span_length)
    return length - noise + spans + 1, noise + spans + 1


def _counts(length: int, density: float, mean: float) -> tuple[int, int]:
    """How many tokens are noise, and in how many spans."""
    if length < 2:
        raise ValueError(f"denoising needs 2 tokens or more, one kept and one not, got {length}")
    if not 0 < density < 1:
        raise ValueError(f"noise_density must be between 0 and 1, got {density}")
    if not mean >= 1:
        raise ValueError(f"mean_noise_span_length must be 1 or more, got {mean}")
    noise = min(max(round(length * density), 1), length - 1)
    spans = max(round(noise / mean), 1)
    return noise, min(spans, length - noise)  # a kept token stands before each span


def _random_partition(total: int, parts: int, rng: np.random.Generator) -> list[int]:
    """`parts` positive numbers whose sum is `total`, every such list equally likely."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    lengths: list[int] = np.diff(cuts, prepend=0, append=total).tolist()
    return lengths
