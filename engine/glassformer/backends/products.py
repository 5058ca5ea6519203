"""Matrix products on the CPU: how they are shared between threads and handed to BLAS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from glassformer.backends import memory
from glassformer.backends.blas import numpy_blas
from glassformer.backends.threads import get_num_threads, parallel_for, single_threaded_blas
from glassformer.grad_mode import recording

Array = Any

_SHARE_FROM = 1 << 20  # multiplications: from here on threads share a matrix product
_FEW_ROWS = 4  # from here on a product of matrices is faster than dot products
_NOT_MANY_ROWS = 64  # from here on it doesn't matter which of two matrices stands first


def matmul(x: Array, y: Array) -> Array:
    """Return the matrix product of arrays with at least two axes; half precision in float32.

    Our own threads take a part of the rows or columns each, and BLAS runs on one thread in each of
    them. Its own threads are as fast, but spin for milliseconds after a call and take the core from
    the elementwise work that follows. Not so in inference with few rows: there that work is small,
    and the next product comes before a thread of ours would be awake. Measured in
    benchmarks/NOTES.md.
    """
    if x.dtype == np.float16:
        return matmul(x.astype(np.float32), y.astype(np.float32)).astype(np.float16)
    batch = x.shape[:-2]
    if batch != y.shape[:-2]:
        batch = np.broadcast_shapes(batch, y.shape[:-2])
    m, n = x.shape[-2], y.shape[-1]
    out = memory.empty((*batch, m, n), x.dtype)

    parts = get_num_threads() if out.size * x.shape[-1] > _SHARE_FROM else 1
    product: Callable[..., Array] = np.matmul
    if m < _NOT_MANY_ROWS and x.ndim == y.ndim == 2 and y.strides[0] == y.itemsize:
        if 1 < m < _FEW_ROWS:
            product = _few_rows
        else:
            if m > 1 and x.dtype == np.float32 and (blas := numpy_blas()) and blas.has_avx512:
                product = _other_way_round
            if parts > 1 and not recording.enabled:
                return product(x, y, out=out)
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


def _few_rows(x: Array, y: Array, out: Array) -> Array:
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
