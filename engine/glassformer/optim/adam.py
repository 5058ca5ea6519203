"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from glassformer.fused.optimizer_step import adamw_step
from glassformer.ops.creation import zeros_like
from glassformer.optim.optimizer import Group, Optimizer
from glassformer.tensor import Tensor


class Adam(Optimizer):
    """Adam: step sizes from running means of the gradient and of its square.

    m = β₁ m + (1 - β₁) grad;  v = β₂ v + (1 - β₂) grad²;
    param -= lr · (m / (1 - β₁ᵗ)) / (√(v / (1 - β₂ᵗ)) + eps).
    Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization", algorithm 1. Weight decay is
    added to the gradient; to have it apart use `AdamW`.

    Args:
        params: parameters, or groups of them.
        lr: step size.
        betas: β₁ and β₂, each in [0, 1).
        eps: keeps the division finite.
        weight_decay: times the parameter, added to its gradient.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Mapping[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    def check(self, group: Group) -> None:  # noqa: D102
        super().check(group)
        if len(group["betas"]) != 2 or not all(0 <= beta < 1 for beta in group["betas"]):
            raise ValueError(f"betas must be two numbers in [0, 1), got {group['betas']!r}")

    def update(  # noqa: D102
        self, param: Tensor, grad: Tensor, state: dict[str, Any], group: Group
    ) -> None:
        if group["weight_decay"]:
            grad = grad + param * group["weight_decay"]
        self._step(param, grad, state, group, decay=0.0)

    def _step(
        self, param: Tensor, grad: Tensor, state: dict[str, Any], group: Group, decay: float
    ) -> None:
        if not state:
            state.update(step=0, exp_avg=zeros_like(param), exp_avg_sq=zeros_like(param))
        state["step"] += 1
        beta1, beta2 = group["betas"]
        adamw_step(
            param,
            grad,
            state["exp_avg"],
            state["exp_avg_sq"],
            step=state["step"],
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            weight_decay=decay,
        )


class AdamW(Adam):
    """Adam with weight decay apart from the gradient: param -= lr · weight_decay · param first.

    Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2, with the
    decay scaled by the learning rate as in PyTorch. Arguments as for `Adam`.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Mapping[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)

    def update(  # noqa: D102
        self, param: Tensor, grad: Tensor, state: dict[str, Any], group: Group
    ) -> None:
        self._step(param, grad, state, group, decay=group["weight_decay"])
