"""Learning-rate schedules, by the names and formulas of Hugging Face transformers.

Every schedule multiplies the rate that each group began with by a factor of the step number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from glassformer.optim.optimizer import Optimizer


class LambdaLR:
    """Sets each group's lr to its initial lr times `lr_lambda(step)`; step 0 at construction.

    Args:
        optimizer: whose groups to set.
        lr_lambda: factor by step number.
        last_epoch: the step number to continue after; -1 begins anew. (The name is PyTorch's.)
    """

    def __init__(
        self, optimizer: Optimizer, lr_lambda: Callable[[int], float], last_epoch: int = -1
    ) -> None:
        self.optimizer = optimizer
        self.lr_lambda = lr_lambda
        self.last_epoch = last_epoch
        for group in optimizer.param_groups:
            if last_epoch == -1:
                group.setdefault("initial_lr", group["lr"])
            elif "initial_lr" not in group:
                raise ValueError(
                    f"last_epoch={last_epoch} continues a schedule, but a parameter group has no "
                    "initial_lr; load the optimizer's state_dict first"
                )
        self.base_lrs: list[float] = [group["initial_lr"] for group in optimizer.param_groups]
        self.step()

    def step(self) -> None:
        """Go to the next step number; call after `optimizer.step()`."""
        self.last_epoch += 1
        self._set()

    def get_last_lr(self) -> list[float]:
        """Return the learning rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the step number and the initial rates."""
        return {"last_epoch": self.last_epoch, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        if len(state_dict["base_lrs"]) != len(self.base_lrs):
            raise ValueError(
                f"the schedule was saved with {len(state_dict['base_lrs'])} parameter groups, the "
                f"optimizer has {len(self.base_lrs)}"
            )
        self.last_epoch = state_dict["last_epoch"]
        self.base_lrs = list(state_dict["base_lrs"])
        self._set()

    def _set(self) -> None:
        factor = self.lr_lambda(self.last_epoch)
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base_lr * factor


def get_constant_schedule(optimizer: Optimizer, last_epoch: int = -1) -> LambdaLR:
    """Return a schedule that leaves the rate as it is."""
    return LambdaLR(optimizer, _constant, last_epoch)


def get_constant_schedule_with_warmup(
    optimizer: Optimizer, num_warmup_steps: int, last_epoch: int = -1
) -> LambdaLR:
    """Rise from 0 over the warm-up, then stay."""
    return LambdaLR(optimizer, partial(_warmup, num_warmup_steps), last_epoch)


def get_linear_schedule_with_warmup(
    optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int, last_epoch: int = -1
) -> LambdaLR:
    """Rise from 0 over the warm-up, then fall in a straight line to 0 at `num_training_steps`."""
    return LambdaLR(optimizer, partial(_linear, num_warmup_steps, num_training_steps), last_epoch)


def get_cosine_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
) -> LambdaLR:
    """Rise from 0 over the warm-up, then follow (1 + cos) / 2 down to 0 at `num_training_steps`.

    Loshchilov and Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", equation 5.
    `num_cycles` waves are passed through; the default half wave falls once.
    """
    rule = partial(_cosine, num_warmup_steps, num_training_steps, num_cycles, 0.0)
    return LambdaLR(optimizer, rule, last_epoch)


def get_cosine_with_min_lr_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
) -> LambdaLR:
    """As `get_cosine_schedule_with_warmup`, but fall to `min_lr`, or to `min_lr_rate` of the start.

    Exactly one of the two must be given; `min_lr` is relative to the optimizer's default lr.
    """
    if min_lr is not None and min_lr_rate is None:
        min_lr_rate = min_lr / optimizer.defaults["lr"]
    elif min_lr_rate is None or min_lr is not None:
        raise ValueError(
            f"give one of min_lr and min_lr_rate, got min_lr={min_lr}, min_lr_rate={min_lr_rate}"
        )
    rule = partial(_cosine, num_warmup_steps, num_training_steps, num_cycles, min_lr_rate)
    return LambdaLR(optimizer, rule, last_epoch)


def get_scheduler(
    name: str,
    optimizer: Optimizer,
    num_warmup_steps: int | None = None,
    num_training_steps: int | None = None,
    scheduler_specific_kwargs: dict[str, Any] | None = None,
) -> LambdaLR:
    """Return the schedule called "constant", "constant_with_warmup", "linear", "cosine" or …

    "cosine_with_min_lr". `scheduler_specific_kwargs` are passed on.

    Raises:
        ValueError: there is no schedule of that name, or a step count it needs is missing.
    """
    if name not in _SCHEDULES:
        raise ValueError(f"schedule {name!r} is none of {', '.join(_SCHEDULES)}")
    function, needed = _SCHEDULES[name]
    counts = {"num_warmup_steps": num_warmup_steps, "num_training_steps": num_training_steps}
    missing = [count for count in needed if counts[count] is None]
    if missing:
        raise ValueError(f"schedule {name!r} needs {' and '.join(missing)}")
    arguments = {count: counts[count] for count in needed}
    return function(optimizer, **arguments, **(scheduler_specific_kwargs or {}))


_WARMUP, _BOTH = ("num_warmup_steps",), ("num_warmup_steps", "num_training_steps")
_SCHEDULES: dict[str, tuple[Callable[..., LambdaLR], tuple[str, ...]]] = {
    "constant": (get_constant_schedule, ()),
    "constant_with_warmup": (get_constant_schedule_with_warmup, _WARMUP),
    "linear": (get_linear_schedule_with_warmup, _BOTH),
    "cosine": (get_cosine_schedule_with_warmup, _BOTH),
    "cosine_with_min_lr": (get_cosine_with_min_lr_schedule_with_warmup, _BOTH),
}


def _constant(step: int) -> float:
    del step
    return 1.0


def _warmup(warmup: int, step: int) -> float:
    return step / max(1, warmup) if step < warmup else 1.0


def _linear(warmup: int, total: int, step: int) -> float:
    if step < warmup:
        return _warmup(warmup, step)
    return max(0.0, (total - step) / max(1, total - warmup))


def _cosine(warmup: int, total: int, num_cycles: float, floor: float, step: int) -> float:
    if step < warmup:
        return _warmup(warmup, step)
    progress = (step - warmup) / max(1, total - warmup)
    wave = 0.5 * (1 + math.cos(math.pi * num_cycles * 2 * progress))
    return max(0.0, floor + (1 - floor) * wave)
