"""XLM-RoBERTa: RoBERTa for a hundred languages."""

from __future__ import annotations

from dataclasses import dataclass

from glassformer.models.roberta import (
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
)


@dataclass(kw_only=True)
class XLMRobertaConfig(RobertaConfig):
    """The shape of an XLM-RoBERTa; the names and defaults are Hugging Face's."""

    model_type = "xlm-roberta"

    vocab_size: int = 30522


class XLMRobertaModel(RobertaModel):
    """RoBERTa with a vocabulary for a hundred languages.

    Conneau et al. 2020, "Unsupervised Cross-lingual Representation Learning at Scale", section 3.
    """

    config_class = XLMRobertaConfig


class XLMRobertaForMaskedLM(RobertaForMaskedLM):
    """XLM-RoBERTa that fills in masked tokens."""

    base_class = XLMRobertaModel


class XLMRobertaForSequenceClassification(RobertaForSequenceClassification):
    """XLM-RoBERTa that judges whole inputs."""

    base_class = XLMRobertaModel


class XLMRobertaForTokenClassification(RobertaForTokenClassification):
    """XLM-RoBERTa that judges every token."""

    base_class = XLMRobertaModel


class XLMRobertaForQuestionAnswering(RobertaForQuestionAnswering):
    """XLM-RoBERTa that finds answers in a text."""

    base_class = XLMRobertaModel
