"""softmax, log_softmax, layer_norm and rms_norm for the engine."""

from __future__ import annotations

from typing import Any

from glassformer.fused.softmax import unsupported as softmax_unsupported
from glassformer_kernels import norm, norm_backward
from glassformer_kernels.serving.reasons import (
    Array,
    Gradients,
    Served,
    dtype_reasons,
    empty_reasons,
)
from glassformer_kernels.softmax import backward as softmax_backward
from glassformer_kernels.softmax import forward as softmax_forward


def _softmax(log: bool) -> Served:
    def forward(x: Array, *, dim: int = -1) -> tuple[Array, tuple[()]]:
        return softmax_forward(x.movedim(dim, -1), log=log).movedim(-1, dim), ()

    def backward(
        grads: Any, arrays: Any, outs: Any, residuals: Any, needs: Any, *, dim: int = -1
    ) -> Gradients:
        g, y = (t.movedim(dim, -1) for t in (grads[0], outs[0]))
        return (softmax_backward(g, y, log=log).movedim(-1, dim),)

    def unsupported(x: Any, *, dim: int = -1) -> list[str]:
        return softmax_unsupported(x, dim=dim) or dtype_reasons(x=x)

    return Served(forward, backward, unsupported, saves_output=True)


def _norm(centre: bool) -> Served:
    def forward(
        x: Array, weight: Array | None = None, bias: Array | None = None, *, eps: float = 1e-5
    ) -> tuple[Array, tuple[Any, ...]]:
        y, _, mean, rstd = norm.forward(x, weight, bias, eps=eps, centre=centre)
        return y, (mean, rstd)

    def backward(
        grads: Any, arrays: Any, outs: Any, residuals: Any, needs: Any, *, eps: float = 1e-5
    ) -> Gradients:
        x, weight = arrays[0], arrays[1] if len(arrays) > 1 else None
        found = norm_backward.backward(
            grads[0], None, x, weight, *residuals, needs_sums=any(needs[1:])
        )
        return tuple(g if need else None for g, need in zip(found, needs, strict=False))

    def unsupported(x: Any, *affine: Any, eps: float = 1e-5) -> list[str]:
        wrong = empty_reasons(x=x) or dtype_reasons(x=x)
        parts = [part for part in affine if part is not None]
        wrong += [f"a weight is {p.shape}" for p in parts if p.shape != x.shape[-1:]]
        return wrong + [reason for part in parts for reason in dtype_reasons(weight=part)]

    return Served(forward, backward, unsupported)


SOFTMAX, LOG_SOFTMAX = _softmax(log=False), _softmax(log=True)
LAYER_NORM, RMS_NORM = _norm(centre=True), _norm(centre=False)
