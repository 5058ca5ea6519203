"""Rotary position embedding: pairs of channels turned by the angle of their position.

    out[i] = x[i] cos[i] - x[i + D/2] sin[i];  out[i + D/2] = x[i + D/2] cos[i] + x[i] sin[i]

Su et al. 2021, "RoFormer", section 3.4.2, with channels paired by halves as in GPT-NeoX. The
gradient of x is the gradient of the result turned by the opposite angle: the same kernel with -sin.
In place is allowed, because a program reads both halves of its pairs before it writes them.

Layout: x (..., T, D) with any strides over (B, H, T), so that the heads of a fused projection are
read where they lie; cos and sin (..., T, D/2) with stride 0 where they are broadcast.
Bytes: x read, out written, 2s an element of size s; cos and sin come from the L2 cache but for the
first head.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from glassformer_kernels import launch
from glassformer_kernels.launch import Config, cdiv, next_power_of_2


@triton.jit
def _rotary(
    p_x,
    p_cos,
    p_sin,
    p_out,
    num_rows,
    num_heads,
    length,
    half,
    stride_xb,
    stride_xh,
    stride_xt,
    stride_cb,
    stride_ch,
    stride_ct,
    stride_sb,
    stride_sh,
    stride_st,
    stride_ob,
    stride_oh,
    stride_ot,
    SIGN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Turn BLOCK_M rows of (B, H, T) by SIGN times their angles, BLOCK_D pairs at a time.

    Last strides are 1; any sizes.
    """
    pid = tl.program_id(0).to(tl.int64)
    row = pid * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    m_row = (row < num_rows)[:, None]  # (BLOCK_M, 1)
    o_t = row % length  # (BLOCK_M,)
    o_h = (row // length) % num_heads  # (BLOCK_M,)
    o_b = row // length // num_heads  # (BLOCK_M,)
    p_x += (o_b * stride_xb + o_h * stride_xh + o_t * stride_xt)[:, None]
    p_cos += (o_b * stride_cb + o_h * stride_ch + o_t * stride_ct)[:, None]
    p_sin += (o_b * stride_sb + o_h * stride_sh + o_t * stride_st)[:, None]
    p_out += (o_b * stride_ob + o_h * stride_oh + o_t * stride_ot)[:, None]
    for start in tl.range(0, half, BLOCK_D):
        o_d = start + tl.arange(0, BLOCK_D)[None, :]  # (1, BLOCK_D)
        mask = m_row & (o_d < half)
        b_1 = tl.load(p_x + o_d, mask=mask, other=0.0).to(tl.float32)  # (BLOCK_M, BLOCK_D)
        b_2 = tl.load(p_x + half + o_d, mask=mask, other=0.0).to(tl.float32)  # (BLOCK_M, BLOCK_D)
        b_cos = tl.load(p_cos + o_d, mask=mask, other=0.0).to(tl.float32)  # (BLOCK_M, BLOCK_D)
        b_sin = tl.load(p_sin + o_d, mask=mask, other=0.0).to(tl.float32)  # (BLOCK_M, BLOCK_D)
        b_sin = SIGN * b_sin
        b_out1 = b_1 * b_cos - b_2 * b_sin  # (BLOCK_M, BLOCK_D)
        b_out2 = b_2 * b_cos + b_1 * b_sin  # (BLOCK_M, BLOCK_D)
        tl.store(p_out + o_d, b_out1.to(p_out.dtype.element_ty), mask=mask)
        tl.store(p_out + half + o_d, b_out2.to(p_out.dtype.element_ty), mask=mask)


def rotate(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    inverse: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return x (..., T, D) turned by the angles (by their opposites if `inverse`), contiguous.

    cos and sin can be broadcast to (..., T, D/2). `out` may be x, for a rotation in place.
    """
    if out is None:
        out = launch.empty(x.shape, x)
    half = x.shape[-1] // 2
    full = (*x.shape[:-1], half)
    source, result = _as_heads(x), _as_heads(out)
    in_place = result.untyped_storage().data_ptr() == out.untyped_storage().data_ptr()
    if not in_place:
        result = launch.empty(result.shape, result)
    tables = [_as_heads(table.expand(full)) for table in (cos, sin)]
    batch, heads, length, _ = source.shape
    rows = batch * heads * length
    strides = {
        f"stride_{name}{dim}": stride
        for name, tensor in zip("xcso", (source, *tables, result), strict=True)
        for dim, stride in zip("bht", tensor.stride()[:3], strict=True)
    }
    launch.launch(
        _rotary,
        lambda blocks: cdiv(rows, blocks["BLOCK_M"]),
        _configs(rows, half),
        key=(x.dtype, rows, half),
        mutates=launch.share_memory(source, result),
        p_x=source,
        p_cos=tables[0],
        p_sin=tables[1],
        p_out=result,
        num_rows=rows,
        num_heads=heads,
        length=length,
        half=half,
        SIGN=-1 if inverse else 1,
        **strides,
    )
    return out if in_place else out.copy_(result.reshape(out.shape))


def table_gradients(
    g: torch.Tensor, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of cos and sin, by PyTorch's operations: learned tables are rare."""
    g1, g2 = g.float().chunk(2, -1)
    x1, x2 = x.float().chunk(2, -1)
    d_cos = (g1 * x1 + g2 * x2).sum_to_size(cos.shape).to(cos.dtype)
    d_sin = (g2 * x1 - g1 * x2).sum_to_size(sin.shape).to(sin.dtype)
    return d_cos, d_sin


def _as_heads(x: torch.Tensor) -> torch.Tensor:
    """Return (..., T, D) as (B, H, T, D) with last stride 1: a view if there are such strides."""
    if x.ndim < 4:
        x = x.reshape((1,) * (4 - x.ndim) + x.shape)
    elif x.ndim > 4:
        x = x.flatten(0, x.ndim - 4)
    return x if x.shape[-1] <= 1 or x.stride(-1) == 1 else x.contiguous()


def _configs(rows: int, half: int) -> list[Config]:
    """Return configurations; the first turns 1,024 pairs, 8 a thread (16 bytes if half)."""
    block_d = min(next_power_of_2(half), 128)
    return [
        Config({"BLOCK_M": max(1, size // block_d), "BLOCK_D": block_d}, num_warps=num_warps)
        for size, num_warps in ((1024, 4), (2048, 4), (2048, 8))
    ]
