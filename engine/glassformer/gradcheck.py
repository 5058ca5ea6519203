"""Compare derivatives with finite differences, of first and second order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from glassformer.autograd import grad
from glassformer.grad_mode import enable_grad
from glassformer.tensor import Tensor


class GradcheckError(AssertionError):
    """A derivative doesn't agree with finite differences."""


def _outputs(function: Callable[..., Any], inputs: Sequence[Any]) -> list[Tensor]:
    with enable_grad():
        result = function(*inputs)
    found = list(result) if isinstance(result, tuple | list) else [result]
    return [out for out in found if isinstance(out, Tensor) and out.dtype.is_floating_point]


def _differentiable(inputs: Sequence[Any]) -> list[int]:
    return [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad]


def _weighted_change(weight: Any, above: Any, below: Any) -> float:
    change = np.zeros_like(above)
    np.subtract(above, below, out=change, where=above != below)  # leaves an infinity that stays
    return float(np.sum(weight * change))


def gradcheck(
    function: Callable[..., Any],
    inputs: Sequence[Any],
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
) -> bool:
    """Check gradients against central differences (f(x + eps) - f(x - eps)) / 2 eps.

    Outputs are weighted by fixed random numbers, so that one backward checks a whole row of the
    Jacobian's transpose product.

    Args:
        function: of the inputs; returns a Tensor or a tuple of them.
        inputs: float64 tensors that require grad are checked, the rest are passed on.
        eps: the step.
        atol: largest absolute difference allowed,
        rtol: plus this much of the numerical value.

    Returns:
        True.

    Raises:
        GradcheckError: with the input, the element and both values.
        ValueError: an input isn't float64, or nothing requires grad.
    """
    inputs = list(inputs)
    checked = _differentiable(inputs)
    if not checked:
        raise ValueError("gradcheck needs an input that requires grad")
    for i in checked:
        if inputs[i].dtype.name != "float64":
            raise ValueError(f"gradcheck needs float64, inputs[{i}] is {inputs[i].dtype}")
    outputs = [out for out in _outputs(function, inputs) if out.requires_grad]
    random = np.random.default_rng(0)
    weights = [random.uniform(0.5, 1.5, out.shape) for out in outputs]
    if not outputs:
        raise ValueError("gradcheck: no output of the function depends on the inputs")
    found = grad(
        outputs,
        [inputs[i] for i in checked],
        [Tensor(np.asarray(w), out.device) for w, out in zip(weights, outputs, strict=True)],
        allow_unused=True,
    )

    def values() -> list[Any]:
        found = _outputs(function, inputs)
        return [np.array(out.detach().cpu().numpy()) for out in found if out.requires_grad]

    for i, analytic in zip(checked, found, strict=True):
        array = inputs[i].detach().array
        got = np.zeros(inputs[i].shape) if analytic is None else analytic.detach().cpu().numpy()
        for index in np.ndindex(inputs[i].shape):
            before = float(array[index])
            try:
                array[index] = before + eps
                above = values()
                array[index] = before - eps
                below = values()
            finally:
                array[index] = before
            expected = sum(map(_weighted_change, weights, above, below)) / (2 * eps)
            if not abs(got[index] - expected) <= atol + rtol * abs(expected):
                raise GradcheckError(
                    f"the gradient of inputs[{i}] (shape {inputs[i].shape}) at {index} is "
                    f"{got[index]:.9g}, finite differences give {expected:.9g}"
                )
    return True


def gradgradcheck(
    function: Callable[..., Any],
    inputs: Sequence[Any],
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
) -> bool:
    """Check second derivatives: `gradcheck` of the gradients, as functions of inputs and weights.

    Arguments, result and errors are those of `gradcheck`.
    """
    inputs = list(inputs)
    checked = _differentiable(inputs)
    random = np.random.default_rng(1)
    count = len(inputs)
    weights = [
        Tensor(np.asarray(random.uniform(0.5, 1.5, out.shape)), out.device, requires_grad=True)
        for out in _outputs(function, inputs)
        if out.requires_grad
    ]

    def gradients(*everything: Any) -> tuple[Tensor, ...]:
        arguments, given = everything[:count], everything[count:]
        outputs = [out for out in _outputs(function, arguments) if out.requires_grad]
        found = grad(
            outputs,
            [arguments[i] for i in checked],
            given,
            create_graph=True,
            allow_unused=True,
        )
        for i, g in zip(checked, found, strict=True):
            # A gradient is linear in `given`: cut off from it, it can only be zero.
            if g is not None and not g.requires_grad and g.array.any():
                raise GradcheckError(
                    f"the gradient of inputs[{i}] was computed outside the graph, so its own "
                    "derivative is lost; write the rule in Tensor operations"
                )
        return tuple(g for g in found if g is not None and g.requires_grad)

    if not gradients(*inputs, *weights):
        return True  # the gradients are constants
    return gradcheck(gradients, [*inputs, *weights], eps, atol, rtol)
