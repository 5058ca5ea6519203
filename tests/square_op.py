"""A small fused operation to test the registry with: factor · x² + y."""

import numpy as np

import glassformer as gf
from glassformer.fused import FusedOp, Kernel


class Residual(np.ndarray):
    """An array that can be watched."""


def scaled_square(x, y=None, *, factor=1.0):
    """factor · x² (+ y)"""
    out = x * x * factor
    return out if y is None else out + y


def forward(x, y=None, *, factor):
    out = x * x * factor
    return (out if y is None else out + y), (np.array(2 * factor * x).view(Residual),)


def backward(grads, arrays, outs, residuals, needs, *, factor):
    return (np.asarray(grads[0] * residuals[0]), grads[0])[: len(needs)]


def small_only(x, y=None, **params):
    reasons = []
    if x.numel() > 4:
        reasons.append(f"{x.numel()} elements are more than 4")
    if x.dtype is gf.float16:
        reasons.append("half precision is beyond it")
    return reasons


def values(n=3, dtype="float64"):
    return gf.from_numpy(np.arange(1, n + 1, dtype=dtype)).requires_grad_()


def watched(kernel_backward=backward, kernel_forward=forward, reference=scaled_square):
    """An operation that notes who is asked for what."""
    log = []

    def noting(name, function):
        def call(*args, **params):
            log.append(name)
            return function(*args, **params)

        return call

    op = FusedOp("watched", noting("reference", reference))
    back = None if kernel_backward is None else noting("backward", kernel_backward)
    op.register(Kernel("kernel", "cpu", 1, noting("forward", kernel_forward), back))
    return op, log
