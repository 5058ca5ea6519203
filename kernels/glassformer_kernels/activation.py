"""gelu, silu and swiglu, forward and backward: one pass over memory each.

Backward computes the nonlinear part again from the input: that costs arithmetic, of which there is
plenty, and saves an array. Bytes an element, s the size of one: gelu and silu 2s forward (x read,
y written) and 3s backward (g, x, d_x); swiglu 3s forward and 5s backward (g, gate, up, d_gate,
d_up). At the speed of a copy, 4.3 TB/s on an H200, gelu of bfloat16 is 1.07e12 elements a second.

Layout: any shape and strides, walked as rows (`elementwise.as_rows`); results are contiguous.
Arithmetic is in float32 whatever the dtype.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from glassformer_kernels import launch
from glassformer_kernels.elementwise import as_rows, num_tiles, tile_configs, tile_of


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))  # exp is infinite below -88, where the sigmoid is 0


@triton.jit
def _activate(x, KIND: tl.constexpr):
    """Return f(x) for KIND "gelu", "gelu_tanh" or "silu".

    (1 + tanh u) / 2 = sigmoid(2u): where tanh is near -1 nothing cancels.
    """
    if KIND == "gelu":
        factor = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
    elif KIND == "gelu_tanh":
        factor = _sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))  # 2 √(2/π)
    else:
        factor = _sigmoid(x)
    return x * factor


@triton.jit
def _slope(x, KIND: tl.constexpr):
    """Return f'(x) = Φ + x Φ', with f(x) = x Φ(x)."""
    if KIND == "gelu":
        phi = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
        density = 0.3989422804014327 * tl.exp(-0.5 * x * x)  # exp(-x²/2) / √(2π)
    elif KIND == "gelu_tanh":
        phi = _sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
        density = phi * (1 - phi) * 1.5957691216057308 * (1 + 0.134145 * x * x)
    else:
        phi = _sigmoid(x)
        density = phi * (1 - phi)
    return phi + x * density


@triton.jit
def _activation_forward(
    p_x,
    p_y,
    num_rows,
    num_columns,
    stride_x,
    stride_y,
    KIND: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """y = f(x) for a tile of rows. x and y (M, N), last stride 1; any M and N."""
    o_m, o_n, mask = tile_of(num_rows, num_columns, BLOCK_M, BLOCK_N)
    b_x = tl.load(p_x + o_m * stride_x + o_n, mask=mask, other=0.0)  # (BLOCK_M, BLOCK_N)
    b_y = _activate(b_x.to(tl.float32), KIND)  # (BLOCK_M, BLOCK_N)
    tl.store(p_y + o_m * stride_y + o_n, b_y.to(p_y.dtype.element_ty), mask=mask)


@triton.jit
def _activation_backward(
    p_g,
    p_x,
    p_dx,
    num_rows,
    num_columns,
    stride_g,
    stride_x,
    stride_dx,
    KIND: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """d_x = g f'(x) for a tile of rows. All (M, N), last stride 1; any M and N."""
    o_m, o_n, mask = tile_of(num_rows, num_columns, BLOCK_M, BLOCK_N)
    b_g = tl.load(p_g + o_m * stride_g + o_n, mask=mask, other=0.0)  # (BLOCK_M, BLOCK_N)
    b_x = tl.load(p_x + o_m * stride_x + o_n, mask=mask, other=0.0)  # (BLOCK_M, BLOCK_N)
    b_dx = b_g.to(tl.float32) * _slope(b_x.to(tl.float32), KIND)  # (BLOCK_M, BLOCK_N)
    tl.store(p_dx + o_m * stride_dx + o_n, b_dx.to(p_dx.dtype.element_ty), mask=mask)


