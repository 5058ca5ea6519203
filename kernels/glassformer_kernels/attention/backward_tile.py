"""What every backward kernel computes for one tile, and each query's own part of it.

With P the weights, dP = dO Vᵀ and Δ = rowsum(dO ∘ O) - dlse (Dao 2023, "FlashAttention-2",
algorithm 2; the lse's own gradient joins Δ because ∂lse/∂S = P):

    dS = P ∘ (dP - Δ)         # the gradient of the scores, which is the bias'
    d(Q Kᵀ) = dS ∘ cap' · scale

P is computed again from the scores and what forward kept, and so is what dropout kept.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from glassformer_kernels import launch
from glassformer_kernels.attention.masks import kept, score_factor, score_tile
from glassformer_kernels.attention.problem import Problem, row_strides
from glassformer_kernels.attention.tiles import load_rows, row_number, slice_pointer
from glassformer_kernels.launch import Config, cdiv, next_power_of_2


@triton.jit
def load_statistics(p_max, p_log, o_row, mask, MASKED: tl.constexpr):
    """Load what forward kept of the softmax of rows; rows where a mask is false weigh 0.

    So does a row that sees nothing: its maximum is read as +inf.
    """
    if MASKED:
        b_max = tl.load(p_max + o_row, mask=mask, other=float("inf"))
        b_log = tl.load(p_log + o_row, mask=mask, other=0.0)
    else:
        b_max = tl.load(p_max + o_row)
        b_log = tl.load(p_log + o_row)
    b_max = tl.where(b_max == -float("inf"), float("inf"), b_max)
    return b_max, b_log


@triton.jit
def load_deltas(p_delta, o_row, mask, MASKED: tl.constexpr):
    """Load Δ of rows, 0 where a mask is false. Loaded late it takes no registers meanwhile."""
    if MASKED:
        b_delta = tl.load(p_delta + o_row, mask=mask, other=0.0)
    else:
        b_delta = tl.load(p_delta + o_row)
    return b_delta


@triton.jit
def tile_weights(
    b_dot,
    b_max,
    b_log,
    b_visible,
    o_m,
    o_n,
    len_q,
    len_k,
    shift,
    scale,
    softcap,
    slope,
    p_bias,
    stride_bias_m,
    stride_bias_n,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    PLAIN: tl.constexpr,
    EXACT: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Return P of a tile in its orientation, before dropout, and the derivative of the cap.

    o_m, o_n, b_max and b_log broadcast to the tile. b_visible is read if MASKED. EXACT keeps the
    maximum and the logarithm apart, where products are of float32.
    """
    b_s, b_cap_rate = score_tile(
        b_dot,
        o_m,
        o_n,
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
        HAS_ALIBI,
        PLAIN,
    )
    if EXACT:
        b_p = tl.exp2((b_s * score_factor(scale, PLAIN) - b_max) - b_log)
    else:
        b_p = tl.exp2(b_s * score_factor(scale, PLAIN) - (b_max + b_log))
    if MASKED:
        b_p = tl.where(b_visible, b_p, 0.0)
    return b_p, b_cap_rate


@triton.jit
def drop(b_x, o_row, o_n, seed_1, seed_2, drop_below, keep_scale, HAS_DROPOUT: tl.constexpr):
    """Return x / (1 - p) where dropout kept the weight and 0 elsewhere; x without dropout."""
    if HAS_DROPOUT:
        b_x = tl.where(kept(seed_1, seed_2, drop_below, o_row, o_n), b_x * keep_scale, 0.0)
    return b_x


@triton.jit
def score_gradient(b_p, b_dp, b_delta, b_visible, MASKED: tl.constexpr):
    """Return dS = P ∘ (dP - Δ); 0 where nobody looks, for there dP may be NaN."""
    b_ds = b_p * (b_dp - b_delta)
    if MASKED:
        b_ds = tl.where(b_visible, b_ds, 0.0)
    return b_ds


@triton.jit
def _attention_delta(
    p_out,
    p_do,
    p_dlse,
    p_delta,
    stride_out_b,
    stride_out_h,
    stride_out_t,
    stride_do_b,
    stride_do_h,
    stride_do_t,
    heads,
    rows,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Δ = rowsum(dO ∘ O) - dlse, float32, for BLOCK_M rows of one head."""
    tiles = tl.cdiv(rows, BLOCK_M)
    o_h = tl.program_id(0) // tiles % heads
    o_b = tl.program_id(0) // tiles // heads
    o_m = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < rows
    p_out = slice_pointer(p_out, o_b, o_h, 0, stride_out_b, stride_out_h, 0)
    p_do = slice_pointer(p_do, o_b, o_h, 0, stride_do_b, stride_do_h, 0)
    row = row_number(o_b, o_h, 0, heads, rows, PACKED)
    b_out = load_rows(p_out, o_m, stride_out_t, m_m, DV, BLOCK_DV, True)  # (BLOCK_M, BLOCK_DV)
    b_do = load_rows(p_do, o_m, stride_do_t, m_m, DV, BLOCK_DV, True)  # (BLOCK_M, BLOCK_DV)
    b_delta = tl.sum(b_out.to(tl.float32) * b_do.to(tl.float32), 1)  # (BLOCK_M,)
    if p_dlse is not None:
        b_delta -= tl.load(p_dlse + row + o_m, mask=m_m, other=0.0)
    tl.store(p_delta + row + o_m, b_delta, mask=m_m)


def row_deltas(
    x: Problem, out: torch.Tensor, d_out: torch.Tensor, d_lse: torch.Tensor | None
) -> torch.Tensor:
    """Return Δ of every query, float32 (B, H, Tq) or (H, total)."""
    shape = (x.heads, x.rows) if x.packed else (x.batch, x.heads, x.rows)
    delta = launch.empty(shape, out, torch.float32)
    slices = x.heads if x.packed else x.batch * x.heads
    launch.launch(
        _attention_delta,
        lambda blocks: cdiv(x.rows, blocks["BLOCK_M"]) * slices,
        [Config({"BLOCK_M": 32}, 4)],
        p_out=out,
        p_do=d_out,
        p_dlse=None if d_lse is None else d_lse.contiguous(),
        p_delta=delta,
        **row_strides("out", out, x.packed),
        **row_strides("do", d_out, x.packed),
        heads=x.heads,
        rows=x.rows,
        DV=x.value_dim,
        BLOCK_DV=next_power_of_2(x.value_dim),
        PACKED=x.packed,
    )
    return delta
