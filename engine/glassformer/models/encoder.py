"""The encoder that BERT and its kin share: embeddings, post-norm blocks, a pooler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glassformer.models.inputs import check_beside, check_not_empty, padding_mask
from glassformer.models.outputs import BaseModelOutput
from glassformer.models.pretrained import PretrainedModel
from glassformer.nn import (
    Dropout,
    Embedding,
    FeedForward,
    LayerNorm,
    Linear,
    Module,
    MultiheadAttention,
    TransformerBlock,
)
from glassformer.ops.creation import arange, zeros
from glassformer.tensor import Tensor


class EncoderEmbeddings(Module):
    """norm(word + position + token type), with dropout; Devlin et al. 2019, figure 2."""

    word_embeddings: Embedding
    position_embeddings: Embedding
    token_type_embeddings: Embedding | None
    norm: LayerNorm
    dropout: Dropout

    def __init__(self, config: Any, width: int) -> None:
        self.word_embeddings = Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.position_embeddings = Embedding(config.max_position_embeddings, width)
        types = config.type_vocab_size
        self.token_type_embeddings = Embedding(types, width) if types else None
        self.norm = LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor | None, position_ids: Tensor
    ) -> Tensor:
        """(B, T) integers -> (B, T, width)."""
        x = self.word_embeddings(input_ids) + self.position_embeddings(position_ids)
        if self.token_type_embeddings is not None:
            if token_type_ids is None:
                token_type_ids = zeros(1, 1, dtype=input_ids.dtype, device=input_ids.device)
            x = x + self.token_type_embeddings(token_type_ids)
        embedded: Tensor = self.dropout(self.norm(x))
        return embedded


class EncoderModel(PretrainedModel):
    """Embeddings, blocks, and for some a pooler: dense with tanh on the first token."""

    ignored_keys = ("embeddings.position_ids", "embeddings.token_type_ids")

    embeddings: EncoderEmbeddings
    blocks: Sequence[Module]
    pooler: Linear | None

    def drop_pooler(self) -> None:  # noqa: D102
        self.pooler = None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> BaseModelOutput:
        """Encode `input_ids` (B, T).

        Args:
            input_ids: integers in [0, vocab_size).
            attention_mask: (B, T), 0 or False where there is padding.
            token_type_ids: (B, T), 0 for the first segment and 1 for the second; 0 unless given.
            position_ids: (B, T) or (1, T); 0, 1, … unless given.
            output_hidden_states: return those of every layer as well.

        Raises:
            IndexError: a token, type or position is out of range.
            ValueError: the input is too long, or shapes don't fit.
        """
        check_beside("token_type_ids", token_type_ids, input_ids)
        check_beside("position_ids", position_ids, input_ids)
        check_not_empty(input_ids)
        if position_ids is None:
            position_ids = self.position_ids(input_ids)
        x = self.embeddings(input_ids, token_type_ids, position_ids)
        mask = padding_mask(attention_mask, input_ids.shape)
        x, hidden_states = self.run_blocks(
            self.layers(), x, output_hidden_states, padding_mask=mask
        )
        pooled = None if self.pooler is None else self.pooler(x[:, 0]).tanh()
        return BaseModelOutput(x, pooled, hidden_states)

    def layers(self) -> Sequence[Module]:
        """Return the blocks in the order in which the input passes through them."""
        return self.blocks

    def position_ids(self, input_ids: Tensor) -> Tensor:
        """Return the position of each token, (B, T) or (1, T)."""
        self.check_length(input_ids)
        return arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)


def encoder_block(config: Any) -> TransformerBlock:
    """Return one post-norm block of the shape that BERT and its kin share."""
    channels = config.hidden_size
    return TransformerBlock(
        MultiheadAttention(
            channels, config.num_attention_heads, config.attention_probs_dropout_prob
        ),
        FeedForward(channels, config.intermediate_size, config.hidden_act),
        dropout=config.hidden_dropout_prob,
        norm=lambda width: LayerNorm(width, eps=config.layer_norm_eps),
    )
