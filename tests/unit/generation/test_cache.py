import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import glassformer as gf
from glassformer.generation import KVCache


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=8),
    st.sampled_from(["float32", "float64"]),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_cache_returns_everything_it_was_given_in_order(lengths, dtype, batch, heads):
    rng = np.random.default_rng(0)
    keys = [rng.standard_normal((batch, heads, n, 3)).astype(dtype) for n in lengths]
    values = [rng.standard_normal((batch, heads, n, 5)).astype(dtype) for n in lengths]
    cache = KVCache(1)
    with gf.no_grad():
        for i in range(len(lengths)):
            key, value = cache[0].update(gf.from_numpy(keys[i]), gf.from_numpy(values[i]))
            assert (key.numpy() == np.concatenate(keys[: i + 1], axis=2)).all()
            assert (value.numpy() == np.concatenate(values[: i + 1], axis=2)).all()
            assert cache.length == cache[0].length == sum(lengths[: i + 1])
    assert key.dtype.name == value.dtype.name == dtype


def test_earlier_views_keep_their_content_while_the_cache_grows():
    cache, ones = KVCache(), gf.ones(1, 1, 3, 2)
    with gf.no_grad():
        first, _ = cache[0].update(ones, ones)
        for _ in range(100):
            cache[0].update(ones * 2, ones)
    assert first.shape == (1, 1, 3, 2)
    assert (first.numpy() == 1).all()


def test_layers_appear_when_asked_for():
    cache = KVCache()
    assert (len(cache), cache.length) == (0, 0)
    assert cache[2] is cache[2]
    assert cache[0] is not cache[1]
    assert len(cache) == 3


def test_appending_costs_amortised_constant_copies():
    cache, token = KVCache(), gf.zeros(1, 1, 1, 1)
    buffers = set()
    with gf.no_grad():
        for _ in range(1000):
            key, _ = cache[0].update(token, token)
            buffers.add(key.array.base.__array_interface__["data"][0])
    assert len(buffers) <= 6  # 64, 128, ..., 1024


def test_gradients_are_refused():
    key = gf.ones(1, 1, 1, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match="no_grad"):
        KVCache()[0].update(key, key)


def test_another_batch_is_refused():
    cache = KVCache()
    with gf.no_grad():
        cache[0].update(gf.ones(2, 1, 1, 2), gf.ones(2, 1, 1, 2))
        with pytest.raises(ValueError, match=r"cannot append \(1, 1, 1, 2\)"):
            cache[0].update(gf.ones(1, 1, 1, 2), gf.ones(1, 1, 1, 2))


@given(st.lists(st.integers(0, 3), min_size=4, max_size=4), st.integers(1, 70))
def test_reordered_rows_go_on_from_what_another_held(rows, length):
    rng = np.random.default_rng(0)
    held, new = rng.standard_normal((4, 2, length, 3)), rng.standard_normal((4, 2, 1, 3))
    cache, memory = KVCache(), (gf.ones(4, 2, 5, 3), gf.ones(4, 2, 5, 3))
    with gf.no_grad():
        cache[1].update(gf.from_numpy(held.copy()), gf.from_numpy(-held))
        cache[1].memory = memory
        cache.reorder(np.array(rows))
        key, value = cache[1].update(gf.from_numpy(new), gf.from_numpy(new))
    assert (key.numpy() == np.concatenate([held[rows], new], axis=2)).all()
    assert (value.numpy() == np.concatenate([-held[rows], new], axis=2)).all()
    assert cache[1].memory is memory
