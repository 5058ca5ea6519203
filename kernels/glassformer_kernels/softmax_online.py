"""softmax and log_softmax of rows too long for registers: two walks over a row, tile by tile.

The first walk keeps, for each lane of a tile, the largest z so far and Σ exp(z - largest), which is
rescaled when a larger one arrives; lanes are merged once, after the last tile. The second walk
writes. Backward has the same two walks: the row's sum, then d_x. The formulas and what is visible
are those of `softmax`.

Bytes: a row's elements are read twice and written once, but the second walk runs from the row's
end to its beginning, so that it finds first what was read last: up to 2·N·itemsize a row reach
memory as long as the rows at work (one a program, 512 KB for 262,144 bfloat16) fit in the GPU's L2
cache; 3·N·itemsize when none of it does.

Limits: any row length; one program a row, so that few rows leave a GPU partly idle.

Source: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax", section 3.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from glassformer_kernels import launch
from glassformer_kernels.rows import tile_configs


@triton.jit
def visible(
    p_mask,
    o_row,
    o_col,
    m_inside,
    n_heads,
    n_queries,
    diagonal,
    stride_mask_b,
    stride_mask_h,
    stride_mask_q,
    stride_mask_k,
    HAS_MASK: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """Return which elements of rows o_row and columns o_col to load, and which take part.

    o_row (BLOCK_M,) counts (batch, head, query); m_inside is False beyond the tensor. Loads take
    whole groups of 16 columns and not what is visible: a mask by element would make them narrow.
    """
    m_near = m_inside  # (BLOCK_M, BLOCK_N)
    o_query = o_row % n_queries  # (BLOCK_M,)
    if CAUSAL:
        m_near = m_near & ((o_col // 16 * 16)[None, :] <= (o_query + diagonal)[:, None])
    m_visible = m_near  # (BLOCK_M, BLOCK_N)
    if CAUSAL:
        m_visible = m_visible & (o_col[None, :] <= (o_query + diagonal)[:, None])
    if HAS_MASK:
        o_head = o_row // n_queries  # (BLOCK_M,)
        o_mask = (o_head // n_heads) * stride_mask_b + (o_head % n_heads) * stride_mask_h
        o_mask += o_query * stride_mask_q
        p_seen = p_mask + o_mask[:, None] + o_col.to(tl.int64)[None, :] * stride_mask_k
        m_visible = m_visible & (tl.load(p_seen, mask=m_near, other=0) != 0)
    return m_near, m_visible


@triton.jit
def _softmax_online_forward(
    p_x,
    p_y,
    p_mask,
    scale,
    n_rows,
    n_cols,
    stride_x,
    stride_y,
    n_heads,
    n_queries,
    diagonal,
    stride_mask_b,
    stride_mask_h,
    stride_mask_q,
    stride_mask_k,
    HAS_MASK: tl.constexpr,
    CAUSAL: tl.constexpr,
    LOG: tl.constexpr,
    LOG2_E: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """y = softmax(scale · x), or its logarithm, of one row in tiles of BLOCK_N."""
    o_row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)  # (1,)
    p_row, p_out = p_x + o_row[:, None] * stride_x, p_y + o_row[:, None] * stride_y
    # The smallest finite number, not -inf: -inf - -inf would be NaN before the row is known to be.
    b_max = tl.full((1, BLOCK_N), -3.4028234663852886e38, tl.float32)  # (1, BLOCK_N)
    b_sum = tl.zeros((1, BLOCK_N), tl.float32)  # (1, BLOCK_N)
    for start in tl.range(0, n_cols, BLOCK_N, num_stages=STAGES):
        o_col = start + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
        m_near, m_visible = visible(
            p_mask,
            o_row,
            o_col,
            (o_col < n_cols)[None, :],
            n_heads,
            n_queries,
            diagonal,
            stride_mask_b,
            stride_mask_h,
            stride_mask_q,
            stride_mask_k,
            HAS_MASK,
            CAUSAL,
        )  # (1, BLOCK_N) both
        b_x = tl.load(p_row + o_col[None, :], mask=m_near, other=0)  # (1, BLOCK_N)
        b_z = tl.where(m_visible, b_x.to(tl.float32) * scale, float("-inf"))
        # One exponential serves both cases: the smaller of the two, relative to the larger.
        b_rise = b_z - b_max  # (1, BLOCK_N)
        b_exp = tl.exp2(-tl.abs(b_rise) * LOG2_E)  # (1, BLOCK_N)
        b_sum = tl.where(b_rise > 0, b_sum * b_exp + 1, b_sum + b_exp)
        b_max = tl.where(b_rise > 0, b_z, b_max)
    b_top = tl.max(b_max, 1)  # (1,)
    b_total = tl.sum(b_sum * tl.exp2((b_max - b_top[:, None]) * LOG2_E), 1)  # (1,)
    b_inverse, b_log = (1 / b_total)[:, None], tl.log(b_total)[:, None]  # (1, 1)

    n_tiles = tl.cdiv(n_cols, BLOCK_N)
    for tile in tl.range(0, n_tiles, num_stages=STAGES):
        o_col = (n_tiles - 1 - tile) * BLOCK_N + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
        m_inside = (o_col < n_cols)[None, :]  # (1, BLOCK_N)
        m_near, m_visible = visible(
            p_mask,
            o_row,
            o_col,
            m_inside,
            n_heads,
            n_queries,
            diagonal,
            stride_mask_b,
            stride_mask_h,
            stride_mask_q,
            stride_mask_k,
            HAS_MASK,
            CAUSAL,
        )  # (1, BLOCK_N) both
        p_in = p_row + o_col[None, :]
        b_x = tl.load(p_in, mask=m_near, other=0, eviction_policy="evict_first")
        b_z = tl.where(m_visible, b_x.to(tl.float32) * scale, float("-inf"))  # (1, BLOCK_N)
        b_z = b_z - b_top[:, None]
        b_y = b_z - b_log if LOG else tl.exp2(b_z * LOG2_E) * b_inverse  # (1, BLOCK_N)
        b_y = b_y.to(p_y.dtype.element_ty)
        tl.store(p_out + o_col[None, :], b_y, mask=m_inside, eviction_policy="evict_first")


@triton.jit
def _softmax_online_backward(
    p_g,
    p_y,
    p_dx,
    p_mask,
    scale,
    n_rows,
    n_cols,
    stride_g,
    stride_y,
    stride_dx,
    n_heads,
    n_queries,
    diagonal,
    stride_mask_b,
    stride_mask_h,
    stride_mask_q,
    stride_mask_k,
    HAS_MASK: tl.constexpr,
    CAUSAL: tl.constexpr,
    LOG: tl.constexpr,
    LOG2_E: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """d_x from g and y of one row in tiles of BLOCK_N: Σ g y (log: Σ g) first, then d_x."""
    o_row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)  # (1,)
    p_g += o_row[:, None] * stride_g
    p_in, p_out = p_y + o_row[:, None] * stride_y, p_dx + o_row[:, None] * stride_dx
    b_sum = tl.zeros((1, BLOCK_N), tl.float32)  # (1, BLOCK_N)
    for start in tl.range(0, n_cols, BLOCK_N, num_stages=STAGES):
        o_col = start + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
        m_near, m_visible = visible(
            p_mask,
            o_row,
            o_col,
            (o_col < n_cols)[None, :],
            n_heads,
            n_queries,
            diagonal,
            stride_mask_b,
            stride_mask_h,
            stride_mask_q,
            stride_mask_k,
            HAS_MASK,
            CAUSAL,
        )  # (1, BLOCK_N) both
        b_term = tl.load(p_g + o_col[None, :], mask=m_near, other=0).to(tl.float32)
        if not LOG:
            b_y = tl.load(p_in + o_col[None, :], mask=m_near, other=0)  # (1, BLOCK_N)
            b_term = b_term * b_y.to(tl.float32)
        b_sum += tl.where(m_visible, b_term, 0)
    b_total = tl.sum(b_sum, 1)[:, None]  # (1, 1)

    n_tiles = tl.cdiv(n_cols, BLOCK_N)
    for tile in tl.range(0, n_tiles, num_stages=STAGES):
        o_col = (n_tiles - 1 - tile) * BLOCK_N + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
        m_inside = (o_col < n_cols)[None, :]  # (1, BLOCK_N)
        m_near, m_visible = visible(
            p_mask,
            o_row,
            o_col,
            m_inside,
            n_heads,
            n_queries,
            diagonal,
            stride_mask_b,
            stride_mask_h,
            stride_mask_q,
            stride_mask_k,
            HAS_MASK,
            CAUSAL,
        )  # (1, BLOCK_N) both
        b_g = tl.load(p_g + o_col[None, :], mask=m_near, other=0).to(tl.float32)
        b_y = tl.load(p_in + o_col[None, :], mask=m_near, other=0).to(tl.float32)
        b_dx = b_g - tl.exp2(b_y * LOG2_E) * b_total if LOG else b_y * (b_g - b_total)
        b_dx = tl.where(m_visible, b_dx * scale, 0).to(p_dx.dtype.element_ty)
        tl.store(p_out + o_col[None, :], b_dx, mask=m_inside, eviction_policy="evict_first")


def run(
    is_backward: bool,
    rows: torch.Tensor,
    key: tuple[Any, ...],
    mutates: bool,
    args: dict[str, Any],
) -> None:
    """Launch one of the kernels with the arguments that `softmax` put together, a program a row."""
    launch.launch(
        _softmax_online_backward if is_backward else _softmax_online_forward,
        len(rows),
        tile_configs(2 if is_backward else 3, launch.target_for(rows)),
        key=key,
        mutates=mutates,
        **args,
    )
