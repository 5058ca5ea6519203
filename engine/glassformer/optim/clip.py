"""Gradient clipping by the norm of all gradients together."""

from __future__ import annotations

import math
from collections.abc import Iterable

from glassformer.grad_mode import no_grad
from glassformer.tensor import Tensor


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, error_if_nonfinite: bool = False
) -> float:
    """Scale all gradients by max_norm / (norm + 1e-6) if that is below 1, and return the norm.

    The norm is the Euclidean one of all gradients laid end to end, before clipping. Pascanu,
    Mikolov and Bengio 2013, "On the difficulty of training recurrent neural networks", algorithm 1;
    the 1e-6 is PyTorch's. If the norm is not finite the gradients stay as they are, so that
    whoever skips the step can still look at them.

    Raises:
        ValueError: `max_norm` is negative or NaN.
        RuntimeError: the norm is not finite and `error_if_nonfinite` is set.
    """
    if not max_norm >= 0:
        raise ValueError(f"max_norm must be 0 or more, got {max_norm!r}")
    tensors = [parameters] if isinstance(parameters, Tensor) else parameters
    grads = [tensor.grad for tensor in tensors if tensor.grad is not None]
    # on a GPU the sums stay there until float() asks for the last
    norm = math.sqrt(float(sum(grad.device.backend.square_sum(grad.array) for grad in grads)))
    if not math.isfinite(norm):
        if error_if_nonfinite:
            raise RuntimeError(f"the norm of {len(grads)} gradients is {norm}, not a finite number")
        return norm
    scale = max_norm / (norm + 1e-6)
    if scale < 1:
        with no_grad():
            for grad in grads:
                grad.mul_(scale)
    return norm
