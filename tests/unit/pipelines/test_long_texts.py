"""Texts longer than a model reads: cut with a warning, in silence, or refused, as was asked."""

import warnings

import pytest

import glassformer as gf
from glassformer.models.bert import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)
from tests.unit.pipelines.test_pipelines import WORDS, make, tokenizer  # noqa: F401  (a fixture)

# ruff: noqa: F811  (as arguments, fixtures have the names they were imported by)

LONG = WORDS * 3
CASES = [
    ("feature-extraction", BertModel, LONG),
    ("sentence-embedding", BertModel, LONG),
    ("text-classification", BertForSequenceClassification, LONG),
    ("token-classification", BertForTokenClassification, LONG),
    ("fill-mask", BertForMaskedLM, f"[MASK] {LONG}"),
]


WARNED = [case for case in CASES if case[0] != "token-classification"]  # it cuts without a word


@pytest.mark.parametrize(("task", "model_class", "text"), WARNED, ids=[case[0] for case in WARNED])
def test_every_task_warns_where_it_was_called(task, model_class, text, tokenizer):
    answer = make(task, model_class, tokenizer)
    said = "^the text is longer than the 32 tokens that are read of it; its rest is left out"
    with pytest.warns(UserWarning, match=said) as caught:
        answer(text)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer(text, truncation=True)


@pytest.mark.parametrize(("task", "model_class", "text"), CASES, ids=[case[0] for case in CASES])
def test_truncation_false_refuses_what_it_would_have_to_cut(task, model_class, text, tokenizer):
    answer = make(task, model_class, tokenizer, truncation=False)
    length = len(tokenizer(text)["input_ids"])
    said = rf"the text is longer than the 32 tokens .* \({length}\), and truncation=False"
    with pytest.raises(ValueError, match=said):
        answer(text)
    assert len(answer([text.partition("mat")[0]])) == 1


def test_how_many_are_too_long_is_told(tokenizer):
    extract = make("feature-extraction", BertModel, tokenizer)
    with pytest.warns(UserWarning, match="^2 of 3 texts are longer .* of each; their rest is"):
        extract([LONG, "the cat", LONG])


def test_parts_that_overlap_cut_nothing(tokenizer, recwarn):
    judge = make("ner", BertForTokenClassification, tokenizer, aggregation_strategy="simple")
    judge(LONG, stride=4, truncation=False)
    assert len(recwarn) == 0


@pytest.mark.parametrize(
    ("name", "near"), [("fil-mask", "fill-mask"), ("text_generation", "text-generation")]
)
def test_an_unknown_task_is_told_with_the_nearest(name, near):
    with pytest.raises(ValueError, match=f"unknown task '{name}'; did you mean {near}[?] known "):
        gf.pipeline(name, "folder")
