import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassformer.training.answer_scores import (
    exact_match,
    normalize_answer,
    squad_scores,
    token_f1,
)
from glassformer.training.scores import (
    accuracy_score,
    classification_report,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    perplexity,
    precision_recall_fscore_support,
    precision_score,
    recall_score,
)
from glassformer.training.span_scores import span_f1, tag_spans

# scikit-learn warns of what is decided here: of one class alone, for instance.
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:sklearn")

# Few classes and few items, so that classes are missing on a side and one class is all there is.
classes = st.integers(-1, 3)
pairs = st.lists(st.tuples(classes, classes), min_size=1, max_size=30)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module")
def sklearn():
    return pytest.importorskip("sklearn.metrics")


@given(pairs, st.sampled_from([None, "macro", "micro", "weighted"]), st.booleans(), st.booleans())
def test_scores_are_those_of_scikit_learn(sklearn, items, average, as_words, with_labels):
    true, predicted = zip(*items, strict=True)
    labels = [3, 0, 1] if with_labels else None
    if as_words:
        true, predicted = [f"class {c}" for c in true], [f"class {c}" for c in predicted]
        labels = labels and [f"class {c}" for c in labels]
    settings = {"labels": labels, "average": average}
    close(accuracy_score(true, predicted), sklearn.accuracy_score(true, predicted))
    if labels is None or set(labels) & set(true):  # scikit-learn wants one of them to be true
        theirs = sklearn.confusion_matrix(true, predicted, labels=labels)
        assert confusion_matrix(true, predicted, labels=labels).tolist() == theirs.tolist()
    every = precision_recall_fscore_support(true, predicted, **settings)
    expected = sklearn.precision_recall_fscore_support(true, predicted, zero_division=0, **settings)
    for ours, theirs in zip(every[:3], expected[:3], strict=True):
        close(ours, theirs)
    assert (every.support is None) == (expected[3] is None)
    if average is None:
        assert every.support.tolist() == expected[3].tolist()
    for index, function in enumerate((precision_score, recall_score, f1_score)):
        close(function(true, predicted, **settings), expected[index])


@given(pairs)
def test_the_correlation_is_that_of_scikit_learn(sklearn, items):
    true, predicted = zip(*items, strict=True)
    close(matthews_corrcoef(true, predicted), sklearn.matthews_corrcoef(true, predicted))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=12))
def test_two_classes_are_scored_by_the_positive_one_as_in_scikit_learn(sklearn, items):
    true, predicted = zip(*items, strict=True)
    close(f1_score(true, predicted), sklearn.f1_score(true, predicted, zero_division=0))
    if {*true, *predicted} == {0, 1}:
        theirs = sklearn.f1_score(true, predicted, pos_label=0, zero_division=0)
        close(f1_score(true, predicted, pos_label=0), theirs)


@given(pairs, st.booleans())
def test_the_report_is_that_of_scikit_learn(sklearn, items, of_some_classes):
    true, predicted = zip(*items, strict=True)
    settings = {"labels": [0, 1, 7], "target_names": ["no", "yes", "?"]} if of_some_classes else {}
    theirs = sklearn.classification_report(true, predicted, zero_division=0, **settings)
    # Where nothing is right, scikit-learn 1.9 writes the counts as 3.0.
    theirs = re.sub(r"(\d+)\.0$", r"  \1", theirs, flags=re.MULTILINE)
    assert classification_report(true, predicted, **settings) == theirs


def test_scores_of_a_small_table():
    # By hand: 2 of 3 cats found and 1 dog taken for one; the only bird missed.
    true = ["cat", "cat", "cat", "dog", "dog", "bird"]
    predicted = ["cat", "cat", "dog", "dog", "cat", "dog"]
    assert confusion_matrix(true, predicted, labels=["cat", "dog", "bird"]).tolist() == [
        [2, 1, 0],
        [1, 1, 0],
        [0, 1, 0],
    ]
    assert accuracy_score(true, predicted) == 3 / 6
    close(f1_score(true, predicted, average=None), [0, 2 / 3, 2 / 5])  # bird, cat, dog
    close(f1_score(true, predicted, average="macro"), 16 / 45)
    # (c s - Σ t p) / √((s² - Σ t²)(s² - Σ p²)) with t = (3, 2, 1), p = (3, 3, 0)
    close(matthews_corrcoef(true, predicted), (18 - 15) / math.sqrt((36 - 14) * (36 - 18)))


@pytest.mark.parametrize(
    ("true", "predicted", "message"),
    [
        ([], [], "y_true is empty"),
        ([1, 2], [1], "2 items but y_pred 1"),
        ([[1, 2]], [[1, 2]], r"\(N,\), got shape \(1, 2\)"),
        ([1, 0], [0.2, 0.9], r"got float64; logits become classes by argmax"),
        ([1, -100], [1, 0], "holds -100.*leave those items out"),
        (["a"], [1], "give both alike"),
    ],
)
@pytest.mark.parametrize("function", [accuracy_score, f1_score, matthews_corrcoef])
def test_what_cannot_be_scored_is_explained(function, true, predicted, message):
    with pytest.raises(ValueError, match=message):
        function(true, predicted)


def test_averages_that_do_not_fit_are_explained():
    with pytest.raises(ValueError, match="two classes, got 3: choose 'macro'"):
        f1_score([0, 1, 2], [0, 1, 2])
    with pytest.raises(ValueError, match="'mean' is none of"):
        f1_score([0, 1], [0, 1], average="mean")
    with pytest.raises(ValueError, match=r"pos_label 5 is none of the classes \[0, 1\]"):
        f1_score([0, 1], [0, 1], pos_label=5)
    with pytest.raises(ValueError, match=r"items are <U1, but the classes to score \[1\]"):
        f1_score(["a"], ["a"])
    with pytest.raises(ValueError, match=r"different classes \(K,\), got \[1, 1\]"):
        confusion_matrix([0, 1], [0, 1], labels=[1, 1])
    with pytest.raises(ValueError, match="1 names for 2 classes"):
        classification_report([0, 1], [0, 1], target_names=["no"])


