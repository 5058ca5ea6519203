"""softmax and log_softmax for PyTorch: checks, custom operators, autograd."""

from __future__ import annotations

from typing import Any

import torch

from glassformer_kernels import checks
from glassformer_kernels.softmax import backward as softmax_backward
from glassformer_kernels.softmax import forward as softmax_forward


def softmax(
    x: torch.Tensor,
    dim: int = -1,
    *,
    scale: float = 1.0,
    causal: str | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return exp(z) / Σ exp(z) along `dim`, with z = scale · x where visible and -inf elsewhere.

    A row of which nothing is visible, or whose z are all -inf, is NaN, as in PyTorch.

    Args:
        x: float32, float16 or bfloat16, any shape but (). Sums are float32.
        dim: the dimension that sums to 1.
        scale: what x is multiplied by.
        causal: which columns row i of x (..., Tq, Tk) sees: "top_left" those ≤ i, "bottom_right"
            those ≤ i + Tk - Tq, None all.
        mask: bool, broadcastable to x: True where an element is visible. It is read as it is,
            never expanded in memory. Together with `causal` both hold.

    Returns:
        A tensor like x. Where an element is hidden it is 0, and whatever x and the incoming
        gradient hold there reaches no result and no gradient.

    Raises:
        TypeError: x isn't of those dtypes, the mask isn't bool.
        ValueError: a dim, mask or `causal` that doesn't fit x; tensors on different devices.
    """
    return _out_of_place("softmax", x, dim, scale, causal, mask, log=False)


def log_softmax(
    x: torch.Tensor,
    dim: int = -1,
    *,
    scale: float = 1.0,
    causal: str | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return z - log Σ exp(z) along `dim`, the logarithm of `softmax`, which see.

    Where an element is hidden the result is -inf, and a gradient that arrives there is ignored.
    """
    return _out_of_place("log_softmax", x, dim, scale, causal, mask, log=True)


def softmax_(
    x: torch.Tensor,
    dim: int = -1,
    *,
    scale: float = 1.0,
    causal: str | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Write `softmax` of x into x, and return x.

    Autograd knows: x may be the result of an operation that doesn't need it for its own gradient.

    Raises:
        RuntimeError: x is a leaf that requires grad, or several of its elements share memory.
    """
    return _in_place("softmax_", x, dim, scale, causal, mask, log=False)


def log_softmax_(
    x: torch.Tensor,
    dim: int = -1,
    *,
    scale: float = 1.0,
    causal: str | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Write `log_softmax` of x into x, and return x. See `softmax_`."""
    return _in_place("log_softmax_", x, dim, scale, causal, mask, log=True)


def _out_of_place(
    op: str,
    x: torch.Tensor,
    dim: int,
    scale: float,
    causal: str | None,
    mask: torch.Tensor | None,
    log: bool,
) -> torch.Tensor:
    mask = _checked(op, x, dim, causal, mask)
    y: torch.Tensor = _softmax(x.movedim(dim, -1), mask, scale, causal, log)
    return y.movedim(-1, dim)


def _in_place(
    op: str,
    x: torch.Tensor,
    dim: int,
    scale: float,
    causal: str | None,
    mask: torch.Tensor | None,
    log: bool,
) -> torch.Tensor:
    mask = _checked(op, x, dim, causal, mask)
    if any(n > 1 and stride == 0 for n, stride in zip(x.shape, x.stride(), strict=True)):
        raise RuntimeError(
            f"{op}: several elements of x share memory (shape {tuple(x.shape)}, strides "
            f"{x.stride()}); call x.contiguous() first"
        )
    return _InPlace.apply(x, mask, dim, scale, causal, log)


def _checked(
    op: str, x: torch.Tensor, dim: int, causal: str | None, mask: torch.Tensor | None
) -> torch.Tensor | None:
    """Check the arguments, and return the mask with `dim` last."""
    checks.check_floats(op, x=x)
    checks.check_devices(op, x=x, mask=mask)
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"{op}: x {tuple(x.shape)} has no dim {dim}")
    checks.check_causal(op, causal)
    if causal is not None and (x.ndim < 2 or dim not in (-1, x.ndim - 1)):
        raise ValueError(
            f"{op}: causal={causal!r} takes x (..., Tq, Tk) along its last dim, got x "
            f"{tuple(x.shape)} along dim {dim}"
        )
    if mask is None:
        return None
    checks.check_bool(op, "mask", mask)
    checks.check_broadcasts(op, "mask", mask, tuple(x.shape))
    return mask if dim in (-1, x.ndim - 1) else mask.expand(x.shape).movedim(dim, -1)


class _InPlace(torch.autograd.Function):
    """y replaces x; backward needs y alone. (Custom operators that mutate have no autograd.)"""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        mask: torch.Tensor | None,
        dim: int,
        scale: float,
        causal: str | None,
        log: bool,
    ) -> torch.Tensor:
        _softmax_(x.movedim(dim, -1), mask, scale, causal, log)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x, mask)
        ctx.options = dim, scale, causal, log
        return x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        y, mask = ctx.saved_tensors
        dim, *options = ctx.options
        dx = _softmax_backward(grad.movedim(dim, -1), y.movedim(dim, -1), mask, *options)
        return dx.movedim(-1, dim), None, None, None, None, None


@torch.library.custom_op("glassformer::softmax", mutates_args=())
def _softmax(
    x: torch.Tensor, mask: torch.Tensor | None, scale: float, causal: str | None, log: bool
) -> torch.Tensor:
    return softmax_forward(x, mask, scale=scale, causal=causal, log=log)


@torch.library.custom_op("glassformer::softmax_", mutates_args=("x",))
def _softmax_(
    x: torch.Tensor, mask: torch.Tensor | None, scale: float, causal: str | None, log: bool
) -> None:
    softmax_forward(x, mask, scale=scale, causal=causal, log=log, out=x)


@torch.library.custom_op("glassformer::softmax_backward", mutates_args=())
def _softmax_backward(
    grad: torch.Tensor,
    y: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    causal: str | None,
    log: bool,
) -> torch.Tensor:
    return softmax_backward(grad, y, mask, scale=scale, causal=causal, log=log)


@_softmax.register_fake
def _(x: torch.Tensor, *_: Any) -> torch.Tensor:
    return x.new_empty(x.shape)


@_softmax_.register_fake
def _(x: torch.Tensor, *_: Any) -> None:
    return None


@_softmax_backward.register_fake
def _(grad: torch.Tensor, y: torch.Tensor, *_: Any) -> torch.Tensor:
    return y.new_empty(y.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, mask, *ctx.options = inputs
    ctx.save_for_backward(output, mask)


def _vjp(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    y, mask = ctx.saved_tensors
    return _softmax_backward(grad, y, mask, *ctx.options), None, None, None, None


_softmax.register_autograd(_vjp, setup_context=_setup_context)
checks.only_once_differentiable("softmax or log_softmax", _softmax_backward)
