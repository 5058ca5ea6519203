"""What a call of attention asks for, and the arguments that all of its kernels share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from glassformer_kernels import launch
from glassformer_kernels.launch import next_power_of_2


@dataclass(frozen=True)
class Problem:
    """Attention over (B, H, T, D) tensors or packed (total, H, D) ones, checked and complete.

    Attributes:
        query, key, value: the last stride is 1 (see `problem`).
        mask: bool (B, H, Tq, Tk), expanded; None shows everything.
        bias: float (B, H, Tq, Tk), expanded; added to the scores.
        alibi_slopes: float32 (B, H), expanded.
        sinks: float32 (H,): the logit of a key without a value.
        cu_seqlens_q, cu_seqlens_k: int32 (B + 1,) of packed sequences.
        max_q, max_k: the longest sequence, or Tq and Tk.
        left, right: how many keys a query sees before and after its position; None is no limit.
        bottom_right: the last query stands at the last key; otherwise the first at the first.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    bias: torch.Tensor | None
    alibi_slopes: torch.Tensor | None
    sinks: torch.Tensor | None
    cu_seqlens_q: torch.Tensor | None
    cu_seqlens_k: torch.Tensor | None
    max_q: int
    max_k: int
    left: int | None
    right: int | None
    bottom_right: bool
    scale: float
    softcap: float | None
    dropout_p: float
    seed: int

    @property
    def packed(self) -> bool:
        """Whether sequences are packed one after the other, (total, H, D)."""
        return self.cu_seqlens_q is not None

    @property
    def batch(self) -> int:
        """The number of sequences."""
        if self.cu_seqlens_q is not None:
            return self.cu_seqlens_q.shape[0] - 1
        return self.query.shape[0]

    @property
    def heads(self) -> int:
        """The number of query heads."""
        return self.query.shape[1]

    @property
    def kv_heads(self) -> int:
        """The number of key and value heads."""
        return self.key.shape[1]

    @property
    def rows(self) -> int:
        """Query rows from one head's first to the next head's first, in what has one per row."""
        return self.query.shape[0 if self.packed else 2]

    @property
    def head_dim(self) -> int:
        """The size of a query and of a key."""
        return self.query.shape[-1]

    @property
    def value_dim(self) -> int:
        """The size of a value."""
        return self.value.shape[-1]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compute but zeros."""
        return 0 in (self.query.numel() // max(self.head_dim, 1), self.batch, self.max_q)

    @property
    def key_for_tuning(self) -> tuple[Any, ...]:
        """What the fastest configuration depends on; lengths by their power of two."""
        switches = {
            "packed": self.packed,
            "left": self.left is not None,
            "right": self.right is not None,
            "mask": self.mask is not None,
            "bias": self.bias is not None,
            "alibi": self.alibi_slopes is not None,
            "softcap": self.softcap is not None,
            "dropout": self.dropout_p > 0,
        }
        return (
            str(self.query.dtype).removeprefix("torch."),
            launch.dot_precision(self.query),
            f"d{self.head_dim}",
            f"v{self.value_dim}",
            f"q{next_power_of_2(self.max_q)}",
            f"k{next_power_of_2(self.max_k)}",
            *(name for name, on in switches.items() if on),
        )


def make_problem(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    bias: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    cu_seqlens_q: torch.Tensor | None,
    cu_seqlens_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    left: int | None,
    right: int | None,
    bottom_right: bool,
    scale: float,
    softcap: float | None,
    dropout_p: float,
    seed: int,
) -> Problem:
    """Return a call as kernels take it: expanded, with a last stride of 1."""
    batch = query.shape[0] if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1
    full = (batch, query.shape[1], max_q, max_k)
    value = row_major(value)
    if dropout_p == 1:  # no value counts, not even an infinite one: 0 · inf would be NaN
        value = torch.zeros_like(value)
    return Problem(
        query=row_major(query),
        key=row_major(key),
        value=value,
        mask=None if mask is None else mask.expand(full),
        bias=None if bias is None else bias.expand(full),
        alibi_slopes=None if alibi_slopes is None else alibi_slopes.float().expand(full[:2]),
        sinks=None if sinks is None else sinks.float().contiguous(),
        cu_seqlens_q=None if cu_seqlens_q is None else cu_seqlens_q.contiguous(),
        cu_seqlens_k=None if cu_seqlens_k is None else cu_seqlens_k.contiguous(),
        max_q=max_q,
        max_k=max_k,
        # No sequence is longer; and kernels add these to positions in 32 bits.
        left=None if left is None else min(left, 2**30),
        right=None if right is None else min(right, 2**30),
        bottom_right=bottom_right,
        scale=scale,
        softcap=softcap,
        dropout_p=dropout_p,
        seed=seed,
    )


def row_major(x: torch.Tensor) -> torch.Tensor:
    """Return x with a last stride of 1, a copy where it has another."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 and x.is_contiguous() else x.contiguous()


