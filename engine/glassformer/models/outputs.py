"""What models return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from glassformer.tensor import Tensor

HiddenStates = tuple[Tensor, ...] | None  # the embeddings', then each block's: (B, T, C) each
Attentions = tuple[Tensor, ...] | None  # each layer's weights, (B, H, Tq, Tk): rows sum to 1


@dataclass(frozen=True, slots=True)
class CausalLMOutput:
    """The output of a language model that predicts the next token.

    Attributes:
        loss: cross-entropy in nats, 0-d; None when no labels were given.
        logits: (B, T, V); logits[:, t] are for the token after position t.
        cache: the cache that was passed in, now longer; None when there was none.
        hidden_states: of every layer, if they were asked for.
        attentions: likewise.
    """

    loss: Tensor | None
    logits: Tensor
    cache: Any = None
    hidden_states: HiddenStates = None
    attentions: Attentions = None


@dataclass(frozen=True, slots=True)
class BaseModelOutput:
    """The output of a model without a head.

    Attributes:
        last_hidden_state: (B, T, C).
        pooler_output: (B, C), one vector for the whole input; None where there is no pooler.
        hidden_states: of every layer, if they were asked for.
        attentions: likewise.
        cache: the cache that was passed in, now longer; None when there was none.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor | None = None
    hidden_states: HiddenStates = None
    cache: Any = None
    attentions: Attentions = None


@dataclass(frozen=True, slots=True)
class MaskedLMOutput:
    """The output of a masked language model: logits (B, T, V) for what stands at each position."""

    loss: Tensor | None
    logits: Tensor
    hidden_states: HiddenStates = None
    attentions: Attentions = None


@dataclass(frozen=True, slots=True)
class SequenceClassifierOutput:
    """The output of a classifier of sequences (or images): logits (B, num_labels)."""

    loss: Tensor | None
    logits: Tensor
    hidden_states: HiddenStates = None
    attentions: Attentions = None


@dataclass(frozen=True, slots=True)
class TokenClassifierOutput:
    """The output of a classifier of tokens: logits (B, T, num_labels)."""

    loss: Tensor | None
    logits: Tensor
    hidden_states: HiddenStates = None
    attentions: Attentions = None


@dataclass(frozen=True, slots=True)
class QuestionAnsweringOutput:
    """Where an answer begins and where it ends: logits (B, T) each."""

    loss: Tensor | None
    start_logits: Tensor
    end_logits: Tensor
    hidden_states: HiddenStates = None
    attentions: Attentions = None


@dataclass(frozen=True, slots=True)
class Seq2SeqModelOutput:
    """The output of an encoder-decoder without a head.

    Attributes:
        last_hidden_state: the decoder's, (B, T, C).
        encoder_last_hidden_state: (B, S, C).
        decoder_hidden_states: of every layer, if they were asked for.
        encoder_hidden_states: likewise.
        cache: the cache that was passed in, now longer; None when there was none.
        decoder_attentions: of every layer to the target itself, if they were asked for.
        cross_attentions: likewise, to the source, (B, H, T, S).
        encoder_attentions: likewise, of the source to itself.
    """

    last_hidden_state: Tensor
    encoder_last_hidden_state: Tensor
    decoder_hidden_states: HiddenStates = None
    encoder_hidden_states: HiddenStates = None
    cache: Any = None
    decoder_attentions: Attentions = None
    cross_attentions: Attentions = None
    encoder_attentions: Attentions = None


@dataclass(frozen=True, slots=True)
class Seq2SeqLMOutput:
    """The output of an encoder-decoder that predicts the next token of the target.

    Attributes:
        loss: cross-entropy in nats, 0-d; None when no labels were given.
        logits: (B, T, V); logits[:, t] are for the token after `decoder_input_ids[:, t]`.
        encoder_last_hidden_state, decoder_hidden_states, encoder_hidden_states, cache,
            decoder_attentions, cross_attentions, encoder_attentions: as in `Seq2SeqModelOutput`.
    """

    loss: Tensor | None
    logits: Tensor
    encoder_last_hidden_state: Tensor
    decoder_hidden_states: HiddenStates = None
    encoder_hidden_states: HiddenStates = None
    cache: Any = None
    decoder_attentions: Attentions = None
    cross_attentions: Attentions = None
    encoder_attentions: Attentions = None
