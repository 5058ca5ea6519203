"""BART: an encoder-decoder trained to restore spoilt text, and its heads."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np

from glassformer.models.config import PretrainedConfig
from glassformer.models.heads import ModelWithHead, classifier_loss
from glassformer.models.inputs import check_not_empty
from glassformer.models.names import Names, Stacked
from glassformer.models.outputs import Seq2SeqModelOutput, SequenceClassifierOutput
from glassformer.models.seq2seq import Seq2SeqLM, Seq2SeqModel, Stack, shift_right
from glassformer.nn import (
    Dropout,
    Embedding,
    FeedForward,
    LayerNorm,
    LearnedPositions,
    Linear,
    Module,
    MultiheadAttention,
    TransformerBlock,
)
from glassformer.ops.creation import arange, zeros
from glassformer.tensor import Tensor, from_numpy


@dataclass(kw_only=True)
class BartConfig(PretrainedConfig):
    """The shape of a BART; the names and defaults are Hugging Face's (BART large)."""

    model_type = "bart"

    vocab_size: int = 50265
    d_model: int = 1024
    encoder_layers: int = 12
    encoder_attention_heads: int = 16
    encoder_ffn_dim: int = 4096
    decoder_layers: int = 12
    decoder_attention_heads: int = 16
    decoder_ffn_dim: int = 4096
    max_position_embeddings: int = 1024
    activation_function: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    classifier_dropout: float = 0.0
    scale_embedding: bool = False
    init_std: float = 0.02
    id2label: dict[int, str] = field(default_factory=lambda: {i: f"LABEL_{i}" for i in range(3)})
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int | None = 2
    forced_eos_token_id: int | list[int] | None = 2
    is_encoder_decoder: bool = True

    def __post_init__(self) -> None:
        self.check_divides("encoder_attention_heads", "d_model")
        self.check_divides("decoder_attention_heads", "d_model")
        self.initializer_range = self.init_std

    @property
    def hidden_size(self) -> int:
        """Channels, by the name that other families have for them."""
        return self.d_model


class BartPositions(LearnedPositions):
    """Learned positions that begin in row 2 of their table."""

    _first = 2  # as in fairseq, where the rows before stood for no position and for padding

    def __init__(self, num_positions: int, embedding_dim: int) -> None:
        super().__init__(num_positions + self._first, embedding_dim)

    def forward(  # noqa: D102
        self, x: Tensor, offset: int = 0, position_ids: Tensor | None = None
    ) -> Tensor:
        moved = None if position_ids is None else position_ids + self._first
        return super().forward(x, offset + self._first, moved)


class BartStack(Stack):
    """norm(scale · word + position), with dropout, and post-norm blocks."""

    embed_tokens: Embedding
    embed_positions: Module
    norm: LayerNorm | None
    dropout: Dropout

    def __init__(
        self, config: Any, embed_tokens: Embedding, positions: Module, norm: bool, decoder: bool
    ) -> None:
        side = "decoder" if decoder else "encoder"
        heads = getattr(config, f"{side}_attention_heads")
        hidden = getattr(config, f"{side}_ffn_dim")
        self.scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
        self.embed_tokens = embed_tokens
        self.embed_positions = positions
        self.norm = LayerNorm(config.d_model) if norm else None
        self.dropout = Dropout(config.dropout)

        def attention(causal: bool) -> MultiheadAttention:
            return MultiheadAttention(
                config.d_model, heads, config.attention_dropout, causal=causal
            )

        self.blocks = [
            TransformerBlock(
                attention(causal=decoder),
                FeedForward(
                    config.d_model, hidden, config.activation_function, config.activation_dropout
                ),
                attention(causal=False) if decoder else None,
                dropout=config.dropout,
            )
            for _ in range(getattr(config, f"{side}_layers"))
        ]

    def embed(self, input_ids: Tensor, past: int) -> Tensor:  # noqa: D102
        x = self.embed_positions(self.embed_tokens(input_ids) * self.scale, past)
        embedded: Tensor = self.dropout(x if self.norm is None else self.norm(x))
        return embedded


def _attention_names(ours: str, theirs: str) -> dict[str, str | Stacked]:
    return {
        f"{ours}.in_proj_{{p}}": Stacked(*(f"{theirs}.{part}_proj.{{p}}" for part in "qkv")),
        f"{ours}.out_proj.{{p}}": f"{theirs}.out_proj.{{p}}",
        f"{ours}_norm.{{p}}": f"{theirs}_layer_norm.{{p}}",
    }


def _stack_names(side: str) -> dict[str, str | Stacked]:
    ours, theirs = f"{side}.blocks.{{i}}", f"{side}.layers.{{i}}"
    return {
        f"{side}.norm.{{p}}": f"{side}.layernorm_embedding.{{p}}",
        **_attention_names(f"{ours}.self_attn", f"{theirs}.self_attn"),
        **_attention_names(f"{ours}.cross_attn", f"{theirs}.encoder_attn"),
        f"{ours}.feed_forward.linear1.{{p}}": f"{theirs}.fc1.{{p}}",
        f"{ours}.feed_forward.linear2.{{p}}": f"{theirs}.fc2.{{p}}",
        f"{ours}.feed_forward_norm.{{p}}": f"{theirs}.final_layer_norm.{{p}}",
    }


