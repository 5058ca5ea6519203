"""AdamW's step, in place: the definition, and a NumPy kernel."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from glassformer.backends import memory
from glassformer.backends.threads import grain_for, parallel_for
from glassformer.fused.registry import FusedOp, Kernel
from glassformer.fused.softmax import widened
from glassformer.grad_mode import no_grad
from glassformer.ops.elementwise import sqrt
from glassformer.tensor import Tensor

Array = Any


def composite_adamw_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """Change a parameter and the running means m of its gradient g and v of g² in place.

    m ← β₁ m + (1 - β₁) g;  v ← β₂ v + (1 - β₂) g²;
    p ← p (1 - lr · weight_decay) - lr / (1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + eps).
    Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2, with the
    decay scaled by the learning rate as in PyTorch.

    Args:
        param: any shape; the others have the same.
        grad: gradient of the loss.
        exp_avg: m.
        exp_avg_sq: v.
        step: t, 1 for the first.
        lr: learning rate.
        beta1: β₁, in [0, 1).
        beta2: β₂, in [0, 1).
        eps: added to the root.
        weight_decay: fraction of the parameter, times lr, that is taken away.

    Raises:
        TypeError: the dtypes differ, or are not floating point.
        ValueError: the shapes differ.
    """
    _check(param, grad=grad, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
    step_size, root_scale = _scales(step, lr, beta1, beta2)
    with no_grad():
        p, g = widened(param), widened(grad)
        m = widened(exp_avg) * beta1 + g * (1 - beta1)
        v = widened(exp_avg_sq) * beta2 + g * g * (1 - beta2)
        update = m / (sqrt(v) * root_scale + eps) * step_size
        param.copy_(p * (1 - lr * weight_decay) - update)
        exp_avg.copy_(m)
        exp_avg_sq.copy_(v)


def _check(param: Tensor, **others: Tensor) -> None:
    """Raise for arguments that don't match; kernels leave such a call to the reference."""
    if not param.dtype.is_floating_point:
        raise TypeError(f"adamw_step: param is {param.dtype}, and must be floating point")
    for name, x in others.items():
        if x.dtype is not param.dtype:
            raise TypeError(f"adamw_step: {name} is {x.dtype} but param is {param.dtype}")
        if x.shape != param.shape:
            raise ValueError(f"adamw_step: {name} has shape {x.shape} but param {param.shape}")


def _scales(step: int, lr: float, beta1: float, beta2: float) -> tuple[float, float]:
    """Return lr / (1 - β₁ᵗ) and 1 / √(1 - β₂ᵗ): running means that began at 0 are too small."""
    return lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)


# ---- kernel -------------------------------------------------------------------------------------


def _unsupported(param: Any, *others: Any, **_: Any) -> list[str]:
    if param.dtype.name not in ("float32", "float64"):
        return [f"the parameter is {param.dtype}"]
    return [
        f"the parameter is {param.dtype} {param.shape}, another {x.dtype} {x.shape}"
        for x in others
        if x.dtype != param.dtype or x.shape != param.shape
    ]


def _forward(
    param: Array,
    grad: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> tuple[None, tuple[()]]:
    """Do the reference's arithmetic in the reference's order: the results are equal bit by bit."""
    step_size, root_scale = _scales(step, lr, beta1, beta2)
    arrays = [np.atleast_1d(x) for x in (param, grad, exp_avg, exp_avg_sq)]  # views

    def tile(start: int, stop: int) -> None:
        p, g, m, v = (x[start:stop] for x in arrays)
        t = np.multiply(g, 1 - beta1, out=memory.empty(g.shape, g.dtype))
        m *= beta1
        m += t
        np.multiply(g, g, out=t)
        t *= 1 - beta2
        v *= beta2
        v += t
        np.sqrt(v, out=t)
        t *= root_scale
        t += eps
        np.divide(m, t, out=t)
        t *= step_size
        p *= 1 - lr * weight_decay
        p -= t

    rows = len(arrays[0])
    parallel_for(tile, rows, grain_for(rows, arrays[0].size // max(rows, 1)))
    return None, ()


adamw_step = FusedOp("adamw_step", composite_adamw_step, mutates=(0, 2, 3))
adamw_step.register(
    Kernel(
        name="numpy-tiled", device="cpu", priority=10, forward=_forward, unsupported=_unsupported
    )
)
