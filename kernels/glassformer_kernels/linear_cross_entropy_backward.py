"""The backward of `linear_cross_entropy`, which says how it goes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from glassformer_kernels import launch
from glassformer_kernels.cross_entropy import counted
from glassformer_kernels.launch import cdiv
from glassformer_kernels.linear_cross_entropy import logits_tile, shared_arguments
from glassformer_kernels.product import grouped, multiply, product_configs

_CHUNK = 1 << 26  # numbers in a chunk of D
_STEP = 128  # a chunk has a multiple of this many classes


@triton.jit
def _linear_cross_entropy_d_logits(
    p_x,
    p_weight,
    p_bias,
    p_target,
    p_max,
    p_log_sum,
    p_g,
    p_d,
    num_rows,
    first,
    last,
    num_channels,
    stride_x,
    stride_weight,
    stride_d,
    ignore_index,
    smoothing,
    share,
    HAS_BIAS: tl.constexpr,
    LOG2_E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Write D = g (softmax - q) of classes [first, last) to d (N, last - first), a tile each."""
    tiles_m, tiles_v = tl.cdiv(num_rows, BLOCK_M), tl.cdiv(last - first, BLOCK_V)
    tile_m, tile_v = grouped(tl.program_id(0), tiles_m, tiles_v, GROUP)
    o_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    o_v = first + tile_v * BLOCK_V + tl.arange(0, BLOCK_V)  # (BLOCK_V,)
    b_x = logits_tile(
        p_x,
        p_weight,
        p_bias,
        o_m,
        o_v,
        num_rows,
        last,
        num_channels,
        stride_x,
        stride_weight,
        HAS_BIAS,
        BLOCK_M,
        BLOCK_V,
        BLOCK_C,
    )  # (BLOCK_M, BLOCK_V)
    m_m = o_m < num_rows
    b_target = tl.load(p_target + o_m, mask=m_m, other=0).to(tl.int64)[:, None]  # (BLOCK_M, 1)
    b_max = tl.load(p_max + o_m, mask=m_m, other=0.0)[:, None]  # (BLOCK_M, 1)
    b_log = tl.load(p_log_sum + o_m, mask=m_m, other=0.0)[:, None]  # (BLOCK_M, 1)
    b_g = tl.load(p_g + o_m, mask=m_m, other=0.0)[:, None]  # (BLOCK_M, 1)
    b_d = tl.exp2(((b_x - b_max) - b_log) * LOG2_E) - share  # (BLOCK_M, BLOCK_V)
    b_d = b_g * (b_d - tl.where(o_v[None, :] == b_target, 1 - smoothing, 0.0))
    b_d = tl.where(b_target == ignore_index, 0.0, b_d)  # 0 · NaN is NaN
    p_d += o_m.to(tl.int64)[:, None] * stride_d + (o_v - first)[None, :]
    tl.store(p_d, b_d.to(p_d.dtype.element_ty), mask=m_m[:, None] & (o_v < last)[None, :])


def linear_cross_entropy_backward(
    g: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    lse: torch.Tensor,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Return the gradients of x, weight and bias, each None unless its `needs` is True.

    Args:
        g: gradient of the losses, in the target's shape.
        x: as in forward, as are weight, bias, target and the options.
        weight: as in forward.
        bias: as in forward.
        target: as in forward.
        lse: from forward.
        ignore_index: as in forward.
        label_smoothing: as in forward.
        needs: for x, weight and bias.
    """
    shared = shared_arguments(x, weight, bias, target, ignore_index, label_smoothing)
    rows, n, (v, c) = shared["p_x"], shared["num_rows"], weight.shape
    weight_rows = shared["p_weight"]
    g = torch.where(counted(target, ignore_index), g.float(), 0).reshape(-1)  # (N,)
    scale = torch.nan_to_num(g.abs().amax() if n else g.sum(), nan=1, posinf=1)
    scale = torch.where(scale == 0, 1, scale).reshape(1)
    d_x = launch.empty((n, c), x, torch.float32) if needs[0] else None
    d_weight = launch.empty((v, c), weight) if needs[1] else None
    d_bias = launch.empty((v,), x) if needs[2] and bias is not None else None
    step = max(min(_CHUNK // max(n, 1), cdiv(v, 8)), 1)
    step = cdiv(step, _STEP) * _STEP
    chunk = launch.empty((n, min(step, v)), x)
    for first in range(0, v, step):
        last = min(first + step, v)
        d = chunk[:, : last - first]  # (N, last - first)
        launch.launch(
            _linear_cross_entropy_d_logits,
            lambda blocks, size=last - first: (
                cdiv(n, blocks["BLOCK_M"]) * cdiv(size, blocks["BLOCK_V"])
            ),
            product_configs(x, "BLOCK_M", "BLOCK_V", "BLOCK_C"),
            key=(x.dtype, n, *weight.shape),
            **shared,
            p_max=lse[0],
            p_log_sum=lse[1],
            p_g=g / scale,
            p_d=d,
            first=first,
            last=last,
            stride_d=chunk.stride(0),
        )
        if d_x is not None:
            multiply(d, weight_rows[first:last], d_x, scale, add=first > 0)
        if d_weight is not None:
            multiply(d.T, rows, d_weight[first:last], scale)
        if d_bias is not None:
            d_bias[first:last] = d.sum(0, dtype=torch.float32) * scale
    if d_x is not None:
        d_x = d_x.reshape(x.shape).to(x.dtype)
    return d_x, d_weight, d_bias
