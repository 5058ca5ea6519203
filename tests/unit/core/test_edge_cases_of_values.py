"""Edge cases 27 to 30: shapes, duplicates, ties and infinities. (31 is in parity/.)"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes

import glassformer as gf
from tests.tolerances import assert_close

BROADCASTING = {
    "x·y + z": lambda fw, x, y, z: x * y + z,
    "where": lambda fw, x, y, z: fw.where(x > 0, y, z) * x,
    "maximum": lambda fw, x, y, z: fw.maximum(x, y) - z / (x * x + 1),
    "power": lambda fw, x, y, z: (x.exp() + y.exp()) ** z,
}


def in_both(values):
    """The same leaf, ours and PyTorch's, in float64."""
    array = np.asarray(values, dtype=np.float64)
    return gf.tensor(array, requires_grad=True), torch.tensor(array, requires_grad=True)


def assert_same_gradient(function, values):
    """Compare value and gradient of `function(framework, x)`."""
    mine, theirs = in_both(values)
    out, expected = function(gf, mine), function(torch, theirs)
    assert_close(out.detach().numpy(), expected.detach().numpy())
    out.sum().backward()
    expected.sum().backward()
    assert_close(mine.grad.numpy(), theirs.grad.numpy())
    return mine.grad


# 27: broadcasting


@given(
    mutually_broadcastable_shapes(num_shapes=3, min_side=0, max_side=3, max_dims=4),
    st.sampled_from(list(BROADCASTING)),
)
def test_edge_27_gradients_have_the_shape_of_their_tensor(broadcast, name):
    random = np.random.default_rng(0)
    mine, theirs = zip(
        *(in_both(random.normal(size=s)) for s in broadcast.input_shapes), strict=True
    )
    out, expected = (BROADCASTING[name](fw, *xs) for fw, xs in ((gf, mine), (torch, theirs)))
    assert out.shape == broadcast.result_shape
    out.sum().backward()
    expected.sum().backward()
    for x, y in zip(mine, theirs, strict=True):
        assert x.grad.shape == x.shape
        assert_close(x.grad.numpy(), y.grad.numpy(), name)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_edge_27_empty_gradients_accumulate(shape):
    x = gf.zeros(shape, requires_grad=True)
    for _ in range(2):
        x.sum(0).exp().sum().backward()
    assert x.grad.shape == shape
    x.grad.add_(1)


# 28: duplicates


@pytest.mark.parametrize(
    "take",
    [
        lambda x, i: x[i],
        lambda x, i: x[i.tolist()],
        lambda x, i: x.gather(0, i),
        lambda x, i: x.index_select(0, i),
        lambda x, i: x.take_along_dim(i, 0),
        lambda x, i: gf.embedding(i, x.unsqueeze(-1)),
    ],
)
def test_edge_28_duplicate_indices_accumulate(take):
    index = np.array([4, 0, 4, 4, 2, 0])
    x = gf.zeros(5, dtype="float64", requires_grad=True)
    out = take(x, gf.tensor(index))
    weights = np.arange(1.0, 7.0)
    out.backward(gf.tensor(weights.reshape(out.shape)))
    np.testing.assert_array_equal(x.grad.numpy(), np.bincount(index, weights, minlength=5))


