"""What all pipelines share: batches, order, streams, limits, settings; and what each refuses."""

import numpy as np
import pytest

import glassformer as gf
from glassformer.data.tokenizer_training import train_tokenizer
from glassformer.models.bert import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)
from glassformer.models.roberta import RobertaConfig, RobertaModel
from glassformer.models.safetensors_file import WeightsError
from glassformer.pipelines.base import _device
from glassformer.pipelines.entities import Piece, entities_of
from glassformer.pipelines.scores import sigmoid, softmax

pytest.importorskip("tokenizers")

WORDS = "the cat sat on a mat in old paris while ann lee and bob smith went home to rome again"
TEXTS = [" ".join(WORDS.split()[:count]) for count in (3, 0, 17, 1, 9, 12, 2, 5)]
SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 32,
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([WORDS] * 3, "wordpiece", vocab_size=120)


def make(task, model_class, tokenizer, **settings):
    gf.manual_seed(0)
    model = model_class(BertConfig(vocab_size=len(tokenizer), **SHAPE))
    return gf.pipeline(task, model, tokenizer, **settings)


def test_batches_are_of_similar_length_and_answers_in_order(tokenizer, monkeypatch):
    embed = make("sentence-embedding", BertModel, tokenizer)
    alone = [embed(text) for text in TEXTS]
    shapes = []
    forward = type(embed).forward
    monkeypatch.setattr(
        type(embed),
        "forward",
        lambda self, batch, settings: (
            shapes.append(batch["input_ids"].shape) or forward(self, batch, settings)
        ),
    )
    together = embed(TEXTS, batch_size=3)
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert shapes == [(3, 19), (3, 7), (2, 3)]
    shapes.clear()
    embed([WORDS + " again" * 10, *["the"] * 40], batch_size=32)
    assert [shape[0] for shape in shapes] == [3, 32, 6]  # one long text pads but a few others


def test_a_stream_reads_a_window_ahead_and_no_further(tokenizer):
    embed = make("sentence-embedding", BertModel, tokenizer, batch_size=2)
    read = []

    def endless():
        while True:
            read.append(1)
            yield "the cat"

    answers = embed(endless())
    assert read == []
    first = next(answers)
    assert len(read) == 32  # 16 batches of 2
    np.testing.assert_allclose(first, embed("the cat"), atol=1e-6)


def test_no_texts_give_no_answers(tokenizer):
    assert make("text-classification", BertForSequenceClassification, tokenizer)([]) == []
    assert make("sentence-embedding", BertModel, tokenizer)([]).shape == (0, 16)
    joined = make("sentence-embedding", BertModel, tokenizer, pooling=("cls", "lasttoken"))
    assert joined([]).shape == (0, 32)
    assert list(make("sentence-embedding", BertModel, tokenizer)(iter([]))) == []


def test_nothing_is_recorded_and_dropout_is_off(tokenizer):
    model = BertModel(BertConfig(vocab_size=len(tokenizer), **SHAPE)).train()
    extract = gf.pipeline("feature-extraction", model, tokenizer, return_tensors=True)
    first, second = extract(["the cat", "the cat"], batch_size=1)
    assert not first.requires_grad and model.training
    np.testing.assert_array_equal(first.numpy(), second.numpy())


def test_a_long_text_is_cut_with_a_warning_unless_that_is_intended(tokenizer, recwarn):
    extract = make("feature-extraction", BertModel, tokenizer)
    long = WORDS * 5
    for settings in ({"truncation": True}, {"truncation": True, "max_length": 8}):
        assert len(extract(long, **settings)[0]) == settings.get("max_length", 32)
    assert len(recwarn) == 0
    with pytest.warns(UserWarning, match="1 of 2 texts is longer than the 32 tokens"):
        states = extract([long, "the cat"])
    assert [len(one[0]) for one in states] == [32, 4]


def test_the_limit_of_roberta_leaves_out_the_rows_for_padding(tokenizer):
    config = RobertaConfig(vocab_size=len(tokenizer), pad_token_id=1, **SHAPE)
    extract = gf.pipeline("feature-extraction", RobertaModel(config), tokenizer)
    assert len(extract(WORDS * 5, truncation=True)[0]) == 30


