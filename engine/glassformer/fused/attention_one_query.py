"""Attention of a single query, a step of decoding: tiles would take longer than its arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np

from glassformer.backends.threads import single_threaded_blas

Array = Any

_MOST_SCORES = 1 << 17  # half a megabyte of float32, which stays in a core's cache


def attend(
    query: Array, key: Array, value: Array, causal: str | None, window: Any, scale: float
) -> tuple[Array, Array, tuple[Array, Array]] | None:
    """Return output, lse and residuals where every key in a range is seen by a single query.

    None where it sees nothing, where a score isn't finite, or where there are more scores than one
    tile has: the tiles know what to do then.
    """
    b, heads, _, d = query.shape
    kv_heads, key_length = key.shape[1:3]
    place = 0 if causal == "top_left" else key_length - 1
    left, right = window or (None, None)
    right = 0 if causal is not None else right
    first = 0 if left is None else max(0, place - left)
    end = key_length if right is None else min(key_length, place + right + 1)
    if first >= end or b * heads * (end - first) > _MOST_SCORES:
        return None
    keys, values = key[:, :, first:end], value[:, :, first:end]
    q = query.reshape(b, kv_heads, heads // kv_heads, d) * query.dtype.type(scale)
    with single_threaded_blas():
        s = np.matmul(q, keys.swapaxes(-1, -2))  # (B, Hkv, G, keys)
        highest = s.max(-1, keepdims=True)
        if not np.isfinite(highest).all():
            return None
        s -= highest
        np.exp(s, out=s)
        total = s.sum(-1, keepdims=True)
        out = np.matmul(s, values)
    out /= total
    lse = np.log(total) + highest
    return (
        out.reshape(b, heads, 1, -1),
        lse.reshape(b, heads, 1),
        (lse[..., None], out[:, :, :, None]),
    )
