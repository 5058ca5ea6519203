"""What `finetune` teaches: classes or numbers, as a model gets them and as it is judged."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from glassformer.cli.errors import CommandError
from glassformer.cli.training_run import usable
from glassformer.data import Tokenizer
from glassformer.data.labelled_texts import LabelledTexts
from glassformer.models.config import PretrainedConfig
from glassformer.models.pretrained import PretrainedModel
from glassformer.training import EvalPrediction
from glassformer.training.scores import (
    accuracy_score,
    classification_report,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
)

Array = npt.NDArray[Any]


class Task:
    """What all labels have in common.

    Attributes:
        problem_type: as a model's config says it.
        loss_unit: what the loss is measured in.
        id2label: the name of each output.
    """

    problem_type: str
    loss_unit: str
    id2label: dict[int, str]

    @classmethod
    def of(cls, data: LabelledTexts) -> Task:
        """Return the task that the labels of training texts make."""
        raise NotImplementedError

    def targets(self, data: LabelledTexts) -> Array:
        """Return the labels as a model learns them, (N,)."""
        raise NotImplementedError

    def metrics(self, predictions: Array, labels: Array) -> dict[str, Any]:
        """Return every measure of logits (N, L) against labels (N,), in JSON's types."""
        raise NotImplementedError

    def brief(self, prediction: EvalPrediction) -> dict[str, float]:
        """Return the measure that the log has for every evaluation."""
        raise NotImplementedError

    def report(self, predictions: Array, labels: Array) -> str:
        """Return a table for people."""
        raise NotImplementedError

    def headline(self, metrics: dict[str, Any]) -> str:
        """Return the most important measures in words."""
        raise NotImplementedError

    def summary(self) -> str:
        """Return what the labels are, in words."""
        raise NotImplementedError

    def doubts(self, data: LabelledTexts) -> list[str]:
        """Return what speaks against this task for these labels."""
        return []


class Classification(Task):
    """One class for each text."""

    problem_type = "single_label_classification"
    loss_unit = "nats per text"

    def __init__(self, names: list[str]) -> None:
        self.id2label = dict(enumerate(names))

    @classmethod
    def of(cls, data: LabelledTexts) -> Classification:  # noqa: D102
        return cls(data.label_names())

    def targets(self, data: LabelledTexts) -> Array:  # noqa: D102
        return data.classes(list(self.id2label.values()))

    def metrics(self, predictions: Array, labels: Array) -> dict[str, Any]:  # noqa: D102
        classes, found = list(self.id2label), predictions.argmax(-1)
        return {
            "accuracy": accuracy_score(labels, found),
            "macro_f1": f1_score(labels, found, average="macro"),
            "matthews_correlation": matthews_corrcoef(labels, found),
            "labels": list(self.id2label.values()),
            "confusion_matrix": confusion_matrix(labels, found, labels=classes).tolist(),
        }

    def brief(self, prediction: EvalPrediction) -> dict[str, float]:  # noqa: D102
        found = prediction.predictions.argmax(-1)
        return {"accuracy": accuracy_score(prediction.label_ids, found)}

    def report(self, predictions: Array, labels: Array) -> str:  # noqa: D102
        found = predictions.argmax(-1)
        present = np.union1d(labels, found)
        names = [self.id2label[int(index)] for index in present]
        return classification_report(labels, found, labels=present, target_names=names).rstrip()

    def headline(self, metrics: dict[str, Any]) -> str:  # noqa: D102
        return (
            f"accuracy {metrics['accuracy']:.4f}, macro F1 {metrics['macro_f1']:.4f}, Matthews "
            f"correlation {metrics['matthews_correlation']:.4f}, loss {metrics['loss']:.4f}"
        )

    def summary(self) -> str:  # noqa: D102
        names = list(self.id2label.values())
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        return f"{len(names)}: {', '.join(names[:8])}{more}"

    def doubts(self, data: LabelledTexts) -> list[str]:  # noqa: D102
        if not data.seem_numbers():
            return []
        return [
            f"{len(self.id2label)} different numbers label {len(data):,} texts: if they are "
            "amounts, not classes, use --task regression"
        ]