def row_strides(name: str, x: torch.Tensor, packed: bool) -> dict[str, int]:
    """Return the strides of (B, H, T, D) or packed (T, H, D) as `stride_<name>_b`, `_h`, `_t`."""
    if packed:
        b, t, h = 0, x.stride(0), x.stride(1)
    else:
        b, h, t = x.stride()[:3]
    return {f"stride_{name}_b": b, f"stride_{name}_h": h, f"stride_{name}_t": t}


def pair_strides(name: str, x: torch.Tensor | None) -> dict[str, int]:
    """Return the strides of something with an element per pair as `stride_<name>_b` … `_n`."""
    strides = (0, 0, 0, 0) if x is None else x.stride()
    return {f"stride_{name}_{dim}": s for dim, s in zip("bhmn", strides, strict=True)}


def shared_args(x: Problem) -> dict[str, Any]:
    """Return the arguments that forward and every backward kernel take alike."""
    seed_1, seed_2 = dropout_keys(x.seed)
    return {
        "p_q": x.query,
        "p_k": x.key,
        "p_v": x.value,
        "p_mask": x.mask,
        "p_bias": x.bias,
        "p_slopes": x.alibi_slopes,
        "p_cu_q": x.cu_seqlens_q,
        "p_cu_k": x.cu_seqlens_k,
        **row_strides("q", x.query, x.packed),
        **row_strides("k", x.key, x.packed),
        **row_strides("v", x.value, x.packed),
        **pair_strides("mask", x.mask),
        **pair_strides("bias", x.bias),
        "stride_slopes_b": 0 if x.alibi_slopes is None else x.alibi_slopes.stride(0),
        "stride_slopes_h": 0 if x.alibi_slopes is None else x.alibi_slopes.stride(1),
        "batch": x.batch,
        "heads": x.heads,
        "groups": x.heads // x.kv_heads,
        "rows": x.rows,
        "max_q": x.max_q,
        "max_k": x.max_k,
        "left": x.left or 0,
        "right": x.right or 0,
        "scale": x.scale,
        "softcap": x.softcap or 1.0,
        "seed_1": seed_1,
        "seed_2": seed_2,
        "drop_below": signed32(max(round(x.dropout_p * 2**32), 1) - 1),
        "keep_scale": 1 / (1 - x.dropout_p) if x.dropout_p < 1 else 0.0,
        "D": x.head_dim,
        "DV": x.value_dim,
        "BLOCK_D": max(16, next_power_of_2(x.head_dim)),
        "BLOCK_DV": max(16, next_power_of_2(x.value_dim)),
        "HAS_LEFT": x.left is not None,
        "HAS_RIGHT": x.right is not None,
        "BOTTOM_RIGHT": x.bottom_right,
        "HAS_SOFTCAP": x.softcap is not None,
        "HAS_DROPOUT": x.dropout_p > 0,
        # Only a positive factor may be multiplied after the maximum is taken.
        "PLAIN": x.scale > 0 and x.softcap is None and x.bias is None and x.alibi_slopes is None,
        "PRECISION": launch.dot_precision(x.query),
    }


# Runtime arguments whose values must not make a new kernel when they happen to be 1 or round.
UNSPECIALIZED = ["seed_1", "seed_2", "drop_below", "left", "right", "max_q", "max_k", "rows"]


def descriptor(x: torch.Tensor, block: int, block_d: int) -> Any:
    """Return a tensor descriptor of (B, H, T, D) tiles (1, 1, block, block_d), or None.

    None where the GPU has no copy engine for tiles, and where the tensor isn't as that asks for it:
    base and strides aligned to 16 bytes, no stride 0.
    """
    if not launch.target_for(x).has_tma or x.ndim != 4 or 0 in x.shape:
        return None
    size = x.element_size()
    strides = x.stride()[:-1]
    aligned = x.data_ptr() % 16 == 0 and all(s > 0 and s * size % 16 == 0 for s in strides)
    if not aligned or x.stride(-1) != 1:
        return None
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, block, block_d])


def dropout_keys(seed: int) -> tuple[int, int]:
    """Return the two keys that dropout's hash takes from a seed of 64 bits, as signed 32 bits."""
    first = _mix32((seed & 0xFFFFFFFF) ^ _GOLDEN)
    second = _mix32(_mix32(first ^ _GOLDEN) ^ (seed >> 32 & 0xFFFFFFFF))
    return signed32(first), signed32(second)


_GOLDEN = 0x9E3779B9


def _mix32(x: int) -> int:
    x ^= x >> 16
    x = x * 0x7FEB352D & 0xFFFFFFFF
    x ^= x >> 15
    x = x * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def signed32(x: int) -> int:
    """Return 32 bits read as a signed number: Triton passes larger ones as 64 bits."""
    return x - (1 << 32) if x >= 1 << 31 else x
