"""Attention backward for queries.

One program takes BLOCK_M queries of one head and walks over the keys they see, as forward does:

    dQ += dS K · scale            # (BLOCK_M, BLOCK_D)

with dS as `backward_tile` computes it. The limits are the forward's.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from glassformer_kernels import launch
from glassformer_kernels.attention.backward_tile import (
    drop,
    load_deltas,
    load_statistics,
    score_gradient,
    tile_weights,
)
from glassformer_kernels.attention.configs import query_gradient_configs
from glassformer_kernels.attention.masks import (
    query_shift,
    sequence,
    tile_range,
    visible_pairs,
)
from glassformer_kernels.attention.problem import UNSPECIALIZED, Problem, descriptor, row_strides
from glassformer_kernels.attention.tiles import (
    load_full_tile,
    load_rows,
    row_number,
    slice_pointer,
    store_rows,
)
from glassformer_kernels.launch import cdiv


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _attention_query_gradients(
    p_q,
    p_k,
    p_v,
    p_do,
    d_k,
    d_v,
    p_dq,
    p_max,
    p_log,
    p_delta,
    p_mask,
    p_bias,
    p_slopes,
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
    stride_do_b,
    stride_do_h,
    stride_do_t,
    stride_dq_b,
    stride_dq_h,
    stride_dq_t,
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
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
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
    m_m = o_m < len_q
    o_kv = o_h // groups
    p_q = slice_pointer(p_q, o_b, o_h, start_q, stride_q_b, stride_q_h, stride_q_t)
    p_k = slice_pointer(p_k, o_b, o_kv, start_k, stride_k_b, stride_k_h, stride_k_t)
    p_v = slice_pointer(p_v, o_b, o_kv, start_k, stride_v_b, stride_v_h, stride_v_t)
    p_do = slice_pointer(p_do, o_b, o_h, start_q, stride_do_b, stride_do_h, stride_do_t)
    p_dq = slice_pointer(p_dq, o_b, o_h, start_q, stride_dq_b, stride_dq_h, stride_dq_t)
    row = row_number(o_b, o_h, start_q, heads, rows, p_cu_q is not None)
    if p_mask is not None:
        p_mask = slice_pointer(p_mask, o_b, o_h, 0, stride_mask_b, stride_mask_h, 0)
    if p_bias is not None:
        p_bias = slice_pointer(p_bias, o_b, o_h, 0, stride_bias_b, stride_bias_h, 0)
    slope = 0.0
    if p_slopes is not None:
        slope = tl.load(p_slopes + o_b * stride_slopes_b + o_h * stride_slopes_h)

    b_q = load_rows(p_q, o_m, stride_q_t, m_m, D, BLOCK_D, True)  # (BLOCK_M, BLOCK_D)
    b_do = load_rows(p_do, o_m, stride_do_t, m_m, DV, BLOCK_DV, True)  # (BLOCK_M, BLOCK_DV)
    b_max, b_log = load_statistics(p_max, p_log, row + o_m, m_m, True)  # (BLOCK_M,) both
    b_delta = load_deltas(p_delta, row + o_m, m_m, True)  # (BLOCK_M,)
    b_dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)

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
            m_n = (o_n >= seen) & (o_n < end)
            b_visible = m_n[None, :]
            if not edge:
                b_k = load_full_tile(
                    p_k, d_k, o_b, o_kv, tile, stride_k_t, D, BLOCK_D, BLOCK_N
                )  # (BLOCK_N, BLOCK_D)
                b_v = load_full_tile(
                    p_v, d_v, o_b, o_kv, tile, stride_v_t, DV, BLOCK_DV, BLOCK_N
                )  # (BLOCK_N, BLOCK_DV)
            else:
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
                if p_mask is not None:  # 0 · NaN is NaN: a key nobody sees isn't read
                    m_n = tl.max(b_visible.to(tl.int32), 0) > 0
                b_k = load_rows(p_k, o_n, stride_k_t, m_n, D, BLOCK_D, True)
                b_v = load_rows(p_v, o_n, stride_v_t, m_n, DV, BLOCK_DV, True)
            b_dot = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # (BLOCK_M, BLOCK_N)
            b_p, b_cap_rate = tile_weights(
                b_dot,
                b_max[:, None],
                b_log[:, None],
                b_visible,
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
                EXACT,
                edge == 1,
            )
            b_dp = tl.dot(b_do, tl.trans(b_v), input_precision=PRECISION)  # (BLOCK_M, BLOCK_N)
            b_dp = drop(
                b_dp,
                (row + o_m)[:, None],
                o_n[None, :],
                seed_1,
                seed_2,
                drop_below,
                keep_scale,
                HAS_DROPOUT,
            )
            b_ds = score_gradient(b_p, b_dp, b_delta[:, None], b_visible, edge == 1)
            b_ds = (b_ds * b_cap_rate).to(b_k.dtype)
            b_dq = tl.dot(b_ds, b_k, b_dq, input_precision=PRECISION)
    store_rows(p_dq, b_dq * scale, o_m, stride_dq_t, m_m, D, BLOCK_D)


def query_gradients(x: Problem, args: dict[str, Any]) -> torch.Tensor:
    """Return dQ. `args` are the arguments that the backward kernels share."""
    d_query = launch.empty(x.query.shape, x.query)
    launch.launch(
        _attention_query_gradients,
        lambda blocks: cdiv(x.max_q, blocks["BLOCK_M"]) * x.heads * x.batch,
        query_gradient_configs(x),
        key=x.key_for_tuning,
        **args,
        d_k=lambda blocks: descriptor(x.key, blocks["BLOCK_N"], args["BLOCK_D"]),
        d_v=lambda blocks: descriptor(x.value, blocks["BLOCK_N"], args["BLOCK_DV"]),
        p_dq=d_query,
        **row_strides("dq", d_query, x.packed),
    )
    return d_query
