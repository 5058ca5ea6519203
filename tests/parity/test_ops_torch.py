"""Every operation against PyTorch's: value, gradient, dtype, shape, and what shares memory."""

import warnings
from functools import reduce

import numpy as np
import pytest
import torch

from tests import samples
from tests.samples import assert_agree, converted, flattened, gradients, run, tensors, weights

OPS = samples.registry()
DIFFERENTIABLE = [op for op in OPS.values() if op.differentiable]
FLOATS = ("float64", "float32", "float16")
over_devices = pytest.mark.parametrize("device", samples.DEVICES)
# Samples are a few numbers each: their sums leave single precision a tenth of its usual tolerance.
SLACK = dict.fromkeys(samples.DTYPES, 1) | {"float32": 0.1}

# What PyTorch raises where it has no such operation for a dtype.
UNSUPPORTED = (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError)

# The only samples whose gradients go uncompared: PyTorch has none for them in any dtype.
WITHOUT_DERIVATIVE = {
    # A number modulo a tensor can't be differentiated there.
    "remainder": ["1.5, float64[2, 3]", "2, float64[2, 3]"],
    "rremainder": ["float64[2, 3], 1.5", "float64[2, 3], 2", "float64[], 1.5"],
    # With an index smaller than what is added, that one's gradient gets the shape of the index.
    "scatter_add": ["float64[3, 4], -1, int64[2, 3], float64[3, 4]"],
}


def torch_function(op):
    if callable(op.torch):
        return op.torch
    path = (op.torch or op.name).split(".")
    return reduce(getattr, path, torch)


def torch_tensors(sample, dtype, requires_grad=False):
    made = [torch.from_numpy(converted(array, dtype).copy()) for array in sample.arrays()]
    return [t.requires_grad_() if requires_grad and t.is_floating_point() else t for t in made]


def torch_run(op, sample, values):
    left = iter(values)
    args, kwargs = sample.replaced(lambda _array: next(left))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of no degrees of freedom, and of extra copies
        return flattened(torch_function(op)(*args, **kwargs))


def torch_gradients(op, sample, inputs):
    outputs = torch_run(op, sample, inputs)
    reached = [out for out in outputs if out.requires_grad]
    leaves = [t for t in inputs if t.requires_grad]
    if not reached or not leaves:
        return [torch.zeros_like(leaf) for leaf in leaves]
    start = [
        torch.tensor(w).to(out.dtype) for w, out in zip(weights(reached), reached, strict=True)
    ]
    found = torch.autograd.grad(reached, leaves, start, allow_unused=True)
    return [
        torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)
    ]


def expected_of(op, sample, dtype, compute):
    """PyTorch's results as arrays, or None where it has none for the dtype.

    In half precision the dtypes are its own, but the numbers those it computes in float64 from the
    same inputs: its rounding between operations is not ours.
    """
    recorded = compute is torch_gradients
    try:
        results = [
            t.detach().numpy() for t in compute(op, sample, torch_tensors(sample, dtype, recorded))
        ]
        if dtype == "float16":
            inputs = [
                t.double().requires_grad_(recorded) if t.dtype == torch.float16 else t
                for t in torch_tensors(sample, dtype)
            ]
            exact = [t.detach().numpy() for t in compute(op, sample, inputs)]
            with np.errstate(over="ignore"):
                results = [
                    e.astype(r.dtype) if e.dtype == np.float64 else r
                    for e, r in zip(exact, results, strict=True)
                ]
    except UNSUPPORTED:
        return None
    return results


@over_devices
@pytest.mark.parametrize(
    ("op", "dtype"), [(op, dtype) for op in OPS.values() for dtype in op.dtypes], ids=str
)
def test_values(op, dtype, device):
    for sample in op.samples:
        expected = expected_of(op, sample, dtype, torch_run)
        if expected is None:
            assert dtype != "float64", f"PyTorch can't compute {op} of {sample}"
            continue
        outputs = run(op, sample, tensors(sample, dtype=dtype, device=device))
        for mine, theirs in zip(outputs, expected, strict=True):
            assert mine.device.type == device
            assert_agree(mine.cpu().numpy(), theirs, f"{op} of {sample}", SLACK[dtype])


@over_devices
@pytest.mark.parametrize(
    ("op", "dtype"),
    [(op, dtype) for op in DIFFERENTIABLE for dtype in FLOATS if dtype in op.dtypes],
    ids=str,
)
def test_gradients(op, dtype, device):
    skipped, compared = [], 0
    for sample in op.samples:
        expected = expected_of(op, sample, dtype, torch_gradients)
        if expected is None:
            skipped.append(str(sample))
            continue
        values = tensors(sample, dtype=dtype, device=device, requires_grad=True)
        found = gradients(run(op, sample, values), values)
        for got, want in zip(found, expected, strict=True):
            assert got.device.type == device
            assert_agree(got.cpu().numpy(), want, f"gradient of {op} of {sample}", SLACK[dtype])
            compared += 1
    assert compared
    assert skipped == WITHOUT_DERIVATIVE.get(op.name, [])


@pytest.mark.parametrize("op", OPS.values(), ids=repr)
def test_results_share_memory_with_an_argument_only_where_they_do_in_pytorch(op):
    for sample in op.samples:
        mine, theirs = tensors(sample), torch_tensors(sample, "float64")
        outputs = zip(run(op, sample, mine), torch_run(op, sample, theirs), strict=True)
        storage = {t.untyped_storage().data_ptr() for t in theirs if t.numel()}
        for got, expected in outputs:
            if any(np.shares_memory(got.array, t.array) for t in mine):
                assert expected.untyped_storage().data_ptr() in storage, sample
