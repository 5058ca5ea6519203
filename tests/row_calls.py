"""What the tests of row-wise kernels share: which kernels ran, and small tiles for long rows."""

from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import numpy as np

from tests.kernel_calls import DEVICE, launch, torch


@contextmanager
def launched():
    """Collect the names of the kernels that are launched while this lasts."""
    names = []

    def spy(kernel, *args, **kwargs):
        names.append(kernel.__name__.lstrip("_"))
        return real(kernel, *args, **kwargs)

    real = launch.launch
    with patch.object(launch, "launch", spy):
        yield names


@contextmanager
def limits(**values):
    """Set constants of kernel modules: `limits(LONGEST=(module, 0))`."""
    with ExitStack() as stack:
        for name, (*modules, value) in values.items():
            for module in modules:
                stack.enter_context(patch.object(module, name, value))
        yield


def drawn(seed, shape, dtype=torch.float32, magnitude=1.0):
    """Return normal numbers on the device of the tests, rounded to `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tuple(shape), generator=generator, dtype=torch.float64) * magnitude
    return x.to(dtype).to(DEVICE)


def drawn_mask(seed, shape, visible=0.7):
    """Return a bool tensor that is True in about that part of its elements."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(tuple(shape), generator=generator) < visible).to(DEVICE)


def largest_errors(exact, eager, tensors, draws=6):
    """Return the largest error of each of eager's results over some tensors like those given.

    Both functions take tensors and return results. Few small rows may come out exact by luck, or
    nearly so where terms cancel; other numbers of the same size show what is usual.
    """
    worst = None
    for draw in range(draws):
        given = [t if draw == 0 else _varied(t, 10 * draw + i) for i, t in enumerate(tensors)]
        errors = [_error(a, b) for a, b in zip(exact(*given), eager(*given), strict=True)]
        worst = errors if worst is None else [max(p) for p in zip(worst, errors, strict=True)]
    return worst


def _varied(x, seed):
    """The same numbers in another order, and up to a quarter larger or smaller."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(x.numel(), generator=generator).to(x.device)
    factor = (0.75 + 0.5 * torch.rand(x.numel(), generator=generator)).to(x.device)
    return (x.reshape(-1)[order] * factor).to(x.dtype).view(x.shape)


def _error(exact, eager):
    eager = eager.double().cpu().numpy()
    finite = np.isfinite(exact) & np.isfinite(eager)
    return np.abs(eager[finite] - exact[finite]).max(initial=0)


def far_off(exact, error):
    """Return a tensor that is this far from the exact array: what assert_near takes as eager's."""
    return torch.from_numpy(np.asarray(exact) + error)
