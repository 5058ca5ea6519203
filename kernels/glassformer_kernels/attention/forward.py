"""Attention forward: softmax(QKᵀ·scale)V in one pass over the keys, and the log-sum-exp.

One program takes BLOCK_M queries of one head and walks over their keys in tiles of BLOCK_N with
the running maximum m and sum l of the online softmax (Milakov and Gimelshein 2018; Dao 2023,
"FlashAttention-2", algorithm 1):

    S = scale·Q Kᵀ, …           # (BLOCK_M, BLOCK_N), see masks.score_tile
    m' = max(m, rowmax S)
    P = exp(S - m')
    l = l·exp(m - m') + rowsum P
    O = O·exp(m - m') + P V

and ends with O / l, and m and log l in base 2. A sink is a key that has been met before the first:
m = sink, l = 1. A row that sees nothing keeps m = -inf and l = 0, and gives 0.

Layout: (B, H, T, D) with any strides but 1 along D, or packed (total, H, D). Operations:
2·Tq·Tk·(D + Dv) per head, half of it where causal; bytes: Q, K, V and O once (K and V are read by
every query tile, from L2). Limits: D and Dv up to 256, lengths below 2³¹.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from glassformer_kernels import launch
from glassformer_kernels.attention.configs import forward_configs
from glassformer_kernels.attention.masks import (
    kept,
    query_shift,
    score_factor,
    score_tile,
    sequence,
    tile_range,
    visible_pairs,
)
from glassformer_kernels.attention.problem import (
    UNSPECIALIZED,
    Problem,
    descriptor,
    row_strides,
    shared_args,
)
from glassformer_kernels.attention.tiles import (
    load_full_tile,
    load_rows,
    row_number,
    slice_pointer,
    store_rows,
)
from glassformer_kernels.launch import LOG2_E, cdiv


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _attention_forward(
    p_q,
    p_k,
    p_v,
    d_k,
    d_v,
    p_out,
    p_max,
    p_log,
    p_mask,
    p_bias,
    p_slopes,
    p_sinks,
    p_cu_q,
    p_cu_k,
    stride_q_b,
    stride_q_h,
    stride_q_t,
    stride_k_b,
    stride_k_h,
    stride_k_t,
    stride_v_b,
    stride_v_h,
    stride_v_t,
    stride_out_b,
    stride_out_h,
    stride_out_t,
    stride_mask_b,
    stride_mask_h,
    stride_mask_m,
    stride_mask_n,
    stride_bias_b,
    stride_bias_h,
    stride_bias_m,
    stride_bias_n,
    stride_slopes_b,
    stride_slopes_h,
    batch,
    heads,
    groups,
    rows,
    max_q,
    max_k,
    left,
    right,
    scale,
    softcap,
    seed_1,
    seed_2,
    drop_below,
    keep_scale,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr,
    BOTTOM_RIGHT: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    PLAIN: tl.constexpr,
    PRECISION: tl.constexpr,
    LOG2_E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    tiles = tl.cdiv(max_q, BLOCK_M)
    o_tile = tl.program_id(0) % tiles
    if HAS_RIGHT:
        o_tile = tiles - 1 - o_tile  # the last queries see most: long work first
    o_h = tl.program_id(0) // tiles % heads
    o_b = tl.program_id(0) // tiles // heads
    start_q, len_q = sequence(p_cu_q, o_b, max_q)
    start_k, len_k = sequence(p_cu_k, o_b, max_k)
    first = o_tile * BLOCK_M
    if first >= len_q:
        return
    o_m = first + tl.arange(0, BLOCK_M)
    o_kv = o_h // groups
    p_q = slice_pointer(p_q, o_b, o_h, start_q, stride_q_b, stride_q_h, stride_q_t)
    p_k = slice_pointer(p_k, o_b, o_kv, start_k, stride_k_b, stride_k_h, stride_k_t)
    p_v = slice_pointer(p_v, o_b, o_kv, start_k, stride_v_b, stride_v_h, stride_v_t)
    p_out = slice_pointer(p_out, o_b, o_h, start_q, stride_out_b, stride_out_h, stride_out_t)
    row = row_number(o_b, o_h, start_q, heads, rows, p_cu_q is not None)
    if p_mask is not None:
        p_mask = slice_pointer(p_mask, o_b, o_h, 0, stride_mask_b, stride_mask_h, 0)
    if p_bias is not None:
        p_bias = slice_pointer(p_bias, o_b, o_h, 0, stride_bias_b, stride_bias_h, 0)
    slope = 0.0
    if p_slopes is not None:
        slope = tl.load(p_slopes + o_b * stride_slopes_b + o_h * stride_slopes_h)

    b_q = load_rows(p_q, o_m, stride_q_t, o_m < len_q, D, BLOCK_D, True)  # (BLOCK_M, BLOCK_D)
    b_max = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    b_sum = tl.zeros((BLOCK_M,), tl.float32)
    if p_sinks is not None:
        b_max = tl.zeros((BLOCK_M,), tl.float32) + tl.load(p_sinks + o_h) * LOG2_E
        b_sum += 1.0
    b_out = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
    factor = score_factor(scale, PLAIN)

    shift = query_shift(len_q, len_k, BOTTOM_RIGHT)
    last = tl.minimum(first + BLOCK_M, len_q) - 1
    seen, begin, full_begin, full_end, end = tile_range(
        first, last, shift, left, right, len_k, HAS_LEFT, HAS_RIGHT, p_mask is None, BLOCK_N
    )
    # What is visible throughout, then the edges; a mask may hide a pair anywhere.
    for edge in tl.static_range(0 if p_mask is None else 1, 2):
        if edge:
            lo, hi = begin, end - full_end + full_begin
        else:
            lo, hi = full_begin, full_end
        # An edge is a tile or two long: fetching ahead there would only take registers.
        for at in tl.range(lo, hi, BLOCK_N, num_stages=1 if edge and p_mask is None else None):
            tile = at
            if edge:
                tile = tl.where(at < full_begin, at, at + full_end - full_begin)
            o_n = tile + tl.arange(0, BLOCK_N)
            if not edge:
                b_k = load_full_tile(
                    p_k, d_k, o_b, o_kv, tile, stride_k_t, D, BLOCK_D, BLOCK_N
                )  # (BLOCK_N, BLOCK_D)
            else:
                m_n = (o_n >= seen) & (o_n < end)
                b_k = load_rows(p_k, o_n, stride_k_t, m_n, D, BLOCK_D, True)
            b_dot = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # (BLOCK_M, BLOCK_N)
            b_s, _ = score_tile(
                b_dot,
                o_m[:, None],
                o_n[None, :],
                len_q,
                len_k,
                shift,
                scale,
                softcap,
                slope,
                p_bias,
                stride_bias_m,
                stride_bias_n,
                HAS_SOFTCAP,
                p_slopes is not None,
                PLAIN,
            )
            if edge:
                b_visible = visible_pairs(
                    o_m[:, None],
                    o_n[None, :],
                    len_q,
                    len_k,
                    shift,
                    left,
                    right,
                    p_mask,
                    stride_mask_m,
                    stride_mask_n,
                    HAS_LEFT,
                    HAS_RIGHT,
                )
                b_s = tl.where(b_visible, b_s, -float("inf"))
            b_top = tl.maximum(b_max, tl.max(b_s, 1) * factor)  # (BLOCK_M,)
            b_base = tl.where(b_top == -float("inf"), 0.0, b_top)  # -inf - -inf would be NaN
            b_p = tl.exp2(b_s * factor - b_base[:, None])  # (BLOCK_M, BLOCK_N)
            b_shrink = tl.exp2(b_max - b_base)
            b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
            b_max = b_top
            if HAS_DROPOUT:
                b_kept = kept(seed_1, seed_2, drop_below, (row + o_m)[:, None], o_n[None, :])
                b_p = tl.where(b_kept, b_p, 0.0)
            b_out = b_out * b_shrink[:, None]
            if not edge:
                b_v = load_full_tile(
                    p_v, d_v, o_b, o_kv, tile, stride_v_t, DV, BLOCK_DV, BLOCK_N
                )  # (BLOCK_N, BLOCK_DV)
            else:
                # 0 · NaN is NaN: a value that none of these queries sees isn't read at all.
                if p_mask is not None:
                    m_n = tl.max(b_visible.to(tl.int32), 0) > 0
                b_v = load_rows(p_v, o_n, stride_v_t, m_n, DV, BLOCK_DV, True)
            b_out = tl.dot(b_p.to(b_v.dtype), b_v, b_out, input_precision=PRECISION)

    b_total = tl.where(b_sum == 0.0, 1.0, b_sum)  # a row that sees nothing gives 0
    b_out = b_out * (keep_scale / b_total)[:, None]
    store_rows(p_out, b_out, o_m, stride_out_t, o_m < len_q, DV, BLOCK_DV)
    tl.store(p_max + row + o_m, b_max, mask=o_m < len_q)
    tl.store(p_log + row + o_m, tl.log2(b_total), mask=o_m < len_q)


def forward(x: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output, shaped like the query, and the statistics of each row's softmax.

    These are float32 (2, B, H, Tq) or (2, H, total): the maximum m of the scores, and
    log Σ exp(S - m), both in base 2. Their sum is the lse; apart they keep the digits that backward
    needs in float32 to compute exp(S - m - log) again.
    """
    out = launch.empty((*x.query.shape[:-1], x.value_dim), x.query)
    rows = (x.heads, x.rows) if x.packed else (x.batch, x.heads, x.rows)
    stats = launch.empty((2, *rows), x.query, torch.float32)
    if x.is_empty:
        return out, stats
    args = shared_args(x)
    launch.launch(
        _attention_forward,
        lambda blocks: cdiv(x.max_q, blocks["BLOCK_M"]) * x.heads * x.batch,
        forward_configs(x),
        key=x.key_for_tuning,
        **args,
        **row_strides("out", out, x.packed),
        d_k=lambda blocks: descriptor(x.key, blocks["BLOCK_N"], args["BLOCK_D"]),
        d_v=lambda blocks: descriptor(x.value, blocks["BLOCK_N"], args["BLOCK_DV"]),
        p_out=out,
        p_max=stats[0],
        p_log=stats[1],
        p_sinks=x.sinks,
        LOG2_E=LOG2_E,
    )
    return out, stats
