"""What a `Trainer` tells its callbacks, and what they can ask of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from glassformer.training.arguments import TrainingArguments, interval


@dataclass
class TrainerState:
    """How far training has come. Saved with every checkpoint; JSON can hold it.

    Attributes:
        epoch: passes over the data so far, with the fraction of the present one.
        global_step: optimizer steps so far, skipped ones included.
        max_steps: steps in total.
        num_train_epochs: passes in total, rounded up.
        train_batch_size: items in a batch.
        num_input_tokens_seen: tokens (or items) trained on.
        skipped_steps: steps that changed nothing because loss or gradient were not finite.
        skipped_in_a_row: those since the last good step.
        best_metric: the best value of `metric_for_best_model`.
        best_global_step: the step it was reached at.
        best_model_checkpoint: the checkpoint folder of that step.
        log_history: every row of the log.
    """

    epoch: float = 0.0
    global_step: int = 0
    max_steps: int = 0
    num_train_epochs: int = 0
    train_batch_size: int = 0
    num_input_tokens_seen: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    best_metric: float | None = None
    best_global_step: int | None = None
    best_model_checkpoint: str | None = None
    log_history: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the state as a dictionary that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> TrainerState:
        """Return the state that `to_dict` described.

        Raises:
            ValueError: fields are missing, unknown or of another type.
        """
        default = cls()
        names = {f.name for f in fields(cls)}
        if set(saved) != names:
            raise ValueError(f"trainer state has fields {sorted(saved)}, expected {sorted(names)}")
        for name in names:
            value, expected = saved[name], getattr(default, name)
            if expected is None:  # the three best_* fields
                kinds: tuple[type, ...] = (int, float, str, type(None))
            else:
                kinds = (int, float) if isinstance(expected, float) else (type(expected),)
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise ValueError(f"trainer state has {name} = {value!r}, expected {kinds}")
        return cls(**saved)


@dataclass
class TrainerControl:
    """What callbacks ask of the trainer by setting a flag; the trainer resets it once obeyed."""

    should_training_stop: bool = False
    should_epoch_stop: bool = False
    should_save: bool = False
    should_evaluate: bool = False
    should_log: bool = False


class TrainerCallback:
    """Override the events you want. Each may return the control, or None for unchanged.

    Keyword arguments hold what there is at that moment: `model`, `optimizer`, `lr_scheduler`,
    `train_dataloader`, `eval_dataloader`, and `metrics` or `logs` where they are news.
    """

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """The trainer was made."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Training begins, or resumes."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Training ended; the best model is loaded if that was asked for."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """A pass over the data begins."""

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """A pass over the data ended."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """The first batch of an optimizer step comes."""

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """A batch was accumulated, and others of the same step follow."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Gradients are complete and clipped; the optimizer comes next."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """The optimizer stepped; gradients are still there."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """The step is done and counted."""

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """A row `logs` was added to the log."""

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """A batch was evaluated."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """An evaluation gave `metrics`."""

    def on_predict(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """A prediction gave `metrics`."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """A checkpoint was saved."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must remember of this callback, in JSON's types."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""


class CallbackHandler(TrainerCallback):
    """Passes each event on to a list of callbacks, in order."""

    def __init__(self, callbacks: list[TrainerCallback]) -> None:
        self.callbacks = callbacks

    def call(
        self, event: str, args: Any, state: Any, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Tell every callback of `event`; return the control as the last of them left it."""
        for callback in self.callbacks:
            result = getattr(callback, event)(args, state, control, **kwargs)
            control = control if result is None else result
        return control


class DefaultFlowCallback(TrainerCallback):
    """Logs, evaluates and saves as the arguments' strategies say."""

    def on_step_end(
        self, args: TrainingArguments, state: Any, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for what is due after this step."""
        step = state.global_step
        last = step >= state.max_steps

        def due(strategy: str, steps: float | None) -> bool:
            return (
                strategy == "steps"
                and steps is not None
                and step % interval(steps, state.max_steps) == 0
            )

        if due(args.logging_strategy, args.logging_steps) or (
            step == 1 and args.logging_first_step
        ):
            control.should_log = True
        if due(args.eval_strategy, args.eval_steps):
            control.should_evaluate = True
        if due(args.save_strategy, args.save_steps) or (last and args.save_strategy == "steps"):
            control.should_save = True
        if last:
            control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: Any, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for what is due after this epoch."""
        control.should_log |= args.logging_strategy == "epoch"
        control.should_evaluate |= args.eval_strategy == "epoch"
        control.should_save |= args.save_strategy == "epoch"


class EarlyStoppingCallback(TrainerCallback):
    """Stops training when `metric_for_best_model` has stopped improving.

    Args:
        early_stopping_patience: evaluations without improvement after which to stop.
        early_stopping_threshold: how much better than the best counts as an improvement.
    """

    def __init__(
        self, early_stopping_patience: int = 1, early_stopping_threshold: float = 0.0
    ) -> None:
        self.early_stopping_patience = early_stopping_patience
        self.early_stopping_threshold = early_stopping_threshold
        self.early_stopping_patience_counter = 0

    def on_train_begin(
        self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any
    ) -> None:
        """Check that there will be something to watch."""
        if args.metric_for_best_model is None:
            raise ValueError("EarlyStoppingCallback needs metric_for_best_model in the arguments")
        if args.eval_strategy == "no":
            raise ValueError("EarlyStoppingCallback needs eval_strategy 'steps' or 'epoch'")

    def on_evaluate(
        self, args: TrainingArguments, state: Any, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count evaluations without improvement, and stop when there were enough."""
        assert args.metric_for_best_model is not None
        value = metric_value(kwargs["metrics"], args.metric_for_best_model)
        best, threshold = state.best_metric, self.early_stopping_threshold
        better = (
            best is None or (value - best if args.greater_is_better else best - value) > threshold
        )
        self.early_stopping_patience_counter = (
            0 if better else self.early_stopping_patience_counter + 1
        )
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Return the number of evaluations without improvement."""
        return {"early_stopping_patience_counter": self.early_stopping_patience_counter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue counting from `state`."""
        self.early_stopping_patience_counter = int(state["early_stopping_patience_counter"])


def metric_value(metrics: dict[str, float], name: str) -> float:
    """Return the evaluation metric `name`, with or without its "eval_" prefix.

    Raises:
        KeyError: there is none; lists those there are.
    """
    key = name if name.startswith("eval_") else f"eval_{name}"
    if key not in metrics:
        raise KeyError(f"metric_for_best_model {name!r} is not among {sorted(metrics)}")
    return metrics[key]
