"""The attention kernel against its reference, and what holds of attention for any input."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassformer.fused import attention_blocked
from tests.attention_calls import (
    LAYOUTS,
    REFERENCE,
    closed_form,
    contiguous,
    draw,
    expanded,
    run,
    visible,
)
from tests.tolerances import assert_close

LENGTHS = (1, 2, 5, 17, 63, 64, 65, 127, 129, 600)
HEAD_DIMS = (1, 3, 21, 59)
LARGEST = 250_000  # scores in a call: keeps the reference quick

seeds = st.integers(0, 2**32 - 1)
causals = st.sampled_from((None, "top_left", "bottom_right"))
sides = st.none() | st.sampled_from((0, 1, 4, 40, 200, 1000))
windows = st.none() | st.tuples(sides, sides)


@st.composite
def shapes(draw_from, largest=LARGEST):
    """(B, Hkv, G, Tq, Tk, D, Dv)."""
    queries = draw_from(st.sampled_from(LENGTHS))
    keys = draw_from(st.sampled_from([n for n in LENGTHS if n * queries <= largest] or [1]))
    sizes = []
    for most in (3, 3, 3):
        room = largest // (queries * keys * int(np.prod(sizes)))
        sizes.append(draw_from(st.integers(1, max(1, min(most, room)))))
    dims = st.sampled_from(HEAD_DIMS)
    return (*sizes, queries, keys, draw_from(dims), draw_from(dims))


def partial_shape(draw_from, full):
    """A shape that broadcasts to `full`."""
    shape = tuple(n if draw_from(st.booleans()) else 1 for n in full)
    return shape[draw_from(st.integers(0, len(full))) :]


@st.composite
def masks(draw_from, full):
    """Bool, broadcast somehow, with queries that see nothing and keys that nobody sees."""
    shape = partial_shape(draw_from, full)
    rng = np.random.default_rng(draw_from(seeds))
    mask = np.asarray(rng.random(shape) < draw_from(st.sampled_from((0.1, 0.5, 0.9, 1.0))))
    if mask.ndim >= 1 and draw_from(st.booleans()):
        mask[..., rng.random(mask.shape[-1]) < 0.3] = False
    if mask.ndim >= 2 and draw_from(st.booleans()):
        mask[..., rng.random(mask.shape[-2]) < 0.3, :] = False
    return np.broadcast_to(mask, full) if draw_from(st.booleans()) else mask


@st.composite
def calls(draw_from, dtypes=("float16", "float32", "float64"), largest=LARGEST):
    """The arrays of a call, and its options."""
    b, kv_heads, groups, tq, tk, d, dv = draw_from(shapes(largest))
    full = (b, kv_heads * groups, tq, tk)
    dtype = draw_from(st.sampled_from(dtypes))
    rng = np.random.default_rng(draw_from(seeds))
    operands = []
    for heads, length, dim in ((full[1], tq, d), (kv_heads, tk, d), (kv_heads, tk, dv)):
        x = draw_from(st.sampled_from(LAYOUTS))(draw(rng, b, heads, length, dim, dtype=dtype))
        axis = draw_from(st.sampled_from((None, None, None, 0, 1, 2)))
        operands.append(x if axis is None else expanded(x, axis))
    mask = draw_from(st.none() | masks(full))
    bias = None
    if draw_from(st.booleans()):
        bias = draw(rng, *partial_shape(draw_from, full), dtype=dtype)
        if draw_from(st.booleans()):
            bias = np.broadcast_to(bias, full)
    options = {
        "causal": draw_from(causals),
        "window": draw_from(windows),
        "scale": draw_from(st.sampled_from((None, 0.1, 1.0, -0.5))),
        "softcap": draw_from(st.sampled_from((None, 0.5, 30.0))),
        "dropout_p": draw_from(st.sampled_from((0.0, 0.0, 0.25, 1.0))),
        "seed": draw_from(seeds),
    }
    return (*operands, mask, bias), options


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@given(data=st.data(), upstream=st.sampled_from(("out", "lse", "out and lse")))
def test_the_kernel_computes_what_the_reference_does(dtype, data, upstream):
    arrays, options = data.draw(calls(dtypes=(dtype,)))
    expected = run(arrays, REFERENCE, upstream, **options)
    actual = run(arrays, upstream=upstream, **options)
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name].dtype == expected[name].dtype
        assert_close(actual[name], expected[name], name=name)


@given(calls(dtypes=("float64",), largest=20_000), st.integers(1, 9), st.integers(1, 9))
def test_tiles_of_any_size_give_the_same(call, rows, columns):
    """Dropout's choice included: it belongs to a weight, not to a tile."""
    arrays, options = call
    expected = run(arrays, **options)
    with mock.patch.multiple(attention_blocked, _ROWS=4 * rows, _COLUMNS=8 * columns, _TILE=1024):
        actual = run(arrays, **options)
    for name in expected:
        assert_close(actual[name], expected[name], name=name)


