"""LayerNorm and RMSNorm of rows: backward.

With t what was normalised, t̂ = (t - mean) · rstd (RMSNorm: t · rstd), v = g · weight, by row:

    d_t = rstd · (v - mean(v t̂) t̂ - mean(v)) + g_total     (RMSNorm: without mean(v))
    d_weight = Σ g t̂,  d_bias = Σ g,  both over rows

where g_total is the gradient of the sum x + residual that forward returned; d_t is the gradient of
x and of the residual alike.

Layout as in `norm`. The sums over rows are deterministic: rows are dealt to at most GROUPS
programs, each writes its sums to a row of its own of `partial` (2, groups, N) float32, and those
are added in a fixed order.

Limits: a row of up to LONGEST_BLOCK is one block of registers, beside the sums of its program: t
and g are read once and d_t written once. For longer rows one kernel goes along rows (two walks, as
in `norm`) and one down columns, so that t and g are read from memory twice.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from glassformer_kernels import launch
from glassformer_kernels.launch import Config, cdiv, next_power_of_2
from glassformer_kernels.rows import as_rows, block_configs, tile_configs

LONGEST_BLOCK = 8192  # elements; five blocks of them are held
GROUPS = 256  # about two programs for each multiprocessor of a large GPU


@triton.jit
def _norm_backward(
    p_t,
    p_g,
    p_g_total,
    p_weight,
    p_mean,
    p_rstd,
    p_dt,
    p_partial,
    n_rows,
    n_cols,
    stride_t,
    stride_g,
    stride_g_total,
    n_groups,
    CENTRE: tl.constexpr,
    HAS_TOTAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    NEEDS_SUMS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """d_t of every n_groups-th block of BLOCK_M whole rows, and their sums; BLOCK_N ≥ n_cols."""
    group = tl.program_id(0)
    o_col = tl.arange(0, BLOCK_N)  # (BLOCK_N,)
    m_col = o_col < n_cols
    b_weight = tl.full((BLOCK_N,), 1.0, tl.float32)  # (BLOCK_N,)
    if HAS_WEIGHT:
        b_weight = tl.load(p_weight + o_col, mask=m_col, other=0).to(tl.float32)
    b_dweight = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    b_dbias = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for tile in tl.range(group, tl.cdiv(n_rows, BLOCK_M), n_groups):
        o_row = tile * BLOCK_M + tl.arange(0, BLOCK_M).to(tl.int64)  # (BLOCK_M,)
        m_row = o_row < n_rows
        m_in = m_row[:, None] & m_col[None, :]  # (BLOCK_M, BLOCK_N)
        b_t = tl.load(p_t + o_row[:, None] * stride_t + o_col[None, :], mask=m_in, other=0)
        b_g = tl.load(p_g + o_row[:, None] * stride_g + o_col[None, :], mask=m_in, other=0)
        b_t, b_g = b_t.to(tl.float32), b_g.to(tl.float32)  # (BLOCK_M, BLOCK_N)
        b_rstd = tl.load(p_rstd + o_row, mask=m_row, other=0)[:, None]  # (BLOCK_M, 1)
        if CENTRE:
            b_mean = tl.load(p_mean + o_row, mask=m_row, other=0)[:, None]  # (BLOCK_M, 1)
            b_t = tl.where(m_in, b_t - b_mean, 0)
        b_t = b_t * b_rstd
        if NEEDS_SUMS:
            b_dweight += b_g * b_t
            b_dbias += b_g
        b_v = b_g * b_weight[None, :]  # (BLOCK_M, BLOCK_N)
        b_dt = b_v - b_t * (tl.sum(b_v * b_t, 1) / n_cols)[:, None]  # (BLOCK_M, BLOCK_N)
        if CENTRE:
            b_dt = b_dt - (tl.sum(b_v, 1) / n_cols)[:, None]
        b_dt = b_dt * b_rstd
        if HAS_TOTAL:
            o_g_total = o_row[:, None] * stride_g_total + o_col[None, :]
            b_dt += tl.load(p_g_total + o_g_total, mask=m_in, other=0).to(tl.float32)
        p_out = p_dt + o_row[:, None] * n_cols + o_col[None, :]
        tl.store(p_out, b_dt.to(p_dt.dtype.element_ty), mask=m_in)
    if NEEDS_SUMS:
        p_sums = p_partial + group.to(tl.int64) * n_cols + o_col  # (BLOCK_N,)
        tl.store(p_sums, tl.sum(b_dweight, 0), mask=m_col)
        p_sums = p_partial + (n_groups + group).to(tl.int64) * n_cols + o_col
        tl.store(p_sums, tl.sum(b_dbias, 0), mask=m_col)


@triton.jit
def _norm_tiled_backward(
    p_t,
    p_g,
    p_g_total,
    p_weight,
    p_mean,
    p_rstd,
    p_dt,
    n_cols,
    stride_t,
    stride_g,
    stride_g_total,
    CENTRE: tl.constexpr,
    HAS_TOTAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """d_t of one row in tiles of BLOCK_N: mean(v t̂) and mean(v) first, then d_t."""
    row = tl.program_id(0).to(tl.int64)
    p_t += row * stride_t
    p_g += row * stride_g
    rstd = tl.load(p_rstd + row)
    mean = tl.load(p_mean + row) if CENTRE else 0.0
    n_tiles = tl.cdiv(n_cols, BLOCK_N)
    b_along = tl.zeros((BLOCK_N,), tl.float32)  # (BLOCK_N,) Σ v t̂
    b_sum = tl.zeros((BLOCK_N,), tl.float32)  # (BLOCK_N,) Σ v
    for tile in tl.range(0, n_tiles, num_stages=STAGES):
        o_col = tile * BLOCK_N + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
        m_col = o_col < n_cols
        b_t = (tl.load(p_t + o_col, mask=m_col, other=0).to(tl.float32) - mean) * rstd
        b_v = tl.load(p_g + o_col, mask=m_col, other=0).to(tl.float32)  # (BLOCK_N,)
        if HAS_WEIGHT:
            b_v = b_v * tl.load(p_weight + o_col, mask=m_col, other=0).to(tl.float32)
        b_along += tl.where(m_col, b_v * b_t, 0)
        b_sum += b_v
    along = tl.sum(b_along) / n_cols
    average = tl.sum(b_sum) / n_cols if CENTRE else 0.0

    for tile in tl.range(0, n_tiles, num_stages=STAGES):
        o_col = (n_tiles - 1 - tile) * BLOCK_N + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
        m_col = o_col < n_cols
        b_t = (tl.load(p_t + o_col, mask=m_col, other=0).to(tl.float32) - mean) * rstd
        b_v = tl.load(p_g + o_col, mask=m_col, other=0).to(tl.float32)  # (BLOCK_N,)
        if HAS_WEIGHT:
            b_v = b_v * tl.load(p_weight + o_col, mask=m_col, other=0).to(tl.float32)
        b_dt = (b_v - b_t * along - average) * rstd  # (BLOCK_N,)
        if HAS_TOTAL:
            p_more = p_g_total + row * stride_g_total + o_col
            b_dt += tl.load(p_more, mask=m_col, other=0).to(tl.float32)
        tl.store(p_dt + row * n_cols + o_col, b_dt.to(p_dt.dtype.element_ty), mask=m_col)


@triton.jit
def _norm_column_sums(
    p_t,
    p_g,
    p_mean,
    p_rstd,
    p_partial,
    n_rows,
    n_cols,
    stride_t,
    stride_g,
    n_groups,
    CENTRE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Σ g t̂ and Σ g of BLOCK_N columns over every n_groups-th block of BLOCK_M rows."""
    n_tiles = tl.cdiv(n_cols, BLOCK_N)
    group = tl.program_id(0) // n_tiles
    o_col = tl.program_id(0) % n_tiles * BLOCK_N + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
    m_col = o_col < n_cols
    b_dweight = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    b_dbias = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for tile in tl.range(group, tl.cdiv(n_rows, BLOCK_M), n_groups):
        o_row = tile * BLOCK_M + tl.arange(0, BLOCK_M).to(tl.int64)  # (BLOCK_M,)
        m_row = o_row < n_rows
        m_in = m_row[:, None] & m_col[None, :]  # (BLOCK_M, BLOCK_N)
        b_t = tl.load(p_t + o_row[:, None] * stride_t + o_col[None, :], mask=m_in, other=0)
        b_g = tl.load(p_g + o_row[:, None] * stride_g + o_col[None, :], mask=m_in, other=0)
        b_t, b_g = b_t.to(tl.float32), b_g.to(tl.float32)  # (BLOCK_M, BLOCK_N)
        if CENTRE:
            b_t = b_t - tl.load(p_mean + o_row, mask=m_row, other=0)[:, None]
        b_t = b_t * tl.load(p_rstd + o_row, mask=m_row, other=0)[:, None]
        b_dweight += b_g * b_t
        b_dbias += b_g
    p_sums = p_partial + group.to(tl.int64) * n_cols + o_col  # (BLOCK_N,)
    tl.store(p_sums, tl.sum(b_dweight, 0), mask=m_col)
    p_sums = p_partial + (n_groups + group).to(tl.int64) * n_cols + o_col
    tl.store(p_sums, tl.sum(b_dbias, 0), mask=m_col)


