"""LayerNorm and RMSNorm of rows, with an optional residual added first: forward.

With t = x + residual (rounded to x's dtype, as it is returned), by row of N elements:

    LayerNorm   y = (t - mean t) / √(mean (t - mean t)² + eps) · weight + bias
    RMSNorm     y = t / √(mean t² + eps) · weight

Layout: x and residual (R, N), rows of adjacent elements with any stride between them; weight and
bias (N,); results contiguous; mean and rstd (R,) float32, for backward. All sums are float32.

Limits: a row of up to LONGEST_BLOCK (half of it with a float32 residual) is one block of registers:
x (and residual) are read once, y (and the sum) written once; weight and bias stay in the caches. A
longer row is walked over twice in tiles: the first walk keeps each lane's mean and sum of squared
deviations (Welford 1962), the second, from the row's end to its beginning so that it meets first
what the L2 cache still holds, writes. A mean is corrected by the mean of what is left after
subtracting it: a constant row gives the bias exactly.

Sources: Ba, Kiros and Hinton 2016, "Layer Normalization", section 3; Zhang and Sennrich 2019, "Root
Mean Square Layer Normalization", section 4; Welford 1962, "Note on a Method for Calculating
Corrected Sums of Squares and Products".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from glassformer_kernels import launch
from glassformer_kernels.launch import cdiv, next_power_of_2
from glassformer_kernels.rows import as_rows, block_configs, tile_configs

LONGEST_BLOCK = 32_768  # elements: 32 float32 registers in each of 1024 threads


class Normalised(NamedTuple):
    """What forward gives: the result, x + residual, and what backward needs of each row.

    `total` is None without a residual, `mean` (R,) is None for RMSNorm; `rstd` is (R,).
    """

    y: torch.Tensor
    total: torch.Tensor | None
    mean: torch.Tensor | None
    rstd: torch.Tensor


@triton.jit
def _load_total(p_x, p_residual, o_x, o_residual, m_in, HAS_RESIDUAL: tl.constexpr):
    """Return x + residual as float32, rounded to x's dtype on the way: what is stored is what is
    normalised."""
    # Weights are used again by every row, x is not: it shall leave the first cache first.
    b_x = tl.load(p_x + o_x, mask=m_in, other=0, eviction_policy="evict_first").to(tl.float32)
    if HAS_RESIDUAL:
        b_r = tl.load(p_residual + o_residual, mask=m_in, other=0, eviction_policy="evict_first")
        b_x = (b_x + b_r.to(tl.float32)).to(p_x.dtype.element_ty).to(tl.float32)
    return b_x


@triton.jit
def _store_result(
    p_y,
    p_weight,
    p_bias,
    b_normal,
    o_y,
    o_col,
    m_in,
    m_col,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Store b_normal (rows, BLOCK_N) · weight + bias."""
    if HAS_WEIGHT:
        b_w = tl.load(p_weight + o_col, mask=m_col, other=0, eviction_policy="evict_last")
        b_normal = b_normal * b_w.to(tl.float32)[None, :]
    if HAS_BIAS:
        b_b = tl.load(p_bias + o_col, mask=m_col, other=0, eviction_policy="evict_last")
        b_normal = b_normal + b_b.to(tl.float32)[None, :]
    b_y = b_normal.to(p_y.dtype.element_ty)  # (rows, BLOCK_N)
    tl.store(p_y + o_y, b_y, mask=m_in, eviction_policy="evict_first")


