"""ALBERT: a BERT whose layers share their weights, with small embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glassformer.models.config import PretrainedConfig
from glassformer.models.encoder import EncoderEmbeddings, EncoderModel, encoder_block
from glassformer.models.heads import (
    LanguageModelHead,
    MaskedLanguageModel,
    ModelWithHead,
    QuestionAnswerer,
    SequenceClassifier,
    TokenClassifier,
    head_dropout,
    pretraining_loss,
)
from glassformer.models.names import Names, Stacked
from glassformer.models.outputs import Attentions, HiddenStates, ModelOutput
from glassformer.nn import Dropout, Linear, Module, TransformerBlock
from glassformer.tensor import Tensor


@dataclass(kw_only=True)
class AlbertConfig(PretrainedConfig):
    """The shape of an ALBERT; the names and defaults are Hugging Face's (ALBERT xxlarge)."""

    model_type = "albert"

    vocab_size: int = 30000
    embedding_size: int = 128
    hidden_size: int = 4096
    num_hidden_layers: int = 12
    num_hidden_groups: int = 1
    num_attention_heads: int = 64
    intermediate_size: int = 16384
    inner_group_num: int = 1
    hidden_act: str = "gelu_new"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    classifier_dropout_prob: float | None = 0.1
    pad_token_id: int | None = 0
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 3
    position_embedding_type: str | None = "absolute"

    def __post_init__(self) -> None:
        self.check_divides("num_attention_heads", "hidden_size")
        if self.position_embedding_type not in (None, "absolute"):
            raise ValueError(
                f"position_embedding_type={self.position_embedding_type!r} is not supported, only "
                "'absolute' is"
            )
        if not 1 <= self.num_hidden_groups <= max(self.num_hidden_layers, 1):
            raise ValueError(
                f"num_hidden_groups={self.num_hidden_groups} must be between 1 and "
                f"num_hidden_layers={self.num_hidden_layers}"
            )

    classifier_dropout = property(lambda self: self.classifier_dropout_prob)


class AlbertEmbeddings(EncoderEmbeddings):
    """BERT's embeddings of a smaller width, mapped to that of the layers."""

    mapping: Linear

    def __init__(self, config: Any, width: int) -> None:
        super().__init__(config, width)
        self.mapping = Linear(width, config.hidden_size)

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor | None, position_ids: Tensor
    ) -> Tensor:
        """(B, T) integers -> (B, T, C)."""
        mapped: Tensor = self.mapping(super().forward(input_ids, token_type_ids, position_ids))
        return mapped


class AlbertGroup(Module):
    """Blocks in a row that stand for several layers of the model, each time the same weights."""

    layers: list[TransformerBlock]

    def __init__(self, config: AlbertConfig) -> None:
        self.layers = [encoder_block(config) for _ in range(config.inner_group_num)]


_LAYER = "encoder.albert_layer_groups.{i}.albert_layers.{j}"  # where the hub keeps a block


class AlbertModel(EncoderModel):
    """BERT with factorised embeddings, and groups of layers that share their parameters.

    Lan et al. 2020, "ALBERT: A Lite BERT for Self-supervised Learning of Language
    Representations", section 3.1. Layer n of L is the group ⌊n·G/L⌋ of G.
    """

    config_class = AlbertConfig
    base_model_prefix = "albert"
    optional = ("pooler.",)
    names = Names(
        {
            "embeddings.norm.{p}": "embeddings.LayerNorm.{p}",
            "embeddings.mapping.{p}": "encoder.embedding_hidden_mapping_in.{p}",
            "blocks.{i}.layers.{j}.self_attn.in_proj_{p}": Stacked(
                f"{_LAYER}.attention.query.{{p}}",
                f"{_LAYER}.attention.key.{{p}}",
                f"{_LAYER}.attention.value.{{p}}",
            ),
            "blocks.{i}.layers.{j}.self_attn.out_proj.{p}": f"{_LAYER}.attention.dense.{{p}}",
            "blocks.{i}.layers.{j}.self_attn_norm.{p}": f"{_LAYER}.attention.LayerNorm.{{p}}",
            "blocks.{i}.layers.{j}.feed_forward.linear1.{p}": f"{_LAYER}.ffn.{{p}}",
            "blocks.{i}.layers.{j}.feed_forward.linear2.{p}": f"{_LAYER}.ffn_output.{{p}}",
            "blocks.{i}.layers.{j}.feed_forward_norm.{p}": f"{_LAYER}.full_layer_layer_norm.{{p}}",
        }
    )

    blocks: list[AlbertGroup]

    def build(self, config: AlbertConfig) -> None:  # noqa: D102
        self.embeddings = AlbertEmbeddings(config, config.embedding_size)
        self.blocks = [AlbertGroup(config) for _ in range(config.num_hidden_groups)]
        self.pooler = Linear(config.hidden_size, config.hidden_size)

    def layers(self) -> Sequence[Module]:  # noqa: D102
        count = self.config.num_hidden_layers
        # In floats, as the models were trained; a whole quotient may come out a rounding below.
        group_of = [int(layer / (count / len(self.blocks))) for layer in range(count)]
        return [block for group in group_of for block in self.blocks[group].layers]


