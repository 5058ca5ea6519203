"""LayerNorm and RMSNorm for PyTorch: checks, custom operators, autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from glassformer_kernels import checks
from glassformer_kernels import norm as kernels
from glassformer_kernels.norm_backward import backward

Tensors = tuple[torch.Tensor, torch.Tensor]


def layer_norm(
    x: torch.Tensor,
    normalized_shape: int | Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: torch.Tensor | None = None,
) -> torch.Tensor | Tensors:
    """Return (t - mean) / √(variance + eps) · weight + bias over the last dims, t = x + residual.

    Ba, Kiros and Hinton 2016, "Layer Normalization", section 3. The arguments are those of
    `torch.nn.functional.layer_norm`.

    Args:
        x: float32, float16 or bfloat16, (..., *normalized_shape). Sums are float32.
        normalized_shape: the last dimensions of x, over which the mean and variance are taken.
        weight: of that shape; float32, float16 or bfloat16, not necessarily x's. None is 1.
        bias: as weight; None is 0.
        eps: added to the variance.
        residual: of x's shape and dtype, added to x first.

    Returns:
        A tensor like x; with a residual, that and x + residual. Gradients flow through both.

    Raises:
        TypeError: other dtypes.
        ValueError: shapes that don't fit, tensors on different devices.
    """
    return _norm("layer_norm", x, normalized_shape, weight, bias, eps, residual, centre=True)


def rms_norm(
    x: torch.Tensor,
    normalized_shape: int | Sequence[int],
    weight: torch.Tensor | None = None,
    eps: float | None = None,
    *,
    residual: torch.Tensor | None = None,
) -> torch.Tensor | Tensors:
    """Return t / √(mean(t²) + eps) · weight over the last dims, t = x + residual.

    Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", section 4. The arguments are
    those of `torch.nn.functional.rms_norm`: eps is by default that of the arithmetic, which is
    float32 for every dtype: 2⁻²³. See `layer_norm` for the rest.
    """
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    return _norm("rms_norm", x, normalized_shape, weight, None, eps, residual, centre=False)


def _norm(
    op: str,
    x: torch.Tensor,
    normalized_shape: int | Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None,
    centre: bool,
) -> torch.Tensor | Tensors:
    if not isinstance(normalized_shape, (int, Sequence)):
        got = type(normalized_shape).__name__
        if isinstance(normalized_shape, torch.Tensor):
            got = f"a tensor of shape {tuple(normalized_shape.shape)}"
        raise TypeError(
            f"{op}: normalized_shape must be an int or a sequence of ints, got {got}; it comes "
            f"before the weight, as in PyTorch: {op}(x, weight.shape, weight)"
        )
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    _check(op, x, shape, weight, bias, residual)
    dims = len(shape)
    weight, bias = (None if part is None else part.flatten() for part in (weight, bias))
    rows = None if residual is None else residual.flatten(-dims)
    y, total, _, _ = _forward(x.flatten(-dims), weight, bias, rows, eps, centre)
    return y.view(x.shape) if residual is None else (y.view(x.shape), total.view(x.shape))


def _check(
    op: str,
    x: torch.Tensor,
    shape: tuple[int, ...],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> None:
    checks.check_floats(op, x=x, residual=residual)
    checks.check_floats(op, weight=weight)
    checks.check_floats(op, bias=bias)
    checks.check_devices(op, x=x, weight=weight, bias=bias, residual=residual)
    if not shape or tuple(x.shape[-len(shape) :]) != shape:
        raise ValueError(
            f"{op}: normalized_shape must be the last dimensions of x, got {shape} for x "
            f"{tuple(x.shape)}"
        )
    for name, part in (("weight", weight), ("bias", bias)):
        if part is not None and tuple(part.shape) != shape:
            raise ValueError(
                f"{op}: {name} must have the normalized_shape {shape}, got {tuple(part.shape)}"
            )
    if residual is not None and residual.shape != x.shape:
        raise ValueError(
            f"{op}: residual must have x's shape {tuple(x.shape)}, got {tuple(residual.shape)}"
        )


@torch.library.custom_op("glassformer::norm", mutates_args=())
def _forward(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    eps: float,
    centre: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return y, x + residual, mean and rstd; empty where there is none of them."""
    y, total, mean, rstd = kernels.forward(x, weight, bias, residual, eps=eps, centre=centre)
    return y, _or_empty(total, x.dtype, y), _or_empty(mean, rstd.dtype, y), rstd


@torch.library.custom_op("glassformer::norm_backward", mutates_args=())
def _backward(
    grad: torch.Tensor,
    grad_total: torch.Tensor | None,
    total: torch.Tensor,
    weight: torch.Tensor | None,
    mean: torch.Tensor | None,
    rstd: torch.Tensor,
    needs_sums: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of x, weight and bias, the latter float32; empty where not needed."""
    dx, *sums = backward(grad, grad_total, total, weight, mean, rstd, needs_sums=needs_sums)
    # Two views of one sum: an operator's results must not share memory.
    dweight, dbias = (_or_empty(part, rstd.dtype, dx) for part in sums)
    return dx, dweight, dbias.clone()


def _or_empty(part: torch.Tensor | None, dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
    return like.new_empty(0, dtype=dtype) if part is None else part


@_forward.register_fake
def _(
    x: torch.Tensor, weight: Any, bias: Any, residual: Any, eps: float, centre: bool
) -> tuple[torch.Tensor, ...]:
    rows = x.new_empty(x.shape[:-1].numel(), dtype=torch.float32)
    return (
        x.new_empty(x.shape),
        x.new_empty(0) if residual is None else x.new_empty(x.shape),
        torch.empty_like(rows) if centre else rows.new_empty(0),
        rows,
    )


@_backward.register_fake
def _(
    grad: Any, grad_total: Any, total: torch.Tensor, weight: Any, mean: Any, rstd: Any, needs: bool
) -> tuple[torch.Tensor, ...]:
    size = total.shape[-1] if needs else 0
    sums = (total.new_empty(size, dtype=torch.float32) for _ in range(2))
    return (total.new_empty(total.shape), *sums)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, weight, bias, residual, _, ctx.centre = inputs
    _, total, mean, rstd = output
    ctx.save_for_backward(x if residual is None else total, weight, bias, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd, *([total] if residual is None else []))
    ctx.set_materialize_grads(False)


def _vjp(
    ctx: Any, grad: torch.Tensor | None, grad_total: torch.Tensor | None, *_: Any
) -> tuple[torch.Tensor | None, ...]:
    t, weight, bias, mean, rstd = ctx.saved_tensors
    if grad is None:
        return grad_total, None, None, grad_total, None, None
    needs_x, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad[:4]
    mean = mean if ctx.centre else None
    sums = needs_weight or needs_bias
    dx, dweight, dbias = _backward(grad, grad_total, t, weight, mean, rstd, sums)
    return (
        dx if needs_x else None,
        dweight.to(weight.dtype) if needs_weight else None,
        dbias.to(bias.dtype) if needs_bias else None,
        dx if needs_residual else None,
        None,
        None,
    )


_forward.register_autograd(_vjp, setup_context=_setup_context)
checks.only_once_differentiable("layer_norm or rms_norm", _backward)
