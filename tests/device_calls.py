"""Running on PyTorch's arrays: what `cuda` does without a GPU."""

from contextlib import contextmanager

import numpy as np

from glassformer import fused
from glassformer.fused.registry import _ops

DEVICE = "torch-cpu"


@contextmanager
def references():
    """Let the references serve every fused operation: Triton's interpreter is slow."""
    with fused.use(**dict.fromkeys(_ops, "reference")):
        yield


def values(tensor):
    """A tensor's values wherever it is, half precision as float32."""
    tensor = tensor.detach()
    return tensor.to(tensor.dtype.wide).cpu().numpy()


def assert_equal(actual, expected, rtol=0.0, atol=0.0):
    """Assert that tensors of one dtype on any devices hold the same, or nearly the same."""
    assert actual.dtype is expected.dtype
    np.testing.assert_allclose(values(actual), values(expected), rtol=rtol, atol=atol, strict=True)
