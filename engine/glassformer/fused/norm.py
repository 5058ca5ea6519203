"""layer_norm and rms_norm over the last dimension: the definitions, and NumPy kernels on tiles."""

from __future__ import annotations

from typing import Any

import numpy as np

from glassformer.backends import memory
from glassformer.backends.threads import grain_for, parallel_for
from glassformer.fused.registry import FusedOp, Kernel
from glassformer.fused.softmax import as_rows, widened
from glassformer.ops.conversion import to
from glassformer.ops.elementwise import rsqrt
from glassformer.ops.reduction import mean
from glassformer.tensor import Tensor

Array = Any


def composite_layer_norm(
    input: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    """Return (x - mean) / √(variance + eps) · weight + bias over the last dimension.

    Ba, Kiros and Hinton 2016, "Layer Normalization", section 3. The variance is the mean square,
    without Bessel's correction.
    """
    _check("layer_norm", input, weight, bias)
    x = widened(input)
    centred = x - mean(x, -1, keepdim=True)
    out = centred * rsqrt(mean(centred * centred, -1, keepdim=True) + eps)
    return to(_scaled(out, weight, bias), input.dtype)


def composite_rms_norm(input: Tensor, weight: Tensor | None = None, *, eps: float) -> Tensor:
    """Return x / √(mean(x²) + eps) · weight over the last dimension.

    Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", section 4.
    """
    _check("rms_norm", input, weight)
    x = widened(input)
    out = x * rsqrt(mean(x * x, -1, keepdim=True) + eps)
    return to(_scaled(out, weight, None), input.dtype)


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        x = x * to(weight, x.dtype)
    return x if bias is None else x + to(bias, x.dtype)


def _check(name: str, input: Tensor, *affine: Tensor | None) -> None:
    if input.shape == () or not input.dtype.is_floating_point:
        raise TypeError(
            f"{name} takes floating point tensors with a dimension to normalise, got "
            f"{input.dtype} {input.shape}"
        )
    for part in affine:
        if part is not None and part.shape != input.shape[-1:]:
            raise ValueError(
                f"{name}: weight and bias must be {input.shape[-1:]} for an input {input.shape}, "
                f"got {part.shape}"
            )


# ---- kernels ------------------------------------------------------------------------------------


def _unsupported(input: Any, *affine: Any, **_: Any) -> list[str]:
    if input.shape == () or not input.dtype.is_floating_point:
        return [f"the input is {input.dtype} {input.shape}"]
    if 0 in input.shape:
        return ["the input is empty"]
    return [
        f"weight or bias is {part.dtype} {part.shape}, the input {input.dtype} {input.shape}"
        for part in affine
        if part is not None and (part.shape != input.shape[-1:] or part.dtype != input.dtype)
    ]


def _forward(
    x: Array, weight: Array | None, bias: Array | None, eps: float, centre: bool
) -> tuple[Array, tuple[Array | None, Array]]:
    """Return the result, and as residuals each row's mean and what it was scaled by, (N, 1).

    Backward normalises again: keeping the normalised rows was measured to cost as much in forward
    as it saves in backward.
    """
    rows = as_rows(x, -1)
    size = rows.shape[1]
    ones = np.ones(size, rows.dtype)
    out = memory.empty_like(rows)
    means = np.empty((len(rows), 1), rows.dtype) if centre else None
    scales = np.empty((len(rows), 1), rows.dtype)

    def tile(start: int, stop: int) -> None:
        part, y, scale = (a[start:stop] for a in (rows, out, scales))
        if means is not None:
            mean = means[start:stop]
            np.vecdot(part, ones, out=mean[:, 0])
            mean /= size
            part = np.subtract(part, mean, out=y)
        np.vecdot(part, part, out=scale[:, 0])
        scale /= size
        scale += eps
        np.sqrt(scale, out=scale)
        np.divide(1, scale, out=scale)
        np.multiply(part, scale, out=y)
        if weight is not None:
            y *= weight
        if bias is not None:
            y += bias

    parallel_for(tile, len(rows), grain_for(*rows.shape))
    return out.reshape(x.shape).astype(x.dtype, copy=False), (means, scales)


def _backward(grads: Any, arrays: Any, residuals: Any, needs: Any) -> tuple[Array | None, ...]:
    """Return the gradients of x, weight (and bias): with x̂ the normalised x and v = g · weight.

    d_x = (v - mean(v) - x̂ mean(v x̂)) / √(variance + eps), d_weight = Σ g x̂, d_bias = Σ g, the
    sums over rows. mean(v) is there only where the mean was subtracted.
    """
    x, weight = arrays[0], arrays[1] if len(arrays) > 1 else None
    means, scales = residuals
    rows, g = as_rows(x, -1), as_rows(grads[0], -1)
    size = g.shape[1]
    # A row of g times this is the mean of v; a row of g x̂, the mean of v x̂.
    average = np.full(size, 1 / size, g.dtype)
    if weight is not None:
        average *= weight
    out = memory.empty_like(g)
    grain = grain_for(*g.shape)
    sums = np.empty((2, -(-len(g) // grain), size), g.dtype)  # Σ g x̂ and Σ g of each chunk

    def tile(start: int, stop: int) -> None:
        part, gt, result, scale = (a[start:stop] for a in (rows, g, out, scales))
        scratch = memory.empty_like(part)
        if means is not None:
            part = np.subtract(part, means[start:stop], out=scratch)
        products = np.multiply(gt, part, out=result)  # times scale, g x̂
        if any(needs[1:]):
            ones, chunk = np.ones(stop - start, g.dtype), start // grain
            np.matmul(scale[:, 0], products, out=sums[0, chunk])
            np.matmul(ones, gt, out=sums[1, chunk])
        np.multiply(part, scale * scale * np.vecdot(products, average)[:, None], out=scratch)
        if means is not None:
            scratch += np.vecdot(gt, average)[:, None]
        v = gt if weight is None else np.multiply(gt, weight, out=result)
        np.subtract(v, scratch, out=result)
        result *= scale

    parallel_for(tile, len(g), grain)
    totals = (s.sum(0).astype(x.dtype, copy=False) for s in sums)
    d_x = out.reshape(x.shape).astype(x.dtype, copy=False)
    return tuple(d if need else None for d, need in zip((d_x, *totals), needs, strict=False))


def _layer_norm_forward(
    x: Array, weight: Array | None = None, bias: Array | None = None, *, eps: float = 1e-5
) -> Any:
    return _forward(x, weight, bias, eps, centre=True)


def _layer_norm_backward(
    grads: Any, arrays: Any, outs: Any, residuals: Any, needs: Any, *, eps: float = 1e-5
) -> Any:
    return _backward(grads, arrays, residuals, needs)


def _rms_norm_forward(x: Array, weight: Array | None = None, *, eps: float) -> Any:
    return _forward(x, weight, None, eps, centre=False)


def _rms_norm_backward(
    grads: Any, arrays: Any, outs: Any, residuals: Any, needs: Any, *, eps: float
) -> Any:
    return _backward(grads, arrays, residuals, needs)


layer_norm = FusedOp("layer_norm", composite_layer_norm)
rms_norm = FusedOp("rms_norm", composite_rms_norm)
layer_norm.register(
    Kernel(
        name="numpy-tiled",
        device="cpu",
        priority=10,
        forward=_layer_norm_forward,
        backward=_layer_norm_backward,
        unsupported=_unsupported,
    )
)
rms_norm.register(
    Kernel(
        name="numpy-tiled",
        device="cpu",
        priority=10,
        forward=_rms_norm_forward,
        backward=_rms_norm_backward,
        unsupported=_unsupported,
    )
)
