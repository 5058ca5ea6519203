"""How to train: every setting of a `Trainer`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

INTERVALS = ("no", "steps", "epoch")


@dataclass
class TrainingArguments:
    """Settings of a `Trainer`, with the names and defaults of Hugging Face's class.

    Step intervals (`logging_steps`, `eval_steps`, `save_steps`, `warmup_steps`) below 1 are shares
    of the total number of steps.

    Args:
        output_dir: where checkpoints, `log.jsonl` and `loss.svg` go.
        overwrite_output_dir: delete the checkpoints of an earlier run there; otherwise training
            anew where there are any is an error.
        per_device_train_batch_size: items in a training batch.
        per_device_eval_batch_size: items in an evaluation batch.
        gradient_accumulation_steps: batches whose gradients make one optimizer step. The loss is
            the mean over all their tokens, as if they had been one batch.
        eval_strategy: when to evaluate: "no", "steps" (each `eval_steps`) or "epoch".
        eval_steps: steps between evaluations; `logging_steps` unless told.
        learning_rate: AdamW's peak learning rate.
        weight_decay: decoupled decay, on matrices only (not on biases and norms).
        adam_beta1: decay of the mean of gradients.
        adam_beta2: decay of the mean of squared gradients.
        adam_epsilon: added to the root of the second moment.
        max_grad_norm: gradients are scaled to at most this norm; 0 leaves them.
        num_train_epochs: passes over the training data, unless `max_steps` is positive.
        max_steps: optimizer steps in total; overrides `num_train_epochs` when positive.
        lr_scheduler_type: a schedule's name, as `optim.get_scheduler` takes it.
        lr_scheduler_kwargs: further arguments of that schedule.
        warmup_ratio: share of the steps over which the learning rate rises from 0.
        warmup_steps: the same in steps; overrides `warmup_ratio`.
        logging_strategy: when to log: "no", "steps" (each `logging_steps`) or "epoch".
        logging_first_step: also log step 1.
        logging_steps: steps between rows of the log.
        save_strategy: when to save: "no", "steps" (each `save_steps`), "epoch" or "best" (whenever
            `metric_for_best_model` improved).
        save_steps: steps between checkpoints.
        save_total_limit: how many checkpoints to keep: the newest, and the best if
            `load_best_model_at_end`.
        load_best_model_at_end: when training ends, load the parameters of the best evaluation.
        metric_for_best_model: what "best" means; "loss" unless told.
        greater_is_better: whether more of it is better; unless told, false for losses only.
        resume_from_checkpoint: continue from this checkpoint folder.
        seed: of every random number, the data's order included unless `data_seed` is given.
        data_seed: of the data's order.
        dataloader_drop_last: leave out the last incomplete batch of an epoch.
        device: where to train: "cpu" (NumPy), "cuda", "cuda:1" …, or "torch-cpu"; None is where the
            model is (Hugging Face's class chooses by itself).
        use_cpu: train on the CPU; contradicts another `device`.
        bf16: compute in bfloat16, with float32 parameters and optimizer state
            (`training/mixed_precision.py`). Not on `cpu`.
        disable_tqdm: no progress bar but a line on stderr for every row of the log; unless told,
            the bar is shown when stderr is a terminal.
        max_skipped_steps: stop with an error after this many steps in a row whose loss or gradient
            was not finite (ours; such a step changes no parameter).

    Raises:
        ValueError: a setting is out of range, or two contradict each other.
    """

    output_dir: str = "trainer_output"
    overwrite_output_dir: bool = False
    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    eval_strategy: str = "no"
    eval_steps: float | None = None
    learning_rate: float = 5e-5
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    num_train_epochs: float = 3.0
    max_steps: int = -1
    lr_scheduler_type: str = "linear"
    lr_scheduler_kwargs: dict[str, Any] | None = None
    warmup_ratio: float | None = None
    warmup_steps: float = 0
    logging_strategy: str = "steps"
    logging_first_step: bool = False
    logging_steps: float = 500
    save_strategy: str = "steps"
    save_steps: float = 500
    save_total_limit: int | None = None
    load_best_model_at_end: bool = False
    metric_for_best_model: str | None = None
    greater_is_better: bool | None = None
    resume_from_checkpoint: str | None = None
    seed: int = 42
    data_seed: int | None = None
    dataloader_drop_last: bool = False
    device: str | None = None
    use_cpu: bool = False
    bf16: bool = False
    disable_tqdm: bool | None = None
    max_skipped_steps: int = 10

    def __post_init__(self) -> None:
        for name in ("eval_strategy", "logging_strategy", "save_strategy"):
            allowed = (*INTERVALS, "best") if name == "save_strategy" else INTERVALS
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        if self.eval_strategy == "steps" and self.eval_steps is None:
            self.eval_steps = self.logging_steps
        self._check_ranges()
        self._check_device()
        if (
            self.load_best_model_at_end or self.save_strategy == "best"
        ) and self.metric_for_best_model is None:
            self.metric_for_best_model = "loss"
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            self.greater_is_better = not self.metric_for_best_model.endswith("loss")
        if self.load_best_model_at_end:
            self._check_best_is_saved()

    def _check_ranges(self) -> None:
        positive = (
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "logging_steps",
            "save_steps",
            "max_skipped_steps",
            *(("eval_steps",) if self.eval_steps is not None else ()),
            *(("save_total_limit",) if self.save_total_limit is not None else ()),
            *(("num_train_epochs",) if self.max_steps <= 0 else ()),
        )
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.warmup_ratio is not None and not 0 <= self.warmup_ratio <= 1:
            raise ValueError(f"warmup_ratio must be in [0, 1], got {self.warmup_ratio}")

    def _check_device(self) -> None:
        if self.use_cpu:
            if self.device not in (None, "cpu"):
                raise ValueError(
                    f"use_cpu=True contradicts device={self.device!r}; set one of them"
                )
            self.device = "cpu"
        if self.bf16 and self.device == "cpu":
            raise ValueError(
                "bf16=True needs a device that has bfloat16, 'cuda' or 'torch-cpu'; 'cpu' is "
                "NumPy, which lacks it"
            )

    def _check_best_is_saved(self) -> None:
        if self.save_strategy == "best":
            if self.eval_strategy == "no":
                raise ValueError("load_best_model_at_end needs eval_strategy 'steps' or 'epoch'")
            return
        if self.eval_strategy != self.save_strategy:
            raise ValueError(
                "load_best_model_at_end needs a checkpoint for every evaluation, but "
                f"eval_strategy is {self.eval_strategy!r} and save_strategy "
                f"{self.save_strategy!r}; make them equal"
            )
        if self.eval_strategy == "steps":
            assert self.eval_steps is not None
            ratio = self.save_steps / self.eval_steps
            if ratio < 1 or not math.isclose(ratio, round(ratio)):
                raise ValueError(
                    "load_best_model_at_end needs save_steps to be a multiple of eval_steps, "
                    f"got {self.save_steps} and {self.eval_steps}"
                )

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Return over how many of `num_training_steps` the learning rate rises."""
        if self.warmup_steps > 0:
            return interval(self.warmup_steps, num_training_steps)
        return math.ceil(num_training_steps * (self.warmup_ratio or 0))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dictionary that JSON can hold."""
        return asdict(self)


def interval(steps: float, max_steps: int) -> int:
    """Return a number of steps given as such, or below 1 as a share of `max_steps`."""
    return int(steps) if steps >= 1 else math.ceil(steps * max_steps)