@triton.jit
def _swiglu_forward(
    p_gate,
    p_up,
    p_y,
    num_rows,
    num_columns,
    stride_gate,
    stride_up,
    stride_y,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """y = silu(gate) up for a tile of rows. All (M, N), last stride 1; any M and N."""
    o_m, o_n, mask = tile_of(num_rows, num_columns, BLOCK_M, BLOCK_N)
    b_gate = tl.load(p_gate + o_m * stride_gate + o_n, mask=mask, other=0.0)  # (BLOCK_M, BLOCK_N)
    b_up = tl.load(p_up + o_m * stride_up + o_n, mask=mask, other=0.0)  # (BLOCK_M, BLOCK_N)
    b_y = _activate(b_gate.to(tl.float32), "silu") * b_up.to(tl.float32)  # (BLOCK_M, BLOCK_N)
    tl.store(p_y + o_m * stride_y + o_n, b_y.to(p_y.dtype.element_ty), mask=mask)


@triton.jit
def _swiglu_backward(
    p_g,
    p_gate,
    p_up,
    p_d_gate,
    p_d_up,
    num_rows,
    num_columns,
    stride_g,
    stride_gate,
    stride_up,
    stride_d,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """d_gate = g up silu'(gate), d_up = g silu(gate) for a tile of rows, as in forward."""
    o_m, o_n, mask = tile_of(num_rows, num_columns, BLOCK_M, BLOCK_N)
    b_g = tl.load(p_g + o_m * stride_g + o_n, mask=mask, other=0.0).to(tl.float32)
    b_gate = tl.load(p_gate + o_m * stride_gate + o_n, mask=mask, other=0.0).to(tl.float32)
    b_up = tl.load(p_up + o_m * stride_up + o_n, mask=mask, other=0.0).to(tl.float32)
    b_d_gate = b_g * b_up * _slope(b_gate, "silu")  # (BLOCK_M, BLOCK_N), as are the three above
    b_d_up = b_g * _activate(b_gate, "silu")  # (BLOCK_M, BLOCK_N)
    o_d = o_m * stride_d + o_n  # (BLOCK_M, BLOCK_N)
    tl.store(p_d_gate + o_d, b_d_gate.to(p_d_gate.dtype.element_ty), mask=mask)
    tl.store(p_d_up + o_d, b_d_up.to(p_d_up.dtype.element_ty), mask=mask)


def activation_forward(x: torch.Tensor, kind: str) -> torch.Tensor:
    """Return f(x), contiguous, for kind "gelu", "gelu_tanh" or "silu"."""
    y = launch.empty(x.shape, x)
    _launch(_activation_forward, ("p_x", "p_y"), (x, y), ("stride_x", "stride_y"), KIND=kind)
    return y


def activation_backward(g: torch.Tensor, x: torch.Tensor, kind: str) -> torch.Tensor:
    """Return g f'(x), contiguous."""
    d_x = launch.empty(x.shape, x)
    strides = ("stride_g", "stride_x", "stride_dx")
    _launch(_activation_backward, ("p_g", "p_x", "p_dx"), (g, x, d_x), strides, KIND=kind)
    return d_x


def swiglu_forward(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) up, contiguous."""
    y = launch.empty(gate.shape, gate)
    strides = ("stride_gate", "stride_up", "stride_y")
    _launch(_swiglu_forward, ("p_gate", "p_up", "p_y"), (gate, up, y), strides)
    return y


def swiglu_backward(
    g: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of gate and up, contiguous."""
    d_gate, d_up = launch.empty(gate.shape, gate), launch.empty(up.shape, up)
    _launch(
        _swiglu_backward,
        ("p_g", "p_gate", "p_up", "p_d_gate", "p_d_up"),
        (g, gate, up, d_gate, d_up),
        ("stride_g", "stride_gate", "stride_up", "stride_d"),  # the two results lie alike
    )
    return d_gate, d_up


def _launch(
    kernel: Any,
    pointers: tuple[str, ...],
    tensors: tuple[torch.Tensor, ...],
    strides: tuple[str, ...],
    **constants: str,
) -> None:
    rows = as_rows(*tensors)
    num_rows, num_columns = rows[0].shape
    launch.launch(
        kernel,
        lambda blocks: num_tiles(num_rows, num_columns, blocks),
        tile_configs(num_rows, num_columns),
        key=(tensors[0].dtype, num_rows, num_columns, *constants.values()),
        num_rows=num_rows,
        num_columns=num_columns,
        **dict(zip(pointers, rows, strict=True)),
        **{name: x.stride(0) for name, x in zip(strides, rows, strict=False)},
        **constants,
    )
