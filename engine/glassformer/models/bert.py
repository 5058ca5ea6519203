"""BERT: an encoder that reads in both directions, and its heads."""

from __future__ import annotations

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
    pretraining_loss,
)
from glassformer.models.names import Names, Stacked
from glassformer.models.outputs import Attentions, HiddenStates, ModelOutput
from glassformer.nn import Linear
from glassformer.tensor import Tensor


@dataclass(kw_only=True)
class BertConfig(PretrainedConfig):
    """The shape of a BERT; the names and defaults are Hugging Face's (BERT base)."""

    model_type = "bert"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    classifier_dropout: float | None = None
    position_embedding_type: str | None = "absolute"
    is_decoder: bool = False

    def __post_init__(self) -> None:
        self.check_divides("num_attention_heads", "hidden_size")
        if self.position_embedding_type not in (None, "absolute"):
            raise ValueError(
                f"position_embedding_type={self.position_embedding_type!r} is not supported, only "
                "'absolute' is"
            )
        if self.is_decoder:
            raise ValueError("is_decoder=True: this model is an encoder; use a decoder's family")


class BertModel(EncoderModel):
    """Embeddings and post-norm blocks; the pooler is a dense layer with tanh on the first token.

    Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers", section 3.
    """

    config_class = BertConfig
    base_model_prefix = "bert"
    names = Names(
        {
            "embeddings.norm.{p}": "embeddings.LayerNorm.{p}",
            "blocks.{i}.self_attn.in_proj_{p}": Stacked(
                "encoder.layer.{i}.attention.self.query.{p}",
                "encoder.layer.{i}.attention.self.key.{p}",
                "encoder.layer.{i}.attention.self.value.{p}",
            ),
            "blocks.{i}.self_attn.out_proj.{p}": "encoder.layer.{i}.attention.output.dense.{p}",
            "blocks.{i}.self_attn_norm.{p}": "encoder.layer.{i}.attention.output.LayerNorm.{p}",
            "blocks.{i}.feed_forward.linear1.{p}": "encoder.layer.{i}.intermediate.dense.{p}",
            "blocks.{i}.feed_forward.linear2.{p}": "encoder.layer.{i}.output.dense.{p}",
            "blocks.{i}.feed_forward_norm.{p}": "encoder.layer.{i}.output.LayerNorm.{p}",
            "pooler.{p}": "pooler.dense.{p}",
        }
    )
    optional = ("pooler.",)
    ignored_keys = ("embeddings.position_ids", "embeddings.token_type_ids")

    def build(self, config: BertConfig) -> None:  # noqa: D102
        self.embeddings = EncoderEmbeddings(config, config.hidden_size)
        self.blocks = [encoder_block(config) for _ in range(config.num_hidden_layers)]
        self.pooler = Linear(config.hidden_size, config.hidden_size)


_PREDICTIONS = {
    "predictions.bias": "cls.predictions.bias",
    "predictions.dense.{p}": "cls.predictions.transform.dense.{p}",
    "predictions.norm.{p}": "cls.predictions.transform.LayerNorm.{p}",
    "predictions.decoder.{p}": "cls.predictions.decoder.{p}",
    "seq_relationship.{p}": "cls.seq_relationship.{p}",
}


class BertForMaskedLM(MaskedLanguageModel):
    """BERT that fills in masked tokens. Devlin et al. 2019, section 3.1, task 1."""

    base_class = BertModel
    head_names = Names(_PREDICTIONS)

    bert: BertModel
    predictions: LanguageModelHead

    def build_head(self, config: BertConfig) -> None:  # noqa: D102
        words = self.bert.embeddings.word_embeddings
        self.predictions = LanguageModelHead(config, config.hidden_size, words, config.hidden_act)

    def predict(self, x: Tensor) -> Tensor:  # noqa: D102
        logits: Tensor = self.predictions(x)
        return logits


@dataclass(frozen=True, slots=True)
class BertForPreTrainingOutput(ModelOutput):
    """Both predictions of BERT's pre-training; `loss` is the sum of theirs.

    Attributes:
        loss: 0-d; None unless both kinds of labels were given.
        prediction_logits: (B, T, V).
        seq_relationship_logits: (B, 2); class 0 is "the second segment follows the first".
        hidden_states: of every layer, if they were asked for.
        attentions: likewise.
    """

    loss: Tensor | None
    prediction_logits: Tensor
    seq_relationship_logits: Tensor
    hidden_states: HiddenStates = None
    attentions: Attentions = None


class BertForPreTraining(ModelWithHead):
    """BERT with both tasks of its pre-training. Devlin et al. 2019, section 3.1."""

    base_class = BertModel
    keeps_pooler = True
    head_names = Names(_PREDICTIONS)

    bert: BertModel
    predictions: LanguageModelHead
    seq_relationship: Linear

    def build_head(self, config: BertConfig) -> None:  # noqa: D102
        words = self.bert.embeddings.word_embeddings
        self.predictions = LanguageModelHead(config, config.hidden_size, words, config.hidden_act)
        self.seq_relationship = Linear(config.hidden_size, 2)

    def forward(
        self,
        *inputs: Tensor,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        **settings: Any,
    ) -> BertForPreTrainingOutput:
        """Predict; `labels` (B, T) as in `BertForMaskedLM`, `next_sentence_label` (B,) 0 or 1."""
        outputs = self.bert(*inputs, **settings)
        words = self.predictions(outputs.last_hidden_state)
        follows = self.seq_relationship(outputs.pooler_output)
        loss = pretraining_loss(words, labels, follows, next_sentence_label)
        return BertForPreTrainingOutput(loss, words, follows, outputs.hidden_states)


class BertForSequenceClassification(SequenceClassifier):
    """BERT that judges whole inputs. Devlin et al. 2019, section 4.1."""

    base_class = BertModel


class BertForTokenClassification(TokenClassifier):
    """BERT that judges every token. Devlin et al. 2019, section 5.3."""

    base_class = BertModel


class BertForQuestionAnswering(QuestionAnswerer):
    """BERT that finds answers in a text. Devlin et al. 2019, section 4.2."""

    base_class = BertModel
