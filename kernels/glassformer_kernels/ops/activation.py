"""gelu, silu and swiglu for PyTorch: checks, custom operators, autograd."""

from __future__ import annotations

from typing import Any

import torch

from glassformer_kernels import activation as kernels
from glassformer_kernels import checks


def gelu(x: torch.Tensor, *, approximate: str = "none") -> torch.Tensor:
    """Return x Φ(x), with Φ the standard normal distribution function, or its approximation.

    "none": Φ(x) = (1 + erf(x/√2)) / 2. "tanh": Φ(x) ≈ (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2.
    Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", section 2.

    Args:
        x: float32, float16 or bfloat16, any shape and strides; computed in float32.
        approximate: "none" or "tanh".

    Returns:
        A contiguous tensor of x's shape and dtype. Differentiable once.

    Raises:
        TypeError: x isn't of those dtypes.
        ValueError: `approximate` is neither.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    checks.check_floats("gelu", x=x)
    checks.check_devices("gelu", x=x)
    return _activation(x, "gelu" if approximate == "none" else "gelu_tanh")


def silu(x: torch.Tensor) -> torch.Tensor:
    """Return x sigmoid(x) = x / (1 + exp(-x)).

    Elfwing, Uchibe and Doya 2017, "Sigmoid-weighted linear units", section 2.1. Arguments, result
    and errors are as for `gelu`.
    """
    checks.check_floats("silu", x=x)
    checks.check_devices("silu", x=x)
    return _activation(x, "silu")


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) · up. Shazeer 2020, "GLU Variants Improve Transformer", section 2.

    Args:
        gate: float32, float16 or bfloat16, any shape and strides: the two may be halves of one
            tensor. Computed in float32.
        up: of gate's shape and dtype.

    Returns:
        A contiguous tensor of their shape and dtype. Differentiable once.

    Raises:
        TypeError: the dtypes differ, or aren't among those.
        ValueError: the shapes or devices differ.
    """
    checks.check_floats("swiglu", gate=gate, up=up)
    checks.check_devices("swiglu", gate=gate, up=up)
    if gate.shape != up.shape:
        raise ValueError(
            f"swiglu: gate and up must have one shape, got {tuple(gate.shape)} and "
            f"{tuple(up.shape)}"
        )
    return _swiglu(gate, up)


@torch.library.custom_op("glassformer::activation", mutates_args=())
def _activation(x: torch.Tensor, kind: str) -> torch.Tensor:
    return kernels.activation_forward(x, kind)


@torch.library.custom_op("glassformer::activation_backward", mutates_args=())
def _activation_backward(g: torch.Tensor, x: torch.Tensor, kind: str) -> torch.Tensor:
    return kernels.activation_backward(g, x, kind)


@_activation.register_fake
def _(x: torch.Tensor, kind: str) -> torch.Tensor:
    return x.new_empty(x.shape)


@_activation_backward.register_fake
def _(g: torch.Tensor, x: torch.Tensor, kind: str) -> torch.Tensor:
    return x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, ctx.kind = inputs
    ctx.save_for_backward(x)


def _differentiate(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, None]:
    (x,) = ctx.saved_tensors
    return _activation_backward(g, x, ctx.kind), None


_activation.register_autograd(_differentiate, setup_context=_save)
checks.only_once_differentiable("gelu or silu", _activation_backward)


@torch.library.custom_op("glassformer::swiglu", mutates_args=())
def _swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return kernels.swiglu_forward(gate, up)


@torch.library.custom_op("glassformer::swiglu_backward", mutates_args=())
def _swiglu_backward(
    g: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return kernels.swiglu_backward(g, gate, up)


@_swiglu.register_fake
def _(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return gate.new_empty(gate.shape)


@_swiglu_backward.register_fake
def _(g: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


def _save_both(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_both(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _swiglu_backward(g, *ctx.saved_tensors)


_swiglu.register_autograd(_differentiate_both, setup_context=_save_both)
checks.only_once_differentiable("swiglu", _swiglu_backward)
