"""Scaled dot-product attention, softmax(QKᵀ/√d)V: the checks, the definition, the public call.

(Vaswani et al. 2017, "Attention Is All You Need", section 3.2.1.)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from glassformer.dtypes import bool_
from glassformer.fused.attention_blocked import backward, forward, unsupported
from glassformer.fused.dropout_mask import keep_mask
from glassformer.fused.registry import FusedOp, Kernel
from glassformer.ops.choice import where
from glassformer.ops.conversion import to
from glassformer.ops.elementwise import exp
from glassformer.ops.reduction import logsumexp
from glassformer.random import default_generator
from glassformer.tensor import Tensor

CAUSAL = (None, "top_left", "bottom_right")


def visible_keys(
    query_length: int,
    key_length: int,
    causal: str | None = None,
    window: tuple[int | None, int | None] | None = None,
) -> Any:
    """Return which key each query may see, a bool array (Tq, Tk), or None if all.

    Query i stands at position p = i + offset among the keys. The offset is 0 for "top_left" and
    Tk - Tq otherwise, where the last query stands at the last key. Causal: keys up to p. Window
    (left, right): keys from p - left to p + right, where None is no limit.
    """
    if causal is None and window is None:
        return None
    offset = 0 if causal == "top_left" else key_length - query_length
    position = np.arange(query_length)[:, None] + offset
    key = np.arange(key_length)
    left, right = window or (None, None)
    seen = np.ones((query_length, key_length), bool)
    if causal is not None:
        seen &= key <= position
    if left is not None:
        seen &= key >= position - left
    if right is not None:
        seen &= key <= position + right
    return seen


def composite_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    *,
    causal: str | None,
    window: tuple[int | None, int | None] | None,
    scale: float,
    softcap: float | None,
    dropout_p: float,
    seed: int,
    return_lse: bool,
) -> Any:
    """Return softmax(softcap(QKᵀ·scale) + bias)V over the visible keys. See `attention`."""
    dtype = query.dtype
    weights, lse, visible = _weights(query, key, mask, bias, causal, window, scale, softcap)
    value = _repeat_heads(to(value, dtype.wide), query.shape[1] // key.shape[1])
    if visible is not None:
        value = where(visible.any(2).unsqueeze(-1), value, 0.0)
    if dropout_p > 0:
        keep = Tensor(keep_mask(seed, dropout_p, weights.shape), query.device)
        weights = where(keep, weights / (1 - dropout_p) if dropout_p < 1 else 0.0 * weights, 0.0)
    out = weights @ value
    if visible is not None:  # 0 already; now its gradient, too, is selected away
        out = where(visible.any(3).unsqueeze(-1), out, 0.0)
    out = to(out, dtype)
    return (out, lse.squeeze(-1)) if return_lse else out


def _weights(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    causal: str | None,
    window: tuple[int | None, int | None] | None,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the weights (B, H, Tq, Tk), their lse (B, H, Tq, 1), and what is seen; None if all."""
    # half precision is accumulated in float32
    query, key = (to(x, query.dtype.wide) for x in (query, key))
    bias = None if bias is None else to(bias, query.dtype)
    heads = query.shape[1]
    key = _repeat_heads(key, heads // key.shape[1])
    seen = visible_keys(query.shape[2], key.shape[2], causal, window)
    visible = mask
    if seen is not None:
        shown = Tensor(seen, query.device)
        visible = shown if mask is None else shown & mask
    if visible is not None:
        # What no query sees, and a query that sees nothing, must not count even where it is NaN:
        # selected away here, since 0 · NaN is NaN in the products below.
        visible = visible.broadcast_to((query.shape[0], heads, query.shape[2], key.shape[2]))
        key = where(visible.any(2).unsqueeze(-1), key, 0.0)  # (B, H, Tk, 1)
        query = where(visible.any(3).unsqueeze(-1), query, 0.0)  # (B, H, Tq, 1)

    scores = query @ key.mT * scale  # (B, H, Tq, Tk)
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if bias is not None:
        scores = scores + bias
    if visible is not None:
        scores = where(visible, scores, -math.inf)
    lse = logsumexp(scores, -1, keepdim=True)
    # a row that sees nothing gives 0
    return exp(scores - where(lse == -math.inf, 0.0, lse)), lse, visible


def _repeat_heads(x: Tensor, groups: int) -> Tensor:
    """(B, Hkv, T, D) -> (B, Hkv·groups, T, D), each head repeated for the queries that share it."""
    if groups == 1:
        return x
    b, h, t, d = x.shape
    return x.unsqueeze(2).expand(b, h, groups, t, d).reshape(b, h * groups, t, d)


scaled_dot_product_attention = FusedOp("scaled_dot_product_attention", composite_attention)
scaled_dot_product_attention.register(
    Kernel(
        name="numpy-blocked",
        device="cpu",
        priority=10,
        forward=forward,
        backward=backward,
        unsupported=unsupported,
        saves_output=True,
    )
)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    causal: str | None = None,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    return_lse: bool = False,
) -> Any:
    """Return softmax(softcap(QKᵀ·scale) + bias)V, each query over the keys it may see.

    A query that may see no key gives 0 (and lse -inf). NaN in keys and values that no query may
    see reaches neither the result nor a gradient.

    Args:
        query: (B, H, Tq, D).
        key: (B, Hkv, Tk, D); H must be a multiple of Hkv, and H / Hkv query heads share a key head.
        value: (B, Hkv, Tk, Dv).
        mask: bool, broadcast to (B, H, Tq, Tk); true where a query may see a key.
        bias: added to the scores, broadcast to (B, H, Tq, Tk); differentiable.
        causal: "top_left" lets query i see keys 0 … i; "bottom_right" lets the last query see all
            keys, as with a cache; None, no limit.
        window: (left, right) limits keys to [p - left, p + right] around a query's position p,
            aligned as `causal` says, else "bottom_right"; None or -1 is no limit.
        scale: of the scores; 1/√D by default.
        softcap: squash scores to (-softcap, softcap) by softcap · tanh(scores / softcap).
        dropout_p: drop attention weights with this probability.
        seed: decides what is dropped; drawn from the default generator if None.
        return_lse: also return log Σ exp(scores), (B, H, Tq); differentiable.

    Returns:
        (B, H, Tq, Dv), or a pair of it and the lse.

    Raises:
        ValueError: shapes or options don't fit together.
        TypeError: dtypes don't.
    """
    _check(query, key, value, mask, bias, causal, softcap)
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"dropout_p must be in [0, 1], got {dropout_p}")
    if dropout_p == 1:  # no value counts, not even an infinite one: 0 · inf would be NaN
        value = value.masked_fill(Tensor(np.ones((), bool), value.device), 0.0)
    if seed is None:
        seed = default_generator.seed() if dropout_p > 0 else 0
    return scaled_dot_product_attention(
        query,
        key,
        value,
        mask,
        bias,
        causal=causal,
        window=None if window is None else _limits(window),
        scale=_scale(query) if scale is None else scale,
        softcap=softcap,
        dropout_p=dropout_p,
        seed=seed,
        return_lse=return_lse,
    )