def test_settings_of_the_pipeline_are_the_calls_defaults(tokenizer):
    classify = make("text-classification", BertForSequenceClassification, tokenizer, top_k=2)
    assert len(classify("the cat")) == 2
    assert len(classify("the cat", top_k=1)) == 1


def test_a_wrong_setting_is_told_with_the_right_ones(tokenizer):
    with pytest.raises(TypeError, match="text-classification has no 'topk'; it has .*top_k"):
        make("text-classification", BertForSequenceClassification, tokenizer, topk=2)
    classify = make("text-classification", BertForSequenceClassification, tokenizer)
    with pytest.raises(TypeError, match="has no 'temperature'"):
        classify("the cat", temperature=1)
    for settings in ({"top_k": 0}, {"top_k": 1.5}, {"function_to_apply": "tanh"}):
        with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
            classify("the cat", **settings)
    with pytest.raises(ValueError, match="batch_size must be a whole number from 1, got 0"):
        classify(["the cat"], batch_size=0)
    with pytest.raises(ValueError, match="aggregation_strategy must be one of none, simple"):
        make("ner", BertForTokenClassification, tokenizer, aggregation_strategy="best")
    with pytest.raises(ValueError, match="stride=4 .* another aggregation_strategy than 'none'"):
        make("ner", BertForTokenClassification, tokenizer, stride=4)
    with pytest.raises(ValueError, match="pooling must be of cls, max, mean, .*, got 'sum'"):
        make("sentence-embedding", BertModel, tokenizer, pooling="sum")


def test_what_is_no_text_is_told(tokenizer):
    classify = make("text-classification", BertForSequenceClassification, tokenizer)
    with pytest.raises(TypeError, match="an input must be a str, got int 3"):
        classify(["the cat", 3])
    with pytest.raises(ValueError, match="got keys"):
        classify({"body": "the cat"})
    judge = make("ner", BertForTokenClassification, tokenizer)
    with pytest.raises(TypeError, match="a text must be a list of words, each a str, got 'the'"):
        judge("the", is_split_into_words=True)
    with pytest.raises(TypeError, match="a text must be a str, got \\['the'\\]"):
        judge([["the"]])


def test_an_unknown_task_is_told_with_the_known_ones(tokenizer):
    with pytest.raises(ValueError, match="unknown task 'embed'; known are feature-extraction"):
        gf.pipeline("embed", "folder")
    with pytest.raises(ValueError, match="give the tokenizer"):
        gf.pipeline("feature-extraction", BertModel(BertConfig(**SHAPE)))
    with pytest.raises(WeightsError, match="the folder does not exist"):
        gf.pipeline("feature-extraction", "no-such-folder")


def test_lower_case_and_joined_pooling(tokenizer):
    embed = make("sentence-embedding", BertModel, tokenizer)
    both = embed("the cat", pooling=("cls", "mean"))
    np.testing.assert_allclose(both[:16], embed("the cat", pooling="cls"))
    np.testing.assert_allclose(both[16:], embed("the cat"))
    np.testing.assert_array_equal(embed("THE CAT", do_lower_case=True), embed("the cat"))


def test_fill_mask_refuses_a_text_without_a_mask(tokenizer):
    fill = make("fill-mask", BertForMaskedLM, tokenizer)
    with pytest.raises(ValueError, match=r"there is no \[MASK\] in 'the cat'"):
        fill("the cat")
    with (
        pytest.warns(UserWarning, match="longer than the 32 tokens"),
        pytest.raises(ValueError, match="or only after the 32 tokens"),
    ):
        fill(WORDS * 3 + " [MASK]")
    with pytest.warns(UserWarning, match="'catmat' is no single token; 'cat' stands for it"):
        assert fill("[MASK]", targets=["catmat"])[0]["token_str"] == "cat"
    with (
        pytest.warns(UserWarning, match="has no tokens"),
        pytest.raises(ValueError, match="none of the targets"),
    ):
        fill("[MASK]", targets=[""])


