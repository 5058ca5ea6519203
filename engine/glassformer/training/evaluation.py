"""Running a model over a dataset without training it."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from glassformer.data import DataLoader
from glassformer.data.collate import LABEL_NAMES
from glassformer.data.text import IGNORED
from glassformer.grad_mode import no_grad
from glassformer.nn import Module
from glassformer.tensor import Tensor

Array = npt.NDArray[Any]


class EvalPrediction(NamedTuple):
    """What `compute_metrics` gets: the logits of every item, and the labels."""

    predictions: Array
    label_ids: Array


class PredictionOutput(NamedTuple):
    """What `Trainer.predict` returns."""

    predictions: Array | None
    label_ids: Array | None
    metrics: dict[str, float]


@dataclass
class EvaluationResult:
    """Sums over an evaluation."""

    loss: float = 0.0
    num_labels: int = 0
    num_samples: int = 0
    num_batches: int = 0
    seconds: float = 0.0
    predictions: list[Array] = field(default_factory=list)
    label_ids: list[Array] = field(default_factory=list)

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return mean loss and speed, their names prefixed."""
        found = {f"{prefix}_loss": self.loss / self.num_labels} if self.num_labels else {}
        found[f"{prefix}_runtime"] = round(self.seconds, 4)
        found[f"{prefix}_samples_per_second"] = round(self.num_samples / self.seconds, 3)
        found[f"{prefix}_steps_per_second"] = round(self.num_batches / self.seconds, 3)
        return found


def run_evaluation(
    model: Module,
    loader: DataLoader,
    compute_loss: Callable[[Mapping[str, Any]], tuple[Any, Any]],
    keep_predictions: bool,
    on_batch: Callable[[], None],
) -> EvaluationResult:
    """Run the model over a loader, in evaluation mode and without recording gradients.

    `compute_loss(batch)` gives (loss or None, outputs). The mean loss weighs every label alike,
    whatever batch it was in.
    """
    result = EvaluationResult()
    started = time.perf_counter()
    was_training = model.training
    model.eval()
    try:
        with no_grad():
            for batch in loader:
                loss, outputs = compute_loss(batch)
                count = count_labels(batch, shifts_inside(model))
                if loss is not None and count:
                    result.loss += float(loss.item()) * count
                    result.num_labels += count
                result.num_samples += batch_size(batch)
                result.num_batches += 1
                if keep_predictions:
                    result.predictions.append(_on_cpu(output_value(outputs, "logits")))
                    labels = [_on_cpu(batch[name]) for name in LABEL_NAMES if name in batch]
                    result.label_ids.extend(labels[:1])
                on_batch()
    finally:
        model.train(was_training)
    result.seconds = max(time.perf_counter() - started, 1e-9)
    return result


def _on_cpu(tensor: Tensor) -> Array:
    """The values, half precision as float32: NumPy has no bfloat16."""
    array: Array = tensor.to(tensor.dtype.wide).cpu().numpy()
    return array


def count_labels(batch: Mapping[str, Any], shifted_inside: bool) -> int:
    """Return how many labels of a batch count in its loss (those that are not -100).

    A model that shifts `labels` itself predicts none from before the first token.
    """
    if "shift_labels" in batch:
        return int((_on_cpu(batch["shift_labels"]) != IGNORED).sum())
    if "labels" not in batch:
        return batch_size(batch)
    labels = _on_cpu(batch["labels"])
    return int(((labels[..., 1:] if shifted_inside else labels) != IGNORED).sum())


def shifts_inside(model: Module) -> bool:
    """Tell whether a model shifts `labels` by one: then it takes `shift_labels` as well."""
    return "shift_labels" in inspect.signature(model.forward).parameters


def batch_size(batch: Mapping[str, Any]) -> int:
    """Return the number of items in a batch."""
    first = next(iter(batch.values()))
    return int(first.shape[0]) if isinstance(first, Tensor) else len(first)


def num_tokens(batch: Mapping[str, Any]) -> int:
    """Return the number of tokens in a batch, or of items where there are no tokens."""
    ids = batch.get("input_ids")
    return ids.numel() if isinstance(ids, Tensor) else batch_size(batch)


def output_value(outputs: Any, name: str) -> Any:
    """Return a value of a model's output, be it an attribute or a key."""
    return outputs[name] if isinstance(outputs, Mapping) else getattr(outputs, name, None)


def concatenate_padded(arrays: list[Array], fill: int = IGNORED) -> Array:
    """Join batches along their first dimension; a second one of different length is filled up."""
    if len({array.shape[1:] for array in arrays}) <= 1:
        return np.concatenate(arrays)
    length = max(array.shape[1] for array in arrays)
    padded = []
    for array in arrays:
        whole = np.full((len(array), length, *array.shape[2:]), fill, dtype=array.dtype)
        whole[:, : array.shape[1]] = array
        padded.append(whole)
    return np.concatenate(padded)
