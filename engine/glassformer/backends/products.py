"""Matrix products on the CPU: how they are shared between threads and handed to BLAS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from glassformer.backends import half, memory
from glassformer.backends.blas import numpy_blas
from glassformer.backends.threads import get_num_threads, parallel_for, single_threaded_blas
from glassformer.grad_mode import recording

Array = Any

_SHARE_FROM = 1 << 20  # multiplications: from here on our threads share a matrix product
_SPIN_FROM = 1 << 18  # likewise BLAS's own, which are awake
_FEW_ROWS = 4  # from here on a product of matrices is faster than dot products
_NOT_MANY_ROWS = 64  # from here on it doesn't matter which of two matrices stands first


def matmul(x: Array, y: Array) -> Array:
    """Return the matrix product of arrays with at least two axes; half precision in float32.

    `y` alone may be of half precision: a weight that is held compact.

    Our own threads take a part of the rows or columns each, and BLAS runs on one thread in each of
    them. Its own threads are as fast, but spin for milliseconds after a call and take the core from
    the elementwise work that follows. Not so in inference with few rows: there that work is small,
    and the next product comes before a thread of ours would be awake. Measured in
    benchmarks/NOTES.md.
    """
    if x.dtype == np.float16:
        return matmul(half.widened(x), half.widened(y)).astype(np.float16)
    if half.is_half(y.dtype):
        if x.dtype == np.float32 and _few_rows_of_a_weight(x, y):
            return _compact_weight(x, y)
        y = half.widened(y).astype(x.dtype, copy=False)
    batch = x.shape[:-2]
    if batch != y.shape[:-2]:
        batch = np.broadcast_shapes(batch, y.shape[:-2])
    m, n = x.shape[-2], y.shape[-1]
    out = memory.empty((*batch, m, n), x.dtype)

    work = out.size * x.shape[-1]
    product: Callable[..., Array] = np.matmul
    if _few_rows_of_a_weight(x, y):
        product = _product_of_few(m, x.dtype)
        if product is not _dot_products and work > _SPIN_FROM and not recording.enabled:
            return product(x, y, out=out)
    parts = get_num_threads() if work > _SHARE_FROM else 1
    if parts == 1:
        with single_threaded_blas():
            return product(x, y, out=out)

    def rows(start: int, stop: int) -> None:
        product(x[..., start:stop, :], y, out=out[..., start:stop, :])

    def columns(start: int, stop: int) -> None:
        product(x, y[..., start:stop], out=out[..., start:stop])

    share, total = (rows, m) if m >= n else (columns, n)
    with single_threaded_blas():
        parallel_for(share, total, -(-total // parts))
    return out


def _few_rows_of_a_weight(x: Array, y: Array) -> bool:
    """Tell whether x (m, k) has few rows, and y (k, n) columns that lie in memory one by one."""
    return len(x) < _NOT_MANY_ROWS and x.ndim == y.ndim == 2 and y.strides[0] == y.itemsize


def _product_of_few(m: int, dtype: np.dtype[Any]) -> Callable[..., Array]:
    """Return the fastest way to multiply m rows with a weight."""
    if 1 < m < _FEW_ROWS:
        return _dot_products
    if m > 1 and dtype == np.float32 and (blas := numpy_blas()) and blas.has_avx512:
        return _other_way_round
    return np.matmul


def _compact_weight(x: Array, y: Array) -> Array:
    """Return x (m, k) times y (k, n) of half precision, of which a tile at a time is widened.

    The tile stays in the cache, so that memory is read as half precision and never written.
    """
    (m, k), n = x.shape, y.shape[1]
    out = memory.empty((m, n), x.dtype)
    product, step = _product_of_few(m, x.dtype), half.rows_per_tile(k)
    parts = get_num_threads() if out.size * k > _SHARE_FROM else 1

    def columns(start: int, stop: int) -> None:
        wide = memory.empty((min(step, stop - start), k), np.float32)
        for first in range(start, stop, step):
            tile = slice(first, min(first + step, stop))
            weight = half.widen(y.T[tile], wide[: tile.stop - first])
            product(x, weight.T, out=out[:, tile])

    with single_threaded_blas():
        parallel_for(columns, n, max(1, -(-n // parts)))
    return out


def _dot_products(x: Array, y: Array, out: Array) -> Array:
    """Return x (m, k) times y (k, n) whose columns lie in memory one after another.

    As dot products, which read y once. For two or three rows that takes half the time of BLAS's
    product of matrices, which copies y first: decoding is bound by reading weights. Measured in
    benchmarks/NOTES.md.
    """
    np.vecdot(y.T[:, None], x[None], out=out.T)
    return out


def _other_way_round(x: Array, y: Array, out: Array) -> Array:
    """Return x (m, k) times y (k, n) whose columns lie in memory one after another, as (yᵀ xᵀ)ᵀ.

    With AVX-512 OpenBLAS takes a quarter to a third less time when the larger matrix stands first;
    with AVX2 it takes more. Measured in benchmarks/NOTES.md.
    """
    np.copyto(out, np.matmul(y.T, x.T).T)
    return out
