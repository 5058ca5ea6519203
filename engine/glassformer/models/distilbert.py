"""DistilBERT: a BERT of half the layers, taught by BERT; no token types and no pooler."""

from __future__ import annotations

from dataclasses import dataclass

from glassformer.grad_mode import no_grad
from glassformer.models.config import PretrainedConfig
from glassformer.models.encoder import EncoderEmbeddings, EncoderModel, encoder_block
from glassformer.models.heads import (
    MaskedLanguageModel,
    QuestionAnswerer,
    SequenceClassifier,
    TokenClassifier,
)
from glassformer.models.names import Names, Stacked
from glassformer.models.outputs import BaseModelOutput
from glassformer.nn import Dropout, LayerNorm, Linear
from glassformer.nn.feed_forward import ACTIVATIONS
from glassformer.nn.positions import sinusoidal_table
from glassformer.random import Generator
from glassformer.tensor import Tensor


@dataclass(kw_only=True)
class DistilBertConfig(PretrainedConfig):
    """The shape of a DistilBERT; the names and defaults are Hugging Face's (DistilBERT base).

    The properties are BERT's names for the same settings.
    """

    model_type = "distilbert"

    vocab_size: int = 30522
    max_position_embeddings: int = 512
    sinusoidal_pos_embds: bool = False
    n_layers: int = 6
    n_heads: int = 12
    dim: int = 768
    hidden_dim: int = 3072
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation: str = "gelu"
    qa_dropout: float = 0.1
    seq_classif_dropout: float = 0.2
    pad_token_id: int | None = 0

    def __post_init__(self) -> None:
        self.check_divides("n_heads", "dim")

    hidden_size = property(lambda self: self.dim)
    num_hidden_layers = property(lambda self: self.n_layers)
    num_attention_heads = property(lambda self: self.n_heads)
    intermediate_size = property(lambda self: self.hidden_dim)
    hidden_act = property(lambda self: self.activation)
    hidden_dropout_prob = property(lambda self: self.dropout)
    attention_probs_dropout_prob = property(lambda self: self.attention_dropout)
    type_vocab_size = property(lambda self: 0)
    layer_norm_eps = property(lambda self: 1e-12)


class DistilBertModel(EncoderModel):
    """Embeddings and post-norm blocks as BERT's; token types are not looked at.

    Sanh et al. 2019, "DistilBERT, a distilled version of BERT", section 3. With
    `sinusoidal_pos_embds` the positions' embeddings start as sines and cosines.
    """

    config_class = DistilBertConfig
    base_model_prefix = "distilbert"
    names = Names(
        {
            "embeddings.norm.{p}": "embeddings.LayerNorm.{p}",
            "blocks.{i}.self_attn.in_proj_{p}": Stacked(
                "transformer.layer.{i}.attention.q_lin.{p}",
                "transformer.layer.{i}.attention.k_lin.{p}",
                "transformer.layer.{i}.attention.v_lin.{p}",
            ),
            "blocks.{i}.self_attn.out_proj.{p}": "transformer.layer.{i}.attention.out_lin.{p}",
            "blocks.{i}.self_attn_norm.{p}": "transformer.layer.{i}.sa_layer_norm.{p}",
            "blocks.{i}.feed_forward.linear1.{p}": "transformer.layer.{i}.ffn.lin1.{p}",
            "blocks.{i}.feed_forward.linear2.{p}": "transformer.layer.{i}.ffn.lin2.{p}",
            "blocks.{i}.feed_forward_norm.{p}": "transformer.layer.{i}.output_layer_norm.{p}",
        }
    )

    def build(self, config: DistilBertConfig) -> None:  # noqa: D102
        self.embeddings = EncoderEmbeddings(config, config.dim)
        self.blocks = [encoder_block(config) for _ in range(config.n_layers)]
        self.pooler = None

    def init_parameter(  # noqa: D102
        self, name: str, parameter: Tensor, generator: Generator | None
    ) -> None:
        if self.config.sinusoidal_pos_embds and name.endswith("position_embeddings.weight"):
            with no_grad():
                parameter.copy_(sinusoidal_table(*parameter.shape, parameter.dtype))
        else:
            super().init_parameter(name, parameter, generator)


class DistilBertForMaskedLM(MaskedLanguageModel):
    """DistilBERT that fills in masked tokens."""

    base_class = DistilBertModel

    distilbert: DistilBertModel
    vocab_transform: Linear
    vocab_layer_norm: LayerNorm
    vocab_projector: Linear

    def build_head(self, config: DistilBertConfig) -> None:  # noqa: D102
        self.vocab_transform = Linear(config.dim, config.dim)
        self.vocab_layer_norm = LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.vocab_projector = Linear(config.dim, config.vocab_size)
        if config.tie_word_embeddings:
            self.vocab_projector.weight = self.distilbert.embeddings.word_embeddings.weight

    def predict(self, x: Tensor) -> Tensor:  # noqa: D102
        hidden = ACTIVATIONS[self.config.activation](self.vocab_transform(x))
        logits: Tensor = self.vocab_projector(self.vocab_layer_norm(hidden))
        return logits


class DistilBertForSequenceClassification(SequenceClassifier):
    """DistilBERT that judges whole inputs: classifier(dropout(relu(pre_classifier(x)))).

    x is the state of the first token.
    """

    base_class = DistilBertModel
    keeps_pooler = False

    pre_classifier: Linear

    def build_head(self, config: DistilBertConfig) -> None:  # noqa: D102
        self.pre_classifier = Linear(config.dim, config.dim)
        self.classifier = Linear(config.dim, config.num_labels)
        self.dropout = Dropout(config.seq_classif_dropout)

    def classify(self, outputs: BaseModelOutput) -> Tensor:  # noqa: D102
        hidden = self.pre_classifier(outputs.last_hidden_state[:, 0]).relu()
        logits: Tensor = self.classifier(self.dropout(hidden))
        return logits


class DistilBertForTokenClassification(TokenClassifier):
    """DistilBERT that judges every token."""

    base_class = DistilBertModel


class DistilBertForQuestionAnswering(QuestionAnswerer):
    """DistilBERT that finds answers in a text."""

    base_class = DistilBertModel
