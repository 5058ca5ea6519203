"""Layers against torch.nn's: values and every gradient in float64, by copied weights."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import glassformer as gf
from glassformer import nn
from glassformer.nn import functional as F
from tests.parity.weights import (
    FLOAT64_TOLERANCE,
    assert_close,
    assert_same_gradients,
    copy_weights,
    decoder_name,
    encoder_name,
    ours,
    randomize_,
    same_name,
)

C, H, B, T, S = 12, 4, 2, 7, 5


def compare(model, torch_model, inputs, rename=same_name, torch_kwargs=None, kwargs=None):
    """Run both on equal inputs, send one random gradient back, and compare all there is."""
    torch_inputs = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    our_inputs = [ours(x, requires_grad=x.is_floating_point()) for x in inputs]
    copy_weights(model, torch_model, rename)
    expected = torch_model(*torch_inputs, **(torch_kwargs or {}))
    expected = expected[0] if isinstance(expected, tuple) else expected
    actual = model(*our_inputs, **(kwargs or {}))
    assert_close(actual, expected, FLOAT64_TOLERANCE, "output")

    gradient = torch.randn(expected.shape, dtype=torch.float64)
    expected.backward(gradient)
    actual.backward(ours(gradient))
    assert_same_gradients(model, torch_model, rename)
    for i, (x, torch_x) in enumerate(zip(our_inputs, torch_inputs, strict=True)):
        if torch_x.requires_grad:
            assert_close(x.grad, torch_x.grad, FLOAT64_TOLERANCE, f"gradient of input {i}")


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


sizes = st.integers(1, 6)
leading = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@given(leading, sizes, sizes, st.booleans())
def test_linear(shape, fan_in, fan_out, bias):
    torch_layer = randomize_(torch.nn.Linear(fan_in, fan_out, bias))
    compare(nn.Linear(fan_in, fan_out, bias), torch_layer, [draw(*shape, fan_in)])


@given(leading, sizes, sizes, st.booleans(), st.data())
def test_embedding_with_repeated_and_padding_indices(shape, rows, dim, padded, data):
    padding_idx = data.draw(st.integers(-rows, rows - 1)) if padded else None
    torch_layer = randomize_(torch.nn.Embedding(rows, dim, padding_idx))
    compare(nn.Embedding(rows, dim, padding_idx), torch_layer, [torch.randint(0, rows, shape)])


norm_shapes = st.tuples(leading, st.lists(sizes, min_size=1, max_size=2).map(tuple))


@given(norm_shapes, st.booleans(), st.booleans())
def test_layer_norm(shapes, affine, bias):
    shape, normalized = shapes
    torch_layer = randomize_(torch.nn.LayerNorm(normalized, 1e-3, affine, bias))
    layer = nn.LayerNorm(normalized, 1e-3, affine, bias)
    compare(layer, torch_layer, [draw(*shape, *normalized)])


@given(norm_shapes, st.booleans(), st.sampled_from([None, 1e-3]))
def test_rms_norm(shapes, affine, eps):
    shape, normalized = shapes
    torch_layer = randomize_(torch.nn.RMSNorm(normalized, eps, affine))
    compare(nn.RMSNorm(normalized, eps, affine), torch_layer, [draw(*shape, *normalized)])


conv_settings = st.tuples(
    st.integers(1, 3),  # kernel size
    st.integers(1, 3),  # stride
    st.integers(0, 2),  # padding
    st.integers(1, 2),  # dilation
    st.sampled_from([1, 2]),  # groups
    st.booleans(),  # bias
)


@given(conv_settings, st.integers(5, 9))
def test_conv1d(settings, length):
    torch_layer = randomize_(torch.nn.Conv1d(4, 6, *settings))
    compare(nn.Conv1d(4, 6, *settings), torch_layer, [draw(2, 4, length)])


@given(conv_settings, st.integers(5, 8), st.integers(5, 8))
def test_conv2d(settings, height, width):
    torch_layer = randomize_(torch.nn.Conv2d(4, 2, *settings))
    compare(nn.Conv2d(4, 2, *settings), torch_layer, [draw(2, 4, height, width)])


def test_conv2d_takes_pairs():
    settings = ((3, 2), (2, 1), (0, 1), (1, 2))
    torch_layer = randomize_(torch.nn.Conv2d(3, 4, *settings))
    compare(nn.Conv2d(3, 4, *settings), torch_layer, [draw(2, 3, 8, 9)])


# ---- attention ----------------------------------------------------------------------------------


def padding(batch, length):
    """True where a key is real; every sequence has one."""
    lengths = torch.randint(1, length + 1, (batch,))
    return torch.arange(length) < lengths[:, None]


def visible(query_length, key_length):
    """A random bool mask, True may be seen, that leaves each query its first key."""
    mask = torch.rand(query_length, key_length) < 0.6
    mask[:, 0] = True
    return mask


@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from([None, "bool", "float"]),
    st.booleans(),
)
def test_multihead_attention_from_one_sequence_to_another(b, t, s, bias, mask_kind, pad):
    torch_layer = randomize_(torch.nn.MultiheadAttention(C, H, bias=bias, batch_first=True))
    torch_kwargs, kwargs = {"need_weights": False}, {}
    if mask_kind == "bool":
        mask = visible(t, s)
        torch_kwargs["attn_mask"], kwargs["attn_mask"] = ~mask, ours(mask)
    elif mask_kind == "float":
        mask = draw(t, s)
        torch_kwargs["attn_mask"], kwargs["attn_mask"] = mask, ours(mask)
    if pad:
        real = torch.ones(b, s, dtype=torch.bool)
        real[:, 1 + s // 2 :] = False
        hidden = torch.zeros(b, s, dtype=torch.float64).masked_fill(~real, -torch.inf)
        # torch wants both masks of one kind
        torch_kwargs["key_padding_mask"] = hidden if mask_kind == "float" else ~real
        kwargs["key_padding_mask"] = ours(real)
    inputs = [draw(b, t, C), draw(b, s, C), draw(b, s, C)]
    layer = nn.MultiheadAttention(C, H, bias=bias)
    compare(layer, torch_layer, inputs, torch_kwargs=torch_kwargs, kwargs=kwargs)


class TorchCrossAttention(torch.nn.MultiheadAttention):
    def forward(self, x, memory, **kwargs):
        return super().forward(x, memory, memory, need_weights=False, **kwargs)


@pytest.mark.parametrize("bias", [False, True])
def test_multihead_attention_to_one_memory(bias):
    torch_layer = randomize_(TorchCrossAttention(C, H, bias=bias, batch_first=True))
    layer = nn.MultiheadAttention(C, H, bias=bias)
    compare(layer, torch_layer, [draw(B, T, C), draw(B, S, C)])


class TorchSelfAttention(torch.nn.MultiheadAttention):
    def forward(self, x, **kwargs):
        return super().forward(x, x, x, need_weights=False, **kwargs)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_multihead_self_attention(causal, bias):
    torch_layer = randomize_(TorchSelfAttention(C, H, bias=bias, batch_first=True))
    real = padding(B, T)
    torch_kwargs = {"key_padding_mask": ~real}
    if causal:
        torch_kwargs["attn_mask"] = ~torch.ones(T, T, dtype=torch.bool).tril()
    layer = nn.MultiheadAttention(C, H, bias=bias, causal=causal)
    kwargs = {"key_padding_mask": ours(real)}
    compare(layer, torch_layer, [draw(B, T, C)], torch_kwargs=torch_kwargs, kwargs=kwargs)


def test_one_sequence_passed_three_times_is_self_attention():
    layer = nn.MultiheadAttention(C, H)
    x = gf.randn(B, T, C)
    np.testing.assert_array_equal(layer(x, x, x).detach().numpy(), layer(x).detach().numpy())


@pytest.mark.parametrize("shared", [1, 2, 4])
def test_grouped_query_attention_is_attention_with_repeated_heads(shared):
    """Ainslie et al. 2023: each key-value head serves H / Hkv query heads, neighbours together."""
    repeats, dim = H // shared, C // H
    layer = nn.MultiheadAttention(C, H, num_key_value_heads=shared).to("float64")
    assert layer.in_proj_weight.shape == ((H + 2 * shared) * dim, C)
    torch_layer = TorchSelfAttention(C, H, batch_first=True).double()
    weights = ours(torch.randn(layer.in_proj_weight.shape, dtype=torch.float64))
    layer.in_proj_weight.detach().copy_(weights)
    rows = torch.from_numpy(weights.numpy()).split([C, shared * dim, shared * dim])
    spread = [
        x.unflatten(0, (shared, dim)).repeat_interleave(repeats, 0).flatten(0, 1) for x in rows[1:]
    ]
    with torch.no_grad():
        torch_layer.in_proj_weight.copy_(torch.cat([rows[0], *spread]))
        torch_layer.out_proj.weight.copy_(torch.from_numpy(layer.out_proj.weight.detach().numpy()))
    x = draw(B, T, C)
    torch_x = x.clone().requires_grad_()
    our_x = ours(x, requires_grad=True)
    actual, expected = layer(our_x), torch_layer(torch_x)[0]
    assert_close(actual, expected, FLOAT64_TOLERANCE, "output")
    (actual**2).sum().backward()
    (expected**2).sum().backward()
    assert_close(our_x.grad, torch_x.grad, FLOAT64_TOLERANCE, "gradient of x")
    query, key, value = torch_layer.in_proj_weight.grad.split(C)
    summed = [g.unflatten(0, (shared, repeats, dim)).sum(1).flatten(0, 1) for g in (key, value)]
    expected_grad = torch.cat([query, *summed])
    assert_close(layer.in_proj_weight.grad, expected_grad, FLOAT64_TOLERANCE, "gradient of weight")


@given(
    st.sampled_from([2, 3, 4]),
    st.integers(0, 2),
    st.integers(1, 8),
    st.integers(1, 8),
    st.sampled_from([None, "bool", "float", "per head"]),
    st.booleans(),
    st.sampled_from([None, 0.3]),
)
def test_scaled_dot_product_attention(ndim, batch, t, s, mask_kind, causal, scale):
    lead = {2: (), 3: (H,), 4: (batch, H)}[ndim]
    query, key, value = draw(*lead, t, 3), draw(*lead, s, 3), draw(*lead, s, 5)
    mask = {
        None: None,
        "bool": visible(t, s),
        "float": draw(t, s),
        "per head": draw(*(lead and (H,)), t, s),
    }[mask_kind]
    both = mask
    if causal and mask is not None:  # torch refuses the two together; here both hold
        order = torch.ones(t, s, dtype=torch.bool).tril()
        both = mask & order if mask_kind == "bool" else mask.masked_fill(~order, -torch.inf)
    torch_inputs = [x.clone().requires_grad_() for x in (query, key, value)]
    our_inputs = [ours(x, requires_grad=True) for x in (query, key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *torch_inputs, both, is_causal=causal and mask is None, scale=scale
    )
    our_mask = None if mask is None else ours(mask)
    actual = F.scaled_dot_product_attention(*our_inputs, our_mask, is_causal=causal, scale=scale)
    assert_close(actual, expected, FLOAT64_TOLERANCE, "output")
    gradient = draw(*expected.shape)
    expected.backward(gradient)
    actual.backward(ours(gradient))
    for x, torch_x in zip(our_inputs, torch_inputs, strict=True):
        assert_close(x.grad, torch_x.grad, FLOAT64_TOLERANCE, "gradient")


def test_scaled_dot_product_attention_shares_heads_only_when_asked():
    query, key = draw(1, 6, 3, 4), draw(1, 2, 3, 4)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, key, enable_gqa=True)
    q, k = ours(query), ours(key)
    actual = F.scaled_dot_product_attention(q, k, k, enable_gqa=True)
    assert_close(actual, expected, FLOAT64_TOLERANCE, "output")
    with pytest.raises(ValueError, match="query has 6 heads but key has 2; pass enable_gqa=True"):
        F.scaled_dot_product_attention(q, k, k)


# ---- blocks -------------------------------------------------------------------------------------


def block(activation, norm_first, cross=False, causal=False):
    return nn.TransformerBlock(
        nn.MultiheadAttention(C, H, causal=causal),
        nn.FeedForward(C, 20, activation),
        nn.MultiheadAttention(C, H) if cross else None,
        norm_first=norm_first,
    )


def torch_layer(kind, activation, norm_first):
    return kind(C, H, 20, 0.0, activation, batch_first=True, norm_first=norm_first)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("masked", [False, True])
def test_encoder_layer(activation, norm_first, masked):
    reference = randomize_(torch_layer(torch.nn.TransformerEncoderLayer, activation, norm_first))
    torch_kwargs, kwargs = {}, {}
    if masked:
        real, mask = padding(B, T), visible(T, T)
        torch_kwargs = {"src_key_padding_mask": ~real, "src_mask": ~mask}
        kwargs = {"padding_mask": ours(real), "attn_mask": ours(mask)}
    compare(
        block(activation, norm_first),
        reference,
        [draw(B, T, C)],
        encoder_name,
        torch_kwargs,
        kwargs,
    )


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("masked", [False, True])
def test_decoder_layer(activation, norm_first, masked):
    reference = randomize_(torch_layer(torch.nn.TransformerDecoderLayer, activation, norm_first))
    torch_kwargs, kwargs = {}, {}
    if masked:
        real, memory_real, mask, memory_mask = (
            padding(B, T),
            padding(B, S),
            torch.ones(T, T, dtype=torch.bool).tril(),
            visible(T, S),
        )
        torch_kwargs = {
            "tgt_mask": ~mask,
            "tgt_key_padding_mask": ~real,
            "memory_mask": ~memory_mask,
            "memory_key_padding_mask": ~memory_real,
        }
        kwargs = {
            "padding_mask": ours(real),
            "memory_mask": ours(memory_mask),
            "memory_padding_mask": ours(memory_real),
        }
    compare(
        block(activation, norm_first, cross=True, causal=masked),
        reference,
        [draw(B, T, C), draw(B, S, C)],
        decoder_name,
        torch_kwargs,
        kwargs,
    )


@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_and_decoder_together(norm_first):
    """Post-norm stacks end without another norm, as in the paper; torch.nn.Transformer adds one."""
    layer = torch_layer(torch.nn.TransformerEncoderLayer, "relu", norm_first)
    decoder_layer = torch_layer(torch.nn.TransformerDecoderLayer, "relu", norm_first)

    def last_norm():
        return torch.nn.LayerNorm(C) if norm_first else None

    reference = torch.nn.Transformer(
        C,
        H,
        custom_encoder=torch.nn.TransformerEncoder(
            layer, 2, last_norm(), enable_nested_tensor=False
        ),
        custom_decoder=torch.nn.TransformerDecoder(decoder_layer, 3, last_norm()),
        batch_first=True,
    )
    randomize_(reference)
    model = nn.Transformer(C, H, 2, 3, 20, dropout=0.0, norm_first=norm_first)
    real, memory_real = padding(B, T), padding(B, S)
    compare(
        model,
        reference,
        [draw(B, S, C), draw(B, T, C)],
        lambda name: (encoder_name if name.startswith("encoder") else decoder_name)(name),
        {
            "tgt_mask": ~torch.ones(T, T, dtype=torch.bool).tril(),
            "src_key_padding_mask": ~memory_real,
            "tgt_key_padding_mask": ~real,
            "memory_key_padding_mask": ~memory_real,
        },
        {"source_padding_mask": ours(memory_real), "target_padding_mask": ours(real)},
    )


@pytest.mark.parametrize("activation", ["gelu_new", "silu", "swiglu"])
def test_feed_forward_activations(activation):
    class Reference(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear1 = torch.nn.Linear(C, 16 if activation == "swiglu" else 8)
            self.linear2 = torch.nn.Linear(8, C)

        def forward(self, x):
            hidden = self.linear1(x)
            if activation == "swiglu":
                gate, up = hidden.chunk(2, -1)
                hidden = torch.nn.functional.silu(gate) * up
            elif activation == "silu":
                hidden = torch.nn.functional.silu(hidden)
            else:
                hidden = torch.nn.functional.gelu(hidden, approximate="tanh")
            return self.linear2(hidden)

    compare(nn.FeedForward(C, 8, activation), randomize_(Reference()), [draw(B, T, C)])