def test_perplexity_of_a_uniform_guess_is_the_number_of_choices():
    close(perplexity(math.log(50257)), 50257)
    assert perplexity(1e4) == math.inf
    assert math.isnan(perplexity(math.nan))


tags = st.builds(
    lambda place, kind: "O" if place == "O" else place + kind,
    st.sampled_from("OBIES"),
    st.sampled_from(["-PER", "-LOC", "-LOC-CITY", ""]),
)
sentences = st.lists(st.lists(st.tuples(tags, tags), max_size=8), min_size=1, max_size=4).filter(
    any
)


@given(sentences)
def test_spans_and_scores_are_those_of_seqeval(items):
    labeling = pytest.importorskip("seqeval.metrics.sequence_labeling")
    true = [[pair[0] for pair in sentence] for sentence in items]
    predicted = [[pair[1] for pair in sentence] for sentence in items]
    for sentence in true:
        assert tag_spans(sentence) == labeling.get_entities(sentence)
    ours = span_f1(true, predicted)
    if ours.per_type:
        theirs = [
            labeling.precision_recall_fscore_support(
                true, predicted, average=average, zero_division=0
            )
            for average in ("micro", None)
        ]
        close(ours[:4], theirs[0])
        close(np.array(list(ours.per_type.values())).T, theirs[1])
    close(ours.accuracy, labeling.accuracy_score(true, predicted))


@pytest.mark.parametrize(
    ("scheme", "text"),
    [
        ("IOB2", "B-PER I-PER B-PER O B-LOC"),
        ("IOB1", "I-PER I-PER B-PER O I-LOC"),
        ("IOE2", "I-PER E-PER E-PER O E-LOC"),
        ("IOE1", "I-PER E-PER I-PER O I-LOC"),
        ("IOBES", "B-PER E-PER S-PER O S-LOC"),
    ],
)
def test_every_scheme_stands_for_the_same_spans(scheme, text):
    assert tag_spans(text.split()) == [("PER", 0, 1), ("PER", 2, 2), ("LOC", 4, 4)]


def test_span_scores_of_a_small_table():
    true = [["O", "O", "B-MISC", "I-MISC", "B-MISC", "O", "O"], ["B-PER", "I-PER", "O"]]
    predicted = [["O", "O", "B-MISC", "I-MISC", "B-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    scores = span_f1(true, predicted)  # one of two MISC and the PER are right
    close(scores[:5], [2 / 3, 2 / 3, 2 / 3, 3, 9 / 10])
    assert scores.per_type == {"MISC": (0.5, 0.5, 0.5, 2), "PER": (1.0, 1.0, 1.0, 1)}
    nothing = span_f1([["O", "O"]], [["O", "O"]])
    assert nothing == (0, 0, 0, 0, 1, {})


@pytest.mark.parametrize(
    ("true", "predicted", "message"),
    [
        ([], [], "holds no tags"),
        ([[]], [[]], "holds no tags"),
        ([["O"]], [["O"], ["O"]], "1 sentences but y_pred 2"),
        ([["O"], ["O", "O"]], [["O"], ["O"]], "sentence 1 has 2 true tags but 1"),
        ([["PER"]], [["O"]], "tag 'PER' is not 'O'"),
    ],
)
def test_tags_that_cannot_be_scored_are_explained(true, predicted, message):
    with pytest.raises(ValueError, match=message):
        span_f1(true, predicted)


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        ("The Super Bowl, L!", ["Super Bowl L"], 1, 1),  # article and punctuation don't count
        ("Denver", ["Denver Broncos", "the Broncos"], 0, 2 / 3),
        ("the the", ["cat"], 0, 0),
        ("a b b c", ["b b b"], 0, 2 * 2 / (3 + 3)),  # words count as often as both have them
        ("", [], 1, 1),
        ("something", [], 0, 0),
        ("", ["something"], 0, 0),
        ("42", ["the", "42"], 1, 1),  # an answer of which nothing is left does not count
    ],
)
def test_answers_score_as_counted_by_hand(prediction, answers, exact, f1):
    assert exact_match(prediction, answers) == exact
    close(token_f1(prediction, answers), f1)


words = st.lists(st.sampled_from(["a", "The", "cat", "sat.", "mat", "MAT"]), max_size=6)
texts = words.map(" ".join)


@given(texts, st.lists(texts, max_size=3))
def test_answer_scores_are_bounded_by_the_best_answer(prediction, answers):
    f1, exact = token_f1(prediction, answers), exact_match(prediction, answers)
    assert 0 <= exact <= f1 <= 1
    assert token_f1(prediction, [*answers, prediction]) == 1 or not normalize_answer(prediction)
    shuffled = " ".join(reversed(prediction.split()))
    close(token_f1(shuffled, answers), f1)  # a bag of words
    assert normalize_answer(normalize_answer(prediction)) == normalize_answer(prediction)


def test_squad_scores_are_means_in_percent():
    scores = squad_scores(["cat", "the dog ran"], [["a cat"], ["dog"]])
    close([scores["exact_match"], scores["f1"]], [50, 100 * (1 + 2 / 3) / 2])
    with pytest.raises(ValueError, match="2 predictions but 1 references"):
        squad_scores(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="nothing to score"):
        squad_scores([], [])
    with pytest.raises(ValueError, match="got the text 'cat': wrap it"):
        squad_scores(["cat"], ["cat"])
