"""Scores of predicted classes, by scikit-learn's names and definitions.

Spans of tags are scored in `span_scores.py`, answers to questions in `answer_scores.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from glassformer.data.text import IGNORED

Array = npt.NDArray[Any]
Average = Literal["binary", "macro", "micro", "weighted"] | None


class PrecisionRecall(NamedTuple):
    """What `precision_recall_fscore_support` returns: numbers, or arrays (K,) with average None."""

    precision: Any
    recall: Any
    fscore: Any
    support: Any


def accuracy_score(y_true: npt.ArrayLike, y_pred: npt.ArrayLike) -> float:
    """Return the share of items whose predicted class is the true one; both are (N,).

    Raises:
        ValueError: there are no items, not equally many, or they are not classes.
    """
    true, predicted = _classes(y_true, y_pred)
    return float(np.mean(true == predicted))


def confusion_matrix(
    y_true: npt.ArrayLike, y_pred: npt.ArrayLike, *, labels: npt.ArrayLike | None = None
) -> npt.NDArray[np.int64]:
    """Return counts (K, K): row i, column j is how often class i was taken for class j.

    Args:
        y_true: the classes (N,): integers, booleans or strings.
        y_pred: the predicted ones.
        labels: the K classes to count, in this order; all that occur, sorted, unless told.

    Raises:
        ValueError: there are no items, not equally many, or they are not classes.
    """
    true, predicted = _classes(y_true, y_pred)
    names = _names(true, predicted, labels)
    width = len(names) + 1  # one more, for the classes that don't count
    cells = _numbers(true, names) * width + _numbers(predicted, names)
    counts = np.bincount(cells, minlength=width * width)
    return counts.reshape(width, width)[:-1, :-1]


def precision_recall_fscore_support(
    y_true: npt.ArrayLike,
    y_pred: npt.ArrayLike,
    *,
    labels: npt.ArrayLike | None = None,
    pos_label: Any = 1,
    average: Average = None,
) -> PrecisionRecall:
    """Return precision, recall, F1 and support.

    Of the items of a class, TP were found, FN were not, and FP others were taken for it:
    precision = TP / (TP + FP), recall = TP / (TP + FN), F1 = 2 TP / (2 TP + FP + FN). A quotient
    0 / 0 is 0. The support is TP + FN; None when averaged.

    Args:
        y_true: the classes (N,): integers, booleans or strings.
        y_pred: the predicted ones.
        labels: the K classes that count, in this order; all that occur, sorted, unless told.
        pos_label: the class that is scored with "binary".
        average: None for an array (K,) of each; "macro" for the mean over classes; "weighted" for
            the mean weighted by support; "micro" to sum TP, FP and FN over classes first; "binary"
            for the scores of `pos_label` alone.

    Raises:
        ValueError: there are no items, not equally many, or they are not classes; the average is
            unknown, or "binary" with more than two classes or without `pos_label`.
    """
    true, predicted = _classes(y_true, y_pred)
    names = _names(true, predicted, labels)
    if average == "binary":
        names = _positive(names, pos_label)
    elif average not in (None, "macro", "micro", "weighted"):
        raise ValueError(
            f"average {average!r} is none of 'binary', 'macro', 'micro', 'weighted' and None"
        )
    hits, found, support = (
        np.bincount(_numbers(side, names), minlength=len(names) + 1)[:-1]  # (K,)
        for side in (true[true == predicted], predicted, true)
    )
    if average == "micro":
        hits, found, support = (counts.sum(keepdims=True) for counts in (hits, found, support))
    scores = PrecisionRecall(
        _ratio(hits, found), _ratio(hits, support), _ratio(2 * hits, found + support), support
    )
    if average is None:
        return scores
    weights = support if average == "weighted" else np.ones(len(hits))
    total = max(float(weights.sum()), 1.0)  # no class of a weighted mean may have occurred
    precision, recall, fscore = (float(score @ weights) / total for score in scores[:3])
    return PrecisionRecall(precision, recall, fscore, None)


def precision_score(
    y_true: npt.ArrayLike,
    y_pred: npt.ArrayLike,
    *,
    labels: npt.ArrayLike | None = None,
    pos_label: Any = 1,
    average: Average = "binary",
) -> Any:
    """Return TP / (TP + FP); see `precision_recall_fscore_support`."""
    return precision_recall_fscore_support(
        y_true, y_pred, labels=labels, pos_label=pos_label, average=average
    ).precision


def recall_score(
    y_true: npt.ArrayLike,
    y_pred: npt.ArrayLike,
    *,
    labels: npt.ArrayLike | None = None,
    pos_label: Any = 1,
    average: Average = "binary",
) -> Any:
    """Return TP / (TP + FN); see `precision_recall_fscore_support`."""
    return precision_recall_fscore_support(
        y_true, y_pred, labels=labels, pos_label=pos_label, average=average
    ).recall


def f1_score(
    y_true: npt.ArrayLike,
    y_pred: npt.ArrayLike,
    *,
    labels: npt.ArrayLike | None = None,
    pos_label: Any = 1,
    average: Average = "binary",
) -> Any:
    """Return 2 TP / (2 TP + FP + FN); see `precision_recall_fscore_support`."""
    return precision_recall_fscore_support(
        y_true, y_pred, labels=labels, pos_label=pos_label, average=average
    ).fscore


def matthews_corrcoef(y_true: npt.ArrayLike, y_pred: npt.ArrayLike) -> float:
    """Return Matthews' correlation of true and predicted classes, between -1 and 1.

    (c·s - Σ t_k p_k) / √((s² - Σ t_k²)(s² - Σ p_k²)), where c of the s items are right, t_k are of
    class k and p_k were taken for it; 0 if a side has one class only. Gorodkin 2004, "Comparing two
    K-category assignments by a K-category correlation coefficient".

    Raises:
        ValueError: there are no items, not equally many, or they are not classes.
    """
    counts = confusion_matrix(y_true, y_pred).astype(np.float64)  # (K, K)
    items, right = counts.sum(), np.trace(counts)
    true, predicted = counts.sum(axis=1), counts.sum(axis=0)  # (K,)
    spread = (items**2 - true @ true) * (items**2 - predicted @ predicted)
    return float((right * items - true @ predicted) / np.sqrt(spread)) if spread else 0.0


def classification_report(
    y_true: npt.ArrayLike,
    y_pred: npt.ArrayLike,
    *,
    labels: npt.ArrayLike | None = None,
    target_names: Sequence[str] | None = None,
    digits: int = 2,
) -> str:
    """Return a table of precision, recall, F1 and support, a line a class, averages below.

    Args:
        y_true: the classes (N,).
        y_pred: the predicted ones.
        labels: the K classes to list, in this order; all that occur, sorted, unless told.
        target_names: what to call them.
        digits: decimals.

    Raises:
        ValueError: as `precision_recall_fscore_support`, or there are not K names.
    """
    true, predicted = _classes(y_true, y_pred)
    classes = _names(true, predicted, labels)
    names = [str(name) for name in (classes if target_names is None else target_names)]
    if len(names) != len(classes):
        raise ValueError(f"target_names has {len(names)} names for {len(classes)} classes: {names}")
    each = precision_recall_fscore_support(true, predicted, labels=classes)
    rows = list(zip(names, *each, strict=True))
    averages: tuple[Average, ...] = ("micro", "macro", "weighted")
    for average in averages:
        scores = precision_recall_fscore_support(true, predicted, labels=classes, average=average)
        rows.append((f"{average} avg", *scores[:3], each.support.sum()))
    width = max(len(row[0]) for row in rows)
    lines = [" " * (width + 1) + " precision    recall  f1-score   support", ""]
    for name, *numbers, support in rows:
        cells = [f"{number:>10.{digits}f}" for number in numbers]
        if name == "micro avg" and np.isin(np.union1d(true, predicted), classes).all():
            name, cells[:2] = "accuracy", [" " * 10] * 2  # all three are then the same
        lines.append(f"{name:>{width}} " + "".join(cells) + f"{support:>10}")
    lines.insert(2 + len(names), "")
    return "\n".join([*lines, ""])


def perplexity(loss: float) -> float:
    """Return e^loss, for a mean cross-entropy in nats per token; infinite above 709."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _ratio(part: Array, whole: Array) -> npt.NDArray[np.float64]:
    """part / whole, and 0 where both are 0."""
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole != 0)


