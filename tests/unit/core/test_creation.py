"""Tensors from nothing: constants against PyTorch's, random numbers against their distribution."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import glassformer as gf
from tests.samples import assert_agree

CONSTANTS = {
    "zeros": lambda fw: fw.zeros(2, 3),
    "zeros of a tuple": lambda fw: fw.zeros((2, 3), dtype=fw.int32),
    "zeros, 0-d": lambda fw: fw.zeros(()),
    "ones": lambda fw: fw.ones(0, 2, dtype=fw.float16),
    "ones, bool": lambda fw: fw.ones(3, dtype=fw.bool),
    "full": lambda fw: fw.full((2, 2), 1.5),
    "full of an int": lambda fw: fw.full((2,), 7),
    "full of a bool": lambda fw: fw.full((2,), True),
    "full with a dtype": lambda fw: fw.full((2,), 3, dtype=fw.float16),
    "arange": lambda fw: fw.arange(5),
    "arange from": lambda fw: fw.arange(2, 10, 3),
    "arange of floats": lambda fw: fw.arange(0.0, 1.0, 0.25),
    "arange backwards": lambda fw: fw.arange(5, 0, -2),
    "arange with a dtype": lambda fw: fw.arange(3, dtype=fw.float64),
    "arange of nothing": lambda fw: fw.arange(0),
    "linspace": lambda fw: fw.linspace(-1, 1, 7, dtype=fw.float64),
    "linspace of one": lambda fw: fw.linspace(3, 5, 1),
    "eye": lambda fw: fw.eye(3),
    "eye, not square": lambda fw: fw.eye(2, 3, dtype=fw.int64),
    "zeros_like": lambda fw: fw.zeros_like(fw.ones(2, 3, dtype=fw.float16)),
    "ones_like": lambda fw: fw.ones_like(fw.ones(2), dtype=fw.int64),
    "full_like": lambda fw: fw.full_like(fw.zeros(2, dtype=fw.float64), 3),
}


@pytest.mark.parametrize("make", CONSTANTS.values(), ids=CONSTANTS)
def test_constants_as_in_pytorch(make):
    assert_agree(make(gf).numpy(), make(torch).numpy())


def test_empty_has_shape_and_dtype():
    x = gf.empty(2, 3, dtype="float16")
    assert (x.shape, x.dtype) == ((2, 3), gf.float16)
    assert gf.empty_like(gf.zeros(4)).shape == (4,)


def test_numpy_integers_count_as_integers():
    assert gf.arange(np.int64(3)).dtype == gf.int64
    assert gf.zeros(np.int64(2), 1).shape == (2, 1)


def test_negative_sizes_are_an_error():
    for make in (gf.zeros, gf.ones, gf.empty, gf.rand, gf.randn):
        with pytest.raises(ValueError, match=r"negative size in \(2, -1\)"):
            make(2, -1)


# generators

DRAWS = {
    "rand": lambda g: gf.rand(7, generator=g),
    "rand, float64": lambda g: gf.rand(3, dtype="float64", generator=g),
    "randn": lambda g: gf.randn(3, 3, generator=g),
    "randint": lambda g: gf.randint(0, 1000, (5,), generator=g),
    "randperm": lambda g: gf.randperm(10, generator=g),
    "rand_like": lambda g: gf.rand_like(gf.zeros(3), generator=g),
    "randn_like": lambda g: gf.randn_like(gf.zeros(3), generator=g),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_same_seed_same_numbers(draw):
    first, second = draw(gf.Generator(3)), draw(gf.Generator(3))
    assert first.tolist() == second.tolist()
    assert first.tolist() != draw(gf.Generator(4)).tolist()
    generator = gf.Generator(5)
    once, again = draw(generator), draw(generator)
    assert once.tolist() != again.tolist()
    assert draw(generator.manual_seed(5)).tolist() == once.tolist()


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_the_default_generator_is_used_without_one(draw):
    gf.manual_seed(11)
    first = draw(None)
    assert draw(gf.Generator(11)).tolist() == first.tolist()
    gf.manual_seed(11)
    draw(gf.Generator(0))  # another stream: the default one doesn't move
    assert draw(None).tolist() == first.tolist()


@pytest.mark.parametrize("drawn_before", range(4))
def test_a_state_survives_json_in_mid_stream(drawn_before):
    """float32 numbers take half a word each: an odd number of them leaves one behind."""
    generator = gf.Generator(1)
    gf.rand(drawn_before, generator=generator)
    state = json.loads(json.dumps(generator.get_state()))
    expected = [draw(generator).tolist() for draw in DRAWS.values()]
    other = gf.Generator(99)
    other.set_state(state)
    assert [draw(other).tolist() for draw in DRAWS.values()] == expected


def test_a_state_does_not_move_with_its_generator():
    generator = gf.Generator(1)
    state = generator.get_state()
    before = json.dumps(state)
    gf.rand(5, generator=generator)
    assert json.dumps(state) == before


def test_threads_with_their_own_generators_draw_what_one_thread_would():
    def draw(seed):
        return gf.randn(1000, generator=gf.Generator(seed)).tolist()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(draw, range(8))) == [draw(seed) for seed in range(8)]


# distributions: bounds are 5 standard errors

N = 200_000


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_rand_is_uniform(dtype):
    x = gf.rand(N, dtype=dtype, generator=gf.Generator(0)).numpy()
    assert x.dtype == dtype
    assert x.min() >= 0
    assert x.max() < 1
    x = x.astype(np.float64)
    assert abs(x.mean() - 0.5) < 5 * np.sqrt(1 / 12 / N) + (dtype == "float16") * 2**-12
    counts = np.bincount((x * 16).astype(int), minlength=16)
    assert abs(counts - N / 16).max() < 5 * np.sqrt(N / 16)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_randn_is_normal(dtype):
    x = gf.randn(N, dtype=dtype, generator=gf.Generator(0)).numpy()
    assert x.dtype == dtype
    x = x.astype(np.float64)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - moment) < 5 * np.sqrt(variance / N)
    assert abs((np.abs(x) < 1).mean() - 0.682689) < 5 * np.sqrt(0.2166 / N)


def test_randint_covers_its_range_evenly():
    x = gf.randint(-3, 5, (N,), generator=gf.Generator(0)).numpy()
    assert x.dtype == np.int64
    counts = np.bincount(x + 3, minlength=8)
    assert len(counts) == 8
    assert abs(counts - N / 8).max() < 5 * np.sqrt(N / 8)
    assert gf.randint(5, (2, 3)).shape == (2, 3)
    assert gf.randint(0, 2, 4, dtype="int32").dtype == gf.int32


def test_randperm_is_a_permutation():
    x = gf.randperm(100, generator=gf.Generator(0))
    assert x.dtype == gf.int64
    assert sorted(x.tolist()) == list(range(100)) != x.tolist()
    first = [gf.randperm(4, generator=gf.Generator(seed))[0].item() for seed in range(400)]
    assert np.bincount(first, minlength=4).min() > 60


def test_random_numbers_are_floating_point():
    with pytest.raises(TypeError, match="floating point, not glassformer.int64"):
        gf.rand(2, dtype="int64")
