"""What the encoder-decoder families share: the way through both stacks, and the target's shift."""

from __future__ import annotations

from typing import Any

from glassformer.models.causal import Cache
from glassformer.models.generative import GenerativeModel
from glassformer.models.heads import token_loss
from glassformer.models.inputs import check_ids, check_not_empty, padding_mask
from glassformer.models.outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput
from glassformer.models.pretrained import PretrainedModel
from glassformer.nn import Embedding, Module, TransformerBlock
from glassformer.ops.choice import where
from glassformer.ops.creation import full
from glassformer.ops.shape import cat
from glassformer.tensor import Tensor

IGNORED = -100  # the label of positions that don't count, as in PyTorch and Hugging Face


class Stack(Module):
    """An encoder or a decoder: blocks, and what stands before and after them."""

    embed_tokens: Embedding
    blocks: list[TransformerBlock]

    def embed(self, input_ids: Tensor, past: int) -> Tensor:
        """(B, T) integers, `past` positions after the first -> (B, T, C)."""
        raise NotImplementedError(f"{type(self).__name__} defines no embed()")

    def position_bias(self, x: Tensor, past: int) -> Tensor | None:
        """Return what is added to the scores of every block, (1, H, T, past + T), if anything."""
        del x, past
        return None

    def finish(self, x: Tensor) -> Tensor:
        """Transform what leaves the last block (B, T, C)."""
        return x


class EncoderModel(PretrainedModel):
    """A model that has an encoder."""

    encoder: Stack

    def check_input(self, input_ids: Tensor, past: int) -> None:
        """Raise ValueError unless `input_ids` are (B, T), and fit after `past` positions."""
        check_ids(input_ids)
        limit = getattr(self.config, "max_position_embeddings", None)
        if limit is not None and past + input_ids.shape[1] > limit:
            before = f" after {past} in the cache" if past else ""
            raise ValueError(
                f"{input_ids.shape[1]} tokens{before} exceed the model's "
                f"max_position_embeddings={limit}; pass fewer"
            )

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> BaseModelOutput:
        """Run the encoder alone: (B, S) -> (B, S, C).

        `attention_mask` (B, S) is 0 or False where there is padding, on either side.
        """
        self.check_input(input_ids, 0)
        mask = padding_mask(attention_mask, input_ids.shape)
        x, states = self.run_stack(self.encoder, input_ids, output_hidden_states, padding_mask=mask)
        return BaseModelOutput(x, hidden_states=states)

    def run_stack(
        self,
        stack: Stack,
        input_ids: Tensor,
        output_hidden_states: bool,
        *,
        cache: Cache | None = None,
        **settings: Any,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Pass `input_ids` (B, T) through a stack; return its last state, and all if asked for."""
        past = 0 if cache is None else cache.length
        self.check_input(input_ids, past)
        x = stack.embed(input_ids, past)
        x, states = self.run_blocks(
            stack.blocks,
            x,
            output_hidden_states,
            cache=cache,
            attn_mask=stack.position_bias(x, past),
            **settings,
        )
        x = stack.finish(x)
        return x, None if states is None else (*states[:-1], x)


class EncoderDecoder(EncoderModel):
    """An encoder that reads the source and a decoder that writes the target, looking at it."""

    decoder: Stack

    def transform(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        cache: Cache | None = None,
        output_hidden_states: bool = False,
    ) -> Seq2SeqModelOutput:
        """Read the source (B, S), and return a vector for each token of the target (B, T).

        Args:
            input_ids: the source; not needed with `encoder_outputs`.
            attention_mask: (B, S), 0 or False where the source is padding.
            decoder_input_ids: the target so far, or with a cache, what it doesn't hold yet.
            decoder_attention_mask: (B, past + T), 0 or False where the target is padding.
            encoder_outputs: what `encode` returned for the source.
            cache: keys and values of the target's earlier tokens, and of the source; takes in the
                new ones.
            output_hidden_states: return those of every layer as well.

        Raises:
            IndexError: a token is out of range.
            ValueError: an input is missing or too long, or shapes don't fit.
        """
        if encoder_outputs is None:
            if input_ids is None:
                raise ValueError("give input_ids (B, S), or the encoder_outputs of an earlier call")
            encoder_outputs = self.encode(input_ids, attention_mask, output_hidden_states)
        if decoder_input_ids is None:
            decoder_input_ids = self.default_decoder_input(input_ids)
        memory = encoder_outputs.last_hidden_state
        past = 0 if cache is None else cache.length
        self.check_input(decoder_input_ids, past)
        batch, length = decoder_input_ids.shape
        if batch != memory.shape[0]:
            raise ValueError(f"the target is {batch} sequences, but the source {memory.shape[0]}")
        x, states = self.run_stack(
            self.decoder,
            decoder_input_ids,
            output_hidden_states,
            cache=cache,
            memory=memory,
            padding_mask=padding_mask(decoder_attention_mask, (batch, past + length)),
            memory_padding_mask=padding_mask(attention_mask, memory.shape[:2]),
        )
        return Seq2SeqModelOutput(x, memory, states, encoder_outputs.hidden_states, cache)

    def default_decoder_input(self, input_ids: Tensor | None) -> Tensor:
        """Return the target where none is given."""
        del input_ids
        raise ValueError(
            f"{type(self).__name__} needs decoder_input_ids (B, T), the target so far; a model "
            "with a head makes them of labels, and generate() of nothing"
        )


class Seq2SeqModel(EncoderDecoder):
    """An encoder-decoder without a head."""

    def forward(self, *inputs: Any, **settings: Any) -> Seq2SeqModelOutput:
        """Transform the target (B, T); the arguments are `transform`'s."""
        return self.transform(*inputs, **settings)


class Seq2SeqLM(GenerativeModel):
    """A head that predicts the target's next token. A subclass says of what, and how."""

    def transform(self, *inputs: Any, **settings: Any) -> Seq2SeqModelOutput:
        """Call what is below the head; see `EncoderDecoder.transform`."""
        raise NotImplementedError(f"{type(self).__name__} defines no transform()")

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits (B, T, V) of the decoder's states (B, T, C)."""
        raise NotImplementedError(f"{type(self).__name__} defines no logits()")

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        **settings: Any,
    ) -> Seq2SeqLMOutput:
        """Predict the target; the arguments are `transform`'s, and labels.

        Labels (B, T) are the target, -100 where it is padding. Without `decoder_input_ids` they
        tell the decoder's input too, see `shift_right`.
        """
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = shift_right(labels, self.config)
        outputs = self.transform(input_ids, attention_mask, decoder_input_ids, **settings)
        logits = self.logits(outputs.last_hidden_state)
        return Seq2SeqLMOutput(
            token_loss(logits, labels),
            logits,
            outputs.encoder_last_hidden_state,
            outputs.decoder_hidden_states,
            outputs.encoder_hidden_states,
            outputs.cache,
        )


def shift_right(labels: Tensor, config: Any) -> Tensor:
    """Return what the decoder reads to predict `labels` (B, T): the start token, then labels[:-1].

    Labels that don't count become padding.

    Raises:
        ValueError: the config names no start or padding token, or labels are of no token.
    """
    check_not_empty(labels, "labels")
    for name in ("decoder_start_token_id", "pad_token_id"):
        if getattr(config, name) is None:
            raise ValueError(f"labels make the decoder's input only if the config has a {name}")
    start = full(
        (labels.shape[0], 1),
        config.decoder_start_token_id,
        dtype=labels.dtype,
        device=labels.device,
    )
    shifted = cat([start, labels[:, :-1]], dim=1)
    return where(shifted == IGNORED, config.pad_token_id, shifted)
