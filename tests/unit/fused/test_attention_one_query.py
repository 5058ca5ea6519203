"""A single query, a step of decoding, has a short way through the kernel: the same results."""

import numpy as np
import pytest

import glassformer as gf
from glassformer.fused.attention import attention

CALLS = {
    "all keys": {},
    "causal": {"causal": "bottom_right"},
    "causal window": {"causal": "bottom_right", "window": (3, 0)},
    "window": {"window": (2, None)},
    "scaled": {"causal": "bottom_right", "scale": 3.0},
}


def operands(groups, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((2, 2 * groups, 7, 5), (2, 2, 9, 5), (2, 2, 9, 4))
    return [gf.tensor(rng.standard_normal(shape), requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("options", CALLS.values(), ids=CALLS)
def test_it_is_the_last_of_several_queries(options, groups):
    found = []
    for one in (True, False):
        query, key, value = operands(groups)
        rows = query[:, :, -1:] if one else query
        out, lse = attention(rows, key, value, return_lse=True, **options)
        out, lse = out[:, :, -1:], lse[:, :, -1:]
        ((out * out).sum() + lse.sum()).backward()
        found.append([x.detach().numpy() for x in (out, lse)])
        found[-1] += [x.grad.numpy() for x in (query, key, value)]
    for mine, expected in zip(*found, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-12, atol=1e-12)


def test_what_lies_outside_the_window_is_not_read():
    query, key, value = operands(1)
    with gf.no_grad():
        expected = attention(query[:, :, :1], key, value, causal="bottom_right", window=(3, 0))
        key[:, :, :5], value[:, :, :5] = float("nan"), float("inf")
        found = attention(query[:, :, :1], key, value, causal="bottom_right", window=(3, 0))
    np.testing.assert_array_equal(found.numpy(), expected.numpy())


@pytest.mark.parametrize("score", [np.inf, -np.inf, np.nan])
def test_scores_that_are_not_finite_are_as_with_several_queries(score):
    query, key, value = (x.detach() for x in operands(1))
    query[...], key[...] = 1.0, 1.0
    key[:, :, :, 0] = score
    one = attention(query[:, :, :1], key, value).numpy()
    np.testing.assert_array_equal(one, attention(query, key, value).numpy()[:, :, :1])
