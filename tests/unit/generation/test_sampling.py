"""Expected numbers: the logits processors of Hugging Face transformers 5.23, in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassformer.generation import GenerationConfig
from glassformer.generation import sampling as s

LOGITS = np.array([[2.0, 1.0, 0.5, -1.0, 0.5, -3.0], [0.1, 0.2, 3.0, -0.4, -2.5, 0.0]])
SEEN = np.array([[1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 1, 1]], dtype=bool)  # ids [0, 3, 3] and [2, 4, 5]
OUT = -np.inf


@pytest.mark.parametrize(
    ("processed", "expected"),
    [
        (
            s.penalize_repetition(LOGITS, SEEN, 1.7),
            [
                [1.176470588235, 1.0, 0.5, -1.7, 0.5, -3.0],
                [0.1, 0.2, 1.764705882353, -0.4, -4.25, 0.0],
            ],
        ),
        (s.keep_top_k(LOGITS, 2), [[2, 1, OUT, OUT, OUT, OUT], [OUT, 0.2, 3, OUT, OUT, OUT]]),
        (s.keep_top_k(LOGITS, 3), [[2, 1, 0.5, OUT, 0.5, OUT], [0.1, 0.2, 3, OUT, OUT, OUT]]),
        (s.keep_top_p(LOGITS, 0.0), [[2, OUT, OUT, OUT, OUT, OUT], [OUT, OUT, 3, OUT, OUT, OUT]]),
        (s.keep_top_p(LOGITS, 0.5), [[2, OUT, OUT, OUT, OUT, OUT], [OUT, OUT, 3, OUT, OUT, OUT]]),
        (s.keep_top_p(LOGITS, 0.7), [[2, 1, OUT, OUT, OUT, OUT], [OUT, OUT, 3, OUT, OUT, OUT]]),
        (s.keep_top_p(LOGITS, 0.9), [[2, 1, 0.5, OUT, 0.5, OUT], [0.1, 0.2, 3, OUT, OUT, OUT]]),
        (s.keep_top_p(LOGITS, 1.0), LOGITS),
        (s.keep_min_p(LOGITS, 0.0), LOGITS),
        (s.keep_min_p(LOGITS, 0.1), [[2, 1, 0.5, OUT, 0.5, OUT], [OUT, OUT, 3, OUT, OUT, OUT]]),
        (s.keep_min_p(LOGITS, 0.3), [[2, 1, OUT, OUT, OUT, OUT], [OUT, OUT, 3, OUT, OUT, OUT]]),
        (s.keep_min_p(LOGITS, 1.0), [[2, OUT, OUT, OUT, OUT, OUT], [OUT, OUT, 3, OUT, OUT, OUT]]),
        (s.apply_temperature(LOGITS, 0.5), np.array(LOGITS) * 2 - [[4], [6]]),
    ],
)
def test_each_rule_gives_hugging_faces_logits(processed, expected):
    np.testing.assert_allclose(processed, expected, rtol=1e-11)


def frequencies(config, draws=200_000, logits=LOGITS, seen=SEEN):
    penalized = s.penalize_repetition(logits, seen, config.repetition_penalty)
    rows = np.repeat(penalized, draws, axis=0)
    chosen = s.choose(rows, config, np.random.default_rng(0))
    return np.stack(
        [np.bincount(c, minlength=logits.shape[1]) / draws for c in chosen.reshape(len(logits), -1)]
    )


def test_rules_apply_in_hugging_faces_order():
    config = GenerationConfig(
        do_sample=True, repetition_penalty=1.3, temperature=0.7, top_k=5, top_p=0.95, min_p=0.05
    )
    expected = [0.521635731555, 0.241710019899, 0.118327124273, 0.0, 0.118327124273, 0.0]
    found = frequencies(config)
    # four standard deviations of a mean of 200,000 draws: 4 * sqrt(0.25 / 200,000)
    assert abs(found[0] - expected).max() < 0.0045
    assert (found[0][[3, 5]] == 0).all()
    assert found[1].tolist() == [0, 0, 1, 0, 0, 0]


def test_plain_sampling_follows_the_softmax():
    config = GenerationConfig(do_sample=True)
    assert abs(frequencies(config) - s.softmax(LOGITS)).max() < 0.0045


logit_rows = st.integers(1, 12).flatmap(
    lambda size: st.lists(
        st.lists(st.floats(-30, 30) | st.just(-np.inf), min_size=size, max_size=size).filter(
            lambda row: max(row) > -np.inf
        ),
        min_size=1,
        max_size=4,
    )
)
rules = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(1e-300, 1e300),
        "top_k": st.integers(1, 99),
        "top_p": st.floats(0, 1),
        "min_p": st.floats(0, 1),
    },
)


@given(logit_rows, rules, st.integers(0, 2**32))
def test_what_is_drawn_was_possible(rows, settings, seed):
    logits = np.array(rows)
    config = GenerationConfig(do_sample=True, **settings)
    chosen = s.choose(logits, config, np.random.default_rng(seed))
    assert chosen.shape == (len(logits),)
    values = logits[np.arange(len(logits)), chosen]
    assert (values > -np.inf).all()
    if config.top_k is not None and 0.01 < config.temperature < 100:
        clearly_likelier = logits > values[:, None] + 1e-9  # closer ones may round to a tie
        assert (clearly_likelier.sum(axis=1) < config.top_k).all()
    again = s.choose(logits, config, np.random.default_rng(seed))
    assert (chosen == again).all()


@given(logit_rows, st.integers(0, 2**32))
def test_temperature_zero_and_top_k_one_are_greedy(rows, seed):
    logits = np.array(rows)
    best = logits.max(axis=1)
    for config in (
        GenerationConfig(),
        GenerationConfig(temperature=0.0),
        GenerationConfig(do_sample=True, temperature=0.0),
        GenerationConfig(do_sample=True, top_k=1),
        GenerationConfig(do_sample=True, top_p=0.0, top_k=1),
    ):
        chosen = s.choose(logits, config, np.random.default_rng(seed))
        assert (logits[np.arange(len(logits)), chosen] == best).all()


def test_top_k_beyond_the_vocabulary_keeps_everything():
    assert (s.keep_top_k(LOGITS, 1000) == LOGITS).all()


def test_a_rows_draw_does_not_depend_on_its_neighbours_logits():
    config = GenerationConfig(do_sample=True)
    alone = [s.choose(LOGITS[:1], config, np.random.default_rng(i))[0] for i in range(50)]
    beside = [s.choose(LOGITS, config, np.random.default_rng(i))[0] for i in range(50)]
    assert alone == beside


def test_the_last_possible_token_is_never_overshot():
    class AlmostOne:
        def random(self, size):
            return np.full(size, np.nextafter(1, 0))

    probabilities = np.array([[0.1] * 10 + [0.0], [0.0] * 10 + [1.0]])
    assert s.draw(probabilities, AlmostOne()).tolist() == [9, 10]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0.0, np.nan], "token 1 in row 1 is nan"),
        ([np.inf, 0.0], "token 0 in row 1 is inf"),
        ([-np.inf, -np.inf], "every token of row 1 has probability 0"),
    ],
)
@pytest.mark.parametrize("do_sample", [False, True])
def test_logits_without_probabilities_are_an_error(row, message, do_sample):
    with pytest.raises(ValueError, match=message):
        s.choose([[0.0, 0.0], row], GenerationConfig(do_sample=do_sample), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GenerationConfig(do_sample=True, **settings)


def test_settings_that_would_do_nothing_are_refused():
    with pytest.raises(ValueError, match="temperature, top_k has no effect without do_sample"):
        GenerationConfig(temperature=0.7, top_k=5)
