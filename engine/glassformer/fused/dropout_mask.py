"""Dropout decisions that any tile, on any device, can compute for itself.

Whether element (row, column) is kept is a hash of a seed and the two numbers: a kernel that works
tile by tile makes the mask where it needs it, and backward makes it again, with nothing stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_GOLDEN = np.uint32(0x9E3779B9)  # 2³² / golden ratio: spreads consecutive numbers


def _mix(x: Any) -> Any:
    """Scramble 32-bit integers in place: xor-shift-multiply rounds (the `lowbias32` constants)."""
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x


def keep_tile(seed: int, p: float, rows: Any, columns: Any) -> Any:
    """Return which elements dropout with probability `p` keeps: bool, rows.shape + (columns,).

    Args:
        seed: any integer of up to 64 bits.
        p: the probability to drop.
        rows: int64 array of row numbers.
        columns: int64 array of column numbers, of one dimension.
    """
    # Two scrambled keys: xor with the bare seed would deal neighbouring seeds the same rows, in
    # another order.
    first = _mix(np.array([seed & 0xFFFFFFFF], np.uint32) ^ _GOLDEN)
    second = _mix(_mix(first ^ _GOLDEN) ^ np.uint32(seed >> 32 & 0xFFFFFFFF))
    rows = rows[..., None]
    row = _mix(_mix(rows.astype(np.uint32) ^ first) ^ (rows >> 32).astype(np.uint32) ^ second)
    bits = _mix(row ^ (columns.astype(np.uint32) * _GOLDEN))
    return bits >= np.uint64(round(p * 2**32))


def keep_mask(seed: int, p: float, shape: tuple[int, ...]) -> Any:
    """Return the decisions for a whole tensor, whose rows are numbered in row-major order."""
    rows = np.arange(int(np.prod(shape[:-1], dtype=np.int64)), dtype=np.int64)
    return keep_tile(seed, p, rows.reshape(shape[:-1]), np.arange(shape[-1]))
