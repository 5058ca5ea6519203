"""Attention on NumPy, tile by tile: extra memory grows with length, not with its square.

Forward goes over tiles of scores and keeps, per query, the running maximum m and sum l, and
rescales what it has when the maximum grows (Milakov & Gimelshein 2018; Dao et al. 2022). Backward
computes each tile of weights again from the log-sum-exp of its row:

    P = exp(S - lse)      dV = Pᵀ dO      dP = dO Vᵀ      dS = P ∘ (dP - rowsum(dO ∘ O))
    dQ = dS K · scale     dK = dSᵀ Q · scale

Arrays are seen as (B, Hkv, G, T, D): G query heads share a key head. A tile takes some batch
elements and key heads at once, so that short sequences make few calls, and its key range ends
where the last of its queries stops seeing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from glassformer.backends import memory
from glassformer.backends.threads import parallel_for, single_threaded_blas
from glassformer.fused.attention_one_query import attend
from glassformer.fused.dropout_mask import keep_tile

_TILE = 1 << 17  # scores in a tile: half a megabyte of float32, which stays in a core's cache
_ROWS = 64  # queries in a tile
_COLUMNS = 512  # keys in a tile

Array = Any


def unsupported(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> list[str]:
    """Return why the kernel can't serve a call."""
    empty = [n for n, x in (("query", query), ("key", key), ("value", value)) if 0 in x.shape]
    return [f"{name} is empty" for name in empty]


class _Tile(NamedTuple):
    """Some queries against some keys."""

    rows: slice
    columns: slice
    hidden: Array | None  # (rows, columns) bool: what causality and the window hide, if anything


