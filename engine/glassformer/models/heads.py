"""Heads that families share, and the losses of all."""

from __future__ import annotations

from typing import Any, ClassVar

from glassformer.models.outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    QuestionAnsweringOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from glassformer.models.pretrained import PretrainedModel
from glassformer.nn import Dropout, Embedding, LayerNorm, Linear, Module
from glassformer.nn import functional as F
from glassformer.nn.feed_forward import ACTIVATIONS
from glassformer.ops.creation import empty
from glassformer.random import Generator
from glassformer.tensor import Parameter, Tensor

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


class ModelWithHead(PretrainedModel):
    """A bare model of `base_class`, held under its family's prefix, and a head on top."""

    base_class: ClassVar[type[PretrainedModel]]
    keeps_pooler: ClassVar[bool] = False  # whether the head reads what the pooler makes

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        base = cls.__dict__.get("base_class")
        if base is not None:
            cls.config_class = base.config_class
            cls.base_model_prefix = base.base_model_prefix
            cls.ignored_keys = (*base.ignored_keys, *cls.__dict__.get("ignored_keys", ()))

    def build(self, config: Any) -> None:  # noqa: D102
        base = self.base_class(config)
        if not self.keeps_pooler:
            base.drop_pooler()
        setattr(self, self.base_model_prefix, base)
        self.build_head(config)

    def init_parameter(self, name: str, parameter: Tensor, generator: Generator | None) -> None:
        """Fill a fresh parameter as the bare model does."""
        self.base_model.init_parameter(name, parameter, generator)

    def build_head(self, config: Any) -> None:
        """Make the layers on top of the bare model."""
        raise NotImplementedError(f"{type(self).__name__} defines no build_head()")


class LanguageModelHead(Module):
    """decoder(norm(activation(dense(x)))): hidden states -> logits over the vocabulary.

    If the config ties them, the decoder's weight is the token embedding, and its bias has a second
    name, by which the hub knows it. Devlin et al. 2019, "BERT", section 3.1: a masked token is
    predicted from the state at its own position.

    Args:
        config: of the family.
        width: channels between dense and decoder, those of the embedding.
        embedding: of the tokens.
        activation: one of `ACTIVATIONS`.
    """

    activation: str
    bias: Parameter  # (V,)
    dense: Linear
    norm: LayerNorm
    decoder: Linear

    def __init__(self, config: Any, width: int, embedding: Embedding, activation: str) -> None:
        self.activation = activation
        decoder = Linear(width, config.vocab_size)
        # Where nothing is tied, the hub's checkpoints keep a bias that no output depends on.
        tied_bias = decoder.bias if config.tie_word_embeddings else None
        self.bias = Parameter(empty(config.vocab_size)) if tied_bias is None else tied_bias
        self.dense = Linear(config.hidden_size, width)
        self.norm = LayerNorm(width, eps=config.layer_norm_eps)
        self.decoder = decoder
        if config.tie_word_embeddings:
            self.decoder.weight = embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, V)."""
        logits: Tensor = self.decoder(self.norm(ACTIVATIONS[self.activation](self.dense(x))))
        return logits


class MaskedLanguageModel(ModelWithHead):
    """What stands at each position, masked ones above all."""

    def predict(self, x: Tensor) -> Tensor:
        """Return the logits over the vocabulary: (B, T, C) -> (B, T, V)."""
        raise NotImplementedError(f"{type(self).__name__} defines no predict()")

    def forward(
        self, *inputs: Tensor, labels: Tensor | None = None, **settings: Any
    ) -> MaskedLMOutput:
        """Predict; the arguments are the bare model's, and labels (B, T), -100 where none is."""
        outputs = self.base_model(*inputs, **settings)
        logits = self.predict(outputs.last_hidden_state)
        return MaskedLMOutput(token_loss(logits, labels), logits, outputs.hidden_states)


class SequenceClassifier(ModelWithHead):
    """One judgement of the whole input: dropout and a linear layer on the pooled vector."""

    keeps_pooler = True
    dropout: Dropout
    classifier: Module

    def build_head(self, config: Any) -> None:  # noqa: D102
        self.dropout = Dropout(head_dropout(config))
        self.classifier = Linear(config.hidden_size, config.num_labels)

    def classify(self, outputs: BaseModelOutput) -> Tensor:
        """Return the logits (B, num_labels) from what the bare model found."""
        logits: Tensor = self.classifier(self.dropout(outputs.pooler_output))
        return logits

    def forward(
        self, *inputs: Tensor, labels: Tensor | None = None, **settings: Any
    ) -> SequenceClassifierOutput:
        """Classify; the arguments are the bare model's, and labels (B,), see `classifier_loss`."""
        outputs = self.base_model(*inputs, **settings)
        logits = self.classify(outputs)
        loss = classifier_loss(logits, labels, self.config)
        return SequenceClassifierOutput(loss, logits, outputs.hidden_states)


