"""How a Transformer knows the order of its tokens: five ways.

`SinusoidalPositions` and `LearnedPositions` are added to the embeddings. `RotaryPositions`,
`ALiBiPositions` and `T5Positions` act inside attention: pass one to `MultiheadAttention`.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from glassformer.devices import Device
from glassformer.dtypes import DType
from glassformer.nn import functional as F
from glassformer.nn.init import normal_
from glassformer.nn.module import Module
from glassformer.ops.creation import empty, zeros
from glassformer.tensor import Parameter, Tensor, tensor


class SinusoidalPositions(Module):
    """x + PE, PE[t, 2i] = sin(t / 10000^(2i/C)), PE[t, 2i + 1] = cos(t / 10000^(2i/C)).

    Vaswani et al. 2017, "Attention Is All You Need", section 3.5. Nothing is learned, and no
    length is too long.
    """

    embedding_dim: int

    def __init__(self, embedding_dim: int) -> None:
        if embedding_dim % 2:
            raise ValueError(f"sine and cosine come in pairs; embedding_dim={embedding_dim} is odd")
        self.embedding_dim = embedding_dim

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        """Add positions offset, offset + 1, … to x (B, T, C)."""
        stop = offset + x.shape[-2]
        table = sinusoidal_table(_round_up(stop), self.embedding_dim, x.dtype, x.device)
        return x + table[offset:stop]

    def extra_repr(self) -> str:  # noqa: D102
        return f"{self.embedding_dim}"


class LearnedPositions(Module):
    """x + weight[t]: a trained vector for every position.

    Gehring et al. 2017, "Convolutional Sequence to Sequence Learning", section 3.1; as in GPT and
    BERT. The vectors start from N(0, 0.02²).
    """

    num_positions: int
    weight: Parameter  # (num_positions, C)

    def __init__(self, num_positions: int, embedding_dim: int) -> None:
        self.num_positions = num_positions
        self.weight = Parameter(empty(num_positions, embedding_dim))
        normal_(self.weight, std=0.02)

    def forward(self, x: Tensor, offset: int = 0, position_ids: Tensor | None = None) -> Tensor:
        """Add positions offset, offset + 1, … to x (B, T, C), or those of `position_ids` (B, T).

        Raises:
            ValueError: the last position is beyond the table.
        """
        if position_ids is not None:
            return x + F.embedding(position_ids, self.weight)
        stop = offset + x.shape[-2]
        if stop > self.num_positions:
            raise ValueError(
                f"position {stop - 1} is needed, but there are {self.num_positions} positions; "
                "shorten the input, or build the model with more"
            )
        return x + self.weight[offset:stop]

    def extra_repr(self) -> str:  # noqa: D102
        return f"{self.num_positions}, {self.weight.shape[1]}"


class AttentionPositions(Module):
    """Positions that act inside attention. A subclass overrides one of the two methods."""

    def rotate(self, query: Tensor, key: Tensor, offset: int) -> tuple[Tensor, Tensor]:
        """Change query (B, H, T, D) and key (B, Hkv, T, D) at positions offset, offset + 1, …"""
        del offset
        return query, key

    def bias(
        self, query_length: int, key_length: int, dtype: DType, device: Device | None = None
    ) -> Tensor | None:
        """Return what is added to the scores, (1, H, Tq, Tk): queries are the last of the keys."""
        del query_length, key_length, dtype, device
        return None


class RotaryPositions(AttentionPositions):
    """Turn the pair (x[i], x[i + D/2]) of every query and key at position t by t · frequency[i].

    The frequencies are base^(-2i/D). The score of two positions then depends on their distance
    alone. Su et al. 2021, "RoFormer", section 3.2.2; channel i is paired with i + D/2, as in
    GPT-NeoX and Llama.

    Args:
        head_dim: D.
        base: the distances at which pairs have gone round lie between 2π and 2π · base.
        frequencies: D/2 others in place of these, such as `llama3_frequencies`.
    """

    head_dim: int
    base: float
    frequencies: tuple[float, ...]

    def __init__(
        self,
        head_dim: int,
        base: float = 10000.0,
        frequencies: npt.NDArray[np.float64] | None = None,
    ) -> None:
        if head_dim % 2:
            raise ValueError(f"rotary positions turn pairs of channels; head_dim={head_dim} is odd")
        self.head_dim = head_dim
        self.base = base
        if frequencies is None:
            frequencies = rotary_frequencies(head_dim, base)
        self.frequencies = tuple(frequencies.tolist())

    def rotate(self, query: Tensor, key: Tensor, offset: int) -> tuple[Tensor, Tensor]:  # noqa: D102
        stop = offset + query.shape[2]
        cos, sin = rotary_table(_round_up(stop), self.frequencies, query.dtype, query.device)
        cos, sin = cos[offset:stop], sin[offset:stop]
        return F.rotary_embedding(query, cos, sin), F.rotary_embedding(key, cos, sin)

    def extra_repr(self) -> str:  # noqa: D102
        return f"{self.head_dim}, base={self.base:g}"


class ALiBiPositions(AttentionPositions):
    """Add -slope·|i - j| to the score of positions i and j, a slope for each head.

    Press, Smith and Lewis 2022, "Train Short, Test Long", section 3. Nothing is learned.
    """

    num_heads: int

    def __init__(self, num_heads: int) -> None:
        self.num_heads = num_heads

    def bias(  # noqa: D102
        self, query_length: int, key_length: int, dtype: DType, device: Device | None = None
    ) -> Tensor:
        return alibi_table(self.num_heads, query_length, key_length, dtype, device)

    def extra_repr(self) -> str:  # noqa: D102
        return f"num_heads={self.num_heads}"


class T5Positions(AttentionPositions):
    """Add a learned number for each head and each class of distances to the scores.

    Half the classes are single small distances, the other half grow logarithmically up to
    `max_distance`, and all beyond share the last. Raffel et al. 2020, "Exploring the Limits of
    Transfer Learning with a Unified Text-to-Text Transformer", section 2.1. Starts at 0. T5 shares
    one such table between all layers of a stack: pass the same object to each.

    Args:
        num_heads: H.
        bidirectional: distances ahead have classes of their own; False for causal attention.
        num_buckets: number of classes.
        max_distance: where the last class begins.
    """

    bidirectional: bool
    num_buckets: int
    max_distance: int
    weight: Parameter  # (num_buckets, H)

    def __init__(
        self,
        num_heads: int,
        bidirectional: bool = True,
        num_buckets: int = 32,
        max_distance: int = 128,
    ) -> None:
        self.bidirectional = bidirectional
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.weight = Parameter(zeros(num_buckets, num_heads))

    def bias(  # noqa: D102
        self, query_length: int, key_length: int, dtype: DType, device: Device | None = None
    ) -> Tensor:
        settings = (self.bidirectional, self.num_buckets, self.max_distance, device)
        buckets = t5_table(query_length, key_length, *settings)
        by_pair = F.embedding(buckets, self.weight)  # (Tq, Tk, H)
        return by_pair.permute(2, 0, 1).unsqueeze(0)  # (1, H, Tq, Tk)

    def extra_repr(self) -> str:  # noqa: D102
        return f"bidirectional={self.bidirectional}, max_distance={self.max_distance}"


def alibi_slopes(num_heads: int) -> npt.NDArray[np.float64]:
    """Return the slope of each head: 2^(-8/n), 2^(-16/n), … for n heads.

    Press, Smith and Lewis 2022, section 3. Where n is not a power of two, the slopes of the power
    below are followed by every other slope of the power above (their released code).
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = 2.0 ** (-8 / power * np.arange(1, power + 1))
    between = 2.0 ** (-4 / power * np.arange(1, 2 * power + 1, 2))
    return np.concatenate([slopes, between[: num_heads - power]])


