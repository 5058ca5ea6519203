"""Llama and what has its shape: Mistral, which sees a window, and Qwen2, with some biases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from glassformer.models.causal import Cache, CausalLM, LastTokenClassifier, check_input, real_tokens
from glassformer.models.config import PretrainedConfig
from glassformer.models.names import Names, Stacked
from glassformer.models.outputs import BaseModelOutput
from glassformer.models.pretrained import PretrainedModel
from glassformer.models.rope import (
    ToldRotaryPositions,
    check_positions,
    rope_frequencies,
    settled_rope,
    told,
)
from glassformer.nn import (
    Embedding,
    FeedForward,
    MultiheadAttention,
    RMSNorm,
    TransformerBlock,
)
from glassformer.tensor import Tensor

# Hugging Face names the activation of the gate, `FeedForward` the whole gated unit.
_GATED = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu_new": "geglu",
    "gelu_pytorch_tanh": "geglu",
}


@dataclass(kw_only=True)
class LlamaConfig(PretrainedConfig):
    """The shape of a Llama; the names and defaults are Hugging Face's (Llama 7B).

    How positions turn stands in `rope_parameters` as transformers 5 writes it. Older files have
    `rope_theta` and `rope_scaling`; either is read, and both are written.
    """

    model_type = "llama"

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self) -> None:
        if self.head_dim is None:
            self.check_divides("num_attention_heads", "hidden_size")
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        self.check_divides("num_key_value_heads", "num_attention_heads")
        if self.hidden_act not in _GATED:
            raise ValueError(
                f"hidden_act={self.hidden_act!r} is not supported, only {', '.join(_GATED)} are"
            )
        rope = settled_rope(self.rope_parameters, self.rope_theta, self.rope_scaling)
        rest = {name: value for name, value in rope.items() if name != "rope_theta"}
        self.rope_parameters, self.rope_theta = rope, rope["rope_theta"]
        self.rope_scaling = None if rest == {"rope_type": "default"} else rest
        self.positions()

    @property
    def out_bias(self) -> bool:
        """Whether attention's output projection has a bias."""
        return self.attention_bias

    def window(self, layer: int) -> int | None:
        """Return how many positions a layer sees, the current one included; None is all."""
        del layer
        return None

    def positions(self) -> ToldRotaryPositions:
        """Return the positions that all layers share."""
        assert self.head_dim is not None and self.rope_parameters is not None  # since __post_init__
        base = self.rope_parameters["rope_theta"]
        frequencies = rope_frequencies(
            self.rope_parameters, self.head_dim, self.max_position_embeddings
        )
        return ToldRotaryPositions(self.head_dim, base, frequencies)

    def projection_rows(self) -> tuple[int, int, int]:
        """Return the rows of the query, the key and the value projection."""
        assert self.head_dim is not None and self.num_key_value_heads is not None
        shared = self.num_key_value_heads * self.head_dim
        return self.num_attention_heads * self.head_dim, shared, shared


@dataclass(kw_only=True)
class MistralConfig(LlamaConfig):
    """The shape of a Mistral; the names and defaults are Hugging Face's (Mistral 7B)."""

    model_type = "mistral"

    intermediate_size: int = 14336
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 4096 * 32
    sliding_window: int | None = 4096

    def window(self, layer: int) -> int | None:  # noqa: D102
        del layer
        return self.sliding_window


@dataclass(kw_only=True)
class Qwen2Config(LlamaConfig):
    """The shape of a Qwen2; the names and defaults are Hugging Face's (Qwen2 7B)."""

    model_type = "qwen2"

    vocab_size: int = 151936
    intermediate_size: int = 22016
    max_position_embeddings: int = 32768
    attention_bias: bool = True
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: list[str] | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.use_sliding_window:
            self.sliding_window = None
        if self.layer_types is None:
            full = self.max_window_layers if self.sliding_window else self.num_hidden_layers
            self.layer_types = [
                "full_attention" if layer < full else "sliding_attention"
                for layer in range(self.num_hidden_layers)
            ]
        known = {"full_attention", "sliding_attention"}
        if len(self.layer_types) != self.num_hidden_layers or not known.issuperset(
            self.layer_types
        ):
            raise ValueError(
                f"layer_types must say full_attention or sliding_attention for each of "
                f"{self.num_hidden_layers} layers, got {self.layer_types}"
            )

    @property
    def out_bias(self) -> bool:  # noqa: D102
        return False

    def window(self, layer: int) -> int | None:  # noqa: D102
        sliding = self.layer_types is not None and self.layer_types[layer] == "sliding_attention"
        return self.sliding_window if sliding else None


