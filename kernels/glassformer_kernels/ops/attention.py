"""Attention for PyTorch: the public calls."""

from __future__ import annotations

import math
from typing import Any

import torch

from glassformer_kernels.checks import check_bool, check_broadcasts, check_devices, check_floats
from glassformer_kernels.launch import LOG2_E
from glassformer_kernels.ops.attention_cache import attention_cache_op
from glassformer_kernels.ops.attention_checks import (
    check_cache,
    check_extras,
    check_operands,
    check_packed,
    check_settings,
    limits,
)
from glassformer_kernels.ops.attention_operator import attention_op


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    causal: str | None = None,
    window: tuple[int | None, int | None] | None = None,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    key_lengths: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    return_lse: bool = False,
) -> Any:
    """Return softmax(softcap(QKᵀ·scale) + bias)V, each query over the keys it may see.

    A query that may see no key gives 0 (and lse -inf). NaN in keys and values that no query may
    see reaches neither the result nor a gradient. Backward is deterministic; it computes the
    weights again, so that nothing of size Tq·Tk is kept. (Vaswani et al. 2017, section 3.2.1; the
    algorithm: Dao 2023, "FlashAttention-2".)

    Args:
        query: (B, H, Tq, D), float32, float16 or bfloat16; D from 1 to 256.
        key: (B, Hkv, Tk, D); H must be a multiple of Hkv, and H / Hkv query heads share a key head.
        value: (B, Hkv, Tk, Dv).
        mask: bool, broadcast to (B, H, Tq, Tk); true where a query may see a key.
        bias: float, broadcast to (B, H, Tq, Tk); added to the scores; differentiable.
        causal: "top_left" lets query i see keys 0 … i; "bottom_right" lets the last query see all
            keys, as with a cache; None, no limit.
        window: (left, right) limits keys to [p - left, p + right] around a query's position p,
            aligned as `causal` says, else "bottom_right"; None or -1 is no limit.
        alibi_slopes: (H,) or (B, H); adds -slope·|p - j| for key j. Not differentiable.
        sinks: (H,); a logit of each head that joins the softmax's denominator without a value
            (Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks");
            differentiable.
        scale: of the scores; 1/√D by default.
        softcap: squash scores to (-softcap, softcap) by softcap · tanh(scores / softcap).
        dropout_p: drop attention weights with this probability.
        seed: decides what is dropped; drawn from PyTorch's default generator if None. A CUDA graph
            replays the seed it was captured with.
        cu_seqlens_q, cu_seqlens_k: int32 (sequences + 1,): where packed sequences begin and end.
            Query, key and value are then (total, H, D), and sequence i of the queries sees sequence
            i of the keys alone.
        max_seqlen_q, max_seqlen_k: the longest packed sequences; found from the lengths if None,
            for which the GPU is waited for. Queries beyond them, and outside the sequences, are
            left uninitialised, and so are their gradients.
        key_lengths: int32 (B,): how many of the keys each sequence has, of a cache that is longer;
            the last query then stands at the last of them. Decoding only: no gradient, no mask,
            bias or dropout.
        block_table: int32 (B, pages): key and value are pages (P, Hkv, page_size, D) of a cache,
            and page block_table[b, i] holds keys page_size · i … of sequence b. Needs key_lengths.
        return_lse: also return log Σ exp(scores), float32 (B, H, Tq) or (H, total); differentiable.

    Returns:
        (B, H, Tq, Dv) or (total, H, Dv), or a pair of it and the lse.

    Raises:
        ValueError: shapes, devices or options don't fit together.
        TypeError: dtypes don't.
    """
    packed = cu_seqlens_q is not None or cu_seqlens_k is not None
    check_operands(query, key, value, packed, paged=block_table is not None)
    check_settings(causal, softcap, dropout_p)
    left, right = limits(causal, window)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    softcap = None if softcap is None else float(softcap)
    if key_lengths is not None or block_table is not None:
        forbidden = {"mask": mask, "bias": bias, "cu_seqlens_q": cu_seqlens_q}
        check_cache(query, key, value, key_lengths, block_table, causal, dropout_p, **forbidden)
        pages = 1 if block_table is None else block_table.shape[1]
        full = (*query.shape[:3], key.shape[2] * pages)
        check_extras(query, full, None, None, alibi_slopes, sinks)
        out, stats = attention_cache_op(
            query,
            key,
            value,
            alibi_slopes,
            sinks,
            key_lengths,
            block_table,
            full[3],
            left,
            right,
            scale,
            softcap,
        )
        return (out, stats.sum(0) / LOG2_E) if return_lse else out
    if packed:
        check_packed(cu_seqlens_q, cu_seqlens_k, query, mask=mask, bias=bias)
        batch = cu_seqlens_q.shape[0] - 1  # type: ignore[union-attr]
        max_q = _longest(cu_seqlens_q) if max_seqlen_q is None else max_seqlen_q
        max_k = _longest(cu_seqlens_k) if max_seqlen_k is None else max_seqlen_k
    else:
        batch, max_q, max_k = query.shape[0], query.shape[2], key.shape[2]
    check_extras(query, (batch, query.shape[1], max_q, max_k), mask, bias, alibi_slopes, sinks)
    if bias is not None:  # the gradient over broadcast keys is for autograd to sum
        bias = bias.expand(*bias.shape[:-1], max_k)
        bias = bias.reshape((1,) * (4 - bias.ndim) + tuple(bias.shape))
    if seed is None:
        seed = int(torch.randint(2**62, (), device="cpu")) if dropout_p > 0 else 0
    out, stats = attention_op(
        query,
        key,
        value,
        mask,
        bias,
        alibi_slopes,
        sinks,
        cu_seqlens_q,
        cu_seqlens_k,
        max_q,
        max_k,
        left,
        right,
        causal != "top_left",
        scale,
        softcap,
        float(dropout_p),
        seed,
    )
    return (out, stats.sum(0) / LOG2_E) if return_lse else out


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Return attention with the signature of `torch.nn.functional.scaled_dot_product_attention`.

    Args:
        query, key, value: (..., H, T, D), any number of leading dimensions.
        attn_mask: bool, true where a query may see a key, or float, added to the scores (and
            differentiable); broadcast to (..., H, Tq, Tk).
        dropout_p: drop attention weights with this probability.
        is_causal: query i sees keys 0 … i ("top_left", also where Tq ≠ Tk).
        scale: of the scores; 1/√D by default.
        enable_gqa: let key and value have fewer heads, which groups of query heads share.

    Returns:
        (..., H, Tq, Dv). A query that may see no key gives 0.

    Raises:
        ValueError: shapes or options don't fit together.
        TypeError: dtypes don't.
    """
    op = "scaled_dot_product_attention"
    check_devices(op, query=query, key=key, value=value)
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if min(query.ndim, key.ndim, value.ndim) < 2 or not query.ndim == key.ndim == value.ndim:
        raise ValueError(f"query, key and value must have equally many dims, 2 or more ({shapes})")
    if is_causal and attn_mask is not None:
        raise ValueError("attn_mask and is_causal=True exclude each other; make it one mask")
    if not enable_gqa and query.ndim > 2 and query.shape[-3] != key.shape[-3]:
        raise ValueError(f"key has other heads than query; pass enable_gqa=True ({shapes})")
    if attn_mask is not None:  # checked here, where it has the caller's name
        check_devices(op, query=query, attn_mask=attn_mask)
        if attn_mask.is_floating_point():
            check_floats(op, attn_mask=attn_mask)
        else:
            check_bool(op, "attn_mask", attn_mask)
        full = (1,) * (4 - query.ndim) + (*query.shape[:-1], key.shape[-2])
        check_broadcasts(op, "attn_mask", attn_mask, full)
    leading = query.shape[:-2]

    def four_dims(x: torch.Tensor) -> torch.Tensor:
        x = x.reshape((1,) * (4 - x.ndim) + tuple(x.shape))
        return x if x.ndim == 4 else x.flatten(0, x.ndim - 4)

    if attn_mask is not None and query.ndim > 4 and attn_mask.ndim > 2:
        attn_mask = attn_mask.expand(*leading, *attn_mask.shape[-2:])
    mask = None if attn_mask is None else four_dims(attn_mask)
    is_bias = mask is not None and mask.is_floating_point()
    out = attention(
        four_dims(query),
        four_dims(key),
        four_dims(value),
        None if is_bias else mask,
        mask if is_bias else None,
        causal="top_left" if is_causal else None,
        scale=scale,
        dropout_p=dropout_p,
    )
    return out.reshape(*leading, *out.shape[-2:])


def _longest(cu_seqlens: Any) -> int:
    return int(cu_seqlens.diff().max())
