"""The weights of attention, seen while layers compute."""

import threading

import numpy as np
import pytest
import torch

import glassformer as gf
from glassformer import nn
from glassformer.nn import functional as F

B, T, S, C, H = 2, 5, 7, 12, 3


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_weights_are_pytorch_s(cross, masked):
    """torch.nn.MultiheadAttention returns them if need_weights, one for each head."""
    gf.manual_seed(0)
    layer = nn.MultiheadAttention(C, H).eval()
    twin = torch.nn.MultiheadAttention(C, H, batch_first=True).eval()
    twin.load_state_dict({k: torch.tensor(v.numpy()) for k, v in layer.state_dict().items()})
    rng = np.random.default_rng(0)
    x = rng.standard_normal((B, T, C), dtype=np.float32)
    y = rng.standard_normal((B, S, C), dtype=np.float32) if cross else x
    real = np.ones((B, y.shape[1]), bool)
    if masked:
        real[0, -2:] = False
    with gf.nn.watch_attention() as seen, gf.no_grad():
        out = layer(gf.tensor(x), gf.tensor(y) if cross else None, key_padding_mask=gf.tensor(real))
    tx, ty = torch.tensor(x), torch.tensor(y)
    expected_out, expected = twin(
        tx, ty, ty, key_padding_mask=~torch.tensor(real), average_attn_weights=False
    )
    ((found_layer, weights),) = seen
    assert found_layer is layer
    np.testing.assert_allclose(weights.numpy(), expected.detach(), atol=1e-6)
    np.testing.assert_allclose(out.numpy(), expected_out.detach(), atol=1e-5)


def test_weights_are_what_the_values_are_summed_with():
    """Whatever hides keys, for grouped heads, softcap and bias: weights times values = output."""
    q, k, v = gf.randn(B, 4, T, 8), gf.randn(B, 2, S, 8), gf.randn(B, 2, S, 8)
    bias, mask = gf.randn(4, T, S), gf.rand(B, 1, T, S) > 0.3
    scoring = {"causal": "bottom_right", "window": (3, 0), "softcap": 2.0, "scale": 0.5}
    weights = F.attention_weights(q, k, mask, bias, **scoring)
    assert weights.shape == (B, 4, T, S)
    values = v.unsqueeze(2).expand(B, 2, 2, S, 8).reshape(B, 4, S, 8)
    expected = F.attention(q, k, v, mask, bias, **scoring)
    np.testing.assert_allclose((weights @ values).numpy(), expected.numpy(), atol=1e-5)
    sums = weights.sum(-1).numpy()
    assert ((np.abs(sums - 1) < 1e-5) | (sums == 0)).all()


def test_arguments_are_checked():
    q = gf.randn(1, 4, 3, 8)
    with pytest.raises(ValueError, match=r"head_dim 8 but key has 6"):
        F.attention_weights(q, gf.randn(1, 4, 3, 6))
    with pytest.raises(ValueError, match=r"mask \(1, 1, 9, 3\) can't be broadcast"):
        F.attention_weights(q, q, gf.ones(1, 1, 9, 3, dtype=gf.bool))


def test_every_layer_in_order_and_nobody_else():
    """Layers outside the block, and in other threads, are not watched; two may watch at once."""
    blocks = [nn.TransformerBlock(nn.MultiheadAttention(C, H), nn.FeedForward(C, C)) for _ in "ab"]
    x = gf.randn(B, T, C)
    with gf.nn.watch_attention() as outer:
        blocks[0](x)
        other = threading.Thread(target=blocks[0], args=(x,))
        other.start()
        other.join()
        with gf.nn.watch_attention() as inner:
            blocks[1](x)
        blocks[1](x)
    blocks[0](x)
    first, second = (block.self_attn for block in blocks)
    assert [layer for layer, _ in outer] == [first, second, second]
    assert [layer for layer, _ in inner] == [blocks[1].self_attn]


@pytest.mark.parametrize("inside", [False, True])
def test_a_checkpoint_keeps_them_and_their_gradients(inside):
    """Backward runs the layer again, where nobody watches any more, or must not see it twice."""
    layer, x = nn.MultiheadAttention(C, H), gf.randn(B, T, C, requires_grad=True)

    def gradients(call):
        layer.in_proj_weight.grad = x.grad = None
        with gf.nn.watch_attention() as seen:
            loss = (call(x) ** 2).sum() + (seen[0][1] ** 3).sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        assert len(seen) == 1
        return layer.in_proj_weight.grad.numpy(), x.grad.numpy()

    plain, again = gradients(layer), gradients(lambda x: gf.checkpoint(layer, x))
    for one, other in zip(plain, again, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-6)


def test_they_have_gradients():
    layer = nn.MultiheadAttention(C, H)
    with gf.nn.watch_attention() as seen:
        layer(gf.randn(1, T, C))
    (-(seen[0][1] * seen[0][1].log()).sum()).backward()  # an entropy to train on
    assert layer.in_proj_weight.grad.abs().sum().item() > 0
