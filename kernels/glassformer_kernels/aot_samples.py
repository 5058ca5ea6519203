"""The calls whose kernels are compiled ahead of time: each family in the forms that it ships.

Sizes are those of training a Transformer; what a kernel is specialised by (which block a row takes,
whether there is a mask or a bias, head dimensions) is what the samples differ in. Another call is
one more line in SAMPLES.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from glassformer_kernels import (
    activation,
    norm,
    norm_backward,
    optimizer_step,
    rotary,
)
from glassformer_kernels.aot_compile import Sample
from glassformer_kernels.aot_samples_attention import ATTENTION
from glassformer_kernels.cross_entropy import cross_entropy_backward, cross_entropy_forward
from glassformer_kernels.linear_cross_entropy import linear_cross_entropy_forward
from glassformer_kernels.linear_cross_entropy_backward import linear_cross_entropy_backward
from glassformer_kernels.softmax import backward as softmax_backward
from glassformer_kernels.softmax import forward as softmax_forward

_ROWS = 4096


def meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def _softmax(dtype: torch.dtype, columns: int, masked: bool = False, **options: Any) -> None:
    x = meta(_ROWS, columns, dtype=dtype)
    mask = meta(_ROWS, columns, dtype=torch.bool) if masked else None
    softmax_backward(x, softmax_forward(x, mask, **options), mask, **options)


def _norm(
    dtype: torch.dtype, columns: int, centre: bool, residual: bool = False, sums: bool = True
) -> None:
    x, weight = meta(_ROWS, columns, dtype=dtype), meta(columns, dtype=dtype)
    bias = weight if centre else None
    made = norm.forward(x, weight, bias, x if residual else None, eps=1e-5, centre=centre)
    mean = meta(_ROWS, dtype=torch.float32) if centre else None
    rstd = meta(_ROWS, dtype=torch.float32)
    del made
    norm_backward.backward(x, x if residual else None, x, weight, mean, rstd, needs_sums=sums)


def _cross_entropy(dtype: torch.dtype, classes: int, smoothing: float = 0.0) -> None:
    logits, target = meta(_ROWS, classes, dtype=dtype), meta(_ROWS, dtype=torch.int64)
    losses, lse = cross_entropy_forward(logits, target, -100, smoothing)
    cross_entropy_backward(losses, logits, target, lse, -100, smoothing)


def _linear_cross_entropy(dtype: torch.dtype, bias: bool, smoothing: float = 0.0) -> None:
    x, weight = meta(_ROWS, 1024, dtype=dtype), meta(32768, 1024, dtype=dtype)
    b, target = meta(32768, dtype=dtype) if bias else None, meta(_ROWS, dtype=torch.int64)
    losses, lse = linear_cross_entropy_forward(x, weight, b, target, -100, smoothing)
    linear_cross_entropy_backward(losses, x, weight, b, target, lse, -100, smoothing)


def _activation(dtype: torch.dtype, kind: str) -> None:
    x = meta(_ROWS, 4096, dtype=dtype)
    activation.activation_forward(x, kind)
    activation.activation_backward(x, x, kind)


def _swiglu(dtype: torch.dtype) -> None:
    x = meta(_ROWS, 4096, dtype=dtype)
    activation.swiglu_forward(x, x)
    activation.swiglu_backward(x, x, x)


def _rotary(dtype: torch.dtype, inverse: bool) -> None:
    x, table = meta(4, 16, 2048, 128, dtype=dtype), meta(2048, 64, dtype=torch.float32)
    rotary.rotate(x, table, table, inverse)


def _adamw(dtype: torch.dtype, master: bool) -> None:
    p, state = meta(4096, 1024, dtype=dtype), meta(4096, 1024, dtype=torch.float32)
    hyper = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    optimizer_step.adamw_step(p, p, state, state, state if master else None, step=10, **hyper)


SAMPLES = (
    *(
        Sample(f"softmax of {columns} columns", partial(_softmax, columns=columns))
        for columns in (128, 1024, 8192, 32768, 262144)
    ),
    Sample("softmax, masked", partial(_softmax, columns=1024, masked=True)),
    Sample("softmax, causal", partial(_softmax, columns=4096, causal="top_left")),
    Sample(
        "softmax of 65536, masked, causal",
        partial(_softmax, columns=65536, masked=True, causal="bottom_right"),
    ),
    Sample("log_softmax", partial(_softmax, columns=1024, log=True)),
    *(
        Sample(f"{name} of {columns} columns", partial(_norm, columns=columns, centre=centre))
        for name, centre in (("layer_norm", True), ("rms_norm", False))
        for columns in (1024, 8192, 65536)
    ),
    Sample("layer_norm + residual", partial(_norm, columns=4096, centre=True, residual=True)),
    Sample("rms_norm + residual", partial(_norm, columns=4096, centre=False, residual=True)),
    Sample("cross_entropy of 32768", partial(_cross_entropy, classes=32768)),
    Sample(
        "cross_entropy of 50257, smoothed", partial(_cross_entropy, classes=50257, smoothing=0.1)
    ),
    Sample("linear_cross_entropy", partial(_linear_cross_entropy, bias=False)),
    Sample(
        "linear_cross_entropy, bias, smoothed",
        partial(_linear_cross_entropy, bias=True, smoothing=0.1),
    ),
    *(
        Sample(f"activation {kind}", partial(_activation, kind=kind))
        for kind in ("gelu", "gelu_tanh", "silu")
    ),
    Sample("swiglu", _swiglu),
    Sample("rotary", partial(_rotary, inverse=False)),
    Sample("rotary, inverse", partial(_rotary, inverse=True)),
    Sample("adamw", partial(_adamw, master=False)),
    Sample("adamw, master", partial(_adamw, master=True), ("bf16", "fp16")),
    *ATTENTION,
)
