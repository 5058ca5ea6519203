"""What models return."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from glassformer.tensor import Tensor

HiddenStates = tuple[Tensor, ...] | None  # the embeddings', then each block's: (B, T, C) each
Attentions = tuple[Tensor, ...] | None  # each layer's weights, (B, H, Tq, Tk): rows sum to 1


class ModelOutput:
    """What a model returns: by name, or as Hugging Face's by key, and by place.

    Keys and places are those of what is there: a loss without labels has none.
    """

    __slots__ = ()

    def keys(self) -> tuple[str, ...]:
        """Return the names of what is there."""
        names = (one.name for one in fields(self))  # type: ignore[arg-type]
        return tuple(name for name in names if getattr(self, name) is not None)

    def to_tuple(self) -> tuple[Any, ...]:
        """Return what is there, in order."""
        return tuple(getattr(self, name) for name in self.keys())

    def items(self) -> tuple[tuple[str, Any], ...]:
        """Return the names and values of what is there."""
        return tuple(zip(self.keys(), self.to_tuple(), strict=True))

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self.keys():
            raise KeyError(f"{key!r}; there are {', '.join(self.keys())}")
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())


@dataclass(frozen=True, slots=True)
class CausalLMOutput(ModelOutput):
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
class BaseModelOutput(ModelOutput):
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
class MaskedLMOutput(ModelOutput):
    """The output of a masked language model: logits (B, T, V) for what stands at each position."""

    loss: Tensor | None
    logits: Tensor
    hidden_states: HiddenStates = None
    attentions: Attentions = None


@dataclass(frozen=True, slots=True)
class SequenceClassifierOutput(ModelOutput):
    """The output of a classifier of sequences (or images): logits (B, num_labels)."""

    loss: Tensor | None
    logits: Tensor
    hidden_states: HiddenStates = None
    attentions: Attentions = None


@dataclass(frozen=True, slots=True)
class TokenClassifierOutput(ModelOutput):
    """The output of a classifier of tokens: logits (B, T, num_labels)."""

    loss: Tensor | None
    logits: Tensor
    hidden_states: HiddenStates = None
    attentions: Attentions = None


@dataclass(frozen=True, slots=True)
class QuestionAnsweringOutput(ModelOutput):
    """Where an answer begins and where it ends: logits (B, T) each."""

    loss: Tensor | None
    start_logits: Tensor
    end_logits: Tensor
    hidden_states: HiddenStates = None
    attentions: Attentions = None


@dataclass(frozen=True, slots=True)
class Seq2SeqModelOutput(ModelOutput):
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
class Seq2SeqLMOutput(ModelOutput):
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
