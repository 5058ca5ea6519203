"""GPT: a decoder-only Transformer that predicts the next token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from glassformer.models.outputs import CausalLMOutput
from glassformer.nn import (
    Dropout,
    Embedding,
    FeedForward,
    LayerCache,
    LayerNorm,
    LearnedPositions,
    Linear,
    Module,
    MultiheadAttention,
    TransformerBlock,
    init,
)
from glassformer.nn import functional as F
from glassformer.ops.creation import full
from glassformer.random import Generator
from glassformer.tensor import Tensor

IGNORED = -100  # the label of positions that don't count, as in PyTorch and Hugging Face


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


class Cache(Protocol):
    """What `GPT` needs of a key-value cache: its length, and an entry for each layer."""

    length: int

    def __getitem__(self, layer: int) -> LayerCache:
        """Return the cache of one layer."""
        ...


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
        self.blocks = [_block(config) for _ in range(config.n_layer)]
        self.norm = _norm(config)
        self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self._init_weights(generator)

    def _init_weights(self, generator: Generator | None) -> None:
        residual_std = 0.02 / math.sqrt(2 * max(self.config.n_layer, 1))
        for name, parameter in self.named_parameters():
            if name.endswith(("out_proj.weight", "linear2.weight")):
                init.normal_(parameter, std=residual_std, generator=generator)
            elif parameter.ndim >= 2:
                init.normal_(parameter, std=0.02, generator=generator)
            elif name.endswith("bias"):
                init.zeros_(parameter)

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
            labels: (B, T), usually `input_ids` again: logits[:, t] are judged by labels[:, t + 1].
                -100 is not judged.
            shift_labels: (B, T), in place of `labels`: logits[:, t] are judged by
                shift_labels[:, t].
            num_items_in_batch: divide the summed loss by this rather than by the number of labels
                judged: gradients accumulated over several batches are then those of one.
            attention_mask: (B, past + T), 0 or False where there is padding. Padding may stand on
                either side: positions count real tokens.
            cache: keys and values of the tokens before `input_ids`; takes in the new ones.

        Raises:
            IndexError: a token id is out of range.
            ValueError: more positions are needed than there are, or shapes don't fit.
        """
        past = 0 if cache is None else cache.length
        self._check(input_ids, past)
        padding_mask, position_ids = _padding(attention_mask, input_ids.shape, past)
        x = self.embed_tokens(input_ids)  # (B, T, C)
        x = self.dropout(self.embed_positions(x, past, position_ids))
        for i, block in enumerate(self.blocks):
            x = block(x, padding_mask=padding_mask, cache=None if cache is None else cache[i])
        logits: Tensor = self.lm_head(self.norm(x))  # (B, T, V)
        if shift_labels is None and labels is not None:
            shift_labels = _shifted(labels)
        loss = None if shift_labels is None else _loss(logits, shift_labels, num_items_in_batch)
        return CausalLMOutput(loss, logits, cache)

    def _check(self, input_ids: Tensor, past: int) -> None:
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids must be (batch, length), got {input_ids.shape}")
        if past + input_ids.shape[1] > self.config.n_positions:
            before = f" after {past} in the cache" if past else ""
            raise ValueError(
                f"{input_ids.shape[1]} tokens{before} exceed the model's "
                f"n_positions={self.config.n_positions}; pass fewer"
            )

    def extra_repr(self) -> str:  # noqa: D102
        return f"n_positions={self.config.n_positions}, n_embd={self.config.n_embd}"


def _block(config: GPTConfig) -> TransformerBlock:
    return TransformerBlock(
        MultiheadAttention(
            config.n_embd, config.n_head, config.dropout, bias=config.bias, causal=True
        ),
        FeedForward(config.n_embd, 4 * config.n_embd, config.activation_function, bias=config.bias),
        dropout=config.dropout,
        norm_first=True,
        norm=lambda _: _norm(config),
    )


def _norm(config: GPTConfig) -> LayerNorm:
    return LayerNorm(config.n_embd, eps=config.layer_norm_epsilon, bias=config.bias)


def _padding(
    attention_mask: Tensor | None, shape: tuple[int, ...], past: int
) -> tuple[Tensor | None, Tensor | None]:
    """Return which keys are real, and the position of each new token counted among real ones."""
    if attention_mask is None:
        return None, None
    batch, length = shape
    if attention_mask.shape != (batch, past + length):
        raise ValueError(
            f"attention_mask is {attention_mask.shape}, but there are {batch} sequences of "
            f"{past + length} tokens, the cached ones included"
        )
    real = attention_mask != 0
    if bool(real.all()):
        return None, None
    position_ids = (real.long().cumsum(-1) - 1).clamp(min=0)
    return real, position_ids[:, past:]


def _shifted(labels: Tensor) -> Tensor:
    """Return labels one place to the left, the last place ignored: cheaper than slicing logits."""
    shifted = full(labels.shape, IGNORED, dtype=labels.dtype, device=labels.device)
    shifted[:, :-1] = labels[:, 1:]
    return shifted


def _loss(logits: Tensor, targets: Tensor, num_items_in_batch: int | None) -> Tensor:
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"labels are {targets.shape}, but input_ids {logits.shape[:-1]}")
    # A loss of half precision, summed over thousands of tokens, would have two digits.
    logits = logits.to(logits.dtype.wide)
    logits, targets = logits.flatten(0, 1), targets.flatten()  # (B T, V), (B T,)
    if num_items_in_batch is None:
        return F.cross_entropy(logits, targets, ignore_index=IGNORED)
    summed = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    return summed / num_items_in_batch
