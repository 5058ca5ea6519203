"""Expected numbers: the logits processors of Hugging Face transformers 5.23."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassformer.generation import GenerationConfig
from glassformer.generation import rules as r

SCORES = np.array([[0.1, 0.2, 0.3, 0.4], [-1.0, -2.0, -3.0, -4.0]])
TOKENS = np.array([[2, 0, 1, 2, 0], [3, 3, 3, 1, 3]])
OUT = -np.inf
LENGTHS = r.Lengths(1, 0, 20)


def excluded(scores):
    return [np.flatnonzero(row == OUT).tolist() for row in scores]


@pytest.mark.parametrize(
    ("processed", "expected"),
    [
        (r.forbid_repeated_ngrams(SCORES, TOKENS, 1), [[0, 1, 2], [1, 3]]),
        (r.forbid_repeated_ngrams(SCORES, TOKENS, 2), [[1], [1, 3]]),
        (r.forbid_repeated_ngrams(SCORES, TOKENS, 3), [[1], []]),
        (r.forbid_repeated_ngrams(SCORES, TOKENS, 6), [[], []]),
        (r.forbid_words(SCORES, TOKENS, [[1], [0, 3], [3, 3], [1, 2, 0, 2]]), [[1, 2, 3], [1, 3]]),
        (r.forbid_words(SCORES, TOKENS, [[0] * 9]), [[], []]),
        (r.forbid(SCORES, [2, 0]), [[0, 2], [0, 2]]),
        (r.forbid(SCORES, []), [[], []]),
        (r.force(SCORES, [3]), [[0, 1, 2], [0, 1, 2]]),
    ],
)
def test_each_rule_excludes_what_hugging_faces_does(processed, expected):
    assert excluded(processed) == expected
    kept = processed > OUT
    forced = kept.sum() == 2
    assert (processed[kept] == (0 if forced else SCORES[kept])).all()


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_an_excluded_token_would_repeat_and_padding_never_counts(rows, size, padding):
    tokens = np.array(rows)
    found = r.forbid_repeated_ngrams(np.zeros((len(rows), 4)), tokens, size) == OUT
    for row, ids in enumerate(rows):
        grams = [ids[i : i + size] for i in range(len(ids) - size + 1)]
        end = ids[len(ids) - size + 1 :]
        assert [[*end, token] in grams for token in range(4)] == found[row].tolist()
    padded = np.pad(tokens, ((0, 0), (padding, 0)), constant_values=-1)
    again = r.forbid_repeated_ngrams(np.zeros((len(rows), 4)), padded, size) == OUT
    assert (again == found).all()


@pytest.mark.parametrize(
    ("settings", "length", "expected"),
    [
        ({"eos_token_id": [1, 2]}, 5, []),
        ({"eos_token_id": [1, 2]}, 4, [1, 2]),  # of the minimum, 5
        ({"forced_bos_token_id": 3}, 1, [0, 1, 2]),
        ({"forced_bos_token_id": 3}, 2, []),
        ({"forced_eos_token_id": [0, 3]}, 19, [1, 2]),
        ({"forced_eos_token_id": 3}, 18, []),
        ({"suppress_tokens": [0]}, 7, [0]),
        ({"begin_suppress_tokens": [0]}, 1, [0]),
        ({"begin_suppress_tokens": [0]}, 2, []),
        ({"begin_suppress_tokens": [0], "forced_bos_token_id": 3}, 2, [0]),
        ({"bad_words_ids": [[1], [2]], "eos_token_id": 1}, 6, [2]),
    ],
)
def test_rules_hold_where_they_should(settings, length, expected):
    config, tokens = GenerationConfig(**settings), np.zeros((1, length), dtype=int)
    processed = r.apply_rules(SCORES[:1], tokens, config, r.Lengths(1, 5, 20))
    assert excluded(processed) == [expected]


def test_a_penalty_leaves_padding_alone():
    config = GenerationConfig(repetition_penalty=2.0)
    tokens = np.array([[-1, -1, 2], [-1, 0, 1]])
    processed = r.apply_rules(SCORES, tokens, config, LENGTHS)
    np.testing.assert_allclose(processed, [[0.1, 0.2, 0.15, 0.4], [-2.0, -4.0, -3.0, -4.0]])


@pytest.mark.parametrize("name", ["suppress_tokens", "bad_words_ids", "forced_eos_token_id"])
def test_tokens_out_of_the_vocabulary_are_refused(name):
    value = {"bad_words_ids": [[1, 4]], "forced_eos_token_id": 4}.get(name, [4])
    with pytest.raises(IndexError, match="token 4, .* vocabulary of 4 tokens"):
        r.apply_rules(SCORES, TOKENS, GenerationConfig(**{name: value}), r.Lengths(1, 0, 6))
