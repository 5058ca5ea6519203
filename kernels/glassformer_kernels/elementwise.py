"""What kernels that go element by element share: tensors as rows, and tiles over them.

Tensors that are contiguous are one long row. Others, such as the two halves of a chunked linear
layer, keep their last dimension as rows with a stride of their own, and are read where they lie.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from glassformer_kernels.launch import Config, cdiv, next_power_of_2


@triton.jit
def tile_of(num_rows, num_columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return this program's rows (BLOCK_M, 1), columns (1, BLOCK_N) and mask, row by row."""
    tiles = tl.cdiv(num_columns, BLOCK_N)
    pid = tl.program_id(0).to(tl.int64)
    row = pid // tiles
    column = pid - row * tiles
    o_m = row * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]  # (BLOCK_M, 1)
    o_n = column * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]  # (1, BLOCK_N)
    return o_m, o_n, (o_m < num_rows) & (o_n < num_columns)


def as_rows(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Return tensors of one shape as (rows, columns) with last stride 1: views where that can be.

    All get the same rows. Those that can't be viewed so are copied.
    """
    if all(x.is_contiguous() for x in tensors):
        return [x.reshape(1, x.numel()) for x in tensors]
    columns = tensors[0].shape[-1]
    rows = tensors[0].numel() // max(columns, 1)
    return [as_matrix(x, rows, columns) for x in tensors]


def as_matrix(x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Return (..., columns) as (rows, columns) with last stride 1, a view where that can be."""
    x = x.reshape(rows, columns)
    return x if columns <= 1 or x.stride(1) == 1 else x.contiguous()


def tile_configs(num_rows: int, num_columns: int) -> list[Config]:
    """Return configurations for a tile a program, of which the first reads 4,096 elements."""
    found = []
    for size, num_warps in ((4096, 8), (2048, 4), (8192, 8), (1024, 4)):
        block_n = min(next_power_of_2(num_columns), size)
        block_m = min(next_power_of_2(num_rows), size // block_n)
        config = Config({"BLOCK_M": block_m, "BLOCK_N": block_n}, num_warps=num_warps)
        if config not in found:
            found.append(config)
    return found


def num_tiles(num_rows: int, num_columns: int, blocks: dict[str, int]) -> int:
    """Return how many programs `tile_of` takes for all the rows."""
    return cdiv(num_rows, blocks["BLOCK_M"]) * cdiv(num_columns, blocks["BLOCK_N"])