@given(calls(dtypes=("float64",), largest=20_000))
def test_the_result_is_the_formula(call):
    arrays, options = call
    options |= {"dropout_p": 0.0, "seed": None}
    actual = run(arrays, **options)
    del options["dropout_p"], options["seed"]
    out, lse = closed_form(*arrays, **options)
    assert_close(actual["out"], out, name="out")
    assert_close(actual["lse"], lse, name="lse")


@given(calls(largest=40_000), st.sampled_from((np.nan, np.inf, -np.inf, 6e4)))
def test_what_nobody_sees_changes_nothing(call, poison):
    """Padding may hold anything: every bit of the result and of the gradients stays as it was."""
    (query, key, value, mask, bias), options = call
    b, heads, tq, _ = query.shape
    kv_heads, tk = key.shape[1:3]
    seen = visible((b, heads, tq, tk), mask, options["causal"], options["window"])
    unseen = ~seen.reshape(b, kv_heads, -1, tk).any(2)
    blind = ~seen.any(3)
    query, key, value = query.copy(), key.copy(), value.copy()
    clean = run((query, key, value, mask, bias), **options)
    key[unseen] = value[unseen] = query[blind] = poison
    poisoned = run((query, key, value, mask, bias), **options)
    for name in clean:
        np.testing.assert_array_equal(poisoned[name], clean[name], err_msg=name)
    assert not clean["out"][blind].any()
    assert (clean["lse"][blind] == -np.inf).all()
    assert np.isfinite(clean["lse"][~blind]).all()
    assert not clean["d_query"][blind].any()
    assert not clean["d_key"][unseen].any() and not clean["d_value"][unseen].any()


small = calls(dtypes=("float64",), largest=20_000)


def without_dropout(options):
    return options | {"dropout_p": 0.0, "seed": None}


def full_mask(call):
    """The call's arrays with all that limits sight put into one mask, and the other options."""
    (query, key, value, mask, bias), options = call
    shape = (*query.shape[:3], key.shape[2])
    mask = visible(shape, mask, options["causal"], options["window"])
    bias = None if bias is None else np.broadcast_to(bias, shape)
    return (query, key, value, mask, bias), options | {"causal": None, "window": None}


@given(small)
def test_causal_and_window_are_masks(call):
    expected = run(*call[:1], **call[1])
    arrays, options = full_mask(call)
    actual = run(arrays, **options)
    for name in expected.keys() - {"d_bias"}:  # the bias has another shape now
        assert_close(actual[name], expected[name], name=name)


@given(small, st.data())
def test_parts_of_the_keys_merge_into_the_whole(call, data):
    """out = Σ exp(lseᵢ - lse) outᵢ with lse = log Σ exp(lseᵢ), for any split of the keys."""
    (query, key, value, mask, bias), options = full_mask(call)
    options = without_dropout(options)
    whole = run((query, key, value, mask, bias), **options)
    tk = key.shape[2]
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, tk - 1)), max_size=3)) - {tk})
    parts = []
    for i, j in zip((0, *cuts), (*cuts, tk), strict=True):
        part = (key[:, :, i:j], value[:, :, i:j], mask[..., i:j])
        parts.append(run((query, *part, None if bias is None else bias[..., i:j]), **options))
    lse = np.logaddexp.reduce([part["lse"] for part in parts])
    assert_close(lse, whole["lse"], name="lse")
    shift = np.where(np.isneginf(lse), 0, lse)
    out = sum(np.exp(part["lse"] - shift)[..., None] * part["out"] for part in parts)
    assert_close(out, whole["out"], name="out")


@given(small, seeds)
def test_the_order_of_keys_does_not_matter(call, seed):
    (query, key, value, mask, bias), options = full_mask(call)
    options = without_dropout(options)
    order = np.random.default_rng(seed).permutation(key.shape[2])
    expected = run((query, key, value, mask, bias), **options)
    shuffled = (key[:, :, order], value[:, :, order], mask[..., order])
    actual = run((query, *shuffled, None if bias is None else bias[..., order]), **options)
    for name in expected:
        moved = {"d_key": np.s_[:, :, order], "d_value": np.s_[:, :, order]}.get(name, ...)
        moved = np.s_[..., order] if name == "d_bias" else moved
        assert_close(actual[name], expected[name][moved], name=name)


