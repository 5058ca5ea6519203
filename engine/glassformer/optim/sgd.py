"""SGD, with momentum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from glassformer.optim.optimizer import Group, Optimizer
from glassformer.tensor import Tensor


class SGD(Optimizer):
    """Stochastic gradient descent.

    grad += weight_decay · param;  buffer = momentum · buffer + (1 - dampening) · grad (the first
    time: buffer = grad);  param -= lr · (grad + momentum · buffer if nesterov, else buffer).
    Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning", in
    PyTorch's form.

    Args:
        params: parameters, or groups of them.
        lr: step size.
        momentum: how much of the buffer stays.
        dampening: how much of a gradient is kept out of the buffer.
        weight_decay: times the parameter, added to its gradient.
        nesterov: look ahead by the momentum; needs momentum, and dampening 0.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Mapping[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, defaults)

    def check(self, group: Group) -> None:  # noqa: D102
        super().check(group)
        if not group["momentum"] >= 0:
            raise ValueError(f"momentum must be 0 or more, got {group['momentum']!r}")
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                f"nesterov needs momentum and no dampening, got momentum={group['momentum']!r}, "
                f"dampening={group['dampening']!r}"
            )

    def update(  # noqa: D102
        self, param: Tensor, grad: Tensor, state: dict[str, Any], group: Group
    ) -> None:
        momentum = group["momentum"]
        if group["weight_decay"]:
            grad = grad + param * group["weight_decay"]
        if momentum:
            buffer = state.get("momentum_buffer")
            if buffer is None:
                buffer = state["momentum_buffer"] = grad.clone()
            else:
                buffer.mul_(momentum).add_(grad * (1 - group["dampening"]))
            grad = grad + buffer * momentum if group["nesterov"] else buffer
        param.sub_(grad * group["lr"])
