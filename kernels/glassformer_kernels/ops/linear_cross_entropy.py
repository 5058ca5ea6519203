"""cross_entropy(hidden weightᵀ, target) as an operator of PyTorch, without the logits."""

from __future__ import annotations

from typing import Any

import torch

from glassformer_kernels import checks
from glassformer_kernels.cross_entropy import reduced
from glassformer_kernels.linear_cross_entropy import linear_cross_entropy_forward
from glassformer_kernels.linear_cross_entropy_backward import linear_cross_entropy_backward
from glassformer_kernels.ops.cross_entropy import check_options, check_range, fake_losses


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
    checks.check_tensors(op, target=target)
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
    check_options(op, target, label_smoothing, reduction)
    if check_targets:
        check_range(op, target, len(weight), ignore_index)
    losses, _ = _linear_cross_entropy(x, weight, bias, target, ignore_index, label_smoothing)
    return reduced(losses, target, ignore_index, reduction, x.dtype)


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
    return fake_losses(x, target)


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
checks.only_once_differentiable("linear_cross_entropy", _linear_cross_entropy_backward)