class LlamaModel(PretrainedModel):
    """Token embeddings, pre-norm causal blocks with rotary positions, and a norm.

    Touvron et al. 2023, "LLaMA: Open and Efficient Foundation Language Models", section 2.2.
    """

    config_class = LlamaConfig
    base_model_prefix = "model"
    names = Names(
        {
            "blocks.{i}.self_attn_norm.weight": "layers.{i}.input_layernorm.weight",
            "blocks.{i}.self_attn.in_proj_{p}": Stacked(
                "layers.{i}.self_attn.q_proj.{p}",
                "layers.{i}.self_attn.k_proj.{p}",
                "layers.{i}.self_attn.v_proj.{p}",
                rows=LlamaConfig.projection_rows,
            ),
            "blocks.{i}.self_attn.out_proj.{p}": "layers.{i}.self_attn.o_proj.{p}",
            "blocks.{i}.feed_forward_norm.weight": "layers.{i}.post_attention_layernorm.weight",
            "blocks.{i}.feed_forward.linear1.{p}": Stacked(
                "layers.{i}.mlp.gate_proj.{p}", "layers.{i}.mlp.up_proj.{p}"
            ),
            "blocks.{i}.feed_forward.linear2.{p}": "layers.{i}.mlp.down_proj.{p}",
        }
    )
    ignored_keys = ("rotary_emb.inv_freq",)  # in older files

    embed_tokens: Embedding
    blocks: list[TransformerBlock]
    norm: RMSNorm

    def build(self, config: LlamaConfig) -> None:  # noqa: D102
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        positions = config.positions()
        self.blocks = [
            _block(config, layer, positions) for layer in range(config.num_hidden_layers)
        ]
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        output_hidden_states: bool = False,
    ) -> BaseModelOutput:
        """Read `input_ids` (B, T), each in the light of those before it.

        Positions need not be told, nor counted among real tokens: rotary ones act by their
        distance alone.

        Args:
            input_ids: integers in [0, vocab_size).
            attention_mask: (B, past + T), 0 or False where there is padding, on either side.
            position_ids: (B, T) or (1, T), in [0, max_position_embeddings); counted on from the
                cache's unless given. They tell distances; what a token sees, and the window, go
                by its place in the input.
            cache: keys and values of the tokens before `input_ids`; takes in the new ones.
            output_hidden_states: return those of every layer as well, the last one normed.

        Raises:
            IndexError: a token or a position is out of range.
            ValueError: there are more tokens than the model was made for, or shapes don't fit.
        """
        past = 0 if cache is None else cache.length
        check_input(input_ids, past, self.config, "max_position_embeddings")
        mask, _ = real_tokens(attention_mask, input_ids.shape, past)
        x = self.embed_tokens(input_ids)
        blocks: Sequence[Callable[..., Any]] = self.blocks
        if position_ids is not None:
            check_positions(position_ids, input_ids, self.config.max_position_embeddings)
            table = self.config.positions().table(position_ids, x)
            blocks = [told(block, table) for block in blocks]
        x, states = self.run_blocks(blocks, x, output_hidden_states, cache=cache, padding_mask=mask)
        x = self.norm(x)
        states = None if states is None else (*states[:-1], x)
        return BaseModelOutput(x, hidden_states=states, cache=cache)


def _block(config: LlamaConfig, layer: int, positions: ToldRotaryPositions) -> TransformerBlock:
    window = config.window(layer)
    return TransformerBlock(
        MultiheadAttention(
            config.hidden_size,
            config.num_attention_heads,
            config.attention_dropout,
            config.attention_bias,
            num_key_value_heads=config.num_key_value_heads,
            causal=True,
            window=None if window is None else (window - 1, 0),
            positions=positions,
            head_dim=config.head_dim,
            out_bias=config.out_bias,
        ),
        FeedForward(
            config.hidden_size,
            config.intermediate_size,
            _GATED[config.hidden_act],
            bias=config.mlp_bias,
        ),
        norm_first=True,
        norm=partial(RMSNorm, eps=config.rms_norm_eps),
    )


class LlamaForCausalLM(CausalLM):
    """Llama that predicts the next token. Touvron et al. 2023."""

    base_class = LlamaModel


class LlamaForSequenceClassification(LastTokenClassifier):
    """Llama that judges whole inputs."""

    base_class = LlamaModel


class MistralModel(LlamaModel):
    """Llama with keys shared by groups of heads, and a window on what each position sees.

    Jiang et al. 2023, "Mistral 7B", section 2.
    """

    config_class = MistralConfig


class MistralForCausalLM(CausalLM):
    """Mistral that predicts the next token. Jiang et al. 2023."""

    base_class = MistralModel


class MistralForSequenceClassification(LastTokenClassifier):
    """Mistral that judges whole inputs."""

    base_class = MistralModel


class Qwen2Model(LlamaModel):
    """Llama with biases in the query, key and value projections.

    Yang et al. 2024, "Qwen2 Technical Report", section 2.2.1.
    """

    config_class = Qwen2Config


class Qwen2ForCausalLM(CausalLM):
    """Qwen2 that predicts the next token. Yang et al. 2024."""

    base_class = Qwen2Model


class Qwen2ForSequenceClassification(LastTokenClassifier):
    """Qwen2 that judges whole inputs."""

    base_class = Qwen2Model
