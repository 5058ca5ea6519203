"""Layers by themselves: how they start, what they refuse, and dropout."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import glassformer as gf
from glassformer import nn
from glassformer.nn import functional as F


def test_linear_starts_within_its_bound_and_follows_the_seed():
    gf.manual_seed(5)
    first = nn.Linear(64, 100)
    gf.manual_seed(5)
    second = nn.Linear(64, 100)
    for name, value in first.state_dict().items():
        assert np.abs(value.numpy()).max() <= 1 / 8
        assert np.abs(value.numpy()).max() > 0.9 / 8
        np.testing.assert_array_equal(value.numpy(), second.state_dict()[name].numpy())


def test_embedding_padding_row_is_zero_and_stays():
    layer = nn.Embedding(4, 3, padding_idx=-1)
    assert layer.padding_idx == 3 and layer.weight[3].tolist() == [0, 0, 0]
    layer(gf.tensor([3, 1, 3])).sum().backward()
    assert layer.weight.grad.tolist() == [[0] * 3, [1] * 3, [0] * 3, [0] * 3]
    with pytest.raises(ValueError, match="padding_idx is 4, the table has 4 rows"):
        nn.Embedding(4, 3, padding_idx=4)


@pytest.mark.parametrize("wrong", [-1, 4])
def test_embedding_index_out_of_range(wrong):
    with pytest.raises(IndexError, match=f"{wrong} .*4"):
        nn.Embedding(4, 3)(gf.tensor([0, wrong]))


def test_layer_norm_of_a_constant_row_is_the_bias():
    layer = nn.LayerNorm(5)
    layer.bias.detach().copy_(gf.arange(5))
    x = gf.full((2, 5), 3.0, requires_grad=True)
    assert layer(x).tolist() == [[0, 1, 2, 3, 4]] * 2


def test_norms_check_the_shape_of_their_input():
    with pytest.raises(ValueError, match=r"input \(2, 4\) doesn't end in normalized_shape \(5,\)"):
        nn.LayerNorm(5)(gf.ones(2, 4))
    with pytest.raises(ValueError, match=r"doesn't end in normalized_shape \(3, 4\)"):
        nn.RMSNorm((3, 4))(gf.ones(4, 3))


def test_conv_groups_must_divide_channels():
    with pytest.raises(ValueError, match="groups=2 must divide in_channels=3 and out_channels=4"):
        nn.Conv1d(3, 4, 1, groups=2)


def test_feed_forward_lists_its_activations():
    with pytest.raises(ValueError, match="'mish' is none of relu, gelu, gelu_new, "):
        nn.FeedForward(4, 8, "mish")


# ---- dropout ------------------------------------------------------------------------------------


def test_dropout_of_zero_and_in_evaluation_is_the_identity():
    x = gf.tensor([1.0, math.inf, math.nan, -0.0])
    assert F.dropout(x, 0.0) is x
    assert F.dropout(x, 0.9, training=False) is x
    assert nn.Dropout(0.9).eval()(x) is x


def test_dropout_of_one_gives_zeros_even_on_infinity():
    x = gf.tensor([1.0, math.inf, math.nan, -math.inf], requires_grad=True)
    out = F.dropout(x, 1.0)
    assert out.tolist() == [0, 0, 0, 0]
    out.backward(gf.tensor([1.0, math.inf, math.nan, 2.0]))
    assert x.grad.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_dropout_outside_zero_to_one_is_an_error(p):
    for call in (lambda: F.dropout(gf.ones(2), p), lambda: nn.Dropout(p)):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\], got"):
            call()
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], got"):
        nn.MultiheadAttention(4, 2, dropout=p)


@given(st.floats(0.05, 0.95), st.sampled_from(["float16", "float32", "float64"]), st.integers(0, 9))
def test_backward_uses_the_mask_of_forward(p, dtype, seed):
    x = gf.ones(4, 25, dtype=dtype, requires_grad=True)
    out = F.dropout(x, p, generator=gf.Generator(seed))
    again = F.dropout(x, p, generator=gf.Generator(seed))
    np.testing.assert_array_equal(out.detach().numpy(), again.detach().numpy())
    assert out.dtype == x.dtype
    scale = np.ones((), out.dtype.numpy) * (1 / (1 - p))
    assert set(np.unique(out.detach().numpy())) <= {0, scale.astype(out.dtype.numpy)}
    out.backward(gf.full((4, 25), 2.0, dtype=dtype))
    np.testing.assert_array_equal(x.grad.numpy(), 2 * out.detach().numpy())


def test_dropout_keeps_the_mean_and_drops_the_stated_share():
    out = F.dropout(gf.ones(400, 500), 0.3, generator=gf.Generator(1)).numpy()
    assert (out == 0).mean() == pytest.approx(0.3, abs=0.005)  # 200,000 draws: 5 deviations
    assert out.mean() == pytest.approx(1.0, abs=0.01)


def test_dropout_is_one_node_and_differentiates_twice():
    x = gf.randn(3, 4, dtype="float64", requires_grad=True)
    assert F.dropout(x, 0.5).grad_fn.name == "dropout"

    def f(x):
        return F.dropout(x * x, 0.4, generator=gf.Generator(2))

    assert gf.gradcheck(f, (x,)) and gf.gradgradcheck(f, (x,))
