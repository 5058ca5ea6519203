"""AdamW's step for PyTorch: checks and the custom operator."""

from __future__ import annotations

import torch

from glassformer_kernels import checks
from glassformer_kernels import optimizer_step as kernels


@torch.no_grad()
def adamw_step_(
    param: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    step: int,
    maximize: bool = False,
    master: torch.Tensor | None = None,
) -> None:
    """Change a parameter and the running means m of its gradient g and v of g² in place.

    m ← β₁ m + (1 - β₁) g;  v ← β₂ v + (1 - β₂) g²;
    p ← p (1 - lr · weight_decay) - lr / (1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + eps).
    Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2, with the
    decay scaled by the learning rate as in PyTorch. The numbers are those of the call: a CUDA graph
    replays the step that it captured.

    Args:
        param: float32, float16 or bfloat16, any shape and strides.
        grad: of its shape, in any of these dtypes.
        exp_avg: m, of its shape, in any of these dtypes; 0 before the first step.
        exp_avg_sq: v, as m.
        lr: learning rate.
        betas: β₁ and β₂, each in [0, 1).
        eps: added to the root.
        weight_decay: fraction of the parameter, times lr, that is taken away.
        step: t, 1 for the first.
        maximize: step along the gradient, not against it.
        master: float32 and of param's shape: what is stepped; param becomes its rounding.

    Raises:
        TypeError: a dtype that isn't among these.
        ValueError: shapes or devices differ, or a number is out of its range.
        RuntimeError: several elements of a tensor that changes share memory.
    """
    op = "adamw_step_"
    changed = {"param": param, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    checks.check_tensors(op, grad=grad, master=master, **changed)
    if master is not None:
        changed["master"] = master
        if master.dtype is not torch.float32:
            raise TypeError(f"{op}: master must be float32, got {master.dtype}")
    for name, x in {**changed, "grad": grad}.items():
        checks.check_floats(op, **{name: x})
        if x.shape != param.shape:
            raise ValueError(f"{op}: {name} is {tuple(x.shape)}, but param {tuple(param.shape)}")
    checks.check_devices(op, grad=grad, **changed)
    for name, x in changed.items():
        if any(n > 1 and stride == 0 for n, stride in zip(x.shape, x.stride(), strict=True)):
            raise RuntimeError(
                f"{op}: several elements of {name} share memory (shape {tuple(x.shape)}, strides "
                f"{x.stride()}); they can't be changed one by one"
            )
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"{op}: betas must be in [0, 1), got {betas}")
    if step < 1:
        raise ValueError(f"{op}: step counts from 1, got {step}")
    if lr < 0 or eps < 0 or weight_decay < 0:
        raise ValueError(
            f"{op}: lr, eps and weight_decay can't be negative, got {lr}, {eps}, {weight_decay}"
        )
    _adamw_step(
        param, grad, exp_avg, exp_avg_sq, master, step, lr, *betas, eps, weight_decay, maximize
    )


@torch.library.custom_op(
    "glassformer::adamw_step", mutates_args={"param", "exp_avg", "exp_avg_sq", "master"}
)
def _adamw_step(
    param: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    master: torch.Tensor | None,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
) -> None:
    kernels.adamw_step(
        param,
        grad,
        exp_avg,
        exp_avg_sq,
        master,
        step=step,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        maximize=maximize,
    )


@_adamw_step.register_fake
def _(
    param: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    master: torch.Tensor | None,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
) -> None:
    return None
