"""From a classifier's logits to scores with the names of labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FUNCTIONS = ("softmax", "sigmoid", "none")


def softmax(logits: Array) -> Array:
    """exp(x) / Σ exp(x) over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Array = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def sigmoid(logits: Array) -> Array:
    """1 / (1 + exp(-x)), where neither side overflows."""
    small = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1, small) / (1 + small))


def function_for(config: Any, chosen: str | None) -> str:
    """Return what makes scores of logits: what was chosen, or what the config's problem calls for.

    Nothing for a regression; the sigmoid for labels that don't exclude each other, or a single one;
    else softmax.

    Raises:
        ValueError: the choice is none of `FUNCTIONS`.
    """
    if chosen in (None, "default"):
        if config.problem_type == "regression":
            return "none"
        single = config.problem_type == "multi_label_classification" or config.num_labels == 1
        return "sigmoid" if single else "softmax"
    name = str(chosen).lower()
    if name not in FUNCTIONS:
        raise ValueError(f"function_to_apply must be one of {', '.join(FUNCTIONS)}, got {chosen!r}")
    return name


def labelled(
    logits: Array, config: Any, function: str | None, top_k: int | None
) -> list[dict[str, Any]]:
    """Return the `top_k` best labels of logits (num_labels,), best first; all of them for None."""
    name = function_for(config, function)
    scores = logits if name == "none" else sigmoid(logits) if name == "sigmoid" else softmax(logits)
    order = np.argsort(-scores, kind="stable")[:top_k]
    return [{"label": config.id2label[int(i)], "score": float(scores[i])} for i in order]


def check_top_k(top_k: Any) -> None:
    """Raise ValueError unless `top_k` is None or a whole number from 1."""
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"top_k must be a whole number from 1, or None for all, got {top_k!r}")