def rotary_frequencies(dim: int, base: float) -> npt.NDArray[np.float64]:
    """Return base^(-2i/dim) for every pair i: (dim / 2,)."""
    frequencies: npt.NDArray[np.float64] = base ** (-np.arange(0, dim, 2) / dim)
    return frequencies


def llama3_frequencies(
    frequencies: npt.NDArray[np.float64],
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    trained_positions: float,
) -> npt.NDArray[np.float64]:
    """Return frequencies for `factor` times the length that a model was trained with.

    Pairs that go round more than `high_freq_factor` times within the trained length turn as before,
    those that go round less than `low_freq_factor` times turn `factor` times slower, and those
    between are interpolated. As Llama 3.1 does; Grattafiori et al. 2024, "The Llama 3 Herd of
    Models", section 3.4.2, extends the context in this way.
    """
    turns = trained_positions * frequencies / (2 * math.pi)
    kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
    kept = np.clip(kept, 0, 1)
    mixed: npt.NDArray[np.float64] = frequencies * (kept + (1 - kept) / factor)
    return mixed


def t5_buckets(
    relative: npt.NDArray[np.int64], bidirectional: bool, num_buckets: int, max_distance: int
) -> npt.NDArray[np.int64]:
    """Return the class of each relative position (key's minus query's); see `T5Positions`.

    In float32, as the models that use it were trained: at the borders of classes it matters.
    """
    first = np.zeros_like(relative)
    distance = np.maximum(-relative, 0)
    if bidirectional:
        num_buckets //= 2
        first = (relative > 0) * num_buckets
        distance = np.abs(relative)
    exact = num_buckets // 2
    ratio = np.maximum(distance, exact).astype(np.float32) / np.float32(exact)
    growth = np.log(ratio) / np.float32(math.log(max_distance / exact))
    far = exact + (growth * np.float32(num_buckets - exact)).astype(np.int64)
    return first + np.where(distance < exact, distance, np.minimum(far, num_buckets - 1))