class AlbertForMaskedLM(MaskedLanguageModel):
    """ALBERT that fills in masked tokens."""

    base_class = AlbertModel
    head_names = Names({"predictions.norm.{p}": "predictions.LayerNorm.{p}"})

    albert: AlbertModel
    predictions: LanguageModelHead

    def build_head(self, config: AlbertConfig) -> None:  # noqa: D102
        self.predictions = prediction_head(config, self.albert)

    def predict(self, x: Tensor) -> Tensor:  # noqa: D102
        logits: Tensor = self.predictions(x)
        return logits


@dataclass(frozen=True, slots=True)
class AlbertForPreTrainingOutput(ModelOutput):
    """Both predictions of ALBERT's pre-training; `loss` is the sum of theirs.

    Attributes:
        loss: 0-d; None unless both kinds of labels were given.
        prediction_logits: (B, T, V).
        sop_logits: (B, num_labels); class 0 is "the segments are in order", 1 "they are swapped".
        hidden_states: of every layer, if they were asked for.
        attentions: likewise.
    """

    loss: Tensor | None
    prediction_logits: Tensor
    sop_logits: Tensor
    hidden_states: HiddenStates = None
    attentions: Attentions = None


class AlbertForPreTraining(ModelWithHead):
    """ALBERT with both tasks of its pre-training: masked words and the order of two sentences.

    Lan et al. 2020, section 3.1.
    """

    base_class = AlbertModel
    keeps_pooler = True
    head_names = Names(
        {
            "predictions.norm.{p}": "predictions.LayerNorm.{p}",
            "sop_classifier.{p}": "sop_classifier.classifier.{p}",
        }
    )

    albert: AlbertModel
    predictions: LanguageModelHead
    dropout: Dropout
    sop_classifier: Linear

    def build_head(self, config: AlbertConfig) -> None:  # noqa: D102
        self.predictions = prediction_head(config, self.albert)
        self.dropout = Dropout(head_dropout(config))
        self.sop_classifier = Linear(config.hidden_size, config.num_labels)

    def forward(
        self,
        *inputs: Tensor,
        labels: Tensor | None = None,
        sentence_order_label: Tensor | None = None,
        **settings: Any,
    ) -> AlbertForPreTrainingOutput:
        """Predict; labels (B, T) as in `AlbertForMaskedLM`, sentence_order_label (B,) 0 or 1."""
        outputs = self.albert(*inputs, **settings)
        words = self.predictions(outputs.last_hidden_state)
        order = self.sop_classifier(self.dropout(outputs.pooler_output))
        loss = pretraining_loss(words, labels, order, sentence_order_label)
        return AlbertForPreTrainingOutput(loss, words, order, outputs.hidden_states)


def prediction_head(config: AlbertConfig, albert: AlbertModel) -> LanguageModelHead:
    """Return the head that predicts words from states of the embeddings' width."""
    words = albert.embeddings.word_embeddings
    return LanguageModelHead(config, config.embedding_size, words, config.hidden_act)


class AlbertForSequenceClassification(SequenceClassifier):
    """ALBERT that judges whole inputs."""

    base_class = AlbertModel


class AlbertForTokenClassification(TokenClassifier):
    """ALBERT that judges every token."""

    base_class = AlbertModel


class AlbertForQuestionAnswering(QuestionAnswerer):
    """ALBERT that finds answers in a text."""

    base_class = AlbertModel
