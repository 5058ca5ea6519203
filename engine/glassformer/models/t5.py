"""T5: an encoder-decoder for which every task is text to text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from glassformer.grad_mode import no_grad
from glassformer.models.config import PretrainedConfig
from glassformer.models.names import Names, Place, Stacked
from glassformer.models.outputs import BaseModelOutput
from glassformer.models.safetensors_file import open_weights
from glassformer.models.seq2seq import EncoderDecoder, EncoderModel, Seq2SeqLM, Seq2SeqModel, Stack
from glassformer.nn import (
    Dropout,
    Embedding,
    FeedForward,
    Linear,
    MultiheadAttention,
    RMSNorm,
    T5Positions,
    TransformerBlock,
    init,
)
from glassformer.nn.feed_forward import ACTIVATIONS
from glassformer.random import Generator
from glassformer.tensor import Tensor

Self = TypeVar("Self", bound="T5ForConditionalGeneration")

GATED = {"gated-gelu": "geglu", "gated-gelu_new": "geglu", "gated-silu": "swiglu"}


@dataclass(kw_only=True)
class T5Config(PretrainedConfig):
    """The shape of a T5; the names and defaults are Hugging Face's (T5 small).

    Attributes:
        scale_decoder_outputs: multiply what leaves the decoder by d_model^-½ before the logits;
            as `tie_word_embeddings` unless told, for the first T5 does both, and version 1.1 none.
    """

    model_type = "t5"

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int | None = None  # as many as the encoder's unless told
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "relu"
    scale_decoder_outputs: bool | None = None
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    decoder_start_token_id: int | None = None
    is_encoder_decoder: bool = True

    def __post_init__(self) -> None:
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_layers
        if self.scale_decoder_outputs is None:
            self.scale_decoder_outputs = self.tie_word_embeddings
        buckets, distance = (
            self.relative_attention_num_buckets,
            self.relative_attention_max_distance,
        )
        if buckets < 4 or distance <= buckets // 2:
            raise ValueError(
                f"relative_attention_num_buckets={buckets} must be 4 or more, and half of it below "
                f"relative_attention_max_distance={distance}"
            )
        if self.feed_forward_proj not in GATED and self.feed_forward_proj not in ACTIVATIONS:
            raise ValueError(
                f"feed_forward_proj={self.feed_forward_proj!r} is none of "
                f"{', '.join([*ACTIVATIONS, *GATED])}"
            )

    @property
    def hidden_size(self) -> int:
        """Channels, by the name that other families have for them."""
        return self.d_model


class T5Stack(Stack):
    """Pre-norm blocks without biases, which share one table of relative positions."""

    embed_tokens: Embedding
    positions: T5Positions
    norm: RMSNorm
    dropout: Dropout

    def __init__(self, config: T5Config, embed_tokens: Embedding, decoder: bool) -> None:
        self.embed_tokens = embed_tokens
        self.positions = T5Positions(
            config.num_heads,
            bidirectional=not decoder,
            num_buckets=config.relative_attention_num_buckets,
            max_distance=config.relative_attention_max_distance,
        )
        layers = config.num_decoder_layers if decoder else config.num_layers
        self.blocks = [_block(config, decoder) for _ in range(layers or 0)]
        self.norm = RMSNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.dropout = Dropout(config.dropout_rate)

    def embed(self, input_ids: Tensor, past: int) -> Tensor:  # noqa: D102
        del past  # positions act inside attention
        embedded: Tensor = self.dropout(self.embed_tokens(input_ids))
        return embedded

    def position_bias(self, x: Tensor, past: int) -> Tensor:  # noqa: D102
        return self.positions.bias(x.shape[1], past + x.shape[1], x.dtype, x.device)

    def finish(self, x: Tensor) -> Tensor:  # noqa: D102
        finished: Tensor = self.dropout(self.norm(x))
        return finished


def _block(config: T5Config, decoder: bool) -> TransformerBlock:
    def attention(causal: bool) -> MultiheadAttention:
        # Scores are not divided by √D: the initial weights of the query are smaller instead.
        return MultiheadAttention(
            config.d_model,
            config.num_heads,
            config.dropout_rate,
            bias=False,
            causal=causal,
            head_dim=config.d_kv,
            scale=1.0,
        )

    activation = GATED.get(config.feed_forward_proj, config.feed_forward_proj)
    return TransformerBlock(
        attention(causal=decoder),
        FeedForward(config.d_model, config.d_ff, activation, config.dropout_rate, bias=False),
        attention(causal=False) if decoder else None,
        dropout=config.dropout_rate,
        norm_first=True,
        norm=lambda width: RMSNorm(width, eps=config.layer_norm_epsilon),
    )


def _attention_names(ours: str, layer: str, theirs: str) -> dict[str, str | Stacked]:
    return {
        f"{ours}.in_proj_weight": Stacked(*(f"{layer}.{theirs}.{part}.weight" for part in "qkv")),
        f"{ours}.out_proj.weight": f"{layer}.{theirs}.o.weight",
        f"{ours}_norm.weight": f"{layer}.layer_norm.weight",
    }


def _stack_names(side: str, gated: bool) -> dict[str, str | Stacked]:
    ours, layer = f"{side}.blocks.{{i}}", f"{side}.block.{{i}}.layer"
    first_layer = f"{side}.block.0.layer.0.SelfAttention"
    last = f"{layer}.{1 if side == 'encoder' else 2}"
    into = [f"{last}.DenseReluDense.{part}.weight" for part in ("wi", "wi_0", "wi_1")]
    return {
        f"{side}.positions.weight": f"{first_layer}.relative_attention_bias.weight",
        f"{side}.norm.weight": f"{side}.final_layer_norm.weight",
        **_attention_names(f"{ours}.self_attn", f"{layer}.0", "SelfAttention"),
        **_attention_names(f"{ours}.cross_attn", f"{layer}.1", "EncDecAttention"),
        f"{ours}.feed_forward.linear1.weight": Stacked(*into[1:]) if gated else into[0],
        f"{ours}.feed_forward.linear2.weight": f"{last}.DenseReluDense.wo.weight",
        f"{ours}.feed_forward_norm.weight": f"{last}.layer_norm.weight",
    }


class _T5Names(Names):
    """Two tables: gated feed-forward parts have other names than plain ones."""

    def __init__(self) -> None:
        super().__init__({})
        self.plain, self.gated = (
            Names({**_stack_names("encoder", gated), **_stack_names("decoder", gated)})
            for gated in (False, True)
        )

    def place(self, name: str, config: T5Config, prefix: str = "") -> Place:
        table = self.gated if config.feed_forward_proj in GATED else self.plain
        return table.place(name, config, prefix)


class T5Base(EncoderModel):
    """What T5's models share: their names, and how they start."""

    config_class = T5Config
    names = _T5Names()
    # The decoder's first cross-attention had a table of positions once, which nobody read.
    ignored_keys = ("EncDecAttention.relative_attention_bias.weight",)

    shared: Embedding
    encoder: T5Stack

    def init_parameter(self, name: str, parameter: Tensor, generator: Generator | None) -> None:
        """Fill a fresh parameter, as Mesh TensorFlow did when T5 was trained.

        Embeddings and logits start from N(0, 1), other matrices from N(0, 1 / their inputs), and
        the query's a further √d_kv smaller, in place of scaled scores.
        """
        config = self.config
        factor = config.initializer_factor
        if parameter.ndim < 2:
            init.constant_(parameter, factor)
            return
        inputs = config.d_model if name.endswith("positions.weight") else parameter.shape[1]
        whole = name.startswith(("shared", "lm_head"))
        std = factor if whole else factor / inputs**0.5
        init.normal_(parameter, std=std, generator=generator)
        if name.endswith("in_proj_weight"):
            with no_grad():
                parameter[: config.num_heads * config.d_kv] *= config.d_kv**-0.5


