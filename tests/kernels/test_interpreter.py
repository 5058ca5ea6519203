"""Triton's interpreter where there is no GPU: which versions of it and of NumPy go together."""

import pytest

from tests.kernel_calls import ON_GPU

# isort: split
import torch

from glassformer_kernels import launch
from glassformer_kernels.ops.attention import attention
from glassformer_kernels.ops.linear_cross_entropy import linear_cross_entropy


@pytest.mark.parametrize(
    "versions",
    [("3.6.0", "2.3.5"), ("3.6.1", "1.26.4"), ("3.7.0", "2.4.0"), ("3.10.0", "2.10.0rc1")],
)
def test_versions_that_go_together(versions):
    launch.check_interpreter(*versions)


@pytest.mark.parametrize("numpy", ["2.4.0", "2.10.1", "3.0.0"])
def test_an_interpreter_that_this_numpy_breaks_is_one_clear_line(numpy):
    with pytest.raises(
        RuntimeError, match=f"Triton 3.6.0 needs NumPy before 2.4, got {numpy}; install 'numpy<2.4'"
    ):
        launch.check_interpreter("3.6.0", numpy)


@pytest.mark.skipif(ON_GPU, reason="a GPU multiplies bfloat16")
def test_products_of_bfloat16_are_refused_where_they_would_be_wrong():
    x = torch.ones(1, 1, 2, 4, dtype=torch.bfloat16)
    wrong = "Triton's interpreter multiplies bfloat16 matrices wrongly; use float32 or float16"
    with pytest.raises(ValueError, match=f"attention: {wrong}"):
        attention(x, x, x)
    with pytest.raises(ValueError, match=f"linear_cross_entropy: {wrong}"):
        linear_cross_entropy(x[0, 0], x[0, 0], torch.zeros(2, dtype=torch.int64))