# Tables that the layers of a model share, and one step of training with the next.


@lru_cache(maxsize=2)
def alibi_table(
    num_heads: int, query_length: int, key_length: int, dtype: DType, device: Device | None = None
) -> Tensor:
    """Return the bias of `ALiBiPositions`, (1, H, Tq, Tk)."""
    slopes = tensor(alibi_slopes(num_heads), dtype=dtype, device=device)
    return F.alibi_bias(slopes, query_length, key_length)


@lru_cache(maxsize=4)
def t5_table(
    query_length: int,
    key_length: int,
    bidirectional: bool,
    num_buckets: int,
    max_distance: int,
    device: Device | None = None,
) -> Tensor:
    """Return the class of each query's distance to each key, (Tq, Tk); see `T5Positions`."""
    relative = F.relative_positions(query_length, key_length)
    buckets = t5_buckets(relative, bidirectional, num_buckets, max_distance)
    return tensor(buckets, device=device)


@lru_cache(maxsize=8)
def sinusoidal_table(
    num_positions: int, dim: int, dtype: DType, device: Device | None = None
) -> Tensor:
    """Return PE of `SinusoidalPositions` for positions 0, 1, …: (num_positions, dim)."""
    angles = np.outer(np.arange(num_positions), rotary_frequencies(dim, 10000.0))
    table = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(num_positions, dim)
    return tensor(table, dtype=dtype, device=device)


@lru_cache(maxsize=8)
def rotary_table(
    num_positions: int,
    frequencies: tuple[float, ...],
    dtype: DType,
    device: Device | None = None,
) -> tuple[Tensor, Tensor]:
    """Return cos and sin of the angles of `RotaryPositions`, (num_positions, head_dim / 2) each."""
    angles = np.outer(np.arange(num_positions), frequencies)
    cos, sin = (
        tensor(table, dtype=dtype, device=device) for table in (np.cos(angles), np.sin(angles))
    )
    return cos, sin


def _round_up(length: int) -> int:
    """The next power of two, so that growing sequences meet few different tables."""
    return 1 << max(length - 1, 0).bit_length()
