"""Mixed precision: a model computes in bfloat16 while its parameters stay float32.

An update is often smaller than the distance between two neighbouring bfloat16 numbers, and would
be lost. So the parameters, which the optimizer changes and checkpoints keep, are float32 (the
masters); forward and backward get copies of them in bfloat16, and the gradients come back in
float32. bfloat16 has the range of float32, so that no loss needs scaling. (Micikevicius et al.
2018, "Mixed Precision Training", section 3.1; Kalamkar et al. 2019, "A Study of BFLOAT16".)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from glassformer.devices import Device
from glassformer.dtypes import DType, bfloat16
from glassformer.nn import Module
from glassformer.tensor import Tensor


def check(model: Module, device: Device) -> None:
    """Check that a model can be trained in bfloat16 on a device.

    Raises:
        ValueError: the device has no bfloat16, or the model is not one of float32.
    """
    if device.type == "cpu":
        raise ValueError(
            "bf16=True needs a device that has bfloat16, 'cuda' or 'torch-cpu'; 'cpu' is NumPy, "
            "which lacks it"
        )
    narrow = {str(p.dtype) for p in model.parameters() if p.dtype.itemsize < 4}
    if narrow:
        raise ValueError(
            f"bf16=True keeps the parameters in float32, but some are {', '.join(narrow)}; "
            "convert the model first: model.to('float32')"
        )


@contextmanager
def computing_in(model: Module, dtype: DType = bfloat16) -> Iterator[None]:
    """Let parameters and buffers hold copies in `dtype`; afterwards they are what they were.

    Forward and its backward must both be inside. Gradients are converted to the parameters' own
    dtype at the end. What forward writes into a buffer is lost.
    """
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    masters = [(t, t.array) for t in tensors if t.dtype.is_floating_point]
    for tensor, array in masters:
        tensor.array = tensor.device.backend.astype(array, dtype)
    try:
        yield
    finally:
        for tensor, array in masters:
            tensor.array = array
            _widen_gradient(tensor)


def _widen_gradient(tensor: Tensor) -> None:
    if tensor.grad is not None and tensor.grad.dtype is not tensor.dtype:
        tensor.grad = tensor.grad.detach().to(tensor.dtype)
