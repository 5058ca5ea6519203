"""Evaluating a model, with callbacks and a log; `Trainer` adds training to this."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from glassformer.data import DataCollatorWithPadding, DataLoader, Dataset
from glassformer.devices import as_device
from glassformer.nn import Module
from glassformer.optim import LambdaLR, Optimizer
from glassformer.tensor import Tensor
from glassformer.training import mixed_precision
from glassformer.training.arguments import TrainingArguments
from glassformer.training.callbacks import (
    CallbackHandler,
    DefaultFlowCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from glassformer.training.evaluation import (
    EvalPrediction,
    PredictionOutput,
    concatenate_padded,
    output_value,
    run_evaluation,
)
from glassformer.training.metrics import LogFile, finite
from glassformer.training.progress import PrinterCallback, ProgressCallback

Batch = Mapping[str, Any]


class Evaluator:
    """The part of `Trainer` that needs no training data; its arguments are explained there."""

    def __init__(
        self,
        model: Module,
        args: TrainingArguments,
        data_collator: Callable[[list[Any]], Any] | None,
        eval_dataset: Dataset | None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None,
        callbacks: Sequence[TrainerCallback],
        processing_class: Any = None,
    ) -> None:
        first = next(iter(model.parameters()), None)
        here = as_device() if first is None else first.device
        self.device = here if args.device is None else as_device(args.device)
        self.model = model if self.device is here else model.to(self.device)
        if args.bf16:
            mixed_precision.check(model, self.device)
        self.args = args
        if data_collator is None and hasattr(processing_class, "pad"):
            data_collator = DataCollatorWithPadding(processing_class)
        self.data_collator = data_collator
        self.processing_class = processing_class
        self.eval_dataset = eval_dataset
        self.compute_metrics = compute_metrics
        self.optimizer: Optimizer | None = None
        self.lr_scheduler: LambdaLR | None = None
        self.state = TrainerState()
        self.control = TrainerControl()
        flow: list[TrainerCallback] = [DefaultFlowCallback(), *callbacks]
        bar = sys.stderr.isatty() if args.disable_tqdm is None else not args.disable_tqdm
        flow.append(ProgressCallback() if bar else PrinterCallback())
        self.callback_handler = CallbackHandler(flow)
        self._accepts_count = "num_items_in_batch" in inspect.signature(model.forward).parameters
        self._log_file: LogFile | None = None
        self._train_loader: DataLoader | None = None

    def add_callback(self, callback: TrainerCallback) -> None:
        """Tell one more callback of every event."""
        self.callback_handler.callbacks.append(callback)

    def remove_callback(self, callback: type[TrainerCallback]) -> None:
        """Tell the callbacks of this class no more, `PrinterCallback` for a quiet training."""
        callbacks = self.callback_handler.callbacks
        callbacks[:] = [each for each in callbacks if not isinstance(each, callback)]

    def get_eval_dataloader(self, dataset: Dataset | None = None) -> DataLoader:
        """Return a loader over `dataset`, or else the evaluation data, in order."""
        dataset = self.eval_dataset if dataset is None else dataset
        if dataset is None:
            raise ValueError("evaluation needs an eval_dataset")
        return DataLoader(
            dataset, self.args.per_device_eval_batch_size, collate_fn=self.data_collator
        )

    def compute_loss(
        self,
        model: Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: int | None = None,
    ) -> Any:
        """Return the loss of a batch; override it for another one.

        Args:
            model: the model.
            inputs: the batch.
            return_outputs: return (loss, outputs).
            num_items_in_batch: how many labels the loss is a mean over, all batches of the
                optimizer step together; None for those of this batch.

        Raises:
            ValueError: the model gives no loss for such a batch.
        """
        extra = {}
        if self._accepts_count and num_items_in_batch is not None:
            extra["num_items_in_batch"] = num_items_in_batch
        outputs = model(**inputs, **extra)
        loss = output_value(outputs, "loss")
        if loss is None and not return_outputs:
            raise ValueError(f"the model gave no loss for a batch of {sorted(inputs)}; add labels")
        return (loss, outputs) if return_outputs else loss

    def _prepare_inputs(self, batch: Batch) -> Batch:
        """Return a batch with its tensors on the model's device."""
        return {
            name: value.to(self.device) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }

    def _precision(self) -> AbstractContextManager[None]:
        """The precision that forward and backward compute in."""
        return mixed_precision.computing_in(self.model) if self.args.bf16 else nullcontext()

    def evaluate(
        self, eval_dataset: Dataset | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return loss, speed and `compute_metrics` over a dataset, and log them.

        The loss is the mean over all labels. Names start with `metric_key_prefix`.
        """
        keep = self.compute_metrics is not None
        metrics = self._evaluation(eval_dataset, metric_key_prefix, keep).metrics
        self.log(metrics)
        self._tell("on_evaluate", metrics=metrics)
        return metrics

    def predict(self, test_dataset: Dataset, metric_key_prefix: str = "test") -> PredictionOutput:
        """Return logits, labels and metrics over a dataset; without labels, no loss."""
        output = self._evaluation(test_dataset, metric_key_prefix, keep_predictions=True)
        self._tell("on_predict", metrics=output.metrics)
        return output

    def _evaluation(
        self, dataset: Dataset | None, prefix: str, keep_predictions: bool
    ) -> PredictionOutput:
        loader = self.get_eval_dataloader(dataset)

        def loss_and_outputs(batch: Batch) -> tuple[Any, Any]:
            with self._precision():
                inputs = self._prepare_inputs(batch)
                loss, outputs = self.compute_loss(self.model, inputs, return_outputs=True)
            return loss, outputs

        result = run_evaluation(
            self.model,
            loader,
            loss_and_outputs,
            keep_predictions,
            lambda: self._tell("on_prediction_step", eval_dataloader=loader),
        )
        metrics = result.metrics(prefix)
        predictions = concatenate_padded(result.predictions) if result.predictions else None
        labels = concatenate_padded(result.label_ids) if result.label_ids else None
        if self.compute_metrics is not None and predictions is not None and labels is not None:
            computed = self.compute_metrics(EvalPrediction(predictions, labels))
            for name, value in computed.items():
                metrics[name if name.startswith(f"{prefix}_") else f"{prefix}_{name}"] = value
        return PredictionOutput(predictions, labels, metrics)

    def log(self, logs: dict[str, Any]) -> None:
        """Add a row to the log file and to `state.log_history`, and tell the callbacks."""
        self._tell("on_log", logs=self._write_row(logs))

    def _write_row(self, logs: dict[str, Any]) -> dict[str, Any]:
        row = finite({"step": self.state.global_step, "epoch": round(self.state.epoch, 6), **logs})
        self.state.log_history.append(row)
        if self._log_file is not None:
            self._log_file.write(row)
        return row

    def _tell(self, event: str, **kwargs: Any) -> None:
        self.control = self.callback_handler.call(
            event,
            self.args,
            self.state,
            self.control,
            model=self.model,
            optimizer=self.optimizer,
            lr_scheduler=self.lr_scheduler,
            train_dataloader=self._train_loader,
            **kwargs,
        )