def _classes(y_true: npt.ArrayLike, y_pred: npt.ArrayLike) -> tuple[Array, Array]:
    """Both sides as arrays (N,) of classes, or ValueError."""
    true, predicted = np.asarray(y_true), np.asarray(y_pred)
    for name, array in (("y_true", true), ("y_pred", predicted)):
        if array.ndim != 1:
            raise ValueError(f"{name} must be classes (N,), got shape {array.shape}; flatten it")
        if array.size == 0:
            raise ValueError(f"{name} is empty: there is nothing to score")
        if array.dtype.kind not in "iubU":
            raise ValueError(
                f"{name} must be integers, booleans or strings, got {array.dtype}; "
                "logits become classes by argmax(-1)"
            )
    if true.shape != predicted.shape:
        raise ValueError(f"y_true has {true.size} items but y_pred {predicted.size}")
    if (true.dtype.kind == "U") != (predicted.dtype.kind == "U"):
        raise ValueError(f"y_true is {true.dtype} but y_pred {predicted.dtype}; give both alike")
    if true.dtype.kind == "i" and (true == IGNORED).any():
        raise ValueError(
            f"y_true holds {IGNORED}, the label that does not count; leave those items out: "
            f"keep = y_true != {IGNORED}"
        )
    return true, predicted


def _names(true: Array, predicted: Array, labels: npt.ArrayLike | None) -> Array:
    """The classes that count (K,)."""
    if labels is None:
        return np.union1d(true, predicted)
    names = np.asarray(labels)
    if names.ndim != 1 or names.size == 0 or len(set(names.tolist())) < names.size:
        raise ValueError(f"labels must be different classes (K,), got {labels!r}")
    return names


def _numbers(side: Array, names: Array) -> npt.NDArray[np.int64]:
    """For each class of a side (N,) its place in `names` (K,); K if it is not there."""
    if (side.dtype.kind == "U") != (names.dtype.kind == "U"):
        raise ValueError(f"the items are {side.dtype}, but the classes to score {names.tolist()}")
    order = np.argsort(names)
    place = order[np.searchsorted(names, side, sorter=order).clip(max=len(names) - 1)]
    return np.where(names[place] == side, place, len(names))


def _positive(names: Array, pos_label: Any) -> Array:
    """The one class that "binary" scores, as (1,)."""
    if len(names) > 2:
        raise ValueError(
            f"average='binary' is for two classes, got {len(names)}: choose 'macro', 'micro', "
            "'weighted' or None"
        )
    if len(names) == 2 and pos_label not in names.tolist():
        raise ValueError(f"pos_label {pos_label!r} is none of the classes {names.tolist()}")
    return np.array([pos_label])
