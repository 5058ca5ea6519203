"""cross_entropy and linear_cross_entropy: the definitions, and NumPy kernels on tiles.

The kernels keep the log-sum-exp of every row and compute the softmax again in backward: exp costs
less than keeping a second array as large as the logits.

linear_cross_entropy goes over the vocabulary in blocks, in forward and, computing the logits
again, in backward. The alternative, gradients in forward, saves one matrix product of four, but
does the work of backward where none follows, and can't know the gradient of an unreduced loss.
Blocks of the vocabulary, not of rows: the gradient of the weight, the largest array there is,
is then written once and never added to.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from glassformer.backends import memory
from glassformer.backends.threads import grain_for, parallel_for
from glassformer.fused.registry import FusedOp, Kernel
from glassformer.fused.softmax import (
    as_rows,
    composite_log_softmax,
    from_rows,
    log_sum_exp,
    times_softmax,
    widened,
)
from glassformer.graph import Like
from glassformer.ops.choice import ne, where
from glassformer.ops.conversion import to
from glassformer.ops.indexing import check_range, gather
from glassformer.ops.linalg import linear
from glassformer.ops.reduction import sum
from glassformer.tensor import Tensor

Array = Any

_BLOCK = 1 << 22  # logits that linear_cross_entropy holds at a time
_REDUCTIONS = ("mean", "sum", "none")


def composite_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Return -Σ_c q_c w_c log softmax(logits)_c for each target, averaged, summed, or as it is.

    q is 1 - ε + ε/V at the target's class and ε/V at the others, ε = label_smoothing (Szegedy et
    al. 2016, "Rethinking the Inception Architecture", section 7). The mean divides by the sum of
    the targets' class weights; it is NaN where no target counts.

    Args:
        logits: (N, V), (N, V, ...) or (V,).
        target: integers (N,), (N, ...) or (), in [0, V) or `ignore_index`.
        weight: (V,), how much each class counts; a constant, no gradient flows to it.
        ignore_index: targets of this value don't count, whatever their logits.
        label_smoothing: ε, in [0, 1].
        reduction: "mean", "sum" or "none".

    Raises:
        IndexError: a target is out of range.
        ValueError: shapes or options don't fit together.
    """
    wrong = problems(logits, target, weight, ignore_index, label_smoothing, reduction)
    if wrong:
        raise ValueError(f"cross_entropy: {wrong[0]}")
    dim = _class_dim(logits)
    counts = ne(target, ignore_index)
    classes = where(counts, target, 0).unsqueeze(dim)
    check_range("cross_entropy target", classes.array, logits.shape[dim])

    x = where(counts.unsqueeze(dim), widened(logits), 0.0)  # NaN in an ignored row stays there
    losses = -composite_log_softmax(x, dim=dim)  # of every class
    class_weight = to(counts, x.dtype) if weight is None else to(weight.detach(), x.dtype)
    if weight is not None:
        losses = losses * class_weight.reshape((-1,) + (1,) * (losses.ndim - dim - 1))
        class_weight = where(counts, class_weight[classes.squeeze(dim)], 0.0)
    chosen = gather(losses, dim, classes).squeeze(dim)
    if label_smoothing:
        share = label_smoothing / x.shape[dim]
        chosen = (1 - label_smoothing) * chosen + share * sum(losses, dim)
    chosen = where(counts, chosen, 0.0)
    if reduction == "none":
        return to(chosen, logits.dtype)
    total = sum(chosen)
    return to(total / sum(class_weight) if reduction == "mean" else total, logits.dtype)


