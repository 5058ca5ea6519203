"""What models that predict the next token share: positions beside padding, the loss, the heads."""

from __future__ import annotations

from typing import Any, Protocol

from glassformer.models.generative import GenerativeModel
from glassformer.models.heads import ModelWithHead, classifier_loss
from glassformer.models.inputs import check_ids, check_not_empty, real_positions
from glassformer.models.outputs import CausalLMOutput, SequenceClassifierOutput
from glassformer.nn import Embedding, LayerCache, Linear
from glassformer.nn import functional as F
from glassformer.ops.creation import arange, full
from glassformer.tensor import Tensor

IGNORED = -100  # the label of positions that don't count, as in PyTorch and Hugging Face


class Cache(Protocol):
    """What a model needs of a key-value cache: its length, and an entry for each layer."""

    length: int

    def __getitem__(self, layer: int) -> LayerCache:
        """Return the cache of one layer."""
        ...


def check_input(input_ids: Tensor, past: int, config: Any, limit: str) -> None:
    """Raise ValueError unless `input_ids` are (B, T) and fit into the positions of the config.

    `past` positions are in the cache already; `limit` names the setting that says how many there
    are.
    """
    check_ids(input_ids)
    most = getattr(config, limit)
    if past + input_ids.shape[1] > most:
        before = f" after {past} in the cache" if past else ""
        raise ValueError(
            f"{input_ids.shape[1]} tokens{before} exceed the model's {limit}={most}; pass fewer"
        )


def real_tokens(
    attention_mask: Tensor | None, shape: tuple[int, ...], past: int
) -> tuple[Tensor | None, Tensor | None]:
    """Return which keys are real, and the position of each new token counted among real ones.

    Both are None where nothing is padded.

    Raises:
        ValueError: the mask isn't (B, past + T) for input of `shape` (B, T), or not of 1s and 0s.
    """
    if attention_mask is None:
        return None, None
    batch, length = shape
    if attention_mask.shape != (batch, past + length):
        raise ValueError(
            f"attention_mask is {attention_mask.shape}, but there are {batch} sequences of "
            f"{past + length} tokens, the cached ones included"
        )
    real = real_positions(attention_mask)
    if real is None:
        return None, None
    position_ids = (real.long().cumsum(-1) - 1).clamp(min=0)
    return real, position_ids[:, past:]


def next_token_loss(
    logits: Tensor,
    labels: Tensor | None,
    shift_labels: Tensor | None,
    num_items_in_batch: int | None,
) -> Tensor | None:
    """Return the cross-entropy of logits (B, T, V), None without labels.

    Args:
        logits: logits[:, t] are for the token after position t.
        labels: (B, T): logits[:, t] are judged by labels[:, t + 1]. -100 is not judged.
        shift_labels: (B, T), in place of `labels`: logits[:, t] are judged by shift_labels[:, t].
        num_items_in_batch: divide the summed loss by this rather than by the number of labels
            judged: gradients accumulated over several batches are then those of one.
    """
    if shift_labels is None:
        if labels is None:
            return None
        shift_labels = _shifted(labels)
    if shift_labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels are {shift_labels.shape}, but input_ids {logits.shape[:-1]}")
    # A loss of half precision, summed over thousands of tokens, would have two digits.
    logits = logits.to(logits.dtype.wide)
    logits, targets = logits.flatten(0, 1), shift_labels.flatten()  # (B T, V), (B T,)
    if num_items_in_batch is None:
        return F.cross_entropy(logits, targets, ignore_index=IGNORED)
    summed = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    return summed / num_items_in_batch


def _shifted(labels: Tensor) -> Tensor:
    """Return labels one place to the left, the last place ignored: cheaper than slicing logits."""
    shifted = full(labels.shape, IGNORED, dtype=labels.dtype, device=labels.device)
    shifted[:, :-1] = labels[:, 1:]
    return shifted


def embedding_of(model: Any) -> Embedding:
    """Return the table of tokens of a bare model."""
    table: Embedding = model.embed_tokens
    return table


class CausalLM(GenerativeModel, ModelWithHead):
    """Logits for the next token: a linear layer, tied to the embedding if the config says so."""

    lm_head: Linear

    def build_head(self, config: Any) -> None:  # noqa: D102
        embedding = embedding_of(self.base_model)
        self.lm_head = Linear(embedding.embedding_dim, embedding.num_embeddings, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = embedding.weight

    def forward(
        self,
        *inputs: Tensor,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: int | None = None,
        logits_to_keep: int = 0,
        **settings: Any,
    ) -> CausalLMOutput:
        """Predict; the arguments are the bare model's, and those of `next_token_loss`.

        With `logits_to_keep` only so many of the last positions get logits; 0 is all of them.
        """
        outputs = self.base_model(*inputs, **settings)
        logits = self.lm_head(outputs.last_hidden_state[:, -logits_to_keep:])
        loss = next_token_loss(logits, labels, shift_labels, num_items_in_batch)
        return CausalLMOutput(loss, logits, outputs.cache, outputs.hidden_states)


class LastTokenClassifier(ModelWithHead):
    """One judgement of the whole input: a linear layer on the state of its last real token.

    That is the last one that is not `pad_token_id`: it has seen all the others.
    """

    score: Linear

    def build_head(self, config: Any) -> None:  # noqa: D102
        width = embedding_of(self.base_model).embedding_dim
        self.score = Linear(width, config.num_labels, bias=False)

    def forward(
        self, input_ids: Tensor, *inputs: Tensor, labels: Tensor | None = None, **settings: Any
    ) -> SequenceClassifierOutput:
        """Classify; the arguments are the bare model's, and labels (B,), see `classifier_loss`.

        Raises:
            ValueError: the input is empty, or there are several sequences and the config has no
                `pad_token_id`.
        """
        check_ids(input_ids)
        check_not_empty(input_ids)
        outputs = self.base_model(input_ids, *inputs, **settings)
        rows = arange(input_ids.shape[0], device=input_ids.device)
        last = outputs.last_hidden_state[rows, self.last_tokens(input_ids)]  # (B, C)
        logits = self.score(last)
        loss = classifier_loss(logits, labels, self.config)
        return SequenceClassifierOutput(loss, logits, outputs.hidden_states)

    def last_tokens(self, input_ids: Tensor) -> Tensor:
        """Return the place (B,) of each sequence's last real token."""
        batch, length = input_ids.shape
        pad = self.config.pad_token_id
        if pad is None:
            if batch > 1:
                raise ValueError(
                    f"{batch} sequences, but the config has no pad_token_id to tell where each "
                    "ends; set model.config.pad_token_id to the tokenizer's, or pass one at a time"
                )
            return full((1,), length - 1, dtype=input_ids.dtype, device=input_ids.device)
        places = arange(length, device=input_ids.device) * (input_ids != pad).long()
        last: Tensor = places.argmax(-1)
        return last