@given(small, seeds)
def test_a_constant_added_to_a_row_moves_the_lse_alone(call, seed):
    (query, key, value, mask, bias), options = call
    options = options | {"scale": 0.1}
    shift = draw(np.random.default_rng(seed), *query.shape[:3], 1)
    bias = np.zeros((1, 1, 1, key.shape[2])) if bias is None else bias
    expected = run((query, key, value, mask, bias), **options)
    actual = run((query, key, value, mask, bias + shift), **options)
    assert_close(actual["lse"], expected["lse"] + shift[..., 0], name="lse")
    for name in ("out", "d_query", "d_key", "d_value"):
        assert_close(actual[name], expected[name], name=name)


@given(small, st.data())
def test_a_prefix_does_not_see_what_follows(call, data):
    """Not a bit of its output changes, and its gradients on what follows are exactly 0."""
    (query, key, value, _, _), options = call
    n = min(query.shape[2], key.shape[2])
    query, key, value = query[:, :, :n].copy(), key[:, :, :n].copy(), value[:, :, :n].copy()
    options = options | {"causal": "top_left", "window": None}
    end = data.draw(st.integers(0, n - 1))
    before = run((query, key, value), **options)
    for x in (query, key, value):
        x[:, :, end:] = draw(np.random.default_rng(1), *x[:, :, end:].shape)
    after = run((query, key, value), **options)
    for name in ("out", "lse", "d_query"):
        np.testing.assert_array_equal(
            after[name][:, :, :end], before[name][:, :, :end], err_msg=name
        )
    alone = run((query[:, :, :end], key, value), **options) if end else {}
    for name in alone.keys() & {"d_key", "d_value"}:
        assert not alone[name][:, :, end:].any()


@given(calls(largest=60_000))
def test_batch_elements_do_not_know_of_each_other(call):
    """Bit by bit; also of key heads, but dropout numbers heads."""
    (query, key, value, mask, bias), options = call
    options = without_dropout(options)
    query, key, value = (contiguous(x) for x in (query, key, value))  # BLAS minds strides
    shape = (*query.shape[:3], key.shape[2])
    mask, bias = (None if x is None else np.broadcast_to(x, shape) for x in (mask, bias))
    together = run((query, key, value, mask, bias), **options)
    groups = query.shape[1] // key.shape[1]
    for b in range(query.shape[0]):
        for h in range(key.shape[1]):
            one = (slice(b, b + 1), slice(h * groups, (h + 1) * groups))
            kv = (slice(b, b + 1), slice(h, h + 1))
            arrays = (query[one], key[kv], value[kv])
            limits = (None if x is None else x[one] for x in (mask, bias))
            alone = run((*arrays, *limits), **options)
            for name in ("out", "lse"):
                np.testing.assert_array_equal(alone[name], together[name][one], err_msg=name)


@given(small)
def test_a_window_that_holds_everything_is_none(call):
    arrays, options = call
    options["window"] = None
    expected = run(arrays, **options)
    far = arrays[0].shape[2] + arrays[1].shape[2]
    actual = run(arrays, **(options | {"window": (far, far)}))
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)


@given(small)
def test_a_softcap_out_of_reach_is_none(call):
    arrays, options = call
    expected = run(arrays, **(options | {"softcap": None}))
    actual = run(arrays, **(options | {"softcap": 1e8}))
    for name in expected:
        assert_close(actual[name], expected[name], name=name)


@pytest.mark.parametrize("keys", LENGTHS)
@pytest.mark.parametrize("causal", [None, "top_left", "bottom_right"])
def test_every_pair_of_lengths(keys, causal):
    """The sizes that Hypothesis draws by chance, each for certain."""
    rng = np.random.default_rng(keys)
    for queries in LENGTHS:
        arrays = (draw(rng, 1, 2, queries, 21), draw(rng, 1, 1, keys, 21), draw(rng, 1, 1, keys, 3))
        expected, actual = run(arrays, REFERENCE, causal=causal), run(arrays, causal=causal)
        for name in expected:
            assert_close(actual[name], expected[name], name=f"{name}, {queries} queries")