def test_edge_28_scatter_add_of_duplicates():
    x, source = gf.zeros(3, requires_grad=True), gf.ones(5, requires_grad=True)
    out = x.scatter_add(0, gf.tensor([1, 1, 1, 0, 1]), source)
    assert out.tolist() == [1, 4, 0]
    (out * gf.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert source.grad.tolist() == [10, 10, 10, 1, 10]


# 29: ties


@pytest.mark.parametrize("name", ["amax", "amin"])
def test_edge_29_ties_share_the_gradient(name):
    values = [[1.0, 1.0, 0.0], [2.0, 2.0, 2.0], [0.0, -1.0, 0.0]]
    assert_same_gradient(lambda _, x: getattr(x, name)(1), values)
    assert_same_gradient(lambda _, x: getattr(x, name)((0, 1)), values)
    assert_same_gradient(lambda _, x: getattr(x, name[1:])(), values)


@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_edge_29_equal_arguments_share_the_gradient(name):
    grad = assert_same_gradient(lambda fw, x: getattr(fw, name)(x[0], x[1]), [[1.0, 2], [1, 3]])
    assert grad[:, 0].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("name", ["max", "min"])
def test_edge_29_over_a_dimension_the_returned_index_takes_the_gradient(name):
    def function(_, x):
        values, indices = getattr(x, name)(-1)
        assert indices.tolist() == [0, 1]
        return values

    low = -1.0 if name == "min" else 9.0
    assert_same_gradient(function, [[low, low, 2.0], [3.0, low, low]])


@pytest.mark.parametrize(
    "name", ["amax", "amin", "max", "min", "maximum", "minimum", "relu", "abs", "clamp"]
)
def test_edge_29_nan_wins(name):
    def function(fw, x):
        if name in ("maximum", "minimum"):
            return getattr(fw, name)(x[:2], x[1:])
        return x.clamp(-1, 1) if name == "clamp" else getattr(x, name)()

    mine, theirs = in_both([1.0, np.nan, 2.0])
    out = function(gf, mine)
    assert_close(out.detach().numpy(), function(torch, theirs).detach().numpy())
    assert np.isnan(out.detach().numpy()).any()


# 30: infinities


def test_edge_30_gradient_of_the_root_of_zero_is_infinite():
    grad = assert_same_gradient(lambda fw, x: fw.sqrt(x), [0.0, 4.0])
    assert grad.tolist() == [float("inf"), 0.25]


def test_edge_30_where_keeps_the_other_sides_value_out_but_not_its_infinite_slope():
    logs = assert_same_gradient(lambda fw, x: fw.where(x > 0, fw.log(x), x), [0.0, 1.0])
    assert np.isnan(logs.numpy()).tolist() == [True, False]  # 0 · ∞, as in PyTorch
    safe = assert_same_gradient(
        lambda fw, x: fw.where(x > 0, fw.log(fw.where(x > 0, x, 1.0)), x), [0.0, 1.0]
    )
    assert safe.tolist() == [1, 1]


@pytest.mark.parametrize(
    "name", ["exp", "log", "sqrt", "rsqrt", "sin", "tanh", "sigmoid", "erf", "abs", "relu", "neg"]
)
def test_edge_30_special_values_as_in_pytorch(name):
    values = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, 800.0, -800.0]
    if name != "abs":  # its slope at NaN: NaN here, 0 in PyTorch
        values.append(np.nan)
    assert_same_gradient(lambda _, x: getattr(x, name)(), values)


def test_edge_30_division_and_remainder_of_special_values_as_in_pytorch():
    values = np.array([0.0, 1.0, -1.0, 7.5, np.inf, -np.inf, np.nan])
    pairs = np.stack([a.ravel() for a in np.meshgrid(values, values)])
    for function in (
        lambda fw, x: x[0] / x[1],
        lambda fw, x: x[0] % x[1],
        lambda fw, x: x[0] // x[1],
        lambda fw, x: fw.maximum(x[0], x[1]),
    ):
        mine, theirs = in_both(pairs)
        assert_close(function(gf, mine).detach().numpy(), function(torch, theirs).detach().numpy())


@pytest.mark.parametrize("base", [0.0, -2.0, 2.0])
def test_edge_30_gradients_of_powers_at_the_border_as_in_pytorch(base):
    exponents = [0.0, 1.0, 2.0, -1.0, 0.5]
    assert_same_gradient(lambda fw, x: fw.tensor([base] * 5, dtype=x.dtype) ** x, exponents)
    assert_same_gradient(lambda fw, x: base**x, exponents)
    for exponent in exponents:
        assert_same_gradient(lambda fw, x, e=exponent: x**e, [base])


def test_edge_30_statistics_of_a_constant_as_in_pytorch():
    grad = assert_same_gradient(lambda _, x: x.std(1), [[3.0, 3.0, 3.0], [1.0, 2.0, 4.0]])
    assert grad[0].tolist() == [0, 0, 0]
    assert gf.full((49,), 1.0).mean().item() == 1


def test_edge_30_log_sum_exp_of_infinities():
    rows = [[-np.inf, 1.0], [np.inf, 1.0], [np.nan, 1.0], [1e4, 1e4]]
    assert_same_gradient(lambda _, x: x.logsumexp(1), rows)
    mine, _ = in_both([[-np.inf, -np.inf]])
    out = mine.logsumexp(1)
    out.backward()
    assert out.item() == -np.inf
    assert mine.grad.tolist() == [[0, 0]]  # PyTorch gives NaN; a row that sees nothing has none


def test_edge_30_half_precision_statistics_do_not_overflow():
    x = gf.full((300, 300), 3.0, dtype="float16")
    assert (x.mean().item(), x.var().item(), x.std().item()) == (3, 0, 0)
    assert x.mean().dtype == gf.float16
