"""Rotary position embedding: the definition, and a NumPy kernel."""

from __future__ import annotations

from typing import Any

import numpy as np

from glassformer.backends import memory
from glassformer.backends.threads import grain_for, parallel_for
from glassformer.fused.registry import FusedOp, Kernel
from glassformer.fused.softmax import widened
from glassformer.ops.conversion import to
from glassformer.ops.shape import cat
from glassformer.tensor import Tensor

Array = Any


def composite_rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + D/2]) of the last dimension by angles with this cos and sin.

    out[i] = x[i] cos[i] - x[i + D/2] sin[i];  out[i + D/2] = x[i + D/2] cos[i] + x[i] sin[i].
    Su et al. 2021, "RoFormer", section 3.4.2, with channels paired by halves as in GPT-NeoX.

    Args:
        x: (..., T, D).
        cos: broadcastable to (..., T, D/2).
        sin: as cos.

    Raises:
        ValueError: D is odd, or cos and sin don't fit.
    """
    half = x.shape[-1] // 2 if x.shape else 0
    if half * 2 != (x.shape or (1,))[-1]:
        raise ValueError(f"rotary embedding turns pairs of channels; x {x.shape} has an odd number")
    for part in (cos, sin):
        if not _fits(part.shape, (*x.shape[:-1], half)):
            raise ValueError(
                f"cos and sin must broadcast to {(*x.shape[:-1], half)} for x {x.shape}, got "
                f"{cos.shape} and {sin.shape}"
            )
    wide, cos, sin = widened(x), to(cos, widened(x).dtype), to(sin, widened(x).dtype)
    first, second = wide[..., :half], wide[..., half:]
    return to(cat([first * cos - second * sin, second * cos + first * sin], -1), x.dtype)


def _fits(shape: tuple[int, ...], full: tuple[int, ...]) -> bool:
    return len(shape) <= len(full) and all(
        n in (1, m) for n, m in zip(reversed(shape), reversed(full), strict=False)
    )


# ---- kernel -------------------------------------------------------------------------------------


def _unsupported(x: Any, cos: Any, sin: Any) -> list[str]:
    if not x.dtype.is_floating_point or x.dtype != cos.dtype or x.dtype != sin.dtype:
        return [f"x is {x.dtype}, cos {cos.dtype}, sin {sin.dtype}"]
    if len(x.shape) < 2 or 0 in x.shape or x.shape[-1] % 2:
        return [f"x is {x.shape}"]
    half = (x.shape[-2], x.shape[-1] // 2)
    return [f"{part.shape} is not {half}" for part in (cos, sin) if part.shape != half]


def _turned(x: Array, cos: Array, sin: Array) -> Array:
    """Return x (..., T, D) turned by the angles of cos and sin (T, D/2).

    As x · (cos, cos) + swapped · (-sin, sin), where swapped is x with its halves exchanged: whole
    rows make long inner loops, and halves of rows would make many short ones.
    """
    wide = np.float32 if x.dtype == np.float16 else x.dtype
    cos = np.concatenate([cos, cos], -1, dtype=wide)
    sin = np.concatenate([-sin, sin], -1, dtype=wide)
    source = np.asarray(x, wide).reshape((1,) * (3 - x.ndim) + x.shape)
    out = memory.empty(source.shape, wide)
    half = x.shape[-1] // 2

    def tile(start: int, stop: int) -> None:
        part, result = source[start:stop], out[start:stop]
        swapped = memory.empty_like(part)
        swapped[..., :half] = part[..., half:]
        swapped[..., half:] = part[..., :half]
        swapped *= sin
        np.multiply(part, cos, out=result)
        result += swapped

    parallel_for(tile, len(source), grain_for(len(source), source[0].size))
    return out.reshape(x.shape).astype(x.dtype, copy=False)


def _forward(x: Array, cos: Array, sin: Array) -> tuple[Array, tuple[()]]:
    return _turned(x, cos, sin), ()


def _backward(
    grads: Any, arrays: Any, outs: Any, residuals: Any, needs: Any
) -> tuple[Array | None, Array | None, Array | None]:
    """d_x is g turned back; d_cos and d_sin are sums over all but the last two dimensions."""
    (g,), (x, cos, sin) = grads, arrays
    d_cos = d_sin = None
    if needs[1] or needs[2]:
        wide = np.float32 if x.dtype == np.float16 else x.dtype
        x1, x2 = np.split(np.asarray(x, wide), 2, axis=-1)
        g1, g2 = np.split(np.asarray(g, wide), 2, axis=-1)
        leading = tuple(range(x.ndim - 2))
        d_cos = (g1 * x1 + g2 * x2).sum(leading).astype(x.dtype, copy=False)
        d_sin = (g2 * x1 - g1 * x2).sum(leading).astype(x.dtype, copy=False)
    return _turned(g, cos, -sin) if needs[0] else None, d_cos, d_sin


rotary_embedding = FusedOp("rotary_embedding", composite_rotary_embedding)
rotary_embedding.register(
    Kernel(
        name="numpy-tiled",
        device="cpu",
        priority=10,
        forward=_forward,
        backward=_backward,
        unsupported=_unsupported,
    )
)
