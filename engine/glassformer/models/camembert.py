"""CamemBERT: RoBERTa for French."""

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
class CamembertConfig(RobertaConfig):
    """The shape of a CamemBERT; the names and defaults are Hugging Face's."""

    model_type = "camembert"

    vocab_size: int = 30522


class CamembertModel(RobertaModel):
    """RoBERTa with a vocabulary for French.

    Martin et al. 2020, "CamemBERT: a Tasty French Language Model", section 4.
    """

    config_class = CamembertConfig


class CamembertForMaskedLM(RobertaForMaskedLM):
    """CamemBERT that fills in masked tokens."""

    base_class = CamembertModel


class CamembertForSequenceClassification(RobertaForSequenceClassification):
    """CamemBERT that judges whole inputs."""

    base_class = CamembertModel


class CamembertForTokenClassification(RobertaForTokenClassification):
    """CamemBERT that judges every token."""

    base_class = CamembertModel


class CamembertForQuestionAnswering(RobertaForQuestionAnswering):
    """CamemBERT that finds answers in a text."""

    base_class = CamembertModel
