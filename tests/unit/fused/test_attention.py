"""Attention's values, edge cases and errors, by the kernel and by the reference."""

import math

import numpy as np
import pytest

import glassformer as gf
from glassformer import fused
from glassformer.fused.attention import attention
from tests.attention_calls import (
    KERNEL,
    OP,
    REFERENCE,
    call,
    closed_form,
    draw,
    leaves,
    operands,
    run,
)
from tests.tolerances import assert_close

both = pytest.mark.parametrize("kernel", [KERNEL, REFERENCE])
dtypes = pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])


# ---- values -------------------------------------------------------------------------------------


@both
def test_an_example_worked_by_hand(kernel):
    """Logits 0 and log 3 weigh the values 1/4 and 3/4; their log-sum-exp is log 4."""
    query = np.array([[[[1.0]]]])
    key = np.array([[[[0.0], [math.log(3)]]]])
    value = np.array([[[[8.0, -4.0], [4.0, 0.0]]]])
    out, lse = call(query, key, value, kernel=kernel, return_lse=True)
    np.testing.assert_allclose(out, [[[[5.0, -1.0]]]], rtol=1e-15)
    np.testing.assert_allclose(lse, [[[math.log(4)]]], rtol=1e-15)


@dtypes
def test_the_dtype_stays_and_half_precision_has_its_lse_in_float32(dtype):
    for kernel in (KERNEL, REFERENCE):
        out, lse = call(*operands(dtype=dtype), kernel=kernel, return_lse=True)
        assert out.dtype == dtype
        assert lse.dtype == ("float32" if dtype == "float16" else dtype)


@both
@dtypes
def test_large_logits_choose_one_key(kernel, dtype):
    """Scores of ±6e4 fit in half precision; their exponentials do not."""
    query = np.array([[[[1.0], [-1.0]]]], dtype)
    key = np.array([[[[6e4], [-6e4]]]], dtype)
    value = np.array([[[[1.0, 0.0], [0.0, 1.0]]]], dtype)
    found = run((query, key, value), kernel, scale=1.0)
    np.testing.assert_array_equal(found["out"][0, 0], [[1, 0], [0, 1]])
    np.testing.assert_allclose(found["lse"][0, 0], [6e4, 6e4], rtol=1e-3)
    assert all(np.isfinite(x).all() for x in found.values())
    by_bias = run((query * 0, key, value, None, np.array([[[[6e4, -6e4]]]], dtype)), kernel)
    np.testing.assert_array_equal(by_bias["out"][0, 0], [[1, 0], [1, 0]])


@both
def test_the_rounding_of_a_half_precision_output_stays_out_of_gradients(kernel):
    """With one key nothing depends on the score: dP - rowsum(dO ∘ O) must cancel in float32."""
    query, key, value = operands(tq=64, tk=1, d=16, dv=16, dtype="float16")
    found = run((query, key, value), kernel, "out", dropout_p=0.25, seed=0)
    assert np.abs(found["d_query"]).max() < 1e-5


@both
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_logit_spoils_its_row_alone(kernel, bad):
    query, key, value = operands()
    bias = np.zeros((1, 4, 5, 7))
    bias[0, 1, 2, 3] = bad
    out = call(query, key, value, None, bias, kernel=kernel)
    spoiled = np.zeros((2, 4, 5), bool)
    spoiled[:, 1, 2] = True
    np.testing.assert_array_equal(np.isnan(out).all(-1), spoiled)
    np.testing.assert_array_equal(np.isnan(out).any(-1), spoiled)


# ---- nothing to see -----------------------------------------------------------------------------


@both
@dtypes
def test_rows_without_a_key_give_zero_with_zero_gradients(kernel, dtype):
    query, key, value = operands(dtype=dtype)
    mask = np.ones((2, 1, 5, 7), bool)
    mask[0, :, 1] = mask[1] = False
    found = run((query, key, value, mask, draw(np.random.default_rng(0), 7, dtype=dtype)), kernel)
    for name in ("out", "d_query"):
        assert not found[name][0, :, 1].any() and not found[name][1].any()
        assert found[name][0, :, 0].any()
    assert (found["lse"][0, :, 1] == -np.inf).all() and (found["lse"][1] == -np.inf).all()
    assert not found["d_key"][1].any() and not found["d_value"][1].any()
    assert all(np.isfinite(x).all() for name, x in found.items() if name != "lse")


