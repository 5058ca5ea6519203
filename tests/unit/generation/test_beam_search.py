from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import glassformer as gf
from glassformer.generation import generate, stream_generate

V, END = 4, 3


class Bigrams:
    """A "language model" whose next token depends on the last one, and on how many there are."""

    training = False
    config = SimpleNamespace(n_positions=None)

    def __init__(self, seed):
        self.table = np.random.default_rng(seed).normal(size=(8, V, V)) * 2

    def train(self, mode=True):
        pass

    def eval(self):
        pass

    def rows(self, ids):
        return self.table[len(ids) % 8, ids[-1]]

    def __call__(self, input_ids, attention_mask=None, cache=None):
        logits = np.stack([self.rows(ids) for ids in input_ids.tolist()])
        return SimpleNamespace(logits=gf.from_numpy(logits[:, None]))


def log_softmax(row):
    return row - np.log(np.exp(row).sum())


def every_sequence(model, prompt, maximum):
    """All sequences that end, with their log-probabilities."""
    unfinished, ended = [(0.0, list(prompt))], []
    while unfinished:
        total, ids = unfinished.pop()
        for token, step in enumerate(log_softmax(model.rows(ids))):
            longer = (total + step, [*ids, token])
            done = token == END or len(longer[1]) == maximum
            (ended if done else unfinished).append(longer)
    return ended


@given(st.integers(0, 10**6), st.sampled_from([-0.5, 0.0, 0.7, 1.0, 2.0]))
@settings(max_examples=25)
def test_enough_beams_find_the_best_of_all_sequences(seed, penalty):
    model, prompt = Bigrams(seed), [0, 2]
    found = generate(
        model,
        [prompt],
        4,
        num_beams=V**4,
        num_return_sequences=3,
        length_penalty=penalty,
        early_stopping="never",
        eos_token_id=END,
        pad_token_id=0,
        use_cache=False,
    )
    scored = [
        (total / (len(ids) - len(prompt)) ** penalty, ids)
        for total, ids in every_sequence(model, prompt, 6)
    ]
    best = [ids for _, ids in sorted(scored, reverse=True)[:3]]
    assert [row[: len(ids)] for row, ids in zip(found.tolist(), best, strict=True)] == best


@given(st.integers(0, 10**6), st.integers(2, 5))
@settings(max_examples=25)
def test_rows_do_not_see_each_other(seed, beams):
    model = Bigrams(seed)
    options = {"num_beams": beams, "eos_token_id": END, "use_cache": False}
    together = generate(model, [[0, 1], [2, 2], [1, 0]], 7, **options).tolist()
    for row, prompt in zip(together, ([0, 1], [2, 2], [1, 0]), strict=True):
        alone = generate(model, [prompt], 7, **options).tolist()[0]
        assert row[: len(alone)] == alone
        assert set(row[len(alone) :]) <= {END}


def test_sampled_beams_follow_the_probabilities():
    model = Bigrams(3)
    draws = generate(
        model, [[0]] * 4000, 1, num_beams=2, do_sample=True, seed=0, use_cache=False
    ).numpy()
    # Of two beams that were drawn the likelier one is returned: of four tokens, the pair's better.
    p = np.exp(log_softmax(model.rows([0])))
    drawn = np.zeros(V)
    pairs = 0.0
    for i in range(V):
        for j in range(V):
            if i != j:
                both = p[i] * p[j] / (1 - p[i])
                drawn[i if p[i] > p[j] else j] += both
                pairs += both
    assert abs(pairs - 1) < 1e-12
    frequencies = np.bincount(draws[:, 1], minlength=V) / len(draws)
    assert abs(frequencies - drawn).max() < 4 * np.sqrt(0.25 / len(draws))


def test_beams_are_not_streamed():
    with pytest.raises(ValueError, match=r"num_beams=2 .* can't be streamed"):
        stream_generate(Bigrams(0), [[0]], 3, num_beams=2)
