"""The training loop."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from glassformer.data import DataLoader, Dataset
from glassformer.durable import clean_leftovers, remove_folder, write_file
from glassformer.nn import Module
from glassformer.optim import (
    AdamW,
    LambdaLR,
    Optimizer,
    clip_grad_norm_,
    get_parameter_groups,
    get_scheduler,
)
from glassformer.training.arguments import TrainingArguments
from glassformer.training.callbacks import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    metric_value,
)
from glassformer.training.checkpoint import (
    MODEL_FILE,
    CheckpointError,
    list_checkpoints,
    load_checkpoint,
    load_weights,
    remove_old_checkpoints,
    save_checkpoint,
    save_weights,
)
from glassformer.training.curve import loss_curve
from glassformer.training.evaluation import EvalPrediction, count_labels, num_tokens, shifts_inside
from glassformer.training.evaluator import Batch, Evaluator
from glassformer.training.metrics import LogFile, Meter
from glassformer.training.progress import ProgressCallback
from glassformer.training.snapshot import (
    is_of_the_hub,
    load_weights_into,
    model_arrays,
    restore,
    set_seed,
    take,
)


class NonFiniteError(ArithmeticError):
    """Loss or gradient were not finite for too many steps in a row."""


class TrainOutput(NamedTuple):
    """What `Trainer.train` returns; `training_loss` is the mean over all steps."""

    global_step: int
    training_loss: float
    metrics: dict[str, float]


class Trainer(Evaluator):
    """Trains and evaluates a model whose output has a `loss`, as Hugging Face's class does.

    A step whose loss or gradient norm is not finite changes no parameter: it is counted
    (`state.skipped_steps`) and logged, and `args.max_skipped_steps` of them in a row stop training.

    Args:
        model: called with the batch as keywords, on `args.device`, to which it is moved. One that
            takes `num_items_in_batch` divides its summed loss by that, so that accumulated batches
            weigh every token alike.
        args: the settings.
        data_collator: makes a batch from a list of items; unless told, `DataCollatorWithPadding` of
            a tokenizer given as `processing_class`, else `default_collate`.
        train_dataset: a map-style dataset.
        eval_dataset: another.
        compute_metrics: gets an `EvalPrediction`, returns named numbers.
        callbacks: told of every event.
        optimizers: an optimizer and a schedule to use instead of AdamW and the arguments'.
        processing_class: the tokenizer or image processor of the data; `save_model` and every
            checkpoint have its files, so that `from_pretrained` and `pipeline` read their folders.

    Attributes:
        loss_unit: what the loss is measured in, as its curve says.
    """

    loss_unit = "nats per token"

    def __init__(
        self,
        model: Module,
        args: TrainingArguments | None = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        optimizers: tuple[Optimizer | None, LambdaLR | None] = (None, None),
        processing_class: Any = None,
    ) -> None:
        args = args if args is not None else TrainingArguments()
        super().__init__(
            model,
            args,
            data_collator,
            eval_dataset,
            compute_metrics,
            callbacks,
            processing_class,
        )
        self.train_dataset = train_dataset
        self._given = optimizers
        self.optimizer, self.lr_scheduler = optimizers
        self._meter = Meter()
        self._total_loss = 0.0
        self._grad_norm: float | None = None
        self._learning_rate = 0.0  # that of the last step
        set_seed(args.seed)
        self._tell("on_init_end")

    def get_train_dataloader(self) -> DataLoader:
        """Return a shuffling loader over the training data."""
        if self.train_dataset is None:
            raise ValueError("training needs a train_dataset")
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return DataLoader(
            self.train_dataset,
            self.args.per_device_train_batch_size,
            shuffle=True,
            seed=seed,
            drop_last=self.args.dataloader_drop_last,
            collate_fn=self.data_collator,
        )

    def create_optimizer(self) -> Optimizer:
        """Return the optimizer: AdamW, without decay on biases and norms."""
        if self.optimizer is None:
            self.optimizer = AdamW(
                get_parameter_groups(self.model, self.args.weight_decay),
                lr=self.args.learning_rate,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int) -> LambdaLR:
        """Return the learning rate's schedule over `num_training_steps`."""
        if self.lr_scheduler is None:
            self.lr_scheduler = get_scheduler(
                self.args.lr_scheduler_type,
                self.create_optimizer(),
                num_warmup_steps=self.args.get_warmup_steps(num_training_steps),
                num_training_steps=num_training_steps,
                scheduler_specific_kwargs=self.args.lr_scheduler_kwargs,
            )
        return self.lr_scheduler

    def train(self, resume_from_checkpoint: str | bool | None = None) -> TrainOutput:
        """Train to the end, from the beginning or from a checkpoint.

        A resumed run computes, bit for bit, what it would have computed without the interruption
        (on the same machine, with the same libraries and number of threads). One that has reached
        `max_steps` already warns, and trains nothing.

        Args:
            resume_from_checkpoint: a checkpoint folder, or True for the last in `output_dir`;
                `args.resume_from_checkpoint` unless told.

        Raises:
            CheckpointError: a checkpoint cannot be written, or the one to resume from not be used;
                `output_dir` holds those of another run.
            NonFiniteError: too many steps in a row were skipped.
        """
        output = Path(self.args.output_dir)
        clean_leftovers(output)
        source = self._resume_source(resume_from_checkpoint)
        others = self._other_checkpoints(output, source)
        loader = self._train_loader = self.get_train_dataloader()
        if len(loader) == 0:
            raise ValueError("the training data make no batch: too few items for drop_last")
        steps_per_epoch = -(-len(loader) // self.args.gradient_accumulation_steps)
        max_steps = self.args.max_steps
        if max_steps <= 0:
            max_steps = math.ceil(self.args.num_train_epochs * steps_per_epoch)
        self.optimizer, self.lr_scheduler = self._given  # a second call of train() starts anew
        optimizer, scheduler = self.create_optimizer(), self.create_scheduler(max_steps)
        self.state, self.control, self._meter = TrainerState(), TrainerControl(), Meter()
        self._total_loss = 0.0
        if source is not None:
            self._resume(source, optimizer, scheduler, loader)
            if self.state.global_step >= max_steps:
                done = f"{source} is at step {self.state.global_step} of {max_steps}"
                more = "raise max_steps or num_train_epochs to go on"
                warnings.warn(f"{done}: nothing is left to train; {more}", stacklevel=2)
        for path in others:
            remove_folder(path)
        self.state.max_steps = max_steps
        self.state.num_train_epochs = -(-max_steps // steps_per_epoch)
        self.state.train_batch_size = self.args.per_device_train_batch_size
        self._log_file = LogFile(
            output / "log.jsonl", None if source is None else self.state.global_step
        )
        started, first_step = time.perf_counter(), self.state.global_step
        self.model.train()
        self._tell("on_train_begin")
        try:
            while self.state.global_step < max_steps and not self.control.should_training_stop:
                self._run_epoch(loader)
            return self._finish(started, first_step)
        finally:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, ProgressCallback):
                    callback.close()

    def _run_epoch(self, loader: DataLoader) -> None:
        """Run one pass over the data, or the rest of it."""
        self.control.should_epoch_stop = False
        self._tell("on_epoch_begin")
        batches, epoch = iter(loader), loader.epoch
        while group := self._next_group(loader, batches):
            self._run_step(group)
            self.state.epoch = epoch + loader.position / len(loader)
            self._tell("on_step_end")
            self._log_evaluate_save()
            if self.control.should_epoch_stop or self.control.should_training_stop:
                break
        if loader.position == len(loader) or self.control.should_epoch_stop:
            loader.set_epoch(epoch + 1)  # so that a checkpoint saved now begins the next pass
        self._tell("on_epoch_end")
        self._log_evaluate_save()

    def _next_group(self, loader: DataLoader, batches: Iterator[Batch]) -> list[Batch]:
        """The batches of one optimizer step; fewer at the end of the data.

        The last batch does not end the pass: a checkpoint saved after it still has the epoch's end
        before it.
        """
        left = len(loader) - loader.position
        return [next(batches) for _ in range(min(left, self.args.gradient_accumulation_steps))]

    def _run_step(self, group: list[Batch]) -> None:
        """Do one optimizer step, or skip it if something in it is not finite."""
        assert self.optimizer is not None and self.lr_scheduler is not None
        self._meter.start()
        self._tell("on_step_begin")
        loss = self._accumulate(group)
        problem = None if math.isfinite(loss) else f"the loss is {loss}"
        if problem is None:
            # Without clipping the norm is still taken: it tells whether the gradient is finite.
            self._grad_norm = clip_grad_norm_(
                self.model.parameters(), self.args.max_grad_norm or math.inf
            )
            if not math.isfinite(self._grad_norm):
                problem = f"the gradient norm is {self._grad_norm}"
        if problem is None:
            self._tell("on_pre_optimizer_step")
            self.optimizer.step()
            self._tell("on_optimizer_step")
            self._total_loss += loss
        self.optimizer.zero_grad()
        self._learning_rate = self.lr_scheduler.get_last_lr()[0]
        self.lr_scheduler.step()
        self.state.global_step += 1
        tokens = sum(num_tokens(batch) for batch in group)
        self.state.num_input_tokens_seen += tokens
        self._meter.stop(tokens, loss if problem is None else None)
        self._count_skipped(problem)

    def _accumulate(self, group: list[Batch]) -> float:
        """Sum the gradients of a step's batches and return the loss, stopping once not finite."""
        count = sum(count_labels(batch, shifts_inside(self.model)) for batch in group)
        total = 0.0
        for index, batch in enumerate(group):
            with self._precision():
                inputs = self._prepare_inputs(batch)
                loss = self.compute_loss(self.model, inputs, num_items_in_batch=count)
                if not self._accepts_count and len(group) > 1:
                    loss = loss / len(group)
                value = float(loss.item())
                if not math.isfinite(value):
                    return value
                loss.backward()
            total += value
            if index + 1 < len(group):
                self._tell("on_substep_end")
        return total

    def _count_skipped(self, problem: str | None) -> None:
        state = self.state
        if problem is None:
            state.skipped_in_a_row = 0
            return
        state.skipped_steps += 1
        state.skipped_in_a_row += 1
        self._write_row({"skipped": problem, "skipped_steps": state.skipped_steps})
        if state.skipped_in_a_row >= self.args.max_skipped_steps:
            last_good = state.global_step - state.skipped_in_a_row
            raise NonFiniteError(
                f"{problem} at step {state.global_step}, and {state.skipped_in_a_row} steps in a "
                f"row were skipped; the parameters are those of step {last_good}. Lower the "
                f"learning rate ({self.args.learning_rate}), check the data, or raise "
                f"max_skipped_steps"
            )

    def _log_evaluate_save(self) -> None:
        """Do what callbacks asked for."""
        if self.control.should_log:
            self.control.should_log = False
            self._log_progress()
        is_best = False
        if self.control.should_evaluate:
            self.control.should_evaluate = False
            is_best = self._note_best(self.evaluate())
            if self.args.save_strategy == "best":
                self.control.should_save = is_best
        if self.control.should_save:
            self.control.should_save = False
            self.save_checkpoint(is_best)

    def _log_progress(self) -> None:
        measured = self._meter.row(self.state.max_steps - self.state.global_step)
        logs = {"loss": measured.pop("loss")} if "loss" in measured else {}
        if self._grad_norm is not None:
            logs["grad_norm"] = self._grad_norm
        logs["learning_rate"] = self._learning_rate
        if self.state.skipped_steps:
            logs["skipped_steps"] = self.state.skipped_steps
        self.log({**logs, **measured})

    def _note_best(self, metrics: dict[str, float]) -> bool:
        """Remember the best evaluation; return whether this is it."""
        if self.args.metric_for_best_model is None:
            return False
        value, best = metric_value(metrics, self.args.metric_for_best_model), self.state.best_metric
        if not math.isfinite(value):
            return False
        better = best is None or (value > best if self.args.greater_is_better else value < best)
        if better:
            self.state.best_metric = value
            self.state.best_global_step = self.state.global_step
        return better

    def save_checkpoint(self, is_best: bool = False) -> Path:
        """Save a checkpoint of this step, and delete those beyond `save_total_limit`."""
        assert self.optimizer and self.lr_scheduler and self._train_loader
        output = Path(self.args.output_dir)
        path = output / f"checkpoint-{self.state.global_step}"
        if is_best:
            self.state.best_model_checkpoint = path.name
        more = {
            "trainer": self.state.to_dict(),
            "arguments": self.args.to_dict(),
            "meter": {"loss": self._meter.loss, "steps": self._meter.steps},
            "total_loss": self._total_loss,
            "callbacks": [
                [type(callback).__name__, callback.state_dict()]
                for callback in self.callback_handler.callbacks
                if callback.state_dict()
            ],
        }
        taken = take(self.model, self.optimizer, self.lr_scheduler, self._train_loader, more)
        save_checkpoint(path, taken, self.processing_class)
        keep = {path}
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
            keep.add(output / self.state.best_model_checkpoint)
        remove_old_checkpoints(output, self.args.save_total_limit, keep)
        self._tell("on_save")
        return path

    def save_model(self, output_dir: str | None = None) -> Path:
        """Write the model to `output_dir` (`args.output_dir`); return its `model.safetensors`.

        A `PretrainedModel` becomes a folder that `from_pretrained` loads, with the files of
        `processing_class`; of another model, or one with LoRA's updates (`save_lora` writes those
        alone), it is the weights under our names.
        """
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if is_of_the_hub(self.model):
            self.model.save_pretrained(folder)
        else:
            save_weights(folder / MODEL_FILE, model_arrays(self.model))
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        return folder / MODEL_FILE

    def _resume_source(self, given: str | bool | None) -> Path | None:
        source = given if given is not None else self.args.resume_from_checkpoint
        if source is None or source is False:
            return None
        if source is not True:
            return Path(source)
        checkpoints = list_checkpoints(self.args.output_dir)
        if not checkpoints:
            raise CheckpointError(
                self.args.output_dir, "holds no checkpoint to resume from", "train without resuming"
            )
        return checkpoints[-1]

    def _other_checkpoints(self, output: Path, source: Path | None) -> list[Path]:
        """The checkpoints in `output` that are not of the run resumed from `source`."""
        found = list_checkpoints(output)
        if source is not None and source.resolve().parent == output.resolve():
            return []
        if found and not self.args.overwrite_output_dir:
            raise CheckpointError(
                output,
                f"holds {found[-1].name} of another run",
                "continue that one with train(resume_from_checkpoint=True), delete its checkpoints "
                "with TrainingArguments(overwrite_output_dir=True), or choose another output_dir",
            )
        return found

    def _resume(
        self, path: Path, optimizer: Optimizer, scheduler: LambdaLR, loader: DataLoader
    ) -> None:
        checkpoint = load_checkpoint(path)
        saved = checkpoint.state
        callbacks = self.callback_handler.callbacks
        try:
            state = TrainerState.from_dict(saved["trainer"])
            meter, total = saved["meter"], float(saved["total_loss"])
            loss, steps = float(meter["loss"]), int(meter["steps"])
            states = [(str(name), dict(value)) for name, value in saved["callbacks"]]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                path, f"the trainer's state is not whole ({error})", "use another checkpoint"
            ) from error
        restore(path, checkpoint, self.model, optimizer, scheduler, loader)
        self.state, self._total_loss = state, total
        self._meter.loss, self._meter.steps = loss, steps
        for name, value in states:
            for callback in callbacks:
                if type(callback).__name__ == name:
                    callback.load_state_dict(value)

    def _load_best_model(self) -> None:
        name = self.state.best_model_checkpoint
        if name is not None:
            path = Path(self.args.output_dir) / name / MODEL_FILE
            load_weights_into(path, load_weights(path), self.model)

    def _finish(self, started: float, first_step: int) -> TrainOutput:
        seconds = max(time.perf_counter() - started, 1e-9)
        steps = self.state.global_step - first_step
        good_steps = max(1, self.state.global_step - self.state.skipped_steps)
        if self._meter.steps:
            self._log_progress()
        if self.args.load_best_model_at_end:
            self._load_best_model()
        metrics = {
            "train_runtime": round(seconds, 4),
            "train_steps_per_second": round(steps / seconds, 3),
            "train_loss": self._total_loss / good_steps,
        }
        self.log(metrics)
        self.save_curve()
        self._tell("on_train_end")
        return TrainOutput(self.state.global_step, metrics["train_loss"], metrics)

    def save_curve(self) -> Path:
        """Draw the losses logged so far into `loss.svg` in the output folder."""
        path = Path(self.args.output_dir) / "loss.svg"
        title = f"Loss over {self.state.global_step:,} steps"
        write_file(path, loss_curve(self.state.log_history, title, self.loss_unit).encode())
        return path
