"""RoBERTa: BERT with another recipe of training, and positions that padding takes no part in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from glassformer.models.bert import BertModel
from glassformer.models.config import PretrainedConfig
from glassformer.models.encoder import EncoderEmbeddings, EncoderModel, encoder_block
from glassformer.models.heads import (
    LanguageModelHead,
    MaskedLanguageModel,
    QuestionAnswerer,
    SequenceClassifier,
    TokenClassifier,
    head_dropout,
)
from glassformer.models.names import Names
from glassformer.models.outputs import BaseModelOutput
from glassformer.nn import Dropout, Embedding, Linear, Module
from glassformer.tensor import Tensor


@dataclass(kw_only=True)
class RobertaConfig(PretrainedConfig):
    """The shape of a RoBERTa; the names and defaults are Hugging Face's."""

    model_type = "roberta"

    vocab_size: int = 50265
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
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
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
        if self.pad_token_id is None:
            raise ValueError("pad_token_id=None: RoBERTa counts positions from it; 1 is usual")


class RobertaModel(EncoderModel):
    """BERT whose positions count real tokens, from `pad_token_id` + 1 on.

    Liu et al. 2019, "RoBERTa: A Robustly Optimized BERT Pretraining Approach". Every padding token
    has the position `pad_token_id`, whose embedding takes no gradient; `max_position_embeddings`
    counts these first positions too.
    """

    config_class = RobertaConfig
    base_model_prefix = "roberta"
    optional = ("pooler.",)
    names = BertModel.names

    def build(self, config: RobertaConfig) -> None:  # noqa: D102
        self.embeddings = EncoderEmbeddings(config, config.hidden_size)
        self.embeddings.position_embeddings = Embedding(
            config.max_position_embeddings, config.hidden_size, padding_idx=config.pad_token_id
        )
        self.blocks = [encoder_block(config) for _ in range(config.num_hidden_layers)]
        self.pooler = Linear(config.hidden_size, config.hidden_size)

    def position_ids(self, input_ids: Tensor) -> Tensor:  # noqa: D102
        self.check_length(input_ids)
        padding: int = self.config.pad_token_id
        real = (input_ids != padding).to(input_ids.dtype)  # (B, T)
        count = real.cumsum(1)
        longest = int(count.max()) if count.numel() else 0  # no sequence has none
        limit = self.config.max_position_embeddings - padding - 1
        if longest > limit:
            raise ValueError(
                f"{longest} tokens exceed the model's {limit} positions: "
                f"max_position_embeddings={self.config.max_position_embeddings}, of which "
                f"{padding + 1} are not for tokens; truncate the input: "
                "tokenizer(text, truncation=True)"
            )
        return count * real + padding


class RobertaForMaskedLM(MaskedLanguageModel):
    """RoBERTa that fills in masked tokens. Liu et al. 2019, section 2.3."""

    base_class = RobertaModel
    head_names = Names({"lm_head.norm.{p}": "lm_head.layer_norm.{p}"})

    roberta: RobertaModel
    lm_head: LanguageModelHead

    def build_head(self, config: RobertaConfig) -> None:  # noqa: D102
        words = self.roberta.embeddings.word_embeddings
        self.lm_head = LanguageModelHead(config, config.hidden_size, words, "gelu")

    def predict(self, x: Tensor) -> Tensor:  # noqa: D102
        logits: Tensor = self.lm_head(x)
        return logits


class RobertaClassificationHead(Module):
    """out_proj(tanh(dense(x))) of the first token's state, with dropout before each layer."""

    dense: Linear
    dropout: Dropout
    out_proj: Linear

    def __init__(self, config: Any) -> None:
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.dropout = Dropout(head_dropout(config))
        self.out_proj = Linear(config.hidden_size, config.num_labels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, num_labels)."""
        hidden = self.dense(self.dropout(x[:, 0])).tanh()
        logits: Tensor = self.out_proj(self.dropout(hidden))
        return logits


class RobertaForSequenceClassification(SequenceClassifier):
    """RoBERTa that judges whole inputs. Liu et al. 2019, section 5.1."""

    base_class = RobertaModel
    keeps_pooler = False

    def build_head(self, config: RobertaConfig) -> None:  # noqa: D102
        self.classifier = RobertaClassificationHead(config)

    def classify(self, outputs: BaseModelOutput) -> Tensor:  # noqa: D102
        logits: Tensor = self.classifier(outputs.last_hidden_state)
        return logits


class RobertaForTokenClassification(TokenClassifier):
    """RoBERTa that judges every token."""

    base_class = RobertaModel


class RobertaForQuestionAnswering(QuestionAnswerer):
    """RoBERTa that finds answers in a text. Liu et al. 2019, section 5.2."""

    base_class = RobertaModel