class Regression(Task):
    """One number for each text."""

    problem_type = "regression"
    loss_unit = "squared error"

    def __init__(self) -> None:
        self.id2label = {0: "LABEL_0"}

    @classmethod
    def of(cls, data: LabelledTexts) -> Regression:  # noqa: D102
        data.numbers()
        return cls()

    def targets(self, data: LabelledTexts) -> Array:  # noqa: D102
        return data.numbers()

    def metrics(self, predictions: Array, labels: Array) -> dict[str, Any]:  # noqa: D102
        found, wanted = predictions[:, 0].astype(np.float64), labels.astype(np.float64)
        errors = found - wanted
        constant = found.std() == 0 or wanted.std() == 0
        return {
            "root_mean_squared_error": math.sqrt(float((errors**2).mean())),
            "mean_absolute_error": float(np.abs(errors).mean()),
            "pearson_correlation": 0.0 if constant else float(np.corrcoef(found, wanted)[0, 1]),
        }

    def brief(self, prediction: EvalPrediction) -> dict[str, float]:  # noqa: D102
        found = self.metrics(prediction.predictions, prediction.label_ids)
        return {"mean_absolute_error": found["mean_absolute_error"]}

    def report(self, predictions: Array, labels: Array) -> str:  # noqa: D102
        rows = {"true labels": labels, "predictions": predictions[:, 0]}
        lines = [f"{'':12}{'mean':>10}{'deviation':>11}{'least':>10}{'most':>10}"]
        for name, values in rows.items():
            lines.append(
                f"{name:12}{values.mean():10.4g}{values.std():11.4g}"
                f"{values.min():10.4g}{values.max():10.4g}"
            )
        return "\n".join(lines)

    def headline(self, metrics: dict[str, Any]) -> str:  # noqa: D102
        return (
            f"root mean squared error {metrics['root_mean_squared_error']:.4f}, mean absolute "
            f"error {metrics['mean_absolute_error']:.4f}, Pearson correlation "
            f"{metrics['pearson_correlation']:.4f}"
        )

    def summary(self) -> str:  # noqa: D102
        return "numbers"


TASKS: dict[str, type[Task]] = {"classification": Classification, "regression": Regression}


def encode(
    tokenizer: Tokenizer, model: PretrainedModel, data: LabelledTexts, task: Task, max_length: int
) -> list[dict[str, Any]]:
    """Return an item for each text: its tokens, its segments if the model tells them, its label.

    Raises:
        CommandError: a text can't be encoded, or has no tokens.
    """
    with usable(str(data.path)):
        encoded = tokenizer(data.texts, data.pairs, truncation=True, max_length=max_length)
    takes = inspect.signature(model.base_model.forward).parameters
    names = [n for n in ("input_ids", "token_type_ids") if n in encoded and n in takes]
    empty = next((i for i, ids in enumerate(encoded["input_ids"]) if not ids), None)
    if empty is not None:
        raise CommandError(
            f"{data.path}, line {data.lines[empty]}: the tokenizer finds no token in "
            f"{data.texts[empty]!r:.40}; remove the line"
        )
    rows = zip(*(encoded[name] for name in names), task.targets(data), strict=True)
    return [
        {
            **{name: np.array(value) for name, value in zip(names, row, strict=False)},
            "labels": row[-1],
        }
        for row in rows
    ]


def longest(config: PretrainedConfig, tokenizer: Tokenizer) -> int:
    """Return how many tokens a model can read."""
    settings = config.to_dict()
    positions = settings.get("max_position_embeddings") or settings.get("n_positions") or 2**31
    if config.model_type == "roberta":  # its positions are counted from pad_token_id + 1
        positions -= (config.pad_token_id or 0) + 1
    return int(min(positions, tokenizer.model_max_length))


def settle_padding(tokenizer: Tokenizer, config: PretrainedConfig) -> None:
    """Make tokenizer and model agree on what is padding.

    Decoders often have no token for it; theirs is then the one that ends a text.

    Raises:
        CommandError: there is neither.
    """
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise CommandError(
                "the tokenizer has no pad_token, and no eos_token to take in its place; name one "
                "in tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    config.pad_token_id = tokenizer.pad_token_id
