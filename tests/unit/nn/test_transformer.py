"""Blocks and stacks: order, masks and what they refuse. Values are compared in tests/parity."""

import numpy as np
import pytest

import glassformer as gf
from glassformer import nn

C, H = 8, 2


def block(**kwargs):
    attention = {"causal": kwargs.pop("causal", False), "positions": kwargs.pop("positions", None)}
    cross = nn.MultiheadAttention(C, H) if kwargs.pop("cross", False) else None
    return nn.TransformerBlock(
        nn.MultiheadAttention(C, H, **attention), nn.FeedForward(C, 16), cross, **kwargs
    )


def test_a_pre_norm_block_of_zero_weights_is_the_identity():
    layer = block(norm_first=True, norm=nn.RMSNorm)
    for parameter in layer.parameters():
        parameter.detach().zero_()
    x = gf.randn(2, 3, C)
    np.testing.assert_array_equal(layer(x).detach().numpy(), x.numpy())


def test_a_post_norm_block_ends_in_its_norm():
    out = block()(gf.randn(2, 3, C) * 50).detach().numpy()
    np.testing.assert_allclose(out.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(out.std(-1), 1, atol=1e-3)


def test_memory_is_needed_if_and_only_if_there_is_cross_attention():
    x = gf.randn(1, 3, C)
    with pytest.raises(ValueError, match="has cross-attention and needs a memory"):
        block(cross=True)(x)
    with pytest.raises(ValueError, match="can't attend to a memory"):
        block()(x, x)


def test_residual_dropout_leaves_the_stream_alone():
    """With everything dropped a pre-norm block hands its input through."""
    layer = block(norm_first=True, dropout=1.0)
    x = gf.randn(2, 3, C)
    np.testing.assert_array_equal(layer(x).detach().numpy(), x.numpy())
    assert (layer.eval()(x).detach().numpy() != x.numpy()).any()


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_target_position_depends_on_the_source_and_on_earlier_targets(norm_first):
    model = nn.Transformer(C, H, 1, 2, 16, norm_first=norm_first).eval()
    assert (model.encoder.norm is None) == (model.decoder.norm is None) == (not norm_first)
    source, target = gf.randn(1, 4, C), gf.randn(1, 5, C)
    before = model(source, target).detach().numpy()
    later = target.clone()
    later[:, 3:] = 9.0
    after = model(source, later).detach().numpy()
    np.testing.assert_allclose(after[:, :3], before[:, :3], atol=1e-6)
    assert (after[:, 3:] != before[:, 3:]).any()
    assert (model(source * 2, target).detach().numpy() != before).all(-1).all()


def test_source_padding_changes_nothing_for_the_target():
    model = nn.Transformer(C, H, 2, 2, 16).eval()
    source, target = gf.randn(1, 6, C), gf.randn(1, 3, C)
    real = gf.tensor([[True] * 4 + [False] * 2])
    padded = model(source, target, source_padding_mask=real).detach().numpy()
    alone = model(source[:, :4], target).detach().numpy()
    np.testing.assert_allclose(padded, alone, atol=1e-6)


def test_defaults_are_the_papers_base_model():
    """Table 3: N = 6, d_model = 512, d_ff = 2048, h = 8."""
    model = nn.Transformer()
    c, f = 512, 2048
    attention, feed_forward, norm = 4 * (c * c + c), 2 * c * f + f + c, 2 * c
    encoder = attention + feed_forward + 2 * norm
    decoder = 2 * attention + feed_forward + 3 * norm
    assert model.num_parameters() == 6 * (encoder + decoder)
    assert model.encoder.blocks[0].self_attn.head_dim == 64
    assert model.decoder.blocks[5].dropout.p == 0.1 and not model.decoder.blocks[5].norm_first


def test_positions_shared_by_layers_count_once():
    shared = nn.T5Positions(H)
    encoder = nn.TransformerEncoder([block(positions=shared) for _ in range(3)])
    names = [name for name, _ in encoder.named_parameters() if "positions" in name]
    assert names == ["blocks.0.self_attn.positions.weight"]
    encoder(gf.randn(1, 4, C)).sum().backward()
    assert shared.weight.grad is not None


def test_repr_of_an_encoder_folds_equal_layers_and_shows_what_is_shared():
    shared = nn.T5Positions(H, num_buckets=4)
    encoder = nn.TransformerEncoder([block(positions=shared) for _ in range(3)])
    lines = repr(encoder).splitlines()
    assert lines[0] == "TransformerEncoder()" and lines[-1] == "1,808 parameters"
    assert lines[1].split() == ["blocks.0:", "TransformerBlock(post-norm)", "608"]
    folded = lines[len(lines) // 2].split()
    assert folded == [
        "blocks.1",
        "to",
        "2:",
        "2",
        "x",
        "TransformerBlock(post-norm)",
        "2",
        "x",
        "600",
    ]
    assert sum("weight = blocks.0.self_attn.positions.weight" in line for line in lines) == 1


def modern_block():
    return nn.TransformerBlock(
        nn.MultiheadAttention(
            4, 2, causal=True, num_key_value_heads=1, positions=nn.RotaryPositions(2)
        ),
        nn.FeedForward(4, 3, "swiglu"),
        norm_first=True,
        norm=nn.RMSNorm,
    ).to("float64")


def test_derivatives_of_a_block_to_the_second_order():
    layer = modern_block()
    x = gf.randn(1, 3, 4, dtype="float64", requires_grad=True)
    assert gf.gradcheck(layer, (x,)) and gf.gradgradcheck(layer, (x,))


def test_a_checkpointed_block_has_the_same_gradients_bit_by_bit():
    layer = block(dropout=0.5, norm_first=True)
    x = gf.randn(2, 3, C, requires_grad=True)
    gradients = []
    for run in (layer, lambda x: gf.checkpoint(layer, x)):
        gf.manual_seed(1)
        layer.zero_grad()
        x.grad = None
        run(x).sum().backward()
        gradients.append([t.grad.numpy() for t in (x, *layer.parameters())])
    for plain, again in zip(*gradients, strict=True):
        np.testing.assert_array_equal(plain, again)


class Cache:
    """One layer's keys and values, all that a block asks of it."""

    def __init__(self):
        self.length, self.held, self.memory = 0, [], None

    def update(self, key, value):
        self.held.append((key, value))
        self.length += key.shape[2]
        return tuple(gf.cat(parts, dim=2) for parts in zip(*self.held, strict=True))


def test_with_a_cache_the_memory_is_projected_at_the_first_step_alone(monkeypatch):
    model = nn.Transformer(C, H, 1, 2, 16, dropout=0.0).to("float64")
    target, memory = gf.randn(3, 5, C, dtype="float64"), gf.randn(3, 4, C, dtype="float64")
    calls = []
    project = nn.MultiheadAttention.project_memory
    monkeypatch.setattr(
        nn.MultiheadAttention,
        "project_memory",
        lambda self, memory: calls.append(self) or project(self, memory),
    )
    real = gf.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 1]]) > 0
    whole = model.decoder(target, memory, memory_padding_mask=real)
    assert not calls
    cache = [Cache(), Cache()]
    parts = [
        model.decoder(part, memory, memory_padding_mask=real, cache=cache)
        for part in target.split([2, 1, 2], dim=1)
    ]
    assert len(calls) == 2  # once a layer
    assert abs((gf.cat(parts, dim=1) - whole).detach().numpy()).max() < 1e-12