@triton.jit
def _norm_forward(
    p_x,
    p_residual,
    p_weight,
    p_bias,
    p_y,
    p_total,
    p_mean,
    p_rstd,
    eps,
    n_rows,
    n_cols,
    stride_x,
    stride_residual,
    CENTRE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Normalise BLOCK_M whole rows; BLOCK_N ≥ n_cols."""
    o_row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    o_col = tl.arange(0, BLOCK_N)  # (BLOCK_N,)
    m_row, m_col = o_row < n_rows, o_col < n_cols
    m_in = m_row[:, None] & m_col[None, :]  # (BLOCK_M, BLOCK_N)
    o_x = o_row[:, None] * stride_x + o_col[None, :]
    o_residual = o_row[:, None] * stride_residual + o_col[None, :]
    o_y = o_row[:, None] * n_cols + o_col[None, :]
    b_t = _load_total(p_x, p_residual, o_x, o_residual, m_in, HAS_RESIDUAL)  # (BLOCK_M, BLOCK_N)
    if HAS_RESIDUAL:
        tl.store(p_total + o_y, b_t.to(p_total.dtype.element_ty), mask=m_in)
    if CENTRE:
        b_mean = tl.sum(b_t, 1) / n_cols  # (BLOCK_M,)
        b_t = tl.where(m_in, b_t - b_mean[:, None], 0)  # (BLOCK_M, BLOCK_N)
        b_left = tl.sum(b_t, 1) / n_cols  # (BLOCK_M,)
        b_square = tl.maximum(tl.sum(b_t * b_t, 1) / n_cols - b_left * b_left, 0)  # (BLOCK_M,)
        b_t = b_t - b_left[:, None]
        tl.store(p_mean + o_row, b_mean + b_left, mask=m_row)
    else:
        b_square = tl.sum(b_t * b_t, 1) / n_cols  # (BLOCK_M,)
    b_rstd = 1 / tl.sqrt_rn(b_square + eps)  # (BLOCK_M,)
    tl.store(p_rstd + o_row, b_rstd, mask=m_row)
    b_t = b_t * b_rstd[:, None]
    _store_result(p_y, p_weight, p_bias, b_t, o_y, o_col, m_in, m_col, HAS_WEIGHT, HAS_BIAS)


@triton.jit
def _norm_tiled_forward(
    p_x,
    p_residual,
    p_weight,
    p_bias,
    p_y,
    p_total,
    p_mean,
    p_rstd,
    eps,
    n_rows,
    n_cols,
    stride_x,
    stride_residual,
    CENTRE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Normalise one row in tiles of BLOCK_N."""
    row = tl.program_id(0).to(tl.int64)
    p_x += row * stride_x
    if HAS_RESIDUAL:
        p_residual += row * stride_residual
    p_y += row * n_cols
    n_tiles = tl.cdiv(n_cols, BLOCK_N)
    b_mean = tl.zeros((1, BLOCK_N), tl.float32)  # (1, BLOCK_N) of what each lane has seen
    b_square = tl.zeros((1, BLOCK_N), tl.float32)  # (1, BLOCK_N) squared deviations from it
    for tile in tl.range(0, n_tiles, num_stages=STAGES):
        o_col = (tile * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]  # (1, BLOCK_N)
        m_in = o_col < n_cols
        b_t = _load_total(p_x, p_residual, o_col, o_col, m_in, HAS_RESIDUAL)  # (1, BLOCK_N)
        if HAS_RESIDUAL:
            tl.store(p_total + row * n_cols + o_col, b_t.to(p_total.dtype.element_ty), mask=m_in)
        if CENTRE:
            b_off = tl.where(m_in, b_t - b_mean, 0)  # (1, BLOCK_N)
            b_mean += b_off / (tile + 1)
            b_square += tl.where(m_in, b_off * (b_t - b_mean), 0)
        else:
            b_square += b_t * b_t
    if CENTRE:
        b_count = (n_cols - tl.arange(0, BLOCK_N) + BLOCK_N - 1) // BLOCK_N  # (BLOCK_N,)
        b_count = tl.maximum(b_count, 0).to(tl.float32)[None, :]  # (1, BLOCK_N)
        mean = tl.sum(b_count * b_mean) / n_cols
        b_off = b_mean - mean  # (1, BLOCK_N)
        left = tl.sum(b_count * b_off) / n_cols
        square = (tl.sum(b_square) + tl.sum(b_count * b_off * b_off)) / n_cols - left * left
        square = tl.maximum(square, 0)
        mean += left
        tl.store(p_mean + row, mean)
    else:
        square = tl.sum(b_square) / n_cols
        mean = 0.0
    rstd = 1 / tl.sqrt_rn(square + eps)
    tl.store(p_rstd + row, rstd)

    for tile in tl.range(0, n_tiles, num_stages=STAGES):
        o_lane = (n_tiles - 1 - tile) * BLOCK_N + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
        o_col, m_col = o_lane[None, :], o_lane < n_cols  # (1, BLOCK_N), (BLOCK_N,)
        m_in = m_col[None, :]
        # x and residual once more, and not their sum: other threads may have stored it.
        b_t = _load_total(p_x, p_residual, o_col, o_col, m_in, HAS_RESIDUAL)  # (1, BLOCK_N)
        b_t = (b_t - mean) * rstd
        _store_result(p_y, p_weight, p_bias, b_t, o_col, o_lane, m_in, m_col, HAS_WEIGHT, HAS_BIAS)


def forward(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    *,
    eps: float,
    centre: bool,
) -> Normalised:
    """Return LayerNorm (`centre`) or RMSNorm of x + residual over the last dimension.

    Args:
        x: (..., N).
        weight: (N,), of any floating dtype; None is 1.
        bias: (N,), of any floating dtype; None is 0.
        residual: of x's shape and dtype; None is 0.
        eps: added to the mean square.
        centre: whether the mean is subtracted first.
    """
    n_cols = x.shape[-1]
    n_rows = x.shape[:-1].numel()
    y = launch.empty(x.shape, like=x)
    total = None if residual is None else launch.empty(x.shape, like=x)
    mean = launch.empty((n_rows,), x, torch.float32) if centre else None
    rstd = launch.empty((n_rows,), x, torch.float32)
    if x.numel() == 0:
        return Normalised(y, total, None if mean is None else mean.zero_(), rstd.zero_())
    rows = as_rows(x, n_cols)
    residual_rows = None if residual is None else as_rows(residual, n_cols)
    crowded = residual is not None and x.dtype is torch.float32  # both wait in registers at once
    long = n_cols > (LONGEST_BLOCK // 2 if crowded else LONGEST_BLOCK)
    block_n = next_power_of_2(n_cols)
    has = [part is not None for part in (residual, weight, bias)]
    target = launch.target_for(x)
    launch.launch(
        _norm_tiled_forward if long else _norm_forward,
        n_rows if long else lambda blocks: cdiv(n_rows, blocks["BLOCK_M"]),
        tile_configs(2, target) if long else block_configs(n_rows, n_cols, 32, target),
        key=(str(x.dtype), block_n, centre, *has),
        p_x=rows,
        p_residual=residual_rows,
        p_weight=None if weight is None else weight.contiguous(),
        p_bias=None if bias is None else bias.contiguous(),
        p_y=y,
        p_total=total,
        p_mean=mean,
        p_rstd=rstd,
        eps=eps,
        n_rows=n_rows,
        n_cols=n_cols,
        stride_x=rows.stride(0),
        stride_residual=0 if residual_rows is None else residual_rows.stride(0),
        CENTRE=centre,
        HAS_RESIDUAL=has[0],
        HAS_WEIGHT=has[1],
        HAS_BIAS=has[2],
        **({} if long else {"BLOCK_N": block_n}),
    )
    return Normalised(y, total, mean, rstd)