def composite_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    class_weight: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Return cross_entropy(hidden weightᵀ, target), a language model's last layer and its loss.

    Args:
        hidden: (N, C).
        weight: (V, C).
        target: (N,).
        class_weight: (V,), as `weight` of cross_entropy.
        **options: as for cross_entropy.
    """
    logits = linear(widened(hidden), widened(weight))
    return to(composite_cross_entropy(logits, target, class_weight, **options), hidden.dtype)


def _class_dim(logits: Any) -> int:
    return 0 if len(logits.shape) == 1 else 1


def problems(
    logits: Any,
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> list[str]:
    """Return what is wrong with a call, as far as shapes, dtypes and options tell."""
    dim, shape = _class_dim(logits), logits.shape
    found = []
    if not logits.dtype.is_floating_point or target.dtype.category != "int":
        found.append(f"takes float logits and int targets, got {logits.dtype} and {target.dtype}")
    if not shape or target.shape != shape[:dim] + shape[dim + 1 :]:
        found.append(
            f"target has the shape of the logits without dimension {dim}, the classes; got logits "
            f"{shape} and target {target.shape}"
        )
    elif weight is not None and weight.shape != shape[dim : dim + 1]:
        found.append(f"weight must be {shape[dim : dim + 1]}, got {weight.shape}")
    if reduction not in _REDUCTIONS:
        found.append(f"reduction must be one of {_REDUCTIONS}, got {reduction!r}")
    if not 0 <= label_smoothing <= 1:
        found.append(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    return found


# ---- what both kernels share: the arithmetic of a row of logits ---------------------------------


class _Targets(NamedTuple):
    """Targets as rows want them: with V classes and class weights w (1 without)."""

    classes: Array  # (N,) int64; 0 where the target doesn't count
    counts: Array  # (N,) bool
    weights: Array  # (N,) w of the target's class, 0 where it doesn't count
    class_weights: Array  # (V,)
    smoothing: float
    num_classes: int

    @property
    def shared(self) -> float:
        """What each class gets of the smoothing."""
        return self.smoothing / self.num_classes

    def losses(self, lse: Array, picked: Array, weighted_sum: Array) -> Array:
        """Return each row's loss from its log-sum-exp, its target's logit and Σ_c w_c x_c."""
        shift, log_sum = lse
        losses = (1 - self.smoothing) * self.weights * (log_sum - (picked - shift))
        if self.smoothing:
            total = self.class_weights.sum()
            losses += self.shared * (total * log_sum - (weighted_sum - total * shift))
        losses[~self.counts] = 0
        return losses

    def reduce(self, losses: Array, shape: tuple[int, ...], dtype: Any, reduction: str) -> Array:
        """Return the losses in the target's shape, their sum, or their mean."""
        if reduction == "none":
            return losses.reshape(shape).astype(dtype, copy=False)
        total = losses.sum()
        return np.asarray(total / self.weights.sum() if reduction == "mean" else total, dtype)

    def factors(self, g: Array, reduction: str) -> Array:
        """Return (3, N): what multiplies softmax, the one-hot target and w in a row's gradient."""
        g = g.reshape(-1).astype(self.weights.dtype)
        if reduction == "mean":
            g /= self.weights.sum()
        g = np.where(self.counts, g, 0).astype(self.weights.dtype, copy=False)
        chosen = g * self.weights * (1 - self.smoothing)
        shared = g * self.shared
        return np.stack([chosen + shared * self.class_weights.sum(), chosen, shared])


def _targets(
    target: Array, weight: Array | None, ignore_index: int, smoothing: float, v: int, dtype: Any
) -> _Targets:
    target = target.reshape(-1)
    counts = target != ignore_index
    classes = np.where(counts, target, 0)
    check_range("cross_entropy target", classes, v)
    class_weights = np.ones(v, dtype) if weight is None else weight.astype(dtype, copy=False)
    weights = np.where(counts, class_weights[classes], 0).astype(dtype, copy=False)
    return _Targets(classes, counts, weights, class_weights, smoothing, v)


def _d_logits(x: Array, lse: Array, factors: Array, classes: Array, w: Array, out: Array) -> None:
    """Write the gradient of rows of logits into `out`, which may be x.

    x holds some columns of the logits (N, V); `classes` count from the first of them, and may lie
    outside. `lse` is (2, N), from `log_sum_exp`, and `factors` (3, N).
    """
    softmax_factor, chosen, shared = factors
    times_softmax(x, lse[0], lse[1], softmax_factor, out)
    rows = np.flatnonzero((classes >= 0) & (classes < x.shape[1]))
    out[rows, classes[rows]] -= chosen[rows]
    if shared.any():
        out -= shared[:, None] * w
    ignored = softmax_factor == 0
    if ignored.any():  # 0 · NaN is NaN
        out[ignored] = 0


# ---- cross_entropy ------------------------------------------------------------------------------


def _unsupported(logits: Any, *args: Any, **options: Any) -> list[str]:
    empty = ["there are no logits"] if 0 in logits.shape else []
    return empty or problems(logits, *args, **options)


def _forward(
    logits: Array,
    target: Array,
    weight: Array | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, tuple[Any, ...]]:
    rows = as_rows(logits, _class_dim(logits))  # (N, V)
    targets = _targets(target, weight, ignore_index, label_smoothing, rows.shape[1], rows.dtype)
    lse, (picked, summed) = np.empty((2, 2, len(rows)), rows.dtype)

    def tile(start: int, stop: int) -> None:
        x = rows[start:stop]
        lse[:, start:stop] = log_sum_exp(x)
        picked[start:stop] = x[np.arange(stop - start), targets.classes[start:stop]]
        if label_smoothing:
            np.vecdot(x, targets.class_weights, out=summed[start:stop])

    parallel_for(tile, len(rows), grain_for(*rows.shape))
    losses = targets.losses(lse, picked, summed)
    return targets.reduce(losses, target.shape, logits.dtype, reduction), (lse, targets)


def _backward(
    grads: Any, arrays: Any, outs: Any, residuals: Any, needs: Any, *,
    ignore_index: int = -100, label_smoothing: float = 0.0, reduction: str = "mean",
) -> tuple[Array | None, ...]:  # fmt: skip
    logits, (lse, targets) = arrays[0], residuals
    dim = _class_dim(logits)
    rows = as_rows(logits, dim)
    factors = targets.factors(grads[0], reduction)
    out = memory.empty_like(rows)

    def tile(start: int, stop: int) -> None:
        part = slice(start, stop)
        _d_logits(
            rows[part],
            lse[:, part],
            factors[:, part],
            targets.classes[part],
            targets.class_weights,
            out[part],
        )

    parallel_for(tile, len(rows), grain_for(*rows.shape))
    return from_rows(out, logits.shape, dim, logits.dtype), *(None for _ in arrays[1:])