class TokenClassifier(ModelWithHead):
    """A judgement of every token: dropout and a linear layer at each position."""

    dropout: Dropout
    classifier: Linear

    def build_head(self, config: Any) -> None:  # noqa: D102
        self.dropout = Dropout(head_dropout(config))
        self.classifier = Linear(config.hidden_size, config.num_labels)

    def forward(
        self, *inputs: Tensor, labels: Tensor | None = None, **settings: Any
    ) -> TokenClassifierOutput:
        """Classify; the arguments are the bare model's, and labels (B, T), -100 where none is."""
        outputs = self.base_model(*inputs, **settings)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        return TokenClassifierOutput(token_loss(logits, labels), logits, outputs.hidden_states)


class QuestionAnswerer(ModelWithHead):
    """Where the answer begins and ends: two logits at each position."""

    dropout: Dropout
    qa_outputs: Linear

    def build_head(self, config: Any) -> None:  # noqa: D102
        self.dropout = Dropout(getattr(config, "qa_dropout", 0.0))
        self.qa_outputs = Linear(config.hidden_size, 2)

    def forward(
        self,
        *inputs: Tensor,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **settings: Any,
    ) -> QuestionAnsweringOutput:
        """Find the answer; the arguments are the bare model's, and the true positions (B,).

        The loss is the mean of two cross-entropies. A position beyond the input doesn't count.
        """
        outputs = self.base_model(*inputs, **settings)
        x = self.dropout(outputs.last_hidden_state)
        start, end = self.qa_outputs(x).unbind(-1)  # (B, T) each
        loss = None
        if start_positions is not None and end_positions is not None:
            first, last = (
                position_loss(*pair) for pair in ((start, start_positions), (end, end_positions))
            )
            loss = (first + last) / 2
        return QuestionAnsweringOutput(loss, start, end, outputs.hidden_states)


def head_dropout(config: Any) -> float:
    """Return the dropout before a classifier: its own setting, or that of the hidden states."""
    own = getattr(config, "classifier_dropout", None)
    return float(config.hidden_dropout_prob if own is None else own)


def classifier_loss(logits: Tensor, labels: Tensor | None, config: Any) -> Tensor | None:
    """Return the loss of logits (B, num_labels), by `config.problem_type`.

    "regression": mean squared error with labels of the logits' size;
    "single_label_classification": cross-entropy with classes (B,);
    "multi_label_classification": binary cross-entropy with 0 or 1 for each label, (B, num_labels).
    Unless told: regression for one label, one class for integers, several for floats.
    """
    if labels is None:
        return None
    kind = config.problem_type
    if kind is None:
        single = not labels.dtype.is_floating_point
        kind = PROBLEM_TYPES[0 if config.num_labels == 1 else 1 if single else 2]
    if kind not in PROBLEM_TYPES:
        raise ValueError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, got {kind!r}")
    if kind == "single_label_classification":
        return F.cross_entropy(logits, labels.flatten())
    if labels.numel() != logits.numel():
        raise ValueError(
            f"{kind} takes labels of the logits' size {logits.shape}, got {labels.shape}"
        )
    targets = labels.to(logits.dtype).reshape(logits.shape)
    if kind == "regression":
        difference = logits - targets
        return (difference * difference).mean()
    # -t·log σ(z) - (1 - t)·log(1 - σ(z)), without the overflow of either logarithm
    losses = logits.clamp(min=0) - logits * targets + ((-logits.abs()).exp() + 1).log()
    return losses.mean()


def token_loss(logits: Tensor, labels: Tensor | None) -> Tensor | None:
    """Return the cross-entropy of logits (B, T, V) with labels (B, T); -100 doesn't count."""
    if labels is None:
        return None
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels are {labels.shape}, but there are {logits.shape[:-1]} tokens")
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def pretraining_loss(
    words: Tensor, labels: Tensor | None, pairs: Tensor, pair_labels: Tensor | None
) -> Tensor | None:
    """Return the sum of two cross-entropies: of masked words (B, T, V), and of pairs (B, 2).

    None unless labels (B, T) and pair_labels (B,) are both given.
    """
    word_loss = token_loss(words, labels)
    if word_loss is None or pair_labels is None:
        return None
    return word_loss + F.cross_entropy(pairs, pair_labels.flatten())


def position_loss(logits: Tensor, positions: Tensor) -> Tensor:
    """Return the cross-entropy of logits (B, T) with positions (B,); T or more doesn't count."""
    length = logits.shape[1]
    return F.cross_entropy(logits, positions.flatten().clamp(0, length), ignore_index=length)
