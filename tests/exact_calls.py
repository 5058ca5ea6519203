"""A kernel beside the engine's reference in float64 and beside eager PyTorch, with gradients."""

import numpy as np
import torch

import glassformer as gf
from glassformer import fused
from tests.kernel_calls import DEVICE, GRADIENT, OUTPUT, assert_near


def is_float(x):
    return isinstance(x, torch.Tensor) and x.dtype.is_floating_point


def run(function, args, g):
    """Return the output of a PyTorch function and its gradients for floating point arguments."""
    given = [x.detach().requires_grad_() if is_float(x) else x for x in args]
    out = function(*given)
    grads = torch.autograd.grad(out, [x for x in given if is_float(x)], g.reshape(out.shape))
    return out.detach(), *grads


def exact(name, args, g, **params):
    """Return the same of an engine's operation, by its reference in float64."""
    tensors = [
        x if x is None else gf.tensor(x.detach().double().cpu().numpy(), requires_grad=True)
        if is_float(x)
        else gf.tensor(x.cpu().numpy())
        for x in args
    ]  # fmt: skip
    with fused.use(**{name: fused.registry.REFERENCE}):
        out = fused.registry.get(name)(*tensors, **params)
        out.backward(gf.tensor(g.double().cpu().numpy().reshape(out.shape)))
    grads = [t.grad.numpy() for x, t in zip(args, tensors, strict=True) if is_float(x)]
    return out.detach().numpy(), *grads


def check(name, ours, exact, eager, terms=None):
    """Assert that output and gradients are near the exact ones, measured by eager PyTorch's.

    `terms` are the largest numbers that are summed to make each of them, see `assert_near`.
    """
    for i, (mine, true, theirs) in enumerate(zip(ours, exact, eager, strict=True)):
        what = f"{name}: output" if i == 0 else f"{name}: gradient {i - 1}"
        assert mine.dtype == theirs.dtype, what
        factor, term = OUTPUT if i == 0 else GRADIENT, terms[i] if terms else 0.0
        assert_near(what, mine, true, theirs, factor, term)


def padded(x):
    """Rows with a stride of their own: NaN before and after each."""
    whole = torch.full((*x.shape[:-1], x.shape[-1] + 3), float("nan"), dtype=x.dtype, device=DEVICE)
    return whole[..., 1:-2].copy_(x)


def far_apart(x, rows=3):
    """Return `rows` rows x (D,) of which the last begins 2³¹ elements into its memory, or later.

    Most of that memory is never touched, so it takes no room.
    """
    stride = 2**31 // (rows - 1)
    whole = torch.empty(stride * (rows - 1) + len(x), dtype=x.dtype, device=DEVICE)
    part = whole.as_strided((rows, len(x)), (stride, 1))
    part.copy_(x.expand(rows, len(x)))
    assert (rows - 1) * part.stride(0) >= np.iinfo(np.int32).max
    return part
