"""Features of a frozen backbone, computed once: a head is then trained in seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from glassformer.grad_mode import no_grad
from glassformer.models.causal import LastTokenClassifier
from glassformer.models.heads import SequenceClassifier
from glassformer.models.outputs import BaseModelOutput
from glassformer.models.pretrained import PretrainedModel
from glassformer.nn import Module
from glassformer.tensor import Tensor, from_numpy

Array = npt.NDArray[Any]
Item = Mapping[str, Any]


class FrozenFeatures(Module):
    """What a backbone made of N texts, in the backbone's place.

    Called with the texts' numbers in place of their tokens, it returns for each the one state that
    its classifier reads, and the pooled vector.

    Args:
        states: (N, C).
        pooled: (N, C), or None where there is no pooler.
    """

    def __init__(self, states: Array, pooled: Array | None) -> None:
        self.states = states  # arrays rather than tensors: no checkpoint need hold them
        self.pooled = pooled

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutput:
        """Return the features of the texts that `input_ids` (B, 1) number."""
        del attention_mask
        numbers = input_ids.cpu().numpy()[:, 0]
        states = from_numpy(self.states[numbers][:, None]).to(input_ids.device)
        if self.pooled is None:
            return BaseModelOutput(states, None)
        return BaseModelOutput(states, from_numpy(self.pooled[numbers]).to(input_ids.device))


def has_frozen_features(model: PretrainedModel) -> bool:
    """Tell whether `frozen_features` can serve a model: a classifier that reads one state."""
    return isinstance(model, (SequenceClassifier, LastTokenClassifier))


@contextmanager
def frozen_features(
    model: PretrainedModel,
    items: Sequence[Item],
    collate: Callable[[list[Item]], Mapping[str, Tensor]],
    batch_size: int = 16,
    on_batch: Callable[[int], object] | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """Put features of `items` in the place of a classifier's backbone, and the backbone back after.

    The backbone runs once over every item, in evaluation mode: no dropout, no gradients. What is
    given are the items to train and evaluate with in place of those: each the number of its
    features, as `input_ids` (1,), with its labels. Meanwhile the model's parameters are its head's.

    Args:
        model: one of which `has_frozen_features` is true.
        items: with `input_ids` (T,), as `collate` takes them.
        collate: makes a batch of them.
        batch_size: items in a batch.
        on_batch: told after each batch how many items it had.
    """
    prefix, backbone = model.base_model_prefix, model.base_model
    setattr(model, prefix, _computed(model, items, collate, batch_size, on_batch))
    try:
        yield [
            {"input_ids": np.array([number]), "labels": item["labels"]}
            for number, item in enumerate(items)
        ]
    finally:
        setattr(model, prefix, backbone)
        backbone.train(model.training)


def _computed(
    model: PretrainedModel,
    items: Sequence[Item],
    collate: Callable[[list[Item]], Mapping[str, Tensor]],
    batch_size: int,
    on_batch: Callable[[int], object] | None,
) -> FrozenFeatures:
    # Texts of like length go together: little is padded.
    order = np.argsort([len(item["input_ids"]) for item in items], kind="stable")
    states, pooled = [], []
    backbone = model.base_model.eval()
    device = next(iter(model.parameters())).device
    with no_grad():
        for start in range(0, len(items), batch_size):
            batch = dict(collate([items[i] for i in order[start : start + batch_size]]))
            batch.pop("labels", None)
            batch = {name: value.to(device) for name, value in batch.items()}
            outputs = backbone(**batch)
            states.append(_read_state(model, outputs.last_hidden_state, batch["input_ids"]))
            if outputs.pooler_output is not None:
                pooled.append(outputs.pooler_output.cpu().numpy())
            if on_batch is not None:
                on_batch(len(states[-1]))
    back = np.argsort(order)
    return FrozenFeatures(
        np.concatenate(states)[back], np.concatenate(pooled)[back] if pooled else None
    )


def _read_state(model: PretrainedModel, states: Tensor, input_ids: Tensor) -> Array:
    """The one state of each item that the classifier reads: (B, T, C) -> (B, C)."""
    rows = np.arange(states.shape[0])
    places = 0
    if isinstance(model, LastTokenClassifier):
        places = model.last_tokens(input_ids).cpu().numpy()
    read: Array = states.cpu().numpy()[rows, places]
    return read
