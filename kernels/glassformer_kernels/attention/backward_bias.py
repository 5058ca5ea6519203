"""Attention backward for the bias, summed over what it was broadcast over.

One program takes a tile of the bias itself, BLOCK_M queries by BLOCK_N keys of the bias' own batch
and head, and walks over all that it was added to: the batches and the heads, and where the bias has
one row for all queries, every tile of queries. dS is computed again for each, so that nothing of
size B·H·Tq·Tk is stored unless the bias is that large, and the order of the sum is fixed.
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
from glassformer_kernels.attention.configs import bias_gradient_configs
from glassformer_kernels.attention.masks import query_shift, visible_pairs
from glassformer_kernels.attention.problem import UNSPECIALIZED, Problem
from glassformer_kernels.attention.tiles import load_rows, row_number, slice_pointer
from glassformer_kernels.launch import cdiv


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _attention_bias_gradient(
    p_q,
    p_k,
    p_v,
    p_do,
    p_dbias,
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
    bias_batch,
    bias_heads,
    bias_rows,
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
    ONE_ROW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    tiles_n = tl.cdiv(max_k, BLOCK_N)
    tiles_m = 1 if ONE_ROW else tl.cdiv(max_q, BLOCK_M)
    o_tile = tl.program_id(0) % (tiles_m * tiles_n)
    own_slice = tl.program_id(0) // (tiles_m * tiles_n)
    own_h = own_slice % bias_heads
    own_b = own_slice // bias_heads
    first_m = o_tile // tiles_n * BLOCK_M
    o_n = o_tile % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    shift = query_shift(max_q, max_k, BOTTOM_RIGHT)
    last_m = max_q if ONE_ROW else tl.minimum(first_m + BLOCK_M, max_q)
    b_dbias = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    spread_b = batch // bias_batch
    spread_h = heads // bias_heads
    for one in range(0, spread_b * spread_h):
        o_b = own_b + one // spread_h  # own_b is 0 where the bias is shared, and so is the step
        o_h = own_h + one % spread_h
        o_kv = o_h // groups
        p_qh = slice_pointer(p_q, o_b, o_h, 0, stride_q_b, stride_q_h, 0)
        p_kh = slice_pointer(p_k, o_b, o_kv, 0, stride_k_b, stride_k_h, 0)
        p_vh = slice_pointer(p_v, o_b, o_kv, 0, stride_v_b, stride_v_h, 0)
        p_doh = slice_pointer(p_do, o_b, o_h, 0, stride_do_b, stride_do_h, 0)
        p_biash = slice_pointer(p_bias, o_b, o_h, 0, stride_bias_b, stride_bias_h, 0)
        p_maskh = p_mask
        if p_mask is not None:
            p_maskh = slice_pointer(p_mask, o_b, o_h, 0, stride_mask_b, stride_mask_h, 0)
        row = row_number(o_b, o_h, 0, heads, rows, False)
        slope = 0.0
        if p_slopes is not None:
            slope = tl.load(p_slopes + o_b * stride_slopes_b + o_h * stride_slopes_h)
        b_k = load_rows(p_kh, o_n, stride_k_t, o_n < max_k, D, BLOCK_D, True)
        b_v = load_rows(p_vh, o_n, stride_v_t, o_n < max_k, DV, BLOCK_DV, True)
        for tile in tl.range(first_m, last_m, BLOCK_M):
            o_m = tile + tl.arange(0, BLOCK_M)
            m_m = o_m < max_q
            b_q = load_rows(p_qh, o_m, stride_q_t, m_m, D, BLOCK_D, True)  # (BLOCK_M, BLOCK_D)
            b_do = load_rows(p_doh, o_m, stride_do_t, m_m, DV, BLOCK_DV, True)
            b_visible = visible_pairs(
                o_m[:, None],
                o_n[None, :],
                max_q,
                max_k,
                shift,
                left,
                right,
                p_maskh,
                stride_mask_m,
                stride_mask_n,
                HAS_LEFT,
                HAS_RIGHT,
            )
            b_dot = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # (BLOCK_M, BLOCK_N)
            b_max, b_log = load_statistics(p_max, p_log, row + o_m, m_m, True)  # (BLOCK_M,) both
            b_p, _ = tile_weights(
                b_dot,
                b_max[:, None],
                b_log[:, None],
                b_visible,
                o_m[:, None],
                o_n[None, :],
                max_q,
                max_k,
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
                True,
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
            b_delta = load_deltas(p_delta, row + o_m, m_m, True)  # (BLOCK_M,)
            b_dbias += score_gradient(b_p, b_dp, b_delta[:, None], b_visible, True)

    p_own = p_dbias + own_slice.to(tl.int64) * bias_rows * max_k
    if ONE_ROW:
        b_sum = tl.sum(b_dbias, 0)  # (BLOCK_N,)
        tl.store(p_own + o_n, b_sum.to(p_dbias.dtype.element_ty), mask=o_n < max_k)
    else:
        o_m = first_m + tl.arange(0, BLOCK_M)
        offsets = (o_m.to(tl.int64) * max_k)[:, None] + o_n[None, :]
        inside = (o_m < max_q)[:, None] & (o_n < max_k)[None, :]
        tl.store(p_own + offsets, b_dbias.to(p_dbias.dtype.element_ty), mask=inside)


def bias_gradient(x: Problem, args: dict[str, Any], shape: tuple[int, int, int]) -> torch.Tensor:
    """Return dbias (*shape, Tk); `shape` has the bias' own batch, heads and rows, each may be 1."""
    assert x.bias is not None
    batch, heads, rows = shape
    d_bias = launch.empty((*shape, x.max_k), x.bias)
    one_row = rows == 1
    launch.launch(
        _attention_bias_gradient,
        lambda blocks: (
            (1 if one_row else cdiv(x.max_q, blocks["BLOCK_M"]))
            * cdiv(x.max_k, blocks["BLOCK_N"])
            * batch
            * heads
        ),
        bias_gradient_configs(x),
        key=(*x.key_for_tuning, batch == 1, heads == 1, one_row),
        **args,
        p_dbias=d_bias,
        bias_batch=batch,
        bias_heads=heads,
        bias_rows=rows,
        ONE_ROW=one_row,
    )
    return d_bias