class T5Stacks(T5Base, EncoderDecoder):
    """Pre-norm encoder and decoder with RMSNorm and learned relative positions.

    Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
    Transformer", section 2.1.
    """

    decoder: T5Stack

    def build(self, config: T5Config) -> None:  # noqa: D102
        self.shared = Embedding(config.vocab_size, config.d_model)
        self.encoder = T5Stack(config, self.shared, decoder=False)
        self.decoder = T5Stack(config, self.shared, decoder=True)


class T5Model(T5Stacks, Seq2SeqModel):
    """T5 without a head."""

    optional = ("lm_head.",)


class T5EncoderModel(T5Base):
    """T5's encoder alone, for vectors of texts."""

    optional = ("decoder.", "lm_head.")

    def build(self, config: T5Config) -> None:  # noqa: D102
        self.shared = Embedding(config.vocab_size, config.d_model)
        self.encoder = T5Stack(config, self.shared, decoder=False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> BaseModelOutput:
        """Encode `input_ids` (B, S); the arguments are `encode`'s."""
        return self.encode(input_ids, attention_mask, output_hidden_states)


class T5ForConditionalGeneration(T5Stacks, Seq2SeqLM):
    """T5 that answers. Raffel et al. 2020, section 2.4."""

    lm_head: Linear

    def build(self, config: T5Config) -> None:  # noqa: D102
        super().build(config)
        self.lm_head = Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.shared.weight

    @classmethod
    def from_pretrained(cls: type[Self], folder: str | Path, **settings: Any) -> Self:
        """Load a folder; see `PretrainedModel.from_pretrained`.

        Whether logits have weights of their own is told by the files: transformers 5 writes
        tie_word_embeddings=true into every T5's config.json.
        """
        if settings.get("config") is None:
            overrides = {n: settings.pop(n) for n in set(settings) - {"config", *_LOADING}}
            settings["config"] = T5Config.from_pretrained(folder, **overrides)
        with open_weights(folder) as weights:
            names = set(weights.keys())
            own = "lm_head.weight" in names and not (
                "shared.weight" in names
                and np.array_equal(weights.array("lm_head.weight"), weights.array("shared.weight"))
            )
        settings["config"] = replace(settings["config"], tie_word_embeddings=not own)
        return super().from_pretrained(folder, **settings)

    def logits(self, x: Tensor) -> Tensor:  # noqa: D102
        if self.config.scale_decoder_outputs:
            x = x * self.config.d_model**-0.5
        logits: Tensor = self.lm_head(x)
        return logits


# What `from_pretrained` takes beside the config's.
_LOADING = ("dtype", "torch_dtype", "ignore_mismatched_sizes")
