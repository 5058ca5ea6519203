"""softmax and log_softmax of rows, forward and backward, for rows that fit in registers.

With z = scale · x where an element is visible and -inf where it is hidden, by row:

    softmax       y = exp(z - max z) / Σ exp(z - max z)     d_x = scale · y (g - Σ g y)
    log_softmax   y = z - max z - log Σ exp(z - max z)      d_x = scale · (g - exp(y) Σ g)

Hidden elements give 0 (log_softmax: -inf) and have gradient 0; what x and g hold there reaches
nothing. A row whose z are all -inf, or with a NaN or +inf among them, is NaN, as in PyTorch.

Layout: x (..., N) is seen as rows (R, N) of adjacent elements; a mask keeps its own strides (0
where it is broadcast) and is never expanded in memory. Sums are float32.

Limits: a row of up to LONGEST_FORWARD (backward: LONGEST_BACKWARD, which holds two of them) is one
block of registers: x is read once and y written once, 2·N·itemsize bytes a row, and one more byte
an element where there is a mask. Longer rows go to `softmax_online`.

Source: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax", sections 2 and 3.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from glassformer_kernels import launch, softmax_online
from glassformer_kernels.launch import LOG2_E, cdiv, next_power_of_2
from glassformer_kernels.rows import as_rows, block_configs, writable_rows
from glassformer_kernels.softmax_online import visible

LONGEST_FORWARD = 32_768  # elements: 32 float32 registers in each of 1024 threads
LONGEST_BACKWARD = 16_384


@triton.jit
def _softmax_forward(
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
    BLOCK_M: tl.constexpr,
):
    """y = softmax(scale · x), or its logarithm, of BLOCK_M whole rows; BLOCK_N ≥ n_cols."""
    o_row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    o_col = tl.arange(0, BLOCK_N)  # (BLOCK_N,)
    m_inside = (o_row < n_rows)[:, None] & (o_col < n_cols)[None, :]  # (BLOCK_M, BLOCK_N)
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
    )  # (BLOCK_M, BLOCK_N) both
    b_x = tl.load(p_x + o_row[:, None] * stride_x + o_col[None, :], mask=m_near, other=0)
    b_z = tl.where(m_visible, b_x.to(tl.float32) * scale, float("-inf"))  # (BLOCK_M, BLOCK_N)
    # Subtracted before it is multiplied by log2 e: large logits would lose their last bits else.
    b_z = b_z - tl.max(b_z, 1)[:, None]  # (BLOCK_M, BLOCK_N)
    b_exp = tl.exp2(b_z * LOG2_E)  # (BLOCK_M, BLOCK_N)
    b_sum = tl.sum(b_exp, 1)  # (BLOCK_M,)
    b_y = b_z - tl.log(b_sum)[:, None] if LOG else b_exp * (1 / b_sum)[:, None]
    p_out = p_y + o_row[:, None] * stride_y + o_col[None, :]
    tl.store(p_out, b_y.to(p_y.dtype.element_ty), mask=m_inside)


@triton.jit
def _softmax_backward(
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
    BLOCK_M: tl.constexpr,
):
    """d_x from g and y (see the module) of BLOCK_M whole rows; BLOCK_N ≥ n_cols."""
    o_row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    o_col = tl.arange(0, BLOCK_N)  # (BLOCK_N,)
    m_inside = (o_row < n_rows)[:, None] & (o_col < n_cols)[None, :]  # (BLOCK_M, BLOCK_N)
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
    )  # (BLOCK_M, BLOCK_N) both
    b_g = tl.load(p_g + o_row[:, None] * stride_g + o_col[None, :], mask=m_near, other=0)
    b_y = tl.load(p_y + o_row[:, None] * stride_y + o_col[None, :], mask=m_near, other=0)
    b_g = tl.where(m_visible, b_g.to(tl.float32), 0)  # (BLOCK_M, BLOCK_N)
    b_y = tl.where(m_visible, b_y.to(tl.float32), 0)  # (BLOCK_M, BLOCK_N)
    if LOG:
        b_dx = b_g - tl.exp2(b_y * LOG2_E) * tl.sum(b_g, 1)[:, None]  # (BLOCK_M, BLOCK_N)
    else:
        b_dx = b_y * (b_g - tl.sum(b_g * b_y, 1)[:, None])  # (BLOCK_M, BLOCK_N)
    b_dx = tl.where(m_visible, b_dx * scale, 0)
    p_out = p_dx + o_row[:, None] * stride_dx + o_col[None, :]
    tl.store(p_out, b_dx.to(p_dx.dtype.element_ty), mask=m_inside)


def forward(
    x: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    scale: float = 1.0,
    causal: str | None = None,
    log: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return softmax(scale · x), or log_softmax, over the last dimension, in `out` if given.

    Args:
        x: (..., N); with `causal`, (..., Tq, Tk).
        mask: bool, broadcastable to x; only where it is True does an element take part.
        scale: what x is multiplied by.
        causal: "top_left": row i sees columns ≤ i; "bottom_right": columns ≤ i + Tk - Tq.
        log: whether the logarithm is returned.
        out: of x's shape and dtype; may be x itself.
    """
    y = launch.empty(x.shape, like=x) if out is None else out
    _launch(False, (x,), y, mask, scale, causal, log)
    return y


