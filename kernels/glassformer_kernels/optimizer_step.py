"""AdamW's step in one pass over memory, in place.

    m ← β₁ m + (1 - β₁) g;  v ← β₂ v + (1 - β₂) g²
    p ← p (1 - lr · weight_decay) - lr / (1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + eps)

Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2, with the decay
scaled by the learning rate as in PyTorch. Arithmetic is in float32. With master weights the float32
copy is what is stepped, and the parameter of lower precision becomes its rounding.

Bytes an element: p, m and v are read and written, g is read: 28 in float32; 28 too for a bfloat16
parameter and gradient with float32 m, v and master (the parameter is then written only).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from glassformer_kernels import launch
from glassformer_kernels.elementwise import as_rows, num_tiles, tile_configs, tile_of


@triton.jit
def _mean(old, new, beta, rest):
    """Return beta · old + rest · new with one factor: two that are rounded don't add up to 1."""
    change = new - old
    return tl.where(rest < 0.5, old + rest * change, new - beta * change)


@triton.jit
def _adamw_step(
    p_param,
    p_grad,
    p_m,
    p_v,
    p_master,
    num_rows,
    num_columns,
    stride_param,
    stride_grad,
    stride_m,
    stride_v,
    stride_master,
    beta1,
    beta2,
    rest1,
    rest2,
    decay,
    step_size,
    root_scale,
    eps,
    MASTER: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Step a tile of rows (M, N), last stride 1; any M and N.

    rest is 1 - beta, decay 1 - lr · weight_decay, step_size lr / (1 - β₁ᵗ), root_scale
    1 / √(1 - β₂ᵗ), all rounded once, from float64.
    """
    o_m, o_n, mask = tile_of(num_rows, num_columns, BLOCK_M, BLOCK_N)
    # Every block is (BLOCK_M, BLOCK_N).
    p_old = p_master + o_m * stride_master + o_n if MASTER else p_param + o_m * stride_param + o_n
    b_g = tl.load(p_grad + o_m * stride_grad + o_n, mask=mask, other=0.0).to(tl.float32)
    b_m = tl.load(p_m + o_m * stride_m + o_n, mask=mask, other=0.0).to(tl.float32)
    b_v = tl.load(p_v + o_m * stride_v + o_n, mask=mask, other=0.0).to(tl.float32)
    b_p = tl.load(p_old, mask=mask, other=0.0).to(tl.float32)
    if MAXIMIZE:
        b_g = -b_g
    b_m = _mean(b_m, b_g, beta1, rest1)
    b_v = _mean(b_v, b_g * b_g, beta2, rest2)
    b_step = tl.div_rn(b_m, tl.sqrt_rn(b_v) * root_scale + eps)
    b_p = b_p * decay - b_step * step_size
    tl.store(p_m + o_m * stride_m + o_n, b_m.to(p_m.dtype.element_ty), mask=mask)
    tl.store(p_v + o_m * stride_v + o_n, b_v.to(p_v.dtype.element_ty), mask=mask)
    if MASTER:
        tl.store(p_old, b_p.to(p_master.dtype.element_ty), mask=mask)
    p_new = p_param + o_m * stride_param + o_n
    tl.store(p_new, b_p.to(p_param.dtype.element_ty), mask=mask)


def adamw_step(
    param: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    master: torch.Tensor | None = None,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool = False,
) -> None:
    """Step param, exp_avg, exp_avg_sq and master in place. All of one shape, dtypes at will."""
    given = [param, grad, exp_avg, exp_avg_sq, *(() if master is None else (master,))]
    # In the order that memory has them: a transposed parameter then is one long row again.
    order = sorted(range(param.ndim), key=lambda dim: -param.stride(dim))
    tensors = [x.permute(order) for x in given]
    rows = as_rows(*tensors)
    p, g, m, v, w = rows if master is not None else [*rows, rows[0]]
    num_rows, num_columns = p.shape
    launch.launch(
        _adamw_step,
        lambda blocks: num_tiles(num_rows, num_columns, blocks),
        tile_configs(num_rows, num_columns),
        key=(*(x.dtype for x in given), num_rows, num_columns),
        mutates=True,
        p_param=p,
        p_grad=g,
        p_m=m,
        p_v=v,
        p_master=w,
        num_rows=num_rows,
        num_columns=num_columns,
        stride_param=p.stride(0),
        stride_grad=g.stride(0),
        stride_m=m.stride(0),
        stride_v=v.stride(0),
        stride_master=w.stride(0),
        beta1=beta1,
        beta2=beta2,
        rest1=1 - beta1,
        rest2=1 - beta2,
        decay=1 - lr * weight_decay,
        step_size=lr / (1 - beta1**step),
        root_scale=1 / math.sqrt(1 - beta2**step),
        eps=eps,
        MASTER=master is not None,
        MAXIMIZE=maximize,
    )
    for i, (x, row) in enumerate(zip(tensors, rows, strict=True)):
        copied = row.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
        if copied and i != 1:  # everything but the gradient changes
            x.copy_(row.reshape(x.shape))
