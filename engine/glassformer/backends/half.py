"""float16 and bfloat16 made float32, which NumPy computes in.

NumPy converts a float16 at a time and has no bfloat16. Both are short forms of float32, so that a
few operations on whole arrays of bits do it several times faster (benchmarks/NOTES.md).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from glassformer.backends import memory
from glassformer.backends.threads import grain_for, parallel_for
from glassformer.dtypes import BFLOAT16_STORAGE

Array = Any

_TILE = 1 << 18  # elements: few enough to stay in a cache, enough to outweigh NumPy's calls


def is_half(dtype: np.dtype[Any]) -> bool:
    """Tell whether a dtype is one of half precision."""
    return dtype == np.float16 or dtype == BFLOAT16_STORAGE


def rows_per_tile(row_size: int) -> int:
    """Return how many rows to widen at once for work that follows in the same tile."""
    return max(1, _TILE // max(row_size, 1))


def widen(x: Array, out: Array) -> Array:
    """Write the values of half precision `x` to `out`, float32 of the same shape; return `out`.

    A bfloat16 is the upper half of a float32. A float16 has 5 bits of exponent, biased by 15, and
    10 of mantissa, where float32 has 8, biased by 127, and 23: moved to their place there they
    are the value times 2^(15 - 127), subnormal ones included. Infinity and NaN, whose exponent is
    the largest, are left to NumPy.
    """
    bits = out.view(np.int32)
    if x.dtype == BFLOAT16_STORAGE:
        np.copyto(bits, x.view(np.uint16))
        np.left_shift(bits, 16, out=bits)
        return out
    if x.size and max(x.view(np.int16).max(), int(x.view(np.uint16).max()) - 0x8000) >= 0x7C00:
        np.copyto(out, x)
        return out
    np.copyto(bits, x.view(np.int16))  # the sign fills the upper half
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, ~0x70000000, out=bits)  # of its copies the first stays
    np.multiply(out, np.float32(2.0**112), out=out)
    return out


def widened(x: Array) -> Array:
    """Return half precision `x` as a new array of float32."""
    out = memory.empty(x.shape, np.float32)
    if x.ndim == 0:
        return widen(x[None], out[None])[0]
    row_size = math.prod(x.shape[1:])
    step = rows_per_tile(row_size)

    def share(start: int, stop: int) -> None:
        for first in range(start, stop, step):
            tile = slice(first, min(first + step, stop))
            widen(x[tile], out[tile])

    parallel_for(share, len(x), grain_for(len(x), row_size))
    return out
