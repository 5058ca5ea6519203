from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import glassformer as gf
from glassformer.data.span_denoising import denoising_lengths, span_denoising

EOS = 1
SENTINELS = range(999, 899, -1)
densities, means = st.floats(0.01, 0.99), st.floats(1, 10)


def split(ids):
    """The pieces of a sequence by the sentinel after which each comes; None for the first."""
    assert ids[-1] == EOS
    pieces, sentinel = {None: []}, None
    for token in ids[:-1]:
        if token in SENTINELS:
            sentinel = token
            assert sentinel not in pieces
            pieces[sentinel] = []
        else:
            pieces[sentinel].append(token)
    return pieces


@given(st.integers(2, 200), densities, means, st.integers(0, 2**32))
def test_inputs_and_labels_together_are_the_text(length, density, mean, seed):
    ids = np.random.default_rng(seed).integers(2, 800, length)
    noise = min(max(round(length * density), 1), length - 1)
    spans = min(max(round(noise / mean), 1), length - noise)
    if spans > len(SENTINELS):
        with pytest.raises(ValueError, match=f"{spans} spans, but there are 100 sentinel_ids"):
            span_denoising(ids, SENTINELS, EOS, density, mean)
        return
    item = span_denoising(ids, SENTINELS, EOS, density, mean, gf.Generator(seed))
    inputs, labels = item["input_ids"].tolist(), item["labels"].tolist()
    assert (len(inputs), len(labels)) == denoising_lengths(length, density, mean)
    assert (len(inputs), len(labels)) == (length - noise + spans + 1, noise + spans + 1)
    kept, hidden = split(inputs), split(labels)
    assert list(kept)[1:] == list(hidden)[1:] == list(SENTINELS[:spans])
    assert hidden.pop(None) == [] and all(hidden.values())
    # Kept and hidden pieces take turns, beginning with a kept one and ending with a hidden one.
    restored = list(kept[None])
    assert restored
    for sentinel, piece in hidden.items():
        restored += piece + kept[sentinel]
        assert bool(kept[sentinel]) == (sentinel != list(hidden)[-1])
    assert restored == ids.tolist()


def test_lengths_are_those_of_t5s_pre_training():
    # 568 tokens fill 512 inputs and make 114 targets: the numbers that the released code computes.
    assert denoising_lengths(568) == (512, 114)
    assert denoising_lengths(569)[0] == 513


def test_all_ways_to_divide_the_tokens_are_equally_likely():
    generator = gf.Generator(0)
    seen = Counter()
    for _ in range(6000):
        item = span_denoising(range(10, 20), SENTINELS, EOS, 0.4, 2, generator)
        seen[tuple(item["input_ids"].tolist())] += 1
    # 4 noise tokens in 2 spans: 3 ways; 6 kept ones in 2 spans: 5 ways.
    assert len(seen) == 15
    spread = np.sqrt(400 * 14 / 15)
    assert all(abs(count - 400) < 4.5 * spread for count in seen.values())


def test_the_example_of_the_paper():
    text = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"]
    numbers = {word: 10 + i for i, word in enumerate(text)}
    inputs = ["Thank", "you", "<0>", "me", "to", "your", "party", "<1>"]
    generator = gf.Generator(0)
    items = (
        span_denoising(list(numbers.values()), SENTINELS, EOS, 0.4, 2, generator)
        for _ in range(1000)
    )
    wanted = [*(numbers.get(w) or 999 - int(w[1]) for w in inputs), EOS]
    labels = next(item["labels"] for item in items if item["input_ids"].tolist() == wanted)
    words = {number: word for word, number in numbers.items()} | {999: "<0>", 998: "<1>", EOS: "/"}
    assert " ".join(words[i] for i in labels.tolist()) == "<0> for inviting <1> last week /"


def test_spans_repeat_with_the_generator():
    ids = np.arange(100, 400)
    first, again, other = (
        span_denoising(ids, SENTINELS, EOS, generator=gf.Generator(seed))["labels"].tolist()
        for seed in (1, 1, 2)
    )
    assert first == again != other
    gf.manual_seed(1)
    assert span_denoising(ids, SENTINELS, EOS)["labels"].tolist() == first


@pytest.mark.parametrize(
    ("ids", "settings", "message"),
    [
        ([7], {}, "2 tokens or more"),
        ([[7, 8]], {}, r"\(T,\), got int64 \(1, 2\)"),
        ([7.0, 8.0], {}, "got float64"),
        ([7, 950, 8], {}, r"hold sentinels: \[950\]"),
        ([7, 8], {"noise_density": 1.0}, "noise_density must be between 0 and 1, got 1.0"),
        ([7, 8], {"mean_noise_span_length": 0.5}, "1 or more, got 0.5"),
    ],
)
def test_what_cannot_be_denoised_is_explained(ids, settings, message):
    with pytest.raises(ValueError, match=message):
        span_denoising(ids, SENTINELS, EOS, **settings)