@both
def test_a_bias_of_minus_infinity_hides_as_a_mask_does(kernel):
    query, key, value = operands()
    mask = np.random.default_rng(1).random((2, 4, 5, 7)) < 0.5
    mask[0, 0] = False
    expected = run((query, key, value, mask), kernel, softcap=2.0)
    bias = np.where(mask, 0.0, -np.inf)
    actual = run((query, key, value, None, bias), kernel, softcap=2.0)
    for name in expected:
        assert_close(actual[name], expected[name], name=name)
    assert np.isfinite(actual["d_bias"]).all()


@both
def test_no_gradient_arrives_through_the_lse_of_a_row_without_a_key(kernel):
    """The loss may well be infinite there, and send NaN or inf."""
    query, key, value = operands()
    mask = np.ones((5, 1), bool)
    mask[2] = False
    tensors = leaves(query, key, value, mask)
    with fused.use(**{OP: kernel}):
        out, lse = attention(*tensors, return_lse=True)
    gf.backward([out.sum(), (lse * lse).sum()])
    for x in tensors[:3]:
        assert np.isfinite(x.grad.numpy()).all()
    assert not tensors[0].grad.numpy()[:, :, 2].any()


@both
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, np.finfo("float64").max])
@pytest.mark.parametrize("unseen_by", ["mask", "causal", "window", "queries of none"])
def test_poison_out_of_sight_changes_no_bit(kernel, poison, unseen_by):
    query, key, value = operands(tq=70, tk=140)
    bias = draw(np.random.default_rng(3), 70, 140)
    mask, hidden, options = None, slice(70, 140), {}
    if unseen_by == "mask":
        mask = np.ones((2, 1, 1, 140), bool)
        hidden = np.array([3, 64, 139])
        mask[..., hidden] = False
    elif unseen_by == "causal":
        options = {"causal": "top_left"}
    elif unseen_by == "window":  # the first query stands at key 70
        options, hidden = {"window": (5, None)}, slice(0, 65)
    else:
        mask = np.ones((70, 1), bool)
        mask[[0, 33, 69]] = False
    clean = run((query, key, value, mask, bias), kernel, **options)
    if unseen_by == "queries of none":
        query[:, :, [0, 33, 69]] = poison
    else:
        key[:, :, hidden] = value[:, :, hidden] = poison
    for name, x in run((query, key, value, mask, bias), kernel, **options).items():
        np.testing.assert_array_equal(x, clean[name], err_msg=name)


@both
def test_dropping_everything_gives_zeros_even_for_infinite_values(kernel):
    query, key, value = operands()
    value[...] = math.inf
    with fused.use(**{OP: kernel}):
        tensors = [gf.tensor(x, requires_grad=True) for x in (query, key, value)]
        out = attention(*tensors, dropout_p=1.0)
        gradients = gf.grad(out, tensors, gf.ones_like(out))
    np.testing.assert_array_equal(out.detach().numpy(), 0)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient.numpy(), 0)


@both
def test_no_nan_arrives_from_above_a_row_without_a_key(kernel):
    """The gradient of an output that is 0 whatever the inputs are, is not looked at."""
    arrays = operands()
    mask = np.ones((arrays[0].shape[2], arrays[1].shape[2]), bool)
    mask[0] = False
    upstream = np.ones((*arrays[0].shape[:3], arrays[2].shape[3]))
    upstream[:, :, 0] = math.nan
    with fused.use(**{OP: kernel}):
        tensors = [gf.tensor(x, requires_grad=True) for x in arrays[:3]]
        out = attention(*tensors, gf.tensor(mask))
        for gradient in gf.grad(out, tensors, gf.tensor(upstream)):
            assert np.isfinite(gradient.numpy()).all()


@dtypes
@pytest.mark.parametrize(
    "sizes",
    [{"tk": 0}, {"tq": 0}, {"b": 0}, {"d": 0}, {"dv": 0}, {"tq": 0, "tk": 0}, {"b": 0, "tk": 0}],
    ids=str,
)
@pytest.mark.parametrize("causal", [None, "top_left", "bottom_right"])
def test_empty_tensors(dtype, sizes, causal):
    query, key, value = operands(dtype=dtype, **sizes)
    b, heads, tq, _ = query.shape
    rows = fused.explain(OP, *(gf.from_numpy(x) for x in (query, key, value)))
    (numpy,) = [row for row in rows if row.name == "numpy-blocked"]
    assert "empty" in numpy.reasons[0]
    found = run((query, key, value), REFERENCE, causal=causal)
    assert found["out"].shape == (b, heads, tq, value.shape[3])
    assert (found["out"].dtype, found["d_query"].dtype) == (dtype, dtype)
    assert found["lse"].shape == (b, heads, tq)
    if "tk" in sizes:
        assert not found["out"].any() and (found["lse"] == -np.inf).all()
        assert not found["d_query"].any()
    if "d" in sizes:  # every score is 0: the mean over the keys that are seen
        out, lse = closed_form(query, key, value, causal=causal, scale=1.0)
        assert_close(found["out"], out.astype(dtype), name="out")
        assert_close(found["lse"], lse.astype(dtype), name="lse")


