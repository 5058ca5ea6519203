"""Attention backward for keys and values.

One program takes BLOCK_N keys of one key head and walks over the queries that see them, of every
query head that shares it, with the tile on its side so that keys are rows:

    Sᵀ = K Qᵀ                     # (BLOCK_N, BLOCK_M)
    dV += Pᵀ dO                   # (BLOCK_N, BLOCK_DV)
    dK += dSᵀ Q · scale           # (BLOCK_N, BLOCK_D)

What grouped heads add to a key is summed here, in one order: no atomics, and every run agrees in
every bit. Together with the kernel for dQ that makes 7 products of a tile where atomics would need
5; the limits are the forward's.
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
from glassformer_kernels.attention.configs import key_gradient_configs
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
def _attention_key_gradients(
    p_q,
    p_k,
    p_v,
    p_do,
    d_q,
    d_do,
    p_dk,
    p_dv,
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
    stride_dk_b,
    stride_dk_h,
    stride_dk_t,
    stride_dv_b,
    stride_dv_h,
    stride_dv_t,
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
    EDGE_M: tl.constexpr,
):
    tiles = tl.cdiv(max_k, BLOCK_N)
    o_kv = tl.program_id(0) // tiles % (heads // groups)
    o_b = tl.program_id(0) // tiles // (heads // groups)
    start_q, len_q = sequence(p_cu_q, o_b, max_q)
    start_k, len_k = sequence(p_cu_k, o_b, max_k)
    first = tl.program_id(0) % tiles * BLOCK_N
    if first >= len_k:
        return
    o_n = first + tl.arange(0, BLOCK_N)
    p_k = slice_pointer(p_k, o_b, o_kv, start_k, stride_k_b, stride_k_h, stride_k_t)
    p_v = slice_pointer(p_v, o_b, o_kv, start_k, stride_v_b, stride_v_h, stride_v_t)
    b_k = load_rows(p_k, o_n, stride_k_t, o_n < len_k, D, BLOCK_D, True)  # (BLOCK_N, BLOCK_D)
    b_v = load_rows(p_v, o_n, stride_v_t, o_n < len_k, DV, BLOCK_DV, True)  # (BLOCK_N, BLOCK_DV)
    b_dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    b_dv = tl.zeros((BLOCK_N, BLOCK_DV), tl.float32)

    shift = query_shift(len_q, len_k, BOTTOM_RIGHT)
    last = tl.minimum(first + BLOCK_N, len_k) - 1
    # Seen from a key the band is the same with its sides exchanged.
    seen, begin, full_begin, full_end, end = tile_range(
        first, last, -shift, right, left, len_q, HAS_RIGHT, HAS_LEFT, p_mask is None, BLOCK_M
    )
    for group in range(0, groups):
        o_h = o_kv * groups + group
        p_qh = slice_pointer(p_q, o_b, o_h, start_q, stride_q_b, stride_q_h, stride_q_t)
        p_doh = slice_pointer(p_do, o_b, o_h, start_q, stride_do_b, stride_do_h, stride_do_t)
        row = row_number(o_b, o_h, start_q, heads, rows, p_cu_q is not None)
        p_maskh = p_mask
        if p_mask is not None:
            p_maskh = slice_pointer(p_mask, o_b, o_h, 0, stride_mask_b, stride_mask_h, 0)
        p_biash = p_bias
        if p_bias is not None:
            p_biash = slice_pointer(p_bias, o_b, o_h, 0, stride_bias_b, stride_bias_h, 0)
        slope = 0.0
        if p_slopes is not None:
            slope = tl.load(p_slopes + o_b * stride_slopes_b + o_h * stride_slopes_h)
        # What is visible throughout, then the edges; a mask may hide a pair anywhere.
        for edge in tl.static_range(0 if p_mask is None else 1, 2):
            if edge:
                lo, hi = begin, end - full_end + full_begin
            else:
                lo, hi = full_begin, full_end
            for at in tl.range(
                lo,
                hi,
                EDGE_M if edge else BLOCK_M,
                num_stages=1 if edge and p_mask is None else None,
            ):
                tile = at
                if edge:
                    tile = tl.where(at < full_begin, at, at + full_end - full_begin)
                o_m = tile + tl.arange(0, EDGE_M if edge else BLOCK_M)
                m_m = (o_m >= seen) & (o_m < end)
                b_visible = m_m[None, :]
                if not edge:
                    b_q = load_full_tile(
                        p_qh, d_q, o_b, o_h, tile, stride_q_t, D, BLOCK_D, BLOCK_M
                    )  # (BLOCK_M, BLOCK_D)
                    b_do = load_full_tile(
                        p_doh, d_do, o_b, o_h, tile, stride_do_t, DV, BLOCK_DV, BLOCK_M
                    )  # (BLOCK_M, BLOCK_DV)
                else:
                    b_visible = visible_pairs(
                        o_m[None, :],
                        o_n[:, None],
                        len_q,
                        len_k,
                        shift,
                        left,
                        right,
                        p_maskh,
                        stride_mask_m,
                        stride_mask_n,
                        HAS_LEFT,
                        HAS_RIGHT,
                    )
                    if p_mask is not None:  # a query that sees none of these keys isn't read
                        m_m = tl.max(b_visible.to(tl.int32), 0) > 0
                    b_q = load_rows(p_qh, o_m, stride_q_t, m_m, D, BLOCK_D, True)
                    b_do = load_rows(p_doh, o_m, stride_do_t, m_m, DV, BLOCK_DV, True)
                b_max, b_log = load_statistics(
                    p_max, p_log, row + o_m, m_m, edge == 1
                )  # (BLOCK_M,) both
                b_dot = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)  # (BLOCK_N, BLOCK_M)
                b_p, b_cap_rate = tile_weights(
                    b_dot,
                    b_max[None, :],
                    b_log[None, :],
                    b_visible,
                    o_m[None, :],
                    o_n[:, None],
                    len_q,
                    len_k,
                    shift,
                    scale,
                    softcap,
                    slope,
                    p_biash,
                    stride_bias_m,
                    stride_bias_n,
                    HAS_SOFTCAP,
                    p_slopes is not None,
                    PLAIN,
                    EXACT,
                    edge == 1,
                )
                b_used = drop(
                    b_p,
                    (row + o_m)[None, :],
                    o_n[:, None],
                    seed_1,
                    seed_2,
                    drop_below,
                    keep_scale,
                    HAS_DROPOUT,
                )
                b_dv = tl.dot(b_used.to(b_do.dtype), b_do, b_dv, input_precision=PRECISION)
                b_dp = tl.dot(b_v, tl.trans(b_do), input_precision=PRECISION)  # (BLOCK_N, BLOCK_M)
                b_dp = drop(
                    b_dp,
                    (row + o_m)[None, :],
                    o_n[:, None],
                    seed_1,
                    seed_2,
                    drop_below,
                    keep_scale,
                    HAS_DROPOUT,
                )
                b_delta = load_deltas(p_delta, row + o_m, m_m, edge == 1)  # (BLOCK_M,)
                b_ds = score_gradient(b_p, b_dp, b_delta[None, :], b_visible, edge == 1)
                b_ds = (b_ds * b_cap_rate).to(b_q.dtype)
                b_dk = tl.dot(b_ds, b_q, b_dk, input_precision=PRECISION)

    p_dk = slice_pointer(p_dk, o_b, o_kv, start_k, stride_dk_b, stride_dk_h, stride_dk_t)
    p_dv = slice_pointer(p_dv, o_b, o_kv, start_k, stride_dv_b, stride_dv_h, stride_dv_t)
    store_rows(p_dk, b_dk * scale, o_n, stride_dk_t, o_n < len_k, D, BLOCK_D)
    store_rows(p_dv, b_dv, o_n, stride_dv_t, o_n < len_k, DV, BLOCK_DV)


def edge_tile(block_m: int) -> int:
    """Return how many queries a tile at the edge of the band has."""
    return max(block_m // 2, 16)


def key_gradients(
    x: Problem, args: dict[str, Any], d_out: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return dK and dV. `args` are the arguments that the backward kernels share."""
    d_key, d_value = launch.empty(x.key.shape, x.key), launch.empty(x.value.shape, x.value)
    launch.launch(
        _attention_key_gradients,
        lambda blocks: cdiv(x.max_k, blocks["BLOCK_N"]) * x.kv_heads * x.batch,
        key_gradient_configs(x),
        key=x.key_for_tuning,
        **args,
        d_q=lambda blocks: descriptor(x.query, blocks["BLOCK_M"], args["BLOCK_D"]),
        d_do=lambda blocks: descriptor(d_out, blocks["BLOCK_M"], args["BLOCK_DV"]),
        # Predicates take registers, so that a smaller tile fits; only edges need them.
        EDGE_M=lambda blocks: (
            blocks["BLOCK_M"] if x.mask is not None else edge_tile(blocks["BLOCK_M"])
        ),
        p_dk=d_key,
        p_dv=d_value,
        **row_strides("dk", d_key, x.packed),
        **row_strides("dv", d_value, x.packed),
    )
    return d_key, d_value
