"""GPT: a decoder-only Transformer that predicts the next token."""

from __future__ import annotations

from dataclasses import dataclass

from glassformer.models.causal import Cache, check_input, next_token_loss, real_tokens
from glassformer.models.gpt2 import gpt2_block, init_gpt2_
from glassformer.models.outputs import CausalLMOutput
from glassformer.nn import (
    Dropout,
    Embedding,
    LayerNorm,
    LearnedPositions,
    Linear,
    Module,
    TransformerBlock,
)
from glassformer.random import Generator
from glassformer.tensor import Tensor


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT, by GPT-2's names in Hugging Face transformers.

    Attributes:
        vocab_size: tokens the model knows, V.
        n_positions: longest sequence.
        n_embd: channels C.
        n_layer: blocks.
        n_head: attention heads in a block; must divide `n_embd`.
        dropout: on embeddings, attention weights and residual branches, while training.
        tie_word_embeddings: the output projection is the token embedding.
        activation_function: of the feed-forward part; see `FeedForward`.
        layer_norm_epsilon: in every LayerNorm.
        bias: have biases in projections and norms.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    dropout: float = 0.0
    tie_word_embeddings: bool = True
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    bias: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_head"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)!r}")


class GPT(Module):
    """Token and position embeddings, pre-norm causal blocks, a norm, and logits.

    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2), section 2.3.
    Weights start from N(0, 0.02²), biases from 0, and the projections that end a residual branch
    from N(0, 0.02² / (2 n_layer)), so that their sum over the layers keeps its size.

    Args:
        config: the shape.
        generator: draws the weights; default: the default generator.
    """

    config: GPTConfig
    embed_tokens: Embedding
    embed_positions: LearnedPositions
    dropout: Dropout
    blocks: list[TransformerBlock]
    norm: LayerNorm
    lm_head: Linear

    def __init__(self, config: GPTConfig, generator: Generator | None = None) -> None:
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.n_embd)
        self.embed_positions = LearnedPositions(config.n_positions, config.n_embd)
        self.dropout = Dropout(config.dropout)
        self.blocks = [
            gpt2_block(
                config.n_embd,
                config.n_head,
                4 * config.n_embd,
                config.activation_function,
                config.layer_norm_epsilon,
                attention_dropout=config.dropout,
                dropout=config.dropout,
                bias=config.bias,
            )
            for _ in range(config.n_layer)
        ]
        self.norm = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon, bias=config.bias)
        self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        for name, parameter in self.named_parameters():
            init_gpt2_(name, parameter, config.n_layer, 0.02, generator)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: int | None = None,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> CausalLMOutput:
        """Predict the token after each of `input_ids` (B, T).

        Args:
            input_ids: integers in [0, vocab_size).
            labels: (B, T), usually `input_ids` again; see `next_token_loss`.
            shift_labels: (B, T), in place of `labels`.
            num_items_in_batch: what the summed loss is divided by.
            attention_mask: (B, past + T), 0 or False where there is padding. Padding may stand on
                either side: positions count real tokens.
            cache: keys and values of the tokens before `input_ids`; takes in the new ones.

        Raises:
            IndexError: a token id is out of range.
            ValueError: more positions are needed than there are, or shapes don't fit.
        """
        past = 0 if cache is None else cache.length
        check_input(input_ids, past, self.config, "n_positions")
        padding_mask, position_ids = real_tokens(attention_mask, input_ids.shape, past)
        x = self.embed_tokens(input_ids)  # (B, T, C)
        x = self.dropout(self.embed_positions(x, past, position_ids))
        for i, block in enumerate(self.blocks):
            x = block(x, padding_mask=padding_mask, cache=None if cache is None else cache[i])
        logits: Tensor = self.lm_head(self.norm(x))  # (B, T, V)
        loss = next_token_loss(logits, labels, shift_labels, num_items_in_batch)
        return CausalLMOutput(loss, logits, cache)

    def extra_repr(self) -> str:  # noqa: D102
        return f"n_positions={self.config.n_positions}, n_embd={self.config.n_embd}"
