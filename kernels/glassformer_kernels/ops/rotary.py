"""Rotary position embedding for PyTorch: checks, custom operators, autograd."""

from __future__ import annotations

from typing import Any

import torch

from glassformer_kernels import checks
from glassformer_kernels import rotary as kernels


def rotary_embedding(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the pairs (x[i], x[i + D/2]) of the last dimension by angles with this cos and sin.

    out[i] = x[i] cos[i] - x[i + D/2] sin[i];  out[i + D/2] = x[i + D/2] cos[i] + x[i] sin[i].
    Su et al. 2021, "RoFormer", section 3.4.2, with channels paired by halves as in GPT-NeoX.

    Args:
        x: (..., T, D), float32, float16 or bfloat16, any strides; computed in float32.
        cos: broadcastable to (..., T, D/2), of x's dtype or float32. Read as it is, never expanded.
        sin: as cos.

    Returns:
        A contiguous tensor of x's shape and dtype. All three arguments get gradients, of any order.

    Raises:
        TypeError: x isn't of those dtypes, or cos and sin are neither float32 nor of x's dtype.
        ValueError: D is odd, cos and sin don't fit, or the devices differ.
    """
    _check("rotary_embedding", x, cos, sin)
    return _rotary(x, cos, sin, False)


def rotary_embedding_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Write `rotary_embedding` of x into x, and return x.

    Autograd knows: the gradient of x flows on, those of cos and sin don't exist.

    Raises:
        RuntimeError: x is a leaf that requires grad, several of its elements share memory, or cos
            or sin require grad.
    """
    _check("rotary_embedding_", x, cos, sin)
    if torch.is_grad_enabled() and (cos.requires_grad or sin.requires_grad):
        raise RuntimeError(
            "rotary_embedding_: cos and sin can't get gradients where x is overwritten, which they "
            "need; call rotary_embedding"
        )
    if any(n > 1 and stride == 0 for n, stride in zip(x.shape, x.stride(), strict=True)):
        raise RuntimeError(
            f"rotary_embedding_: several elements of x share memory (shape {tuple(x.shape)}, "
            f"strides {x.stride()}); call x.contiguous() first"
        )
    result: torch.Tensor = _InPlace.apply(x, cos, sin)
    return result


def _check(op: str, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    checks.check_floats(op, x=x)
    checks.check_tensors(op, cos=cos, sin=sin)
    for name, table in (("cos", cos), ("sin", sin)):
        if table.dtype not in (x.dtype, torch.float32):
            raise TypeError(f"{op}: {name} must be float32 or {x.dtype} as x, got {table.dtype}")
    checks.check_devices(op, x=x, cos=cos, sin=sin)
    if x.ndim < 2 or x.shape[-1] % 2:
        raise ValueError(f"{op}: x must be (..., T, D) with D even, got {tuple(x.shape)}")
    full = (*x.shape[:-1], x.shape[-1] // 2)
    checks.check_broadcasts(op, "cos", cos, full)
    checks.check_broadcasts(op, "sin", sin, full)


@torch.library.custom_op("glassformer::rotary_embedding", mutates_args=())
def _rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, inverse: bool) -> torch.Tensor:
    return kernels.rotate(x, cos, sin, inverse)


@_rotary.register_fake
def _(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, inverse: bool) -> torch.Tensor:
    return x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, cos, sin, ctx.inverse = inputs
    needs_tables = any(ctx.needs_input_grad[1:3])
    ctx.save_for_backward(cos, sin, *((x,) if needs_tables else ()))


def _differentiate(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    cos, sin, *x = ctx.saved_tensors
    # The rotation is linear, its adjoint the opposite rotation: the operator is its own backward.
    d_x = _rotary(g, cos, sin, not ctx.inverse) if ctx.needs_input_grad[0] else None
    if not x:
        return d_x, None, None, None
    d_cos, d_sin = kernels.table_gradients(g, x[0], cos, sin)
    return d_x, d_cos, -d_sin if ctx.inverse else d_sin, None


_rotary.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op("glassformer::rotary_embedding_", mutates_args={"x"})
def _rotary_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    kernels.rotate(x, cos, sin, out=x)


@_rotary_.register_fake
def _(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    return None


class _InPlace(torch.autograd.Function):
    """The result replaces x; backward needs cos and sin. (Mutating operators have no autograd.)"""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        _rotary_(x, cos, sin)
        ctx.mark_dirty(x)
        ctx.save_for_backward(cos, sin)
        return x

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotary(g, cos, sin, True), None, None