def attention_weights(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    causal: str | None = None,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Return softmax(softcap(QKᵀ·scale) + bias), what `attention` weighs the values with.

    They are (B, H, Tq, Tk) numbers, which `attention` never has in memory at once. A query that may
    see no key weighs each with 0.

    Args:
        query, key, mask, bias, causal, window, scale, softcap: as in `attention`.

    Raises:
        ValueError: shapes or options don't fit together.
        TypeError: dtypes don't.
    """
    _check(query, key, key, mask, bias, causal, softcap)
    limits = None if window is None else _limits(window)
    scale = _scale(query) if scale is None else scale
    weights, *_ = _weights(query, key, mask, bias, causal, limits, scale, softcap)
    return to(weights, query.dtype)


def _scale(query: Tensor) -> float:
    return 1 / math.sqrt(max(query.shape[-1], 1))


def _limits(window: tuple[int | None, int | None]) -> tuple[int | None, int | None]:
    left, right = (None if n is None or n == -1 else n for n in window)
    if (left is not None and left < 0) or (right is not None and right < 0):
        raise ValueError(f"window {window}: left and right count keys; use None for no limit")
    return left, right


def _broadcasts(shape: tuple[int, ...], full: tuple[int, ...]) -> bool:
    return len(shape) <= 4 and all(
        n in (1, m) for n, m in zip(reversed(shape), reversed(full), strict=False)
    )


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    causal: str | None,
    softcap: float | None,
) -> None:
    _check_shapes(query, key, value)
    full = (*query.shape[:3], key.shape[2])
    for name, extra in (("mask", mask), ("bias", bias)):
        if extra is not None and not _broadcasts(extra.shape, full):
            raise ValueError(f"{name} {extra.shape} can't be broadcast to (B, H, Tq, Tk) = {full}")
    if mask is not None and mask.dtype is not bool_:
        raise TypeError(f"mask must be bool, got {mask.dtype}; pass numbers as bias")
    if bias is not None and bias.dtype is not query.dtype:
        raise TypeError(f"bias must have the query's dtype {query.dtype}, got {bias.dtype}")
    if causal not in CAUSAL:
        raise ValueError(f"causal must be None, 'top_left' or 'bottom_right', got {causal!r}")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap must be positive and finite, got {softcap}; None for no cap")


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    def shapes() -> str:
        return f"query {query.shape}, key {key.shape}, value {value.shape}"

    if not query.ndim == key.ndim == value.ndim == 4:
        raise ValueError(f"attention takes (batch, heads, length, head_dim) tensors: {shapes()}")
    if not query.dtype.is_floating_point or not query.dtype is key.dtype is value.dtype:
        raise TypeError(
            "attention takes floating point tensors of one dtype, got "
            f"{query.dtype}, {key.dtype}, {value.dtype}"
        )
    if query.shape[3] != key.shape[3]:
        raise ValueError(
            f"query has head_dim {query.shape[3]} but key has {key.shape[3]}; both must match "
            f"({shapes()})"
        )
    if key.shape[:3] != value.shape[:3]:
        raise ValueError(f"key and value must have equal batch, heads and length ({shapes()})")
    if query.shape[0] != key.shape[0]:
        raise ValueError(f"query and key must have equal batch ({shapes()})")
    if key.shape[1] == 0 or query.shape[1] % key.shape[1]:
        raise ValueError(
            f"{query.shape[1]} query heads can't share {key.shape[1]} key heads; the first must be "
            f"a multiple of the second ({shapes()})"
        )
