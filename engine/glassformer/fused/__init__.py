"""Fused operations: each defined by a reference, computed by the fastest kernel that can."""

from glassformer.fused import (  # importing a file registers its operations
    activation,
    attention,
    loss,
    norm,
    optimizer_step,
    rotary,
    softmax,
)
from glassformer.fused.registry import FusedOp, Kernel, explain, last_kernel, use

__all__ = [
    "FusedOp",
    "Kernel",
    "activation",
    "attention",
    "explain",
    "last_kernel",
    "loss",
    "norm",
    "optimizer_step",
    "rotary",
    "softmax",
    "use",
]
