"""Cross-entropy for PyTorch, plain and with the linear layer before it: checks, operators."""

from __future__ import annotations

from typing import Any

import torch

from glassformer_kernels import checks
from glassformer_kernels.cross_entropy import (
    cross_entropy_backward,
    cross_entropy_forward,
    reduced,
)
from glassformer_kernels.linear_cross_entropy import linear_cross_entropy_forward
from glassformer_kernels.linear_cross_entropy_backward import linear_cross_entropy_backward

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
    if logits.ndim == 0 or target.shape != logits.shape[:-1]:
        raise ValueError(
            f"{op}: target must have the shape of the logits without the last dimension, got "
            f"logits {tuple(logits.shape)} and target {tuple(target.shape)}"
        )
    checks.check_devices(op, logits=logits, target=target)
    _check_options(op, target, label_smoothing, reduction)
    if check_targets:
        _check_range(op, target, logits.shape[-1], ignore_index)
    losses, _ = _cross_entropy(logits, target, ignore_index, label_smoothing, inplace_backward)
    return reduced(losses, target, ignore_index, reduction, logits.dtype)


def linear_cross_entropy(
    x: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    check_targets: bool = True,
) -> torch.Tensor:
    """Return cross_entropy(x weightᵀ + bias, target), a language model's last layer and its loss.

    The logits never exist all at once: `glassformer_kernels.linear_cross_entropy` tells how, and
    what memory it takes instead. Differentiable once.

    Args:
        x: (..., C), float32, float16 or bfloat16.
        weight: (V, C), of x's dtype.
        target: (...), integers in [0, V), or `ignore_index`.
        bias: (V,), of x's dtype, or None.
        ignore_index: as for `cross_entropy`, as are the others.
        label_smoothing: ε, in [0, 1].
        reduction: "mean", "sum" or "none".
        check_targets: look for targets out of range first.

    Returns:
        A number, or with "none" the losses in target's shape, in the dtype of x.

    Raises:
        IndexError: a target is out of range.
        TypeError: dtypes other than these, or that differ.
        ValueError: shapes, devices or options don't fit together.
    """
    op = "linear_cross_entropy"
    checks.check_floats(op, x=x, weight=weight, bias=bias)
    checks.check_product(op, x)
    if x.ndim == 0 or weight.ndim != 2 or x.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"{op}: x must be (..., C) and weight (V, C), got {tuple(x.shape)} and "
            f"{tuple(weight.shape)}"
        )
    if target.shape != x.shape[:-1]:
        raise ValueError(
            f"{op}: target must have the shape of x without the last dimension, got x "
            f"{tuple(x.shape)} and target {tuple(target.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{op}: bias must be {tuple(weight.shape[:1])} for weight {tuple(weight.shape)}, got "
            f"{tuple(bias.shape)}"
        )
    checks.check_devices(op, x=x, weight=weight, target=target, bias=bias)
    _check_options(op, target, label_smoothing, reduction)
    if check_targets:
        _check_range(op, target, len(weight), ignore_index)
    losses, _ = _linear_cross_entropy(x, weight, bias, target, ignore_index, label_smoothing)
    return reduced(losses, target, ignore_index, reduction, x.dtype)


def _check_options(op: str, target: torch.Tensor, label_smoothing: float, reduction: str) -> None:
    if target.dtype not in _INTEGERS:
        raise TypeError(f"{op}: target must be of an integer dtype, got {target.dtype}")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{op}: reduction must be one of {_REDUCTIONS}, got {reduction!r}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{op}: label_smoothing must be in [0, 1], got {label_smoothing}")


def _check_range(op: str, target: torch.Tensor, num_classes: int, ignore_index: int) -> None:
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
    return _fake_losses(logits, target)


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


def _fake_losses(x: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
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


@torch.library.custom_op("glassformer::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    return linear_cross_entropy_forward(x, weight, bias, target, ignore_index, label_smoothing)


@torch.library.custom_op("glassformer::linear_cross_entropy_backward", mutates_args=())
def _linear_cross_entropy_backward(
    g: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    lse: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    needs: list[bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of x, weight and bias; an empty tensor for one that isn't needed."""
    needs_x, needs_weight, needs_bias = needs
    found = linear_cross_entropy_backward(
        g,
        x,
        weight,
        bias,
        target,
        lse,
        ignore_index,
        label_smoothing,
        (needs_x, needs_weight, needs_bias),
    )
    d_x, d_weight, d_bias = (x.new_empty(0) if d is None else d for d in found)
    return d_x, d_weight, d_bias


@_linear_cross_entropy.register_fake
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _fake_losses(x, target)


@_linear_cross_entropy_backward.register_fake
def _(
    g: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    lse: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    needs: list[bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shapes = (x.shape, weight.shape, None if bias is None else bias.shape)
    d_x, d_weight, d_bias = (
        x.new_empty(shape if need and shape is not None else (0,))
        for need, shape in zip(needs, shapes, strict=True)
    )
    return d_x, d_weight, d_bias


def _save_linear(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]
) -> None:
    x, weight, bias, target, ctx.ignore_index, ctx.label_smoothing = inputs
    ctx.save_for_backward(x, weight, bias, target, output[1])
    ctx.set_materialize_grads(False)


def _differentiate_linear(
    ctx: Any, g: torch.Tensor | None, _: torch.Tensor | None
) -> tuple[torch.Tensor | None, ...]:
    if g is None:
        return (None,) * 6
    needs = list(ctx.needs_input_grad[:3])
    found = _linear_cross_entropy_backward(
        g, *ctx.saved_tensors, ctx.ignore_index, ctx.label_smoothing, needs
    )
    return *(d if need else None for d, need in zip(found, needs, strict=True)), None, None, None


_linear_cross_entropy.register_autograd(_differentiate_linear, setup_context=_save_linear)
