"""MultiheadAttention: caches, masks, positions, and what it refuses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import glassformer as gf
from glassformer import nn
from glassformer.nn import functional as F

C, H, B = 16, 4, 2
CACHED = {"float64": 1e-10, "float32": 1e-5}  # cached against full, as the project promises


class ListCache:
    """The simplest cache that keeps the protocol."""

    def __init__(self):
        self.key = self.value = None

    @property
    def length(self):
        return 0 if self.key is None else self.key.shape[2]

    def update(self, key, value):
        if self.key is not None:
            key, value = gf.cat([self.key, key], 2), gf.cat([self.value, value], 2)
        self.key, self.value = key, value
        return key, value


def positions(kind):
    return {
        "none": lambda: None,
        "rotary": lambda: nn.RotaryPositions(C // H),
        "alibi": lambda: nn.ALiBiPositions(H),
        "t5": lambda: nn.T5Positions(H, bidirectional=False, num_buckets=8, max_distance=6),
    }[kind]()


KINDS = ["none", "rotary", "alibi", "t5"]


@given(
    st.sampled_from(KINDS),
    st.sampled_from([1, 2, 4]),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.sampled_from([None, (2, 0), (3, None)]),
    st.sampled_from(["float64", "float32"]),
)
def test_token_by_token_with_a_cache_is_the_whole_at_once(kind, shared, lengths, window, dtype):
    layer = nn.MultiheadAttention(
        C, H, num_key_value_heads=shared, causal=True, window=window, positions=positions(kind)
    ).to(dtype)
    if kind == "t5":
        layer.positions.weight.detach().copy_(gf.randn(8, H))
    x = gf.randn(B, sum(lengths), C, dtype=dtype)
    whole = layer(x).detach().numpy()
    cache = ListCache()
    parts = [layer(part, cache=cache) for part in x.split(lengths, dim=1)]
    assert cache.length == sum(lengths)
    np.testing.assert_allclose(
        gf.cat(parts, 1).detach().numpy(), whole, rtol=CACHED[dtype], atol=CACHED[dtype]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind):
    layer = nn.MultiheadAttention(C, H, causal=True, positions=positions(kind)).to("float64")
    layer(gf.randn(B, 5, C, dtype="float64")).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_a_causal_layer_does_not_look_ahead():
    layer = nn.MultiheadAttention(C, H, causal=True)
    x = gf.randn(B, 6, C)
    changed = x.clone()
    changed[:, 4:] = 100.0
    before, after = layer(x).detach().numpy(), layer(changed).detach().numpy()
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] != after[:, 4:]).any()


def test_padding_never_reaches_real_tokens_nor_their_gradients():
    """NaN in padded positions: the mask selects, it does not multiply."""
    layer = nn.MultiheadAttention(C, H).to("float64")
    clean = gf.randn(B, 6, C, dtype="float64", requires_grad=True)
    real = gf.tensor([[True] * 6, [True] * 2 + [False] * 4])
    keep = real.unsqueeze(-1)
    poisoned = gf.where(keep, clean, float("nan"))
    out = gf.where(keep, layer(poisoned, poisoned.clone(), key_padding_mask=real), 0.0)
    assert np.isfinite(out.detach().numpy()).all()
    alone = layer(clean[1:, :2])
    np.testing.assert_allclose(out[1:, :2].detach().numpy(), alone.detach().numpy(), atol=1e-12)


def test_a_sequence_of_padding_alone_gives_the_output_bias():
    layer = nn.MultiheadAttention(C, H)
    x = gf.randn(B, 3, C, requires_grad=True)
    real = gf.tensor([[True] * 3, [False] * 3])
    out = layer(x, key_padding_mask=real)
    np.testing.assert_array_equal(out[1].detach().numpy(), np.zeros((3, C)))
    out.sum().backward()
    assert np.isfinite(x.grad.numpy()).all() and (x.grad[1].numpy() == 0).all()


def test_both_kinds_of_mask_and_causal_order_hold_together():
    layer = nn.MultiheadAttention(C, H, causal=True).to("float64")
    x = gf.randn(B, 5, C, dtype="float64")
    allowed = gf.tensor(np.random.default_rng(0).random((5, 5)) < 0.5)
    real = gf.tensor([[True] * 5, [True] * 3 + [False] * 2])
    order = gf.ones(5, 5).tril() != 0
    together = (allowed & order).unsqueeze(0).unsqueeze(0) & real[:, None, None, :]
    layer_without = nn.MultiheadAttention(C, H).to("float64")
    layer_without.load_state_dict(layer.state_dict())
    np.testing.assert_allclose(
        layer(x, attn_mask=allowed, key_padding_mask=real).detach().numpy(),
        layer_without(x, attn_mask=together).detach().numpy(),
        atol=1e-12,
    )


def test_a_float_mask_adds_to_alibi():
    layer = nn.MultiheadAttention(C, H, positions=nn.ALiBiPositions(H))
    plain = nn.MultiheadAttention(C, H)
    plain.load_state_dict(layer.state_dict())
    x, mask = gf.randn(B, 4, C), gf.randn(4, 4)
    bias = layer.positions.bias(4, 4, gf.float32) + mask
    np.testing.assert_allclose(
        layer(x, attn_mask=mask).detach().numpy(),
        plain(x, attn_mask=bias).detach().numpy(),
        atol=1e-6,
    )


def test_softcap_limits_the_scores():
    layer = nn.MultiheadAttention(C, H, softcap=1e-6)  # all scores nearly 0: a plain mean
    x = gf.randn(1, 5, C)
    out = layer(x).detach().numpy()
    np.testing.assert_allclose(out, np.broadcast_to(out[:, :1], out.shape), atol=1e-5)


def test_dropout_acts_in_training_alone_and_follows_the_seed():
    layer = nn.MultiheadAttention(C, H, dropout=0.5)
    x = gf.randn(1, 8, C)
    outputs = []
    for seed in (1, 1, 2):
        gf.manual_seed(seed)
        outputs.append(layer(x).detach().numpy())
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert (outputs[0] != outputs[2]).any()
    layer.eval()
    np.testing.assert_array_equal(layer(x).detach().numpy(), layer(x).detach().numpy())


def test_heads_are_merged_without_a_copy():
    """The kernel lays its output out as (B, T, H, D), so that joining the heads moves nothing."""
    query = gf.randn(B, H, 7, 3)
    merged = F.attention(query, query, query).transpose(1, 2)
    assert merged.is_contiguous()


def test_empty_batch_and_empty_sequence():
    layer = nn.MultiheadAttention(C, H)
    assert layer(gf.zeros(0, 3, C)).shape == (0, 3, C)
    assert layer(gf.zeros(2, 0, C)).shape == (2, 0, C)


def test_a_mask_that_does_not_fit_is_called_by_its_name_in_the_signature():
    x = gf.randn(2, 3, 4, 8)
    attend = F.scaled_dot_product_attention
    shapes = r"attn_mask \(5, 4\) can't be broadcast to .* = \(2, 3, 4, 4\)"
    for mask in (gf.ones(5, 4), gf.ones(5, 4) > 0):
        with pytest.raises(ValueError, match=shapes):
            attend(x, x, x, attn_mask=mask)
    with pytest.raises(TypeError, match="attn_mask must be bool, or of the query's dtype .*64"):
        attend(x, x, x, attn_mask=gf.ones(4, 4, dtype="float64"))
    ways = "one of 1 and 0 with attn_mask != 0, one of 0 and -inf with attn_mask == 0"
    with pytest.raises(TypeError, match=ways):
        attend(x, x, x, attn_mask=gf.ones(4, 4, dtype="int64"))


def test_wrong_settings():
    with pytest.raises(ValueError, match="num_heads=5 must divide embed_dim=16"):
        nn.MultiheadAttention(16, 5)
    with pytest.raises(ValueError, match="num_key_value_heads=4 must divide num_heads=6"):
        nn.MultiheadAttention(24, 6, num_key_value_heads=4)


def test_wrong_arguments():
    layer, causal = nn.MultiheadAttention(C, H), nn.MultiheadAttention(C, H, causal=True)
    x, other = gf.randn(B, 3, C), gf.randn(B, 4, C)
    ones = gf.ones(3, 3, dtype="int64")
    with pytest.raises(TypeError, match=r"attn_mask must be bool .*int64"):
        layer(x, attn_mask=ones)
    with pytest.raises(TypeError, match=r"key_padding_mask must be bool .*int64"):
        layer(x, key_padding_mask=gf.ones(B, 3, dtype="int64"))
    with pytest.raises(ValueError, match=r"key_padding_mask is \(2, 4\), but .* \(2, 3\)"):
        layer(x, key_padding_mask=gf.ones(B, 4) > 0)
    with pytest.raises(ValueError, match=r"query must be \(batch, length, 16\), got \(2, 3, 5\)"):
        layer(gf.randn(B, 3, 5))
    with pytest.raises(ValueError, match="belong to self-attention alone"):
        causal(x, other)
    with pytest.raises(ValueError, match="belong to self-attention alone"):
        layer(x, other, cache=ListCache())
    with pytest.raises(ValueError, match="value is given but key is not"):
        layer(x, None, other)


def test_scaled_dot_product_attention_refuses_other_dimensions():
    x = gf.randn(2, 2, 2, 2, 2)
    with pytest.raises(ValueError, match="2, 3 or 4 dimensions"):
        F.scaled_dot_product_attention(x, x, x)


def test_six_query_heads_over_four_key_heads():
    query, key = gf.randn(1, 6, 3, 4), gf.randn(1, 4, 3, 4)
    with pytest.raises(ValueError, match="6"):
        F.scaled_dot_product_attention(query, key, key, enable_gqa=True)
