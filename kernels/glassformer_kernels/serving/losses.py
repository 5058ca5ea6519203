"""cross_entropy and linear_cross_entropy for the engine."""

from __future__ import annotations

from typing import Any

from glassformer.fused.loss import problems
from glassformer.ops.indexing import check_range
from glassformer_kernels.cross_entropy import (
    cross_entropy_backward,
    cross_entropy_forward,
    reduced,
    spread,
)
from glassformer_kernels.linear_cross_entropy import linear_cross_entropy_forward
from glassformer_kernels.linear_cross_entropy_backward import linear_cross_entropy_backward
from glassformer_kernels.serving.reasons import (
    Array,
    Gradients,
    Served,
    dtype_reasons,
    empty_reasons,
    product_reasons,
)


def _options(
    ignore_index: int = -100, label_smoothing: float = 0.0, reduction: str = "mean"
) -> tuple[tuple[int, float], str]:
    return (ignore_index, label_smoothing), reduction


def _check_targets(target: Array, num_classes: int, ignore_index: int) -> None:
    target = target.long()  # a narrower type can't be compared with every number
    check_range("cross_entropy target", target.masked_fill(target == ignore_index, 0), num_classes)


def _loss_forward(
    logits: Array, target: Array, weight: None = None, **options: Any
) -> tuple[Array, tuple[Any, ...]]:
    settings, reduction = _options(**options)
    rows = logits.movedim(1 if logits.ndim > 1 else 0, -1)  # (N, …, V)
    _check_targets(target, rows.shape[-1], settings[0])
    losses, lse = cross_entropy_forward(rows, target, *settings)
    return reduced(losses, target, settings[0], reduction, logits.dtype), (lse,)


def _loss_backward(
    grads: Any, arrays: Any, outs: Any, residuals: Any, needs: Any, **options: Any
) -> Gradients:
    settings, reduction = _options(**options)
    logits, target = arrays[:2]
    dim = 1 if logits.ndim > 1 else 0
    g = spread(grads[0], target, settings[0], reduction)
    d_logits = cross_entropy_backward(g, logits.movedim(dim, -1), target, *residuals, *settings)
    return d_logits.movedim(-1, dim), *(None for _ in arrays[1:])


def _loss_unsupported(logits: Any, target: Any, weight: Any = None, **options: Any) -> list[str]:
    wrong = problems(logits, target, weight, **options) or dtype_reasons(logits=logits)
    wrong += ["there are no logits"] if 0 in logits.shape else []
    return wrong + ([] if weight is None else ["classes have weights"])


def _linear_loss_forward(
    hidden: Array, weight: Array, target: Array, class_weight: None = None, **options: Any
) -> tuple[Array, tuple[Any, ...]]:
    settings, reduction = _options(**options)
    _check_targets(target, len(weight), settings[0])
    losses, lse = linear_cross_entropy_forward(hidden, weight, None, target, *settings)
    return reduced(losses, target, settings[0], reduction, hidden.dtype), (lse,)


def _linear_loss_backward(
    grads: Any, arrays: Any, outs: Any, residuals: Any, needs: Any, **options: Any
) -> Gradients:
    settings, reduction = _options(**options)
    hidden, weight, target = arrays[:3]
    g = spread(grads[0], target, settings[0], reduction)
    wanted = (needs[0], needs[1], False)
    d_hidden, d_weight, _ = linear_cross_entropy_backward(
        g, hidden, weight, None, target, *residuals, *settings, needs=wanted
    )
    return d_hidden, d_weight, *(None for _ in arrays[2:])


def _linear_loss_unsupported(
    hidden: Any, weight: Any, target: Any, class_weight: Any = None, **options: Any
) -> list[str]:
    if len(hidden.shape) != 2 or len(weight.shape) != 2 or hidden.shape[1] != weight.shape[1]:
        return [f"hidden {hidden.shape} and weight {weight.shape} are no (N, C) and (V, C)"]
    wrong = empty_reasons(hidden=hidden, weight=weight) or dtype_reasons(
        hidden=hidden, weight=weight
    )
    if target.shape != hidden.shape[:1] or target.dtype.category != "int":
        wrong.append(f"target is {target.dtype.name} {target.shape}, not integers (N,)")
    smoothing, reduction = options.get("label_smoothing", 0.0), options.get("reduction", "mean")
    if not 0 <= smoothing <= 1 or reduction not in ("mean", "sum", "none"):
        wrong.append(f"label_smoothing is {smoothing}, reduction {reduction!r}")
    wrong += [] if class_weight is None else ["classes have weights"]
    return wrong + product_reasons(hidden)


CROSS_ENTROPY = Served(_loss_forward, _loss_backward, _loss_unsupported)
LINEAR_CROSS_ENTROPY = Served(_linear_loss_forward, _linear_loss_backward, _linear_loss_unsupported)
