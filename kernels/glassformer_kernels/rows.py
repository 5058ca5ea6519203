"""What the row-wise kernels share: tensors seen as rows, and how many rows a program takes."""

from __future__ import annotations

import torch

from glassformer_kernels.launch import Config, next_power_of_2
from glassformer_kernels.targets import Target


def as_rows(x: torch.Tensor, n_cols: int) -> torch.Tensor:
    """Return x as rows (R, n_cols) whose elements are adjacent; a copy where strides need one."""
    rows = x.reshape(-1, n_cols)
    return rows if is_adjacent(rows) else rows.contiguous()


def is_adjacent(rows: torch.Tensor) -> bool:
    """Tell whether the elements of each row (R, N) are next to each other in memory."""
    return rows.stride(1) == 1 or rows.shape[1] == 1


def writable_rows(x: torch.Tensor, n_cols: int) -> torch.Tensor | None:
    """Return the rows (R, n_cols) of x as a view with adjacent elements; None if there is none."""
    try:
        rows = x.view(-1, n_cols)
    except RuntimeError:
        return None
    return rows if is_adjacent(rows) else None


def block_configs(n_rows: int, n_cols: int, per_thread: int, target: Target) -> list[Config]:
    """Return configurations for programs that hold BLOCK_M whole rows of n_cols in registers.

    A program of the first takes about 4096 elements, or one longer row, and a thread `per_thread`
    of them. What a thread loads at once, and how many programs fit on a multiprocessor beside each
    other, decide how well memory is kept busy; the others are for the tuner to try.
    """
    block_n = next_power_of_2(n_cols)
    most_warps = 1024 // target.warp_size
    per_warp = per_thread * target.warp_size
    found = []
    for size, spread in ((4096, 1), (2048, 1), (4096, 2), (8192, 1)):
        block_m = min(max(size // block_n, 1), next_power_of_2(n_rows))
        warps = block_m * block_n * spread // per_warp
        found.append(Config({"BLOCK_M": block_m}, num_warps=min(max(warps, 1), most_warps)))
    return list(dict.fromkeys(found))


def tile_configs(stages: int, target: Target) -> list[Config]:
    """Return configurations for programs that walk over a row in tiles of BLOCK_N.

    With STAGES > 1 a tile is loaded while the one before it is computed.
    """
    warps = 8 * 32 // target.warp_size  # 16 elements a thread of the first
    return [
        Config({"BLOCK_N": 4096, "STAGES": stages}, num_warps=warps),
        Config({"BLOCK_N": 8192, "STAGES": 1}, num_warps=2 * warps),
        Config({"BLOCK_N": 4096, "STAGES": 1}, num_warps=warps),
        Config({"BLOCK_N": 2048, "STAGES": stages}, num_warps=warps // 2),
    ]