def backward(
    grad: torch.Tensor,
    y: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    scale: float = 1.0,
    causal: str | None = None,
    log: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the gradient of x (..., N) from y, what `forward` gave, and y's gradient.

    `out` may be `grad` itself, or y.
    """
    dx = launch.empty(y.shape, like=y) if out is None else out
    _launch(True, (grad, y), dx, mask, scale, causal, log)
    return dx


def _launch(
    is_backward: bool,
    inputs: tuple[torch.Tensor, ...],
    out: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    causal: str | None,
    log: bool,
) -> None:
    if out.numel() == 0:
        return
    n_cols = out.shape[-1]
    geometry = _geometry(out.shape, mask, causal)
    if geometry is None:  # a mask broadcast along dimensions that alternate with others
        assert mask is not None
        for i, m in enumerate(mask.expand(out.shape)):
            _launch(is_backward, tuple(x[i] for x in inputs), out[i], m, scale, causal, log)
        return
    target_rows = writable_rows(out, n_cols)
    rows = [as_rows(x, n_cols) for x in inputs]
    y = launch.empty(rows[0].shape, like=out) if target_rows is None else target_rows
    names = ("g", "y", "dx") if is_backward else ("x", "y")
    args: dict[str, Any] = {}
    for name, t in zip(names, (*rows, y), strict=True):
        args |= {f"p_{name}": t, f"stride_{name}": t.stride(0)}
    args |= {"scale": scale, "n_rows": len(y), "n_cols": n_cols, "LOG": log, "LOG2_E": LOG2_E}
    args |= geometry
    longest = LONGEST_BACKWARD if is_backward else LONGEST_FORWARD
    block_n = next_power_of_2(n_cols)
    key = (str(out.dtype), block_n, geometry["HAS_MASK"], geometry["CAUSAL"], log)
    mutates = any(launch.share_memory(x, y) for x in rows)
    if n_cols > longest:
        softmax_online.run(is_backward, y, key, mutates, args)
    else:
        per_thread = 16 if is_backward else 32
        launch.launch(
            _softmax_backward if is_backward else _softmax_forward,
            lambda blocks: cdiv(len(y), blocks["BLOCK_M"]),
            block_configs(len(y), n_cols, per_thread, launch.target_for(y)),
            key=key,
            mutates=mutates,
            BLOCK_N=block_n,
            **args,
        )
    if target_rows is None:
        out.copy_(y.view(out.shape))


def _geometry(
    shape: torch.Size, mask: torch.Tensor | None, causal: str | None
) -> dict[str, Any] | None:
    """Return the arguments that say which elements are visible.

    A row's index is taken apart into (batch, head, query). What is called batch and head are the
    leading dimensions, as merged by the mask's strides; None if two numbers don't hold them.
    """
    n_queries = shape[-2] if len(shape) > 1 else 1
    groups: list[tuple[int, int]] = []  # sizes and strides, first to last
    strides = [0] * (len(shape) - 2) + [0, 0]
    if mask is not None:
        # One byte an element, as bool is stored.
        mask = mask.view(torch.uint8).expand(shape)
        strides = [*([0] if len(shape) == 1 else []), *mask.stride()]
    for size, stride in zip(shape[:-2], strides[:-2], strict=True):
        if groups and groups[-1][1] == size * stride:
            groups[-1] = (groups[-1][0] * size, stride)
        elif size > 1:
            groups.append((size, stride))
    if len(groups) > 2:
        return None
    (_, stride_b), (n_heads, stride_h) = [(1, 0)] * (2 - len(groups)) + groups
    return {
        "p_mask": mask,
        "n_heads": n_heads,
        "n_queries": n_queries,
        "diagonal": shape[-1] - n_queries if causal == "bottom_right" else 0,
        "stride_mask_b": stride_b,
        "stride_mask_h": stride_h,
        "stride_mask_q": strides[-2],
        "stride_mask_k": strides[-1],
        "HAS_MASK": mask is not None,
        "CAUSAL": causal is not None,
    }
