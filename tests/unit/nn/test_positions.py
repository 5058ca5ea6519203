"""Positions against the closed forms of their papers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import glassformer as gf
from glassformer import nn
from glassformer.nn import functional as F
from glassformer.nn.positions import (
    alibi_slopes,
    llama3_frequencies,
    rotary_frequencies,
    t5_buckets,
)

FLOAT64 = gf.float64


@given(st.integers(0, 300), st.integers(1, 9), st.integers(1, 6))
def test_sinusoidal_is_the_papers_formula(offset, length, pairs):
    dim = 2 * pairs
    table = nn.SinusoidalPositions(dim)(gf.zeros(2, length, dim, dtype="float64"), offset)
    for t in range(length):
        for i in range(pairs):
            angle = (offset + t) / 10000 ** (2 * i / dim)
            assert table[1, t, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-12)
            assert table[1, t, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-12)


def test_sinusoidal_of_a_shift_is_a_rotation():
    """Section 3.5: PE(t + k) is a linear function of PE(t), the same for every t."""
    table = nn.SinusoidalPositions(2)(gf.zeros(1, 50, 2, dtype="float64"))[0].numpy()
    turn = np.array([[math.cos(7), math.sin(7)], [-math.sin(7), math.cos(7)]])
    np.testing.assert_allclose(table[7:], table[:-7] @ turn.T, atol=1e-12)


def test_learned_positions_are_rows_of_the_table():
    layer = nn.LearnedPositions(6, 3)
    x = gf.zeros(2, 4, 3)
    weight = layer.weight.detach().numpy()
    np.testing.assert_array_equal(layer(x, offset=2)[1].detach().numpy(), weight[2:])
    ids = gf.tensor([[0, 0, 1, 2], [5, 4, 3, 2]])
    by_id = layer(x, position_ids=ids).detach().numpy()
    np.testing.assert_array_equal(by_id, weight[ids.numpy()])


def test_learned_positions_end():
    with pytest.raises(ValueError, match="position 6 is needed, but there are 6 positions"):
        nn.LearnedPositions(6, 3)(gf.zeros(1, 3, 3), offset=4)


@given(st.integers(0, 100), st.integers(1, 5), st.integers(1, 4), st.sampled_from([1e4, 5e5]))
def test_rotary_turns_each_pair_by_its_angle(offset, length, half, base):
    """As multiplication of complex numbers x[i] + j x[i + D/2] by exp(j t base^(-2i/D))."""
    query, key = (gf.randn(2, heads, length, 2 * half, dtype="float64") for heads in (4, 2))
    turned = nn.RotaryPositions(2 * half, base).rotate(query, key, offset)
    t = np.arange(offset, offset + length)[:, None]
    turn = np.exp(1j * t * base ** (-np.arange(half) / half))
    for before, after in zip((query, key), turned, strict=True):
        before, after = (
            x.numpy()[..., :half] + 1j * x.numpy()[..., half:] for x in (before, after)
        )
        np.testing.assert_allclose(after, before * turn, atol=1e-10)


@given(st.integers(0, 500), st.integers(0, 500))
def test_rotary_scores_depend_on_the_distance_alone(first, second):
    positions = nn.RotaryPositions(8)
    query, key = gf.randn(1, 1, 3, 8, dtype="float64"), gf.randn(1, 1, 3, 8, dtype="float64")
    scores = []
    for offset in (first, second):
        q, k = positions.rotate(query, key, offset)
        scores.append((q @ k.mT).numpy())
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-10)


def test_frequencies_of_llama_3_1():
    """Pairs by their wavelength: below 8192 / 4 kept, above 8192 / 1 eight times slower, between
    them (8192 / wavelength - 1) / 3 of the way; the settings of its config.json."""
    plain = rotary_frequencies(128, 5e5)
    wavelength = 2 * np.pi / plain
    found = llama3_frequencies(plain, 8.0, 1.0, 4.0, 8192)
    ways = [wavelength < 2048, wavelength > 8192, (wavelength >= 2048) & (wavelength <= 8192)]
    assert all(way.any() for way in ways)
    np.testing.assert_allclose(found[ways[0]], plain[ways[0]], rtol=1e-14)
    np.testing.assert_allclose(found[ways[1]], plain[ways[1]] / 8, rtol=1e-14)
    share = (8192 / wavelength[ways[2]] - 1) / 3
    expected = plain[ways[2]] * (share + (1 - share) / 8)
    np.testing.assert_allclose(found[ways[2]], expected, rtol=1e-14)


def test_alibi_slopes_of_the_paper():
    """Section 3: 8 heads 1/2 … 1/256; 16 heads interpolate: 2^-0.5, 2^-1, … 2^-8."""
    np.testing.assert_allclose(alibi_slopes(8), [2.0**-i for i in range(1, 9)])
    np.testing.assert_allclose(alibi_slopes(16), [2 ** (-i / 2) for i in range(1, 17)])
    # the released code: 12 heads take the 8 slopes, then every other one of 16
    expected = [2.0**-i for i in range(1, 9)] + [2 ** (-i / 2) for i in (1, 3, 5, 7)]
    np.testing.assert_allclose(alibi_slopes(12), expected)


def test_alibi_bias_grows_with_distance():
    bias = nn.ALiBiPositions(8).bias(2, 4, FLOAT64).numpy()
    assert bias.shape == (1, 8, 2, 4)
    # two queries after two cached keys: at positions 2 and 3
    np.testing.assert_array_equal(bias[0, 0], [[-1, -0.5, 0, -0.5], [-1.5, -1, -0.5, 0]])
    np.testing.assert_array_equal(bias[0, 7], bias[0, 0] / 128)


def test_alibi_slopes_as_an_argument_of_attention():
    slopes = gf.from_numpy(alibi_slopes(4))
    query, key = gf.randn(2, 4, 3, 2, dtype="float64"), gf.randn(2, 4, 5, 2, dtype="float64")
    for causal, offset in ((None, 2), ("bottom_right", 2), ("top_left", 0)):
        distance = np.abs(np.arange(5) - np.arange(3)[:, None] - offset)
        bias = gf.from_numpy(-slopes.numpy()[:, None, None] * distance)
        actual = F.attention(query, key, key, alibi_slopes=slopes, causal=causal)
        expected = F.attention(query, key, key, None, bias.unsqueeze(0), causal=causal)
        np.testing.assert_allclose(actual.numpy(), expected.numpy(), atol=1e-12)


def test_t5_buckets_of_the_paper():
    """Section 2.1: 32 embeddings, logarithmic up to 128, all beyond in the last."""
    causal = t5_buckets(-np.arange(400), False, 32, 128)
    np.testing.assert_array_equal(causal[:17], [*range(16), 16])
    assert causal[-1] == 31 and causal[128] == 31 and causal[100] < 31
    assert (np.diff(causal) >= 0).all() and set(causal) == set(range(32))
    assert (t5_buckets(np.arange(5), False, 32, 128) == 0).all()  # ahead: masked anyway

    both = t5_buckets(np.arange(-300, 301), True, 32, 128)
    behind, ahead = both[:300][::-1], both[301:]
    np.testing.assert_array_equal(behind + 16, ahead)
    assert set(both) == set(range(32)) - {16}  # 16 would be distance 0, ahead


@pytest.mark.parametrize("bidirectional", [True, False])
def test_t5_buckets_widen_by_equal_factors(bidirectional):
    """Bucket of distance n >= exact: exact + floor(log(n/exact) / log(128/exact) · exact)."""
    half = 16 if bidirectional else 32
    exact = half // 2
    buckets = t5_buckets(-np.arange(1000), bidirectional, 32, 128)
    for n in range(exact, 1000):
        position = exact + math.log(n / exact) / math.log(128 / exact) * exact
        if abs(position - round(position)) > 1e-5:  # on a border float32 decides
            assert buckets[n] == min(int(position), half - 1)


def test_t5_bias_is_the_weight_of_the_bucket():
    layer = nn.T5Positions(2, bidirectional=False, num_buckets=4, max_distance=8)
    layer.weight.detach().copy_(gf.tensor([[0.0, 0.5], [1.0, 1.5], [2.0, 2.5], [3.0, 3.5]]))
    bias = layer.bias(2, 3, gf.float32)
    assert bias.shape == (1, 2, 2, 3)
    # queries at positions 1 and 2: distances 1 0 -1 and 2 1 0
    assert bias[0, 0].tolist() == [[1, 0, 0], [2, 1, 0]]
    assert bias[0, 1].tolist() == [[1.5, 0.5, 0.5], [2.5, 1.5, 0.5]]
    bias.sum().backward()
    assert layer.weight.grad[:, 0].tolist() == [3, 2, 1, 0]


def test_odd_dimensions_are_refused():
    for make in (nn.SinusoidalPositions, nn.RotaryPositions):
        with pytest.raises(ValueError, match="=5 is odd"):
            make(5)