class _Problem:
    """The arguments of a call in the shape the tiles want."""

    def __init__(
        self, arrays: tuple[Array, ...], causal: str | None, window: Any, scale: float,
        softcap: float | None, dropout_p: float, seed: int,
    ) -> None:  # fmt: skip
        query, key, value, mask, bias = arrays
        self.dtype = query.dtype
        self.wide = np.dtype(np.float32) if query.dtype == np.float16 else query.dtype
        b, heads, self.query_length, d = query.shape
        kv_heads, self.key_length = key.shape[1:3]
        self.groups = heads // kv_heads
        self.shape = (b, kv_heads, self.groups)
        self.query = self._grouped(query).astype(self.wide, copy=False)
        self.key = key[:, :, None].astype(self.wide, copy=False)
        self.value = value[:, :, None].astype(self.wide, copy=False)
        self.mask = None if mask is None else self._grouped(mask)
        self.bias: Any = None if bias is None else self._grouped(bias)
        self.scale, self.softcap = scale, softcap
        self.dropout_p, self.seed = dropout_p, seed
        self.offset = 0 if causal == "top_left" else self.key_length - self.query_length
        left, right = window or (None, None)
        if causal is not None:
            right = 0 if right is None else min(right, 0)
        self.left: Any = left
        self.right: Any = right
        if mask is not None:
            self._forget_unseen()

    def _grouped(self, x: Array) -> Array:
        """(B, H, T, D), or what broadcasts to it, as (B, Hkv, G, T, D)."""
        x = x.reshape((1,) * (4 - x.ndim) + x.shape)
        b, h = x.shape[:2]
        split = (1, 1) if h == 1 and self.shape[1] * self.groups != 1 else self.shape[1:]
        return x.reshape(b, *split, *x.shape[2:])

    def _forget_unseen(self) -> None:
        """Zero the keys and values that no query sees: 0 · NaN would let them through."""
        b, h, _ = self.shape
        seen = np.zeros((b, h, self.key_length), bool)
        for tile in self.tiles(columns=self.key_length):
            part = _cut(self.mask, slice(None), slice(None), tile.rows, tile.columns)
            if tile.hidden is not None:
                part = part & ~tile.hidden
            seen[:, :, tile.columns] |= np.broadcast_to(
                part.any((2, 3)), (b, h, tile.columns.stop - tile.columns.start)
            )
        if not seen.all():
            self.key = np.where(seen[:, :, None, :, None], self.key, 0)
            self.value = np.where(seen[:, :, None, :, None], self.value, 0)

    def tiles(self, columns: int = _COLUMNS) -> Iterator[_Tile]:
        """Yield the tiles in which some query sees some key, a block of queries at a time."""
        for i0 in range(0, self.query_length, _ROWS):
            i1 = min(i0 + _ROWS, self.query_length)
            first, last = i0 + self.offset, i1 - 1 + self.offset  # positions of the queries
            lo = 0 if self.left is None else max(0, first - self.left)
            hi = self.key_length
            if self.right is not None:
                hi = min(hi, last + self.right + 1)
            for j0 in range(lo, hi, columns):
                j1 = min(j0 + columns, hi)
                yield _Tile(slice(i0, i1), slice(j0, j1), self._hidden(first, last, j0, j1))

    def _hidden(self, first: int, last: int, j0: int, j1: int) -> Array | None:
        above = self.right is not None and j1 - 1 > first + self.right
        below = self.left is not None and j0 < last - self.left
        if not (above or below):
            return None
        distance = np.arange(j0, j1) - np.arange(first, last + 1)[:, None]
        hidden = np.zeros(distance.shape, bool)
        if above:
            hidden |= distance > self.right
        if below:
            hidden |= distance < -self.left
        return hidden

    def blocks(self) -> list[tuple[slice, slice]]:
        """Return ranges of batch elements and key heads whose tiles together fill a cache."""
        b, h, g = self.shape
        tile = g * min(_ROWS, self.query_length) * min(_COLUMNS, self.key_length)
        heads = _even(h, _TILE // tile)
        batch = _even(b, _TILE // (tile * h)) if heads == h else 1
        return [
            (slice(i, min(i + batch, b)), slice(j, min(j + heads, h)))
            for i in range(0, b, batch)
            for j in range(0, h, heads)
        ]

    def scores(self, tile: _Tile, b: slice, h: slice, q: Array) -> Array:
        """Return the tile's scores; `q` has the scale in it. Hidden ones are -inf."""
        s = q @ self.key[b, h, :, tile.columns].swapaxes(-1, -2)  # (b, h, G, rows, columns)
        if self.softcap is not None:
            s /= self.softcap
            np.tanh(s, out=s)
            s *= self.softcap
        if self.bias is not None:
            s += _cut(self.bias, b, h, tile.rows, tile.columns)
        if tile.hidden is not None:
            np.copyto(s, -math.inf, where=tile.hidden)
        if self.mask is not None:
            np.copyto(s, -math.inf, where=~_cut(self.mask, b, h, tile.rows, tile.columns))
        return s

    def kept(self, tile: _Tile, b: slice, h: slice) -> Array:
        """Return dropout's factor for the tile's weights: 0 or 1 / (1 - p)."""
        _, kv_heads, g = self.shape
        batch, head = np.arange(b.start, b.stop), np.arange(h.start, h.stop)
        matrix = (batch[:, None] * kv_heads + head)[:, :, None] * g + np.arange(g)
        rows = matrix[..., None] * self.query_length + np.arange(tile.rows.start, tile.rows.stop)
        columns = np.arange(tile.columns.start, tile.columns.stop)
        keep = keep_tile(self.seed, self.dropout_p, rows, columns)
        return keep * self.wide.type(1 / (1 - self.dropout_p) if self.dropout_p < 1 else 0)


def _even(total: int, most: int) -> int:
    """Return the size of parts of `total`, none larger than `most`, that are as even as can be."""
    parts = -(-total // max(1, min(total, most)))
    return -(-total // parts)


def _cut(x: Array, b: slice, h: slice, rows: slice, columns: slice) -> Array:
    """Slice what broadcasts to (B, Hkv, G, Tq, Tk): dimensions of length 1 stay whole."""
    index = tuple(
        part if n != 1 else slice(None)
        for part, n in zip((b, h, slice(None), rows, columns), x.shape, strict=True)
    )
    return x[index]


def _heads_last(b: int, h: int, g: int, t: int, d: int, dtype: Any) -> Array:
    """Return an empty (B, Hkv, G, T, D) that lies in memory as (B, T, H, D).

    Merging the heads of the result, and of the gradients, is then a view.
    """
    return memory.empty((b, t, h, g, d), dtype).transpose(0, 2, 3, 1, 4)


def _merged(x: Array, dtype: Any) -> Array:
    """(B, Hkv, G, T, D) -> (B, H, T, D)."""
    b, h, g, t, d = x.shape
    return x.reshape(b, h * g, t, d).astype(dtype, copy=False)


def _for_blocks(work: Any, problem: _Problem, parallel: bool) -> None:
    blocks = problem.blocks()

    def several(start: int, stop: int) -> None:
        for b, h in blocks[start:stop]:
            work(b, h)

    # Always on one BLAS thread: tiles are small, and OpenBLAS rounds as its thread count goes.
    with single_threaded_blas():
        parallel_for(several, len(blocks), 1 if parallel else len(blocks))


def forward(
    query: Array, key: Array, value: Array, mask: Array | None, bias: Array | None, *,
    causal: str | None, window: Any, scale: float, softcap: float | None, dropout_p: float,
    seed: int, return_lse: bool,
) -> Any:  # fmt: skip
    """Return the output (and the lse, if asked for); residuals are lse and output, not rounded."""
    arrays = (query, key, value, mask, bias)
    plain = mask is None and bias is None and softcap is None and not dropout_p
    if plain and query.shape[2] == 1 and query.dtype != np.float16:
        found = attend(query, key, value, causal, window, scale)
        if found is not None:
            result, lse, residuals = found
            return ((result, lse) if return_lse else result), residuals
    problem = _Problem(arrays, causal, window, scale, softcap, dropout_p, seed)
    b, h, g = problem.shape
    length = problem.query_length
    out = _heads_last(b, h, g, length, value.shape[-1], problem.wide)
    lse = np.empty((b, h, g, length, 1), problem.wide)

    def work(b: slice, h: slice) -> None:
        _forward_block(problem, b, h, out[b, h], lse[b, h])

    _for_blocks(work, problem, parallel=True)
    result = _merged(out, problem.dtype)
    flat = lse.reshape(query.shape[:3])
    return ((result, flat) if return_lse else result), (lse, out)


def _forward_block(problem: _Problem, b: slice, h: slice, out: Array, lse: Array) -> None:
    out[...] = 0  # queries without a tile see nothing
    lse[...] = -math.inf
    rows: slice | None = None
    highest: Any = None
    total: Any = None
    q: Any = None
    for tile in problem.tiles():
        first = tile.rows != rows
        rows = tile.rows
        o = out[..., rows, :]
        if first:
            q = problem.query[b, h, :, rows] * problem.wide.type(problem.scale)
        s = problem.scores(tile, b, h, q)
        m = s.max(-1, keepdims=True)
        if not first:
            np.maximum(m, highest, out=m)
        finite = np.where(np.isneginf(m), 0, m)
        s -= finite
        np.exp(s, out=s)
        sums = (s @ np.ones(s.shape[-1], s.dtype))[..., None]
        if problem.dropout_p:
            s *= problem.kept(tile, b, h)
        v = problem.value[b, h, :, tile.columns]
        if first:
            np.matmul(s, v, out=o)
            total = sums
        else:  # the maximum may have grown: scale down what there is
            shrink = np.exp(highest - finite)
            o *= shrink
            o += s @ v
            total = total * shrink + sums
        highest = m
        if tile.columns.stop >= _end(problem, rows):
            o /= np.where(total == 0, 1, total)
            lse[..., rows, :] = np.log(total) + m


def _end(problem: _Problem, rows: slice) -> int:
    """Where the keys that a block of queries sees come to an end."""
    end: int = problem.key_length
    if problem.right is not None:
        end = min(end, rows.stop + problem.offset + problem.right)
    return end


def backward(
    grads: Any, arrays: Any, outs: Any, residuals: Any, needs: Any, *,
    causal: str | None, window: Any, scale: float, softcap: float | None, dropout_p: float,
    seed: int, return_lse: bool,
) -> Any:  # fmt: skip
    """Return the gradients of query, key, value and bias."""
    problem = _Problem(arrays, causal, window, scale, softcap, dropout_p, seed)
    b, h, g = problem.shape
    lse, out = residuals  # half precision's rounded output would not do: dP - rowsum cancels
    d_out, d_lse = grads[0], grads[1] if return_lse else None
    shape5 = (b, h, g, problem.query_length)
    if d_out is None:
        d_out = np.zeros_like(out)
    d_out = d_out.reshape(*shape5, -1).astype(problem.wide, copy=False)
    if d_lse is not None:
        d_lse = d_lse.reshape(*shape5, 1)
    dead = np.isneginf(lse)
    if dead.any():
        d_out = np.where(dead, 0, d_out)
        problem.query = np.where(dead, 0, problem.query)
        lse = np.where(dead, 0, lse)
        d_lse = None if d_lse is None else np.where(dead, 0, d_lse)  # a loss of -inf may send NaN
    d_query = _heads_last(*shape5, arrays[0].shape[-1], problem.wide)
    d_key = _heads_last(b, h, 1, problem.key_length, arrays[1].shape[-1], problem.wide)
    d_value = _heads_last(b, h, 1, problem.key_length, arrays[2].shape[-1], problem.wide)
    d_bias = np.zeros(problem.bias.shape, problem.wide) if needs[4] else None

    def work(b: slice, h: slice) -> None:
        delta = np.einsum("...d,...d->...", d_out[b, h], out[b, h])[..., None]
        if d_lse is not None:
            delta = delta - d_lse[b, h]
        _backward_block(
            problem, b, h, d_out[b, h], lse[b, h], delta,
            d_query[b, h], d_key[b, h], d_value[b, h], d_bias,
        )  # fmt: skip

    _for_blocks(work, problem, parallel=d_bias is None)  # blocks may share elements of the bias
    found = [_merged(x, problem.dtype) for x in (d_query, d_key, d_value)]
    if d_bias is not None:
        d_bias = d_bias.reshape(arrays[4].shape).astype(problem.dtype, copy=False)
    return (*found, None, d_bias)


def _backward_block(
    problem: _Problem, b: slice, h: slice, d_out: Array, lse: Array, delta: Array,
    d_query: Array, d_key: Array, d_value: Array, d_bias: Array | None,
) -> None:  # fmt: skip
    for x in (d_query, d_key, d_value):
        x[...] = 0
    for tile in problem.tiles():
        rows, columns = tile.rows, tile.columns
        q = problem.query[b, h, :, rows] * problem.wide.type(problem.scale)
        g = d_out[..., rows, :]
        s = problem.scores(tile, b, h, q)
        slope = None
        if problem.softcap is not None:  # d softcap·tanh(x / softcap) / dx = 1 - tanh²
            slope = _softcap_slope(problem, tile, b, h, s)
        s -= lse[..., rows, :]
        p = np.exp(s, out=s)
        ds = g @ problem.value[b, h, :, columns].swapaxes(-1, -2)
        if problem.dropout_p:
            kept = problem.kept(tile, b, h)
            ds *= kept
            dropped = p * kept
        else:
            dropped = p
        d_value[..., columns, :] += _over_groups(dropped.swapaxes(-1, -2) @ g)
        ds -= delta[..., rows, :]
        ds *= p
        if d_bias is not None:
            _add_reduced(_cut(d_bias, b, h, rows, columns), ds)
        if slope is not None:
            ds *= slope
        d_query[..., rows, :] += (ds @ problem.key[b, h, :, columns]) * problem.wide.type(
            problem.scale
        )
        d_key[..., columns, :] += _over_groups(ds.swapaxes(-1, -2) @ q)


def _softcap_slope(problem: _Problem, tile: _Tile, b: slice, h: slice, scores: Array) -> Array:
    capped = scores
    if problem.bias is not None:
        capped = scores - _cut(problem.bias, b, h, tile.rows, tile.columns)
    slope = 1 - (capped / problem.softcap) ** 2
    return np.where(np.isfinite(slope), slope, 0)  # hidden scores are -inf


def _over_groups(x: Array) -> Array:
    """Sum over the query heads that share a key head: (b, h, G, T, D) -> (b, h, 1, T, D)."""
    return x if x.shape[2] == 1 else x.sum(2, keepdims=True)


def _add_reduced(target: Array, x: Array) -> None:
    """Add `x` to `target`, summed along the dimensions where `target` has length 1."""
    axes = tuple(i for i, n in enumerate(target.shape) if n == 1 and x.shape[i] != 1)
    target += x.sum(axes, keepdims=True) if axes else x
