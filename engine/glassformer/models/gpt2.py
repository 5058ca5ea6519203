"""GPT-2: a decoder that predicts the next token, and its heads."""

from __future__ import annotations

import math
from dataclasses import dataclass

from glassformer.models.causal import Cache, CausalLM, LastTokenClassifier, check_input, real_tokens
from glassformer.models.config import PretrainedConfig
from glassformer.models.inputs import check_beside
from glassformer.models.names import Names, Transposed
from glassformer.models.outputs import BaseModelOutput
from glassformer.models.pretrained import PretrainedModel
from glassformer.nn import (
    Dropout,
    Embedding,
    FeedForward,
    LayerNorm,
    LearnedPositions,
    MultiheadAttention,
    TransformerBlock,
    init,
)
from glassformer.random import Generator
from glassformer.tensor import Tensor


@dataclass(kw_only=True)
class GPT2Config(PretrainedConfig):
    """The shape of a GPT-2; the names and defaults are Hugging Face's (the smallest GPT-2)."""

    model_type = "gpt2"

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    add_cross_attention: bool = False
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256

    def __post_init__(self) -> None:
        self.check_divides("n_head", "n_embd")
        if self.add_cross_attention:
            raise ValueError("add_cross_attention=True: this model attends to itself alone")

    def attention_scale(self, layer: int) -> float:
        """Return what a layer's scores are multiplied by."""
        scale = 1 / math.sqrt(self.n_embd // self.n_head) if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale


class GPT2Model(PretrainedModel):
    """Token and position embeddings, pre-norm causal blocks, and a norm.

    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3.
    """

    config_class = GPT2Config
    base_model_prefix = "transformer"
    names = Names(
        {
            "embed_tokens.weight": "wte.weight",
            "embed_positions.weight": "wpe.weight",
            "blocks.{i}.self_attn_norm.{p}": "h.{i}.ln_1.{p}",
            "blocks.{i}.self_attn.in_proj_{p}": Transposed("h.{i}.attn.c_attn.{p}"),
            "blocks.{i}.self_attn.out_proj.{p}": Transposed("h.{i}.attn.c_proj.{p}"),
            "blocks.{i}.feed_forward_norm.{p}": "h.{i}.ln_2.{p}",
            "blocks.{i}.feed_forward.linear1.{p}": Transposed("h.{i}.mlp.c_fc.{p}"),
            "blocks.{i}.feed_forward.linear2.{p}": Transposed("h.{i}.mlp.c_proj.{p}"),
            "norm.{p}": "ln_f.{p}",
        }
    )
    ignored_keys = (".attn.bias", ".attn.masked_bias")  # the causal mask, in older files

    embed_tokens: Embedding
    embed_positions: LearnedPositions
    dropout: Dropout
    blocks: list[TransformerBlock]
    norm: LayerNorm

    def build(self, config: GPT2Config) -> None:  # noqa: D102
        self.embed_tokens = Embedding(config.vocab_size, config.n_embd)
        self.embed_positions = LearnedPositions(config.n_positions, config.n_embd)
        self.dropout = Dropout(config.embd_pdrop)
        self.blocks = [
            gpt2_block(
                config.n_embd,
                config.n_head,
                config.n_inner or 4 * config.n_embd,
                config.activation_function,
                config.layer_norm_epsilon,
                attention_dropout=config.attn_pdrop,
                dropout=config.resid_pdrop,
                scale=config.attention_scale(layer),
            )
            for layer in range(config.n_layer)
        ]
        self.norm = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def init_parameter(self, name: str, parameter: Tensor, generator: Generator | None) -> None:
        """Fill a fresh parameter; see `init_gpt2_`."""
        init_gpt2_(name, parameter, self.config.n_layer, self.config.initializer_range, generator)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        output_hidden_states: bool = False,
    ) -> BaseModelOutput:
        """Read `input_ids` (B, T), each in the light of those before it.

        Args:
            input_ids: integers in [0, vocab_size).
            attention_mask: (B, past + T), 0 or False where there is padding, on either side.
            position_ids: (B, T) or (1, T); unless given, real tokens are counted from 0.
            cache: keys and values of the tokens before `input_ids`; takes in the new ones.
            output_hidden_states: return those of every layer as well, the last one normed.

        Raises:
            IndexError: a token or a position is out of range.
            ValueError: more positions are needed than there are, or shapes don't fit.
        """
        past = 0 if cache is None else cache.length
        check_input(input_ids, past, self.config, "n_positions")
        check_beside("position_ids", position_ids, input_ids)
        mask, counted = real_tokens(attention_mask, input_ids.shape, past)
        position_ids = counted if position_ids is None else position_ids
        x = self.dropout(self.embed_positions(self.embed_tokens(input_ids), past, position_ids))
        x, states = self.run_blocks(
            self.blocks, x, output_hidden_states, cache=cache, padding_mask=mask
        )
        x = self.norm(x)
        states = None if states is None else (*states[:-1], x)
        return BaseModelOutput(x, hidden_states=states, cache=cache)


def gpt2_block(
    channels: int,
    heads: int,
    hidden: int,
    activation: str,
    eps: float,
    *,
    attention_dropout: float,
    dropout: float,
    bias: bool = True,
    scale: float | None = None,
) -> TransformerBlock:
    """Return one pre-norm causal block."""
    return TransformerBlock(
        MultiheadAttention(channels, heads, attention_dropout, bias, causal=True, scale=scale),
        FeedForward(channels, hidden, activation, bias=bias),
        dropout=dropout,
        norm_first=True,
        norm=lambda width: LayerNorm(width, eps=eps, bias=bias),
    )


def init_gpt2_(
    name: str, parameter: Tensor, num_layers: int, std: float, generator: Generator | None
) -> None:
    """Fill a fresh parameter: N(0, std²), biases 0, gains of norms 1.

    The projections that end a residual branch start from N(0, std² / (2 num_layers)), so that
    their sum over the layers keeps its size. Radford et al. 2019, section 2.3.
    """
    if name.endswith(("out_proj.weight", "linear2.weight")):
        init.normal_(parameter, std=std / math.sqrt(2 * max(num_layers, 1)), generator=generator)
    elif parameter.ndim >= 2:
        init.normal_(parameter, std=std, generator=generator)
    elif name.endswith("bias"):
        init.zeros_(parameter)
    else:
        init.ones_(parameter)


class GPT2LMHeadModel(CausalLM):
    """GPT-2 that predicts the next token. Radford et al. 2019, section 2."""

    base_class = GPT2Model


class GPT2ForSequenceClassification(LastTokenClassifier):
    """GPT-2 that judges whole inputs.

    Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", section 3.2.
    """

    base_class = GPT2Model
