"""Cross-entropy for PyTorch: checks, operators."""

from __future__ import annotations

from typing import Any

import torch

from glassformer_kernels import checks
from glassformer_kernels.cross_entropy import (
    cross_entropy_backward,
    cross_entropy_forward,
    reduced,
)

_REDUCTIONS = ("mean", "sum", "none")
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    inplace_backward: bool = False,
    check_targets: bool = True,
) -> torch.Tensor:
    """Return -Σ_c q_c log softmax(logits)_c for each target, averaged, summed, or as it is.

    q is 1 - ε + ε/V at the target's class and ε/V at the others, ε = label_smoothing (Szegedy et
    al. 2016, "Rethinking the Inception Architecture", section 7). The mean is over the targets that
    count, NaN where none does. Differentiable once.

    Args:
        logits: (..., V), float32, float16 or bfloat16, any strides. Sums are float32. The classes
            are the last dimension, where PyTorch has them in the second.
        target: (...), integers in [0, V), or `ignore_index`.
        ignore_index: targets of this value don't count, and their logits aren't read.
        label_smoothing: ε, in [0, 1].
        reduction: "mean", "sum" or "none".
        inplace_backward: write the gradient over the logits in backward, which saves an array of
            their size. They are then no longer logits. Autograd knows, and raises if another
            operation still needs them, and in a second backward.
        check_targets: look for targets out of range first. On a GPU that waits for all that was
            launched before; without it, and always under torch.compile and in a CUDA graph, such a
            target's loss is NaN.

    Returns:
        A number, or with "none" the losses in target's shape, in the dtype of the logits.

    Raises:
        IndexError: a target is out of range.
        TypeError: dtypes other than these.
        ValueError: shapes, devices or options don't fit together.
    """
    op = "cross_entropy"
    checks.check_floats(op, logits=logits)
    checks.check_tensors(op, target=target)
    if logits.ndim == 0 or target.shape != logits.shape[:-1]:
        raise ValueError(
            f"{op}: target must have the shape of the logits without the last dimension, got "
            f"logits {tuple(logits.shape)} and target {tuple(target.shape)}"
        )
    checks.check_devices(op, logits=logits, target=target)
    check_options(op, target, label_smoothing, reduction)
    if check_targets:
        check_range(op, target, logits.shape[-1], ignore_index)
    losses, _ = _cross_entropy(logits, target, ignore_index, label_smoothing, inplace_backward)
    return reduced(losses, target, ignore_index, reduction, logits.dtype)


def check_options(op: str, target: torch.Tensor, label_smoothing: float, reduction: str) -> None:
    """Raise TypeError or ValueError for arguments that no cross-entropy takes."""
    if target.dtype not in _INTEGERS:
        raise TypeError(f"{op}: target must be of an integer dtype, got {target.dtype}")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{op}: reduction must be one of {_REDUCTIONS}, got {reduction!r}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{op}: label_smoothing must be in [0, 1], got {label_smoothing}")


def check_range(op: str, target: torch.Tensor, num_classes: int, ignore_index: int) -> None:
    """Raise IndexError for a target out of range, where values can be looked at."""
    if torch.compiler.is_compiling() or target.numel() == 0:
        return
    if target.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    target = target.long()  # a narrower type can't be compared with every number
    wrong = (target != ignore_index) & ((target < 0) | (target >= num_classes))
    if wrong.any():
        raise IndexError(
            f"{op}: target {int(target[wrong][0])} is out of range for {num_classes} classes, and "
            f"not ignore_index {ignore_index}"
        )


@torch.library.custom_op("glassformer::cross_entropy", mutates_args=())
def _cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    inplace_backward: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return cross_entropy_forward(logits, target, ignore_index, label_smoothing)


@torch.library.custom_op("glassformer::cross_entropy_backward", mutates_args=())
def _cross_entropy_backward(
    g: torch.Tensor,
    logits: torch.Tensor,
    target: torch.Tensor,
    lse: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> torch.Tensor:
    return cross_entropy_backward(g, logits, target, lse, ignore_index, label_smoothing)


@torch.library.custom_op("glassformer::cross_entropy_backward_", mutates_args={"logits"})
def _cross_entropy_backward_(
    g: torch.Tensor,
    logits: torch.Tensor,
    target: torch.Tensor,
    lse: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> None:
    cross_entropy_backward(g, logits, target, lse, ignore_index, label_smoothing, in_place=True)


@_cross_entropy.register_fake
def _(
    logits: torch.Tensor,
    target: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    inplace_backward: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return fake_losses(logits, target)


@_cross_entropy_backward.register_fake
def _(
    g: torch.Tensor,
    logits: torch.Tensor,
    target: torch.Tensor,
    lse: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> torch.Tensor:
    return logits.new_empty(logits.shape)


@_cross_entropy_backward_.register_fake
def _(
    g: torch.Tensor,
    logits: torch.Tensor,
    target: torch.Tensor,
    lse: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> None:
    return None


def fake_losses(x: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return losses and log-sum-exps of such logits, without values: what `fake` operators give."""
    losses = x.new_empty(target.shape, dtype=torch.float32)
    return losses, x.new_empty((2, target.numel()), dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, target, ctx.ignore_index, ctx.label_smoothing, ctx.in_place = inputs
    ctx.save_for_backward(logits, target, output[1])
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, g: torch.Tensor | None, _: torch.Tensor | None
) -> tuple[torch.Tensor | None, None, None, None, None]:
    if g is None:
        return None, None, None, None, None
    logits, target, lse = ctx.saved_tensors
    args = (g, logits, target, lse, ctx.ignore_index, ctx.label_smoothing)
    shared = any(
        n > 1 and stride == 0 for n, stride in zip(logits.shape, logits.stride(), strict=True)
    )
    if ctx.in_place and not shared:
        _cross_entropy_backward_(*args)
        return logits.detach(), None, None, None, None
    return _cross_entropy_backward(*args), None, None, None, None


_cross_entropy.register_autograd(_differentiate, setup_context=_save)
checks.only_once_differentiable("cross_entropy", _cross_entropy_backward)