class BartModel(Seq2SeqModel):
    """A bidirectional encoder and a causal decoder, post-norm, with one embedding for both.

    Lewis et al. 2020, "BART: Denoising Sequence-to-Sequence Pre-training", section 2.1. With
    `tie_word_embeddings=False` either has a table of its own, and the shared one, which files hold
    even so, is read by nobody.
    """

    config_class = BartConfig
    base_model_prefix = "model"
    names = Names({**_stack_names("encoder"), **_stack_names("decoder")})
    ignored_keys: ClassVar[tuple[str, ...]] = (
        "final_logits_bias",
        "encoder.version",
        "decoder.version",
    )

    shared: Embedding
    encoder: BartStack
    decoder: BartStack

    def build(self, config: Any) -> None:  # noqa: D102
        table = partial(Embedding, config.vocab_size, config.d_model, config.pad_token_id)
        self.shared = table()
        self.encoder, self.decoder = (
            BartStack(
                config,
                self.shared if config.tie_word_embeddings else table(),
                BartPositions(config.max_position_embeddings, config.d_model),
                norm=True,
                decoder=decoder,
            )
            for decoder in (False, True)
        )

    def default_decoder_input(self, input_ids: Tensor | None) -> Tensor:
        """Return the source shifted to the right: BART restores its input where nothing is said."""
        if input_ids is None:
            raise ValueError("give decoder_input_ids (B, T), the target so far")
        return shift_right(input_ids, self.config)


class BartForConditionalGeneration(Seq2SeqLM, ModelWithHead):
    """BART that writes: summaries, say. Lewis et al. 2020, section 3.4."""

    base_class = BartModel

    model: Seq2SeqModel
    lm_head: Linear
    final_logits_bias: Tensor  # (1, V), not trained

    def build_head(self, config: Any) -> None:  # noqa: D102
        table: Embedding = self.model.decoder.embed_tokens
        self.lm_head = Linear(config.d_model, table.num_embeddings, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = table.weight
        self.final_logits_bias = zeros(1, table.num_embeddings)

    def transform(self, *inputs: Any, **settings: Any) -> Seq2SeqModelOutput:  # noqa: D102
        outputs: Seq2SeqModelOutput = self.model(*inputs, **settings)
        return outputs

    def logits(self, x: Tensor) -> Tensor:  # noqa: D102
        logits: Tensor = self.lm_head(x) + self.final_logits_bias
        return logits


class _ClassificationHead(Module):
    """out_proj(tanh(dense(x))), with dropout before either layer."""

    dense: Linear
    dropout: Dropout
    out_proj: Linear

    def __init__(self, config: BartConfig) -> None:
        self.dense = Linear(config.d_model, config.d_model)
        self.dropout = Dropout(config.classifier_dropout)
        self.out_proj = Linear(config.d_model, config.num_labels)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out_proj(self.dropout(self.dense(self.dropout(x)).tanh()))
        return logits


class BartForSequenceClassification(ModelWithHead):
    """BART that judges whole inputs, by the decoder's state at the last end-of-text token.

    Lewis et al. 2020, section 3.1.
    """

    base_class = BartModel

    model: BartModel
    classification_head: _ClassificationHead

    def build_head(self, config: BartConfig) -> None:  # noqa: D102
        self.classification_head = _ClassificationHead(config)

    def forward(
        self, input_ids: Tensor, *inputs: Tensor, labels: Tensor | None = None, **settings: Any
    ) -> SequenceClassifierOutput:
        """Classify; the arguments are `BartModel`'s, and labels (B,), see `classifier_loss`.

        Raises:
            ValueError: an input has no end-of-text token.
        """
        self.model.check_input(input_ids, 0)
        check_not_empty(input_ids)
        last = from_numpy(self._last_end(input_ids)).to(input_ids.device)
        outputs = self.base_model(input_ids, *inputs, **settings)
        rows = arange(input_ids.shape[0], device=input_ids.device)
        logits = self.classification_head(outputs.last_hidden_state[rows, last])
        loss = classifier_loss(logits, labels, self.config)
        return SequenceClassifierOutput(loss, logits, outputs.decoder_hidden_states)

    def _last_end(self, input_ids: Tensor) -> Any:
        """Return where the last end-of-text token of each row stands, (B,)."""
        ends = np.isin(input_ids.cpu().numpy(), self.config.eos_token_id)  # (B, T)
        if not ends.any(axis=1).all():
            row = int(ends.any(axis=1).argmin())
            raise ValueError(
                f"input {row} has no end-of-text token (eos_token_id {self.config.eos_token_id}), "
                "by whose state it is judged; end each input with one, as the tokenizer does"
            )
        return ends.shape[1] - 1 - ends[:, ::-1].argmax(axis=1)
