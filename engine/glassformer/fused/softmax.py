"""softmax and log_softmax: the definitions, and NumPy kernels that shift only where they must.

The usual softmax subtracts every row's maximum, so that exp can't overflow. On a CPU the two
passes for that cost more than exp itself, and for most rows nothing would overflow anyway: the
kernels sum exp(x) as it stands, and only rows whose sum left the range in which it is exact (too
large, too small, NaN) are done again the usual way.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from glassformer.backends import memory
from glassformer.backends.threads import grain_for, parallel_for
from glassformer.fused.registry import FusedOp, Kernel
from glassformer.ops.conversion import to
from glassformer.ops.elementwise import exp, log
from glassformer.ops.reduction import amax, sum
from glassformer.tensor import Tensor

Array = Any

# A row whose sum of exp(x) is in this range is not shifted. Nothing in it overflowed, what
# underflowed is below 1e-30 of the sum, and x - log(sum) is exact to 1e-6 in float32.
_SMALLEST_SUM, _LARGEST_SUM = 1e-8, 1e8


def composite_softmax(x: Tensor, *, dim: int = -1) -> Tensor:
    """Return exp(x) / Σ exp(x) along `dim`; NaN where all are -inf."""
    weights = exp(_shifted(x, dim))
    return to(weights / sum(weights, dim, keepdim=True), x.dtype)


def composite_log_softmax(x: Tensor, *, dim: int = -1) -> Tensor:
    """Return x - log Σ exp(x) along `dim`; NaN where all are -inf."""
    shifted = _shifted(x, dim)
    return to(shifted - log(sum(exp(shifted), dim, keepdim=True)), x.dtype)


def _shifted(x: Tensor, dim: int) -> Tensor:
    """Subtract the maximum along `dim`, a constant as far as softmax and gradients can see."""
    if not x.dtype.is_floating_point:
        raise TypeError(f"softmax takes floating point tensors, got {x.dtype}")
    wide = widened(x)
    return wide if x.numel() == 0 else wide - amax(wide, dim, keepdim=True).detach()


def widened(x: Tensor) -> Tensor:
    """Return x in the dtype in which its sums are accumulated: float32 for half precision."""
    dtype = x.dtype
    return x if dtype.wide is dtype else to(x, dtype.wide)


# ---- kernels ------------------------------------------------------------------------------------


def unsupported(x: Any, *_: Any, dim: int = -1, **__: Any) -> list[str]:
    """Return why the kernels can't serve a call."""
    if not x.dtype.is_floating_point:
        return [f"x is {x.dtype}, not floating point"]
    if x.shape == () or 0 in x.shape:
        return ["x is empty or has no dimensions"]
    return [] if -x.ndim <= dim < x.ndim else [f"there is no dim {dim} in shape {x.shape}"]


def as_rows(x: Array, dim: int) -> Array:
    """Return x as contiguous rows (N, V) along `dim`, float16 as float32; a copy where needed."""
    if dim not in (-1, x.ndim - 1):
        x = np.moveaxis(x, dim, -1)
    wide = np.float32 if x.dtype == np.float16 else x.dtype
    return np.ascontiguousarray(x, wide).reshape(-1, x.shape[-1])


def from_rows(rows: Array, shape: tuple[int, ...], dim: int, dtype: Any) -> Array:
    """Undo `as_rows`: return a contiguous array of this shape and dtype."""
    if dim in (-1, len(shape) - 1):
        return rows.reshape(shape).astype(dtype, copy=False)
    out = memory.empty(shape, dtype)
    moved = np.moveaxis(out, dim, -1)
    moved[...] = rows.reshape(moved.shape)
    return out


def exp_and_sums(x: Array, out: Array) -> tuple[Array, Array]:
    """Write exp(x - shift) into `out` (N, V), and return the shift and the sums of rows, both (N,).

    The shift is a row's maximum where its sum asks for it, and 0 elsewhere.
    """
    ones = np.ones(x.shape[-1], x.dtype)
    np.exp(x, out=out)
    sums = np.vecdot(out, ones)
    shift = np.zeros_like(sums)
    bad = ~((sums > _SMALLEST_SUM) & (sums < _LARGEST_SUM))
    if bad.any():
        rows = x[bad]
        shift[bad] = highest = rows.max(-1)
        rows -= highest[:, None]
        out[bad] = np.exp(rows, out=rows)
        sums[bad] = np.vecdot(rows, ones)
    return shift, sums


