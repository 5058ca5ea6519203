"""Calls of Triton kernels for tests: where they run, walls around memory, how near is near.

On a machine with a CUDA device the kernels run there, in every dtype. Elsewhere Triton's
interpreter runs them on CPU tensors (tests/conftest.py asks for it), where its product of bfloat16
matrices is wrong: float32 and float16 there.
"""

import os
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from glassformer_kernels import launch  # noqa: E402 - after the skips

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
LARGE = os.environ.get("HYPOTHESIS_PROFILE") in ("large", "nightly")  # make test-all
DTYPES = (torch.float32, torch.float16, *((torch.bfloat16,) if ON_GPU else ()))

dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**32 - 1)

# How much further than eager PyTorch's in the same precision a result may be from the exact one.
OUTPUT, GRADIENT = 2, 3

_WALL = 64  # elements of NaN (or a wrong number) on either side of a buffer


def _poison(dtype):
    return float("nan") if dtype.is_floating_point else (True if dtype is torch.bool else -77)


def walled(shape, dtype, fill=None):
    """Return an uninitialised tensor in the middle of a poisoned buffer, and that buffer."""
    count = int(np.prod(shape, dtype=np.int64))
    whole = torch.full((count + 2 * _WALL,), _poison(dtype), dtype=dtype, device=DEVICE)
    return whole[_WALL : _WALL + count].view(shape), whole


def is_intact(whole):
    """Tell whether nothing was written to the walls of a buffer from `walled`."""
    for wall in (whole[:_WALL], whole[-_WALL:]):
        same = wall.isnan() if whole.dtype.is_floating_point else wall == _poison(whole.dtype)
        if not bool(same.all()):
            return False
    return True


@contextmanager
def walls(monkeypatch):
    """Put walls around all that kernels write while this lasts, and assert that they stand."""
    buffers = []

    def empty(shape, like, dtype=None):
        part, whole = walled(tuple(shape), dtype or like.dtype)
        buffers.append(whole)
        return part

    with monkeypatch.context() as patch:
        patch.setattr(launch, "empty", empty)
        yield buffers
    assert buffers, "nothing was allocated through launch.empty"
    assert all(map(is_intact, buffers)), "a kernel wrote outside its result"


# ---- layouts: the same values, other strides, poison between ------------------------------------


def contiguous(x):
    """In the middle of a poisoned buffer."""
    part, _ = walled(tuple(x.shape), x.dtype)
    return part.copy_(x)


def strided(x):
    """Every second element along each dimension of a larger, poisoned tensor."""
    whole = torch.full([2 * n + 1 for n in x.shape], _poison(x.dtype), dtype=x.dtype, device=DEVICE)
    part = whole[tuple(slice(1, None, 2) for _ in x.shape)]
    return part.copy_(x)


def transposed(x):
    """The last two dimensions are stored the other way round: the last stride is not 1."""
    return contiguous(x.mT).mT if x.ndim > 1 else contiguous(x)


def misaligned(x):
    """One element off any alignment that a GPU's wide loads would like."""
    count = x.numel()
    whole = torch.full((count + 1,), _poison(x.dtype), dtype=x.dtype, device=DEVICE)
    return whole[1:].view(x.shape).copy_(x)


LAYOUTS = (contiguous, strided, transposed, misaligned)
layouts = st.sampled_from(LAYOUTS)


# ---- how near -----------------------------------------------------------------------------------


def assert_near(name, actual, exact, eager, factor=OUTPUT, term=0.0):
    """Assert that `actual` is at most `factor` times as far from `exact` as `eager` is.

    `exact` is float64 (an array or a tensor), `eager` what PyTorch's own operations gave in the
    dtype of `actual`. Eager may be exact by luck: one rounding of the largest value is granted, or
    of `term` if that is larger: the largest number that is summed to make the result, where a sum
    cancels. NaN and infinities must be where they are in `exact`.
    """
    exact = np.asarray(exact.cpu() if isinstance(exact, torch.Tensor) else exact, np.float64)
    ours, theirs = (x.detach().double().cpu().numpy() for x in (actual, eager))
    assert ours.shape == exact.shape, f"{name}: shape {ours.shape}, not {exact.shape}"
    finite = np.isfinite(exact)
    np.testing.assert_array_equal(ours[~finite], exact[~finite], err_msg=f"{name}: NaN or inf")
    if not finite.any():
        return
    error = np.abs(ours[finite] - exact[finite]).max()
    allowed = np.isfinite(theirs) & finite  # where eager overflowed it sets no bound
    bound = np.abs(theirs[allowed] - exact[allowed]).max(initial=0)
    rounding = torch.finfo(actual.dtype).eps * max(np.abs(exact[finite]).max(), term)
    assert error <= factor * bound + rounding, (
        f"{name}: {error:.3g} from exact, eager PyTorch {bound:.3g}, a rounding {rounding:.3g}"
    )


def bits_equal(a, b):
    """Tell whether two tensors agree in every bit (NaN included)."""
    size = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.shape == b.shape and bool(
        (a.contiguous().view(size) == b.contiguous().view(size)).all()
    )