def test_a_cache_that_is_longer_than_the_queries():
    """One new query over ten keys: "bottom_right" sees all, "top_left" the first alone."""
    query, key, value = operands(tq=1, tk=10)
    np.testing.assert_array_equal(
        call(query, key, value, causal="bottom_right"), call(query, key, value)
    )
    np.testing.assert_array_equal(
        call(query, key, value, causal="top_left"), call(query, key[:, :, :1], value[:, :, :1])
    )


@pytest.mark.parametrize("window", [(2, 0), (2, -1), (0, 3), (None, 1), (-1, -1)])
@pytest.mark.parametrize("causal", [None, "top_left", "bottom_right"])
def test_windows_by_their_definition(window, causal):
    query, key, value = operands(tq=6, tk=9)
    offset = 0 if causal == "top_left" else 3
    mask = np.zeros((6, 9), bool)
    left, right = (99 if n in (None, -1) else n for n in window)
    for i in range(6):
        for j in range(9):
            p = i + offset
            mask[i, j] = p - left <= j <= p + right and (causal is None or j <= p)
    expected = run((query, key, value, mask))
    actual = run((query, key, value), window=window, causal=causal)
    for name in expected:
        assert_close(actual[name], expected[name], name=name)


# ---- errors -------------------------------------------------------------------------------------


def wrong_shapes():
    q, k, v = operands()
    yield "heads", operands(heads=6, kv_heads=4), ["6 query heads", "4 key heads", "(2, 6, 5, 3)"]
    yield "head_dim", (q, k[..., :2], v), ["head_dim 3", "has 2", "(2, 2, 7, 2)"]
    yield "length", (q, k, v[:, :, :6]), ["key (2, 2, 7, 3)", "value (2, 2, 6, 4)"]
    yield "batch", (q[:1], k, v), ["batch", "query (1, 4, 5, 3)"]
    yield "dimensions", (q[0], k, v), ["(batch, heads, length, head_dim)", "(4, 5, 3)"]
    yield "mask", (q, k, v, np.ones((3, 7), bool)), ["mask (3, 7)", "(2, 4, 5, 7)"]
    yield "bias", (q, k, v, None, np.ones((2, 2, 5, 7))), ["bias (2, 2, 5, 7)", "(2, 4, 5, 7)"]
    yield "mask dims", (q, k, v, np.ones((1, 2, 4, 5, 7), bool)), ["mask (1, 2, 4, 5, 7)"]
    yield "no heads", (q, k[:, :0], v[:, :0]), ["0 key heads"]


@pytest.mark.parametrize("arrays, words", [c[1:] for c in wrong_shapes()], ids=lambda _: "")
def test_shapes_that_do_not_fit_are_shown(arrays, words):
    with pytest.raises(ValueError) as caught:
        call(*arrays)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"mask": np.ones((5, 7), np.int64)}, "mask must be bool, got glassformer.int64"),
        ({"mask": np.ones((5, 7))}, "pass numbers as bias"),
        ({"bias": np.ones((5, 7), np.float32)}, "bias must have the query's dtype"),
        ({"key": np.ones((2, 2, 7, 3), np.float32)}, "one dtype"),
        ({"query": np.ones((2, 4, 5, 3), np.int64)}, "floating point"),
    ],
)
def test_dtypes_that_do_not_fit_are_named(change, words):
    arrays = dict(zip(("query", "key", "value"), operands(), strict=True)) | change
    with pytest.raises(TypeError, match=words):
        attention(**{name: gf.from_numpy(x) for name, x in arrays.items()})


@pytest.mark.parametrize(
    "options, words",
    [
        ({"causal": True}, "'top_left' or 'bottom_right', got True"),
        ({"window": (-2, 0)}, "use None for no limit"),
        ({"dropout_p": 1.5}, "got 1.5"),
        ({"dropout_p": -0.1}, "got -0.1"),
        ({"dropout_p": math.nan}, "got nan"),
        ({"softcap": 0.0}, "got 0.0"),
        ({"softcap": math.inf}, "None for no cap"),
        ({"softcap": math.nan}, "got nan"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        call(*operands(), **options)