def backward(
    grad: torch.Tensor,
    grad_total: torch.Tensor | None,
    total: torch.Tensor,
    weight: torch.Tensor | None,
    mean: torch.Tensor | None,
    rstd: torch.Tensor,
    *,
    needs_sums: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Return the gradients of x (which is the residual's too), of the weight and of the bias.

    Args:
        grad: the gradient of y (..., N).
        grad_total: the gradient of the sum that forward returned, or None.
        total: what was normalised (..., N): that sum, or x where there was no residual.
        weight: (N,) or None.
        mean: (R,) as forward gave it; None for RMSNorm.
        rstd: (R,) as forward gave it.
        needs_sums: whether the last two gradients are computed; they are None otherwise, and
            float32 (N,) whatever the parameters' dtype.
    """
    n_cols, centre = total.shape[-1], mean is not None
    dt = launch.empty(total.shape, like=total)
    if total.numel() == 0:
        zeros = torch.zeros(2, n_cols, dtype=torch.float32, device=total.device)
        return (dt, zeros[0], zeros[1]) if needs_sums else (dt, None, None)
    t, g = as_rows(total, n_cols), as_rows(grad, n_cols)
    more = None if grad_total is None else as_rows(grad_total, n_cols)
    n_rows, block_n = len(t), next_power_of_2(n_cols)
    groups = min(n_rows, GROUPS)
    partial = launch.empty((2, groups, n_cols), t, torch.float32) if needs_sums else None
    key = (str(total.dtype), block_n, centre, more is not None, weight is not None, needs_sums)
    target = launch.target_for(total)
    read = {"p_t": t, "p_g": g, "p_mean": mean, "p_rstd": rstd, "n_cols": n_cols}
    read |= {"stride_t": t.stride(0), "stride_g": g.stride(0), "CENTRE": centre}
    along = {
        **read,
        "p_g_total": more,
        "stride_g_total": 0 if more is None else more.stride(0),
        "HAS_TOTAL": more is not None,
        "p_weight": None if weight is None else weight.contiguous(),
        "HAS_WEIGHT": weight is not None,
        "p_dt": dt,
    }
    down = {"p_partial": partial, "n_rows": n_rows, "n_groups": groups}
    if n_cols <= LONGEST_BLOCK:
        launch.launch(
            _norm_backward,
            groups,
            block_configs(n_rows, n_cols, 16, target),
            key=key,
            **along,
            **down,
            NEEDS_SUMS=needs_sums,
            BLOCK_N=block_n,
        )
    else:
        launch.launch(_norm_tiled_backward, n_rows, tile_configs(1, target), key=key, **along)
        if needs_sums:
            launch.launch(
                _norm_column_sums,
                lambda blocks: groups * cdiv(n_cols, blocks["BLOCK_N"]),
                [Config({"BLOCK_M": m, "BLOCK_N": 512}, num_warps=4) for m in (4, 8, 2)],
                key=key,
                **read,
                **down,
            )
    if partial is None:
        return dt, None, None
    sums = partial.sum(1)
    return dt, sums[0], sums[1]
