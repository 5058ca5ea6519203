"""A product of matrices, tile by tile, for what can't be left to a library.

That is: factors of half precision added up over several calls in float32, and float32 in full
precision whatever PyTorch is told.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from glassformer_kernels import launch
from glassformer_kernels.launch import Config, cdiv, next_power_of_2


@triton.jit
def grouped(pid, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Return the tile of a program such that neighbours share rows and columns in the L2 cache.

    GROUP rows of tiles are gone through column by column, then the next GROUP rows.
    """
    width = GROUP * tiles_n
    first = pid // width * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    rest = pid % width
    return first + rest % height, rest // height


@triton.jit
def _product(
    p_a,
    p_b,
    p_out,
    p_scale,
    num_rows,
    num_columns,
    depth,
    stride_am,
    stride_ak,
    stride_bk,
    stride_bn,
    stride_out,
    ADD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Write scale · a b, or add it to what is there. a (M, K), b (K, N), any strides; any sizes."""
    tiles_m, tiles_n = tl.cdiv(num_rows, BLOCK_M), tl.cdiv(num_columns, BLOCK_N)
    tile_m, tile_n = grouped(tl.program_id(0), tiles_m, tiles_n, GROUP)
    o_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    o_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
    # Beyond the last, rows and columns begin again: only the depth needs a mask. (A minimum would
    # hide from the compiler that neighbours are adjacent in memory; the remainder doesn't.)
    o_a = (o_m % num_rows).to(tl.int64)[:, None] * stride_am  # (BLOCK_M, 1)
    o_b = (o_n % num_columns).to(tl.int64)[None, :] * stride_bn  # (1, BLOCK_N)
    b_out = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in tl.range(0, depth, BLOCK_K):
        o_k = (start + tl.arange(0, BLOCK_K)).to(tl.int64)  # (BLOCK_K,)
        m_k = o_k < depth
        b_a = tl.load(p_a + o_a + o_k[None, :] * stride_ak, mask=m_k[None, :], other=0.0)
        b_b = tl.load(p_b + o_b + o_k[:, None] * stride_bk, mask=m_k[:, None], other=0.0)
        b_out = tl.dot(b_a, b_b, b_out, input_precision="ieee")
    b_out *= tl.load(p_scale)
    p_out += o_m.to(tl.int64)[:, None] * stride_out + o_n[None, :]
    mask = (o_m < num_rows)[:, None] & (o_n < num_columns)[None, :]
    if ADD:
        b_out += tl.load(p_out, mask=mask, other=0.0).to(tl.float32)
    tl.store(p_out, b_out.to(p_out.dtype.element_ty), mask=mask)


def product_configs(x: torch.Tensor, *names: str) -> list[Config]:
    """Return configurations for tiles of products of x; `names` are those of M, N and K.

    As many stages as shared memory holds: each keeps a tile of either factor.
    """
    half = x.element_size() == 2
    shared = launch.target_for(x).shared_memory
    sizes = _HALF if half else _FULL
    found = []
    for m, n, k, num_warps in sizes:
        stages = shared // ((m + n) * k * x.element_size())
        blocks = dict(zip(names, (m, n, k), strict=True))
        found.append(Config({**blocks, "GROUP": 16}, num_warps, min(max(stages, 1), 4)))
    return found


# (M, N, K, warps), the first is taken unless tuning finds another faster
_HALF = ((128, 128, 64, 8), (128, 256, 64, 8), (128, 128, 32, 4), (64, 128, 64, 4))
_FULL = ((64, 64, 32, 4), (128, 64, 16, 8), (64, 32, 32, 4))


def multiply(
    a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, scale: torch.Tensor, add: bool = False
) -> None:
    """Write scale · a b to `out`, or add it. a (M, K), b (K, N), out (M, N), scale one float32."""
    m, n = out.shape
    launch.launch(
        _product,
        lambda blocks: cdiv(m, blocks["BLOCK_M"]) * cdiv(n, blocks["BLOCK_N"]),
        product_configs(a, "BLOCK_M", "BLOCK_N", "BLOCK_K"),
        # Not `add` nor the depth: what was found for the first chunk serves those added to it.
        key=(a.dtype, out.dtype, next_power_of_2(m), n, a.stride(1) == 1, b.stride(1) == 1),
        mutates=add,
        p_a=a,
        p_b=b,
        p_out=out,
        p_scale=scale,
        num_rows=m,
        num_columns=n,
        depth=a.shape[1],
        stride_am=a.stride(0),
        stride_ak=a.stride(1),
        stride_bk=b.stride(0),
        stride_bn=b.stride(1),
        stride_out=out.stride(0),
        ADD=add,
    )