def log_sum_exp(x: Array) -> tuple[Array, Array]:
    """Return two parts (N,) of log Σ exp(x) of the rows of x (N, V): a shift, and the log of a sum.

    x - shift - log_sum is exact where x is large and their sum, rounded, would not be.
    """
    shift, sums = exp_and_sums(x, memory.empty_like(x))
    return shift, np.log(sums, out=sums)


def times_softmax(x: Array, shift: Array, log_sum: Array, factor: Array, out: Array) -> None:
    """Write exp(x - shift - log_sum) · factor into `out`, which may be x; the others are (N,)."""
    bad = shift != 0
    shifted = x[bad] - shift[bad, None] if bad.any() else None
    np.exp(x, out=out)
    out *= (np.exp(-log_sum) * factor)[:, None]
    if shifted is not None:
        out[bad] = np.exp(shifted - log_sum[bad, None]) * factor[bad, None]


def _softmax_forward(x: Array, *, dim: int = -1) -> tuple[Array, tuple[()]]:
    rows = as_rows(x, dim)
    out = memory.empty_like(rows)

    def tile(start: int, stop: int) -> None:
        weights = out[start:stop]
        _, sums = exp_and_sums(rows[start:stop], weights)
        weights *= (1 / sums)[:, None]

    parallel_for(tile, len(rows), grain_for(*rows.shape))
    return from_rows(out, x.shape, dim, x.dtype), ()


def _softmax_backward(
    grads: Any, arrays: Any, outs: Any, residuals: Any, needs: Any, *, dim: int = -1
) -> tuple[Array]:
    """d_x = y (g - Σ g y)."""
    g, y = as_rows(grads[0], dim), as_rows(outs[0], dim)
    out = memory.empty_like(y)

    def tile(start: int, stop: int) -> None:
        gt, yt, result = g[start:stop], y[start:stop], out[start:stop]
        np.subtract(gt, np.vecdot(gt, yt)[:, None], out=result)
        result *= yt

    parallel_for(tile, len(y), grain_for(*y.shape))
    return (from_rows(out, outs[0].shape, dim, outs[0].dtype),)


def _log_softmax_forward(x: Array, *, dim: int = -1) -> tuple[Array, tuple[Array, Array]]:
    rows = as_rows(x, dim)
    out = memory.empty_like(rows)
    shift, log_sum = np.empty((2, len(rows)), rows.dtype)

    def tile(start: int, stop: int) -> None:
        part, result = slice(start, stop), out[start:stop]
        shift[part], log_sum[part] = log_sum_exp(rows[part])
        if shift[part].any():
            np.subtract(rows[part], shift[part, None], out=result)
            result -= log_sum[part, None]
        else:
            np.subtract(rows[part], log_sum[part, None], out=result)

    parallel_for(tile, len(rows), grain_for(*rows.shape))
    return from_rows(out, x.shape, dim, x.dtype), (shift, log_sum)


def _log_softmax_backward(
    grads: Any, arrays: Any, outs: Any, residuals: Any, needs: Any, *, dim: int = -1
) -> tuple[Array]:
    """d_x = g - softmax(x) Σ g."""
    (x,), (shift, log_sum) = arrays, residuals
    g, rows = as_rows(grads[0], dim), as_rows(x, dim)
    out = memory.empty_like(rows)
    ones = np.ones(rows.shape[1], rows.dtype)

    def tile(start: int, stop: int) -> None:
        part, gt, result = slice(start, stop), g[start:stop], out[start:stop]
        times_softmax(rows[part], shift[part], log_sum[part], np.vecdot(gt, ones), result)
        np.subtract(gt, result, out=result)

    parallel_for(tile, len(rows), grain_for(*rows.shape))
    return (from_rows(out, x.shape, dim, x.dtype),)


softmax = FusedOp("softmax", composite_softmax)
log_softmax = FusedOp("log_softmax", composite_log_softmax)
softmax.register(
    Kernel(
        name="numpy-tiled",
        device="cpu",
        priority=10,
        forward=_softmax_forward,
        backward=_softmax_backward,
        unsupported=unsupported,
        saves_output=True,
    )
)
log_softmax.register(
    Kernel(
        name="numpy-tiled",
        device="cpu",
        priority=10,
        forward=_log_softmax_forward,
        backward=_log_softmax_backward,
        unsupported=unsupported,
    )
)