# ---- linear_cross_entropy -----------------------------------------------------------------------


def _linear_unsupported(
    hidden: Any, weight: Any, target: Any, class_weight: Any = None, **options: Any
) -> list[str]:
    if len(hidden.shape) != 2 or len(weight.shape) != 2 or hidden.shape[1] != weight.shape[1]:
        return [f"hidden {hidden.shape} and weight {weight.shape} are no (N, C) and (V, C)"]
    if hidden.dtype != weight.dtype:
        return [f"hidden is {hidden.dtype}, weight {weight.dtype}"]
    logits = Like((hidden.shape[0], weight.shape[0]), hidden.dtype, hidden.device)
    return _unsupported(logits, target, class_weight, **options)


def _blocks(rows: int, columns: int) -> list[slice]:
    step = max(64, _BLOCK // rows)
    return [slice(v, min(v + step, columns)) for v in range(0, columns, step)]


def _linear_forward(
    hidden: Array,
    weight: Array,
    target: Array,
    class_weight: Array | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, tuple[Any, ...]]:
    h, num_classes = as_rows(hidden, -1), len(weight)
    targets = _targets(target, class_weight, ignore_index, label_smoothing, num_classes, h.dtype)
    lse = np.full((2, len(h)), -np.inf, h.dtype)  # of an empty sum
    picked, summed = np.zeros((2, len(h)), h.dtype)
    for block in _blocks(len(h), num_classes):
        logits = _block_logits(h, weight[block])
        classes = targets.classes - block.start
        rows = np.flatnonzero((classes >= 0) & (classes < logits.shape[1]))
        picked[rows] = logits[rows, classes[rows]]
        if label_smoothing:
            summed += np.vecdot(logits, targets.class_weights[block])
        _add_log_sum_exp(logits, lse)
    losses = targets.losses(lse, picked, summed)
    return targets.reduce(losses, target.shape, hidden.dtype, reduction), (lse, targets)


def _block_logits(h: Array, weight: Array) -> Array:
    out = memory.empty((len(h), len(weight)), h.dtype)
    return np.matmul(h, weight.astype(h.dtype, copy=False).T, out=out)


def _add_log_sum_exp(logits: Array, lse: Array) -> None:
    """Extend the sum in the log-sum-exp `lse` (2, N) by the exp of these logits (N, columns)."""

    def tile(start: int, stop: int) -> None:
        old_shift, old_log = lse[:, start:stop]
        new_shift, new_log = log_sum_exp(logits[start:stop])
        shift = np.maximum(old_shift, new_shift)
        old_log += old_shift - shift
        np.logaddexp(old_log, new_log + (new_shift - shift), out=old_log)
        old_shift[...] = shift

    parallel_for(tile, len(logits), grain_for(*logits.shape))


def _linear_backward(
    grads: Any, arrays: Any, outs: Any, residuals: Any, needs: Any, *,
    ignore_index: int = -100, label_smoothing: float = 0.0, reduction: str = "mean",
) -> tuple[Array | None, ...]:  # fmt: skip
    """d_hidden = d_logits weight, d_weight = d_logitsᵀ hidden."""
    hidden, weight = arrays[:2]
    lse, targets = residuals
    h = as_rows(hidden, -1)
    factors = targets.factors(grads[0], reduction)
    d_hidden, d_weight = np.zeros_like(h), memory.empty(weight.shape, h.dtype)
    for block in _blocks(len(h), len(weight)):
        logits = _block_logits(h, weight[block])
        classes, w = targets.classes - block.start, targets.class_weights[block]

        def tile(
            start: int, stop: int, x: Array = logits, classes: Array = classes, w: Array = w
        ) -> None:
            part = slice(start, stop)
            _d_logits(x[part], lse[:, part], factors[:, part], classes[part], w, x[part])

        parallel_for(tile, len(logits), grain_for(*logits.shape))
        if needs[0]:
            d_hidden += logits @ weight[block].astype(h.dtype, copy=False)
        if needs[1]:
            np.matmul(logits.T, h, out=d_weight[block])
    found = (d.astype(hidden.dtype, copy=False) for d in (d_hidden, d_weight))
    passed = (None,) * (len(arrays) - 2)
    return *(d if need else None for d, need in zip(found, needs, strict=False)), *passed


cross_entropy = FusedOp("cross_entropy", composite_cross_entropy)
linear_cross_entropy = FusedOp("linear_cross_entropy", composite_linear_cross_entropy)
cross_entropy.register(
    Kernel(
        name="numpy-tiled",
        device="cpu",
        priority=10,
        forward=_forward,
        backward=_backward,
        unsupported=_unsupported,
    )
)
linear_cross_entropy.register(
    Kernel(
        name="numpy-blocked",
        device="cpu",
        priority=10,
        forward=_linear_forward,
        backward=_linear_backward,
        unsupported=_linear_unsupported,
    )
)