def test_question_answering_takes_lists_and_refuses_what_does_not_fit(tokenizer):
    answer = make("question-answering", BertForQuestionAnswering, tokenizer, doc_stride=4)
    one = answer(question="who sat", context=WORDS)
    several = answer(question=["who sat"] * 2, context=WORDS)
    assert [found["answer"] for found in several] == [one["answer"]] * 2
    assert WORDS[one["start"] : one["end"]] == one["answer"]
    for wrong, said in (
        ({"question": "who"}, "give question= and context="),
        ({"question": ["a"], "context": ["b", "c"]}, "1 questions don't go with 2 contexts"),
        ({"question": "", "context": "b"}, "neither of them empty"),
        ({"question": WORDS * 2, "context": "b"}, "shorten the question"),
    ):
        with pytest.raises((TypeError, ValueError), match=said):
            answer(**wrong)


def test_a_context_of_spaces_has_no_answer(tokenizer):
    answer = make("question-answering", BertForQuestionAnswering, tokenizer, doc_stride=4)
    assert answer(question="who", context="  ") == {
        "score": 0.0,
        "start": 0,
        "end": 0,
        "answer": "",
    }


def test_entities_of_a_worked_example():
    """micro|soft is one word whose pieces disagree; the strategies decide as their names say."""
    labels = dict(enumerate(["O", "B-ORG", "I-ORG", "B-LOC"]))
    pieces = [
        Piece(1, "micro", 0, 5, False),
        Piece(2, "##soft", 5, 9, True),
        Piece(3, "corp", 10, 14, False),
        Piece(4, "oslo", 15, 19, False),
    ]
    scores = np.array(
        [
            [0.25, 0.25, 0.25, 0.25],
            [0.3, 0.6, 0.1, 0.0],
            [0.1, 0.0, 0.1, 0.8],
            [0.2, 0.1, 0.7, 0.0],
            [0.1, 0.0, 0.0, 0.9],
        ]
    )

    def groups(strategy):
        found = entities_of(pieces, scores, labels, strategy, "+".join)
        return [(one["entity_group"], one["word"], round(one["score"], 6)) for one in found]

    oslo = ("LOC", "oslo", 0.9)
    assert groups("first") == [("ORG", "micro+##soft+corp", 0.65), oslo]
    assert groups("max") == [("LOC", "micro+##soft", 0.8), ("ORG", "corp", 0.7), oslo]
    assert groups("average") == [("LOC", "micro+##soft", 0.4), ("ORG", "corp", 0.7), oslo]
    assert groups("simple")[:2] == [("ORG", "micro", 0.6), ("LOC", "##soft", 0.8)]


def test_scores_of_extreme_logits():
    logits = np.array([1e4, -1e4, 0.0])
    np.testing.assert_array_equal(softmax(logits), [1, 0, 0])
    np.testing.assert_array_equal(sigmoid(logits), [1, 0, 0.5])


def test_devices_have_numbers(tokenizer):
    assert str(make("fill-mask", BertForMaskedLM, tokenizer, device=-1).device) == "cpu"
    with pytest.raises(ValueError, match="GPU's number or -1 for the CPU, got -2"):
        make("fill-mask", BertForMaskedLM, tokenizer, device=-2)
    assert _device("cpu") is _device(-1)


def test_a_model_of_another_task_is_refused(tokenizer):
    said = "text-classification needs a BertForSequenceClassification, got a BertForMaskedLM"
    with pytest.raises(TypeError, match=said):
        make("text-classification", BertForMaskedLM, tokenizer)


@pytest.mark.parametrize(
    ("task", "model_class"),
    [("feature-extraction", BertModel), ("question-answering", BertForQuestionAnswering)],
)
def test_what_is_no_input_is_told_at_once(task, model_class, tokenizer):
    with pytest.raises(TypeError, match=f"{task} takes one input, .* got int 3"):
        make(task, model_class, tokenizer)(3)
