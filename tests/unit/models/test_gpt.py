"""GPT by itself: how it starts, what it refuses, caches. Values are compared in tests/parity."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import glassformer as gf
from glassformer import optim
from glassformer.models import GPT, GPTConfig

CONFIG = GPTConfig(vocab_size=11, n_positions=12, n_embd=16, n_layer=2, n_head=4)
CACHED = {"float64": 1e-10, "float32": 1e-5}  # cached against full, as the project promises


def tokens(*shape, seed=0):
    return gf.randint(0, CONFIG.vocab_size, shape, generator=gf.Generator(seed))


class Cache:
    """The simplest cache that keeps the protocol."""

    def __init__(self, layers):
        self.layers = [LayerCache() for _ in range(layers)]

    @property
    def length(self):
        return self.layers[0].length

    def __getitem__(self, layer):
        return self.layers[layer]


class LayerCache:
    def __init__(self):
        self.length, self.held = 0, None

    def update(self, key, value):
        if self.held is not None:
            key, value = (gf.cat(pair, 2) for pair in zip(self.held, (key, value), strict=True))
        self.held, self.length = (key, value), key.shape[2]
        return self.held


def test_the_default_configuration_is_gpt2s():
    """124,439,808 parameters, the published count of GPT-2 small, from the shapes alone."""
    config = GPTConfig()
    c, v, t = config.n_embd, config.vocab_size, config.n_positions
    small = GPT(dataclasses.replace(CONFIG, n_layer=1, n_embd=4, n_head=1))
    names = [name for name, _ in small.blocks[0].named_parameters()]
    per_block = {
        "self_attn_norm": 2 * c,
        "self_attn.in_proj": 3 * c * c + 3 * c,
        "self_attn.out_proj": c * c + c,
        "feed_forward_norm": 2 * c,
        "feed_forward.linear1": 4 * c * c + 4 * c,
        "feed_forward.linear2": 4 * c * c + c,
    }
    assert all(any(name.startswith(part) for part in per_block) for name in names)
    total = v * c + t * c + config.n_layer * sum(per_block.values()) + 2 * c
    assert total == 124_439_808

    def count(c, layers):
        return 11 * c + 12 * c + layers * (12 * c * c + 13 * c) + 2 * c

    assert GPT(CONFIG).num_parameters() == count(16, 2)


def test_weights_start_as_gpt2s():
    config = GPTConfig(vocab_size=200, n_positions=100, n_embd=64, n_layer=8, n_head=4)
    model = GPT(config, generator=gf.Generator(0))
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        if parameter.ndim == 1:
            assert (values == (1 if name.endswith("norm.weight") else 0)).all(), name
            continue
        residual = name.endswith(("out_proj.weight", "linear2.weight"))
        std = 0.02 / math.sqrt(2 * 8) if residual else 0.02
        assert values.std() == pytest.approx(std, rel=0.05), name  # >= 4,096 draws: 1.1%
        assert abs(values.mean()) < 0.1 * std


def test_a_generator_decides_the_weights():
    first, second, third = (GPT(CONFIG, generator=gf.Generator(seed)) for seed in (1, 1, 2))
    ids = tokens(1, 5)
    logits = [model(ids).logits.detach().numpy() for model in (first, second, third)]
    np.testing.assert_array_equal(logits[0], logits[1])
    assert (logits[0] != logits[2]).any()


def test_an_untrained_model_knows_nothing():
    """The loss at the start is that of a uniform guess."""
    ids = tokens(8, 12)
    loss = GPT(CONFIG)(ids, labels=ids).loss.item()
    assert loss == pytest.approx(math.log(CONFIG.vocab_size), abs=0.05)


def test_tied_embeddings_are_one_parameter():
    model = GPT(CONFIG)
    assert model.lm_head.weight is model.embed_tokens.weight
    names = [name for name, _ in model.named_parameters()]
    assert "embed_tokens.weight" in names and "lm_head.weight" not in names
    assert "lm_head.weight" in model.state_dict()
    untied = GPT(dataclasses.replace(CONFIG, tie_word_embeddings=False))
    assert untied.num_parameters() == model.num_parameters() + 11 * 16


def test_a_configuration_without_biases_has_none():
    model = GPT(dataclasses.replace(CONFIG, bias=False))
    assert not [name for name, _ in model.named_parameters() if "bias" in name]
    assert model(tokens(1, 3)).logits.shape == (1, 3, 11)


@pytest.mark.parametrize("wrong", [-1, 11])
def test_a_token_id_out_of_range(wrong):
    with pytest.raises(IndexError, match=f"{wrong} .*11"):
        GPT(CONFIG)(gf.tensor([[1, wrong]]))


def test_a_sequence_longer_than_the_position_table():
    model = GPT(CONFIG)
    with pytest.raises(ValueError, match="13 tokens exceed the model's n_positions=12"):
        model(tokens(1, 13))
    cache = Cache(2)
    model(tokens(1, 10), cache=cache)
    with pytest.raises(ValueError, match="3 tokens after 10 in the cache exceed"):
        model(tokens(1, 3), cache=cache)


def test_shapes_that_do_not_fit():
    model = GPT(CONFIG)
    with pytest.raises(ValueError, match=r"input_ids must be \(batch, length\), got \(3,\)"):
        model(gf.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=r"labels are \(1, 2\), but input_ids \(1, 3\)"):
        model(tokens(1, 3), shift_labels=tokens(1, 2))
    with pytest.raises(ValueError, match=r"attention_mask is \(1, 2\)"):
        model(tokens(1, 3), attention_mask=gf.ones(1, 2))
    with pytest.raises(ValueError, match="n_head must be 1 or more, got 0"):
        GPTConfig(n_head=0)
    with pytest.raises(ValueError, match="num_heads=3 must divide embed_dim=16"):
        GPT(dataclasses.replace(CONFIG, n_head=3))


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4).filter(lambda n: sum(n) <= 12),
    st.sampled_from(["float64", "float32"]),
)
def test_cached_is_uncached(lengths, dtype):
    model = GPT(CONFIG, generator=gf.Generator(0)).to(dtype)
    ids = tokens(3, sum(lengths))
    full = model(ids).logits.detach().numpy()
    cache, parts = Cache(2), []
    for part in ids.split(lengths, dim=1):
        output = model(part, cache=cache)
        assert output.cache is cache
        parts.append(output.logits)
    np.testing.assert_allclose(
        gf.cat(parts, 1).detach().numpy(), full, rtol=CACHED[dtype], atol=CACHED[dtype]
    )


def test_left_padding_and_a_cache_change_nothing_for_real_tokens():
    model = GPT(CONFIG, generator=gf.Generator(0)).to("float64")
    short, long = tokens(1, 3), tokens(1, 6, seed=1)
    ids = gf.cat([gf.cat([gf.zeros(1, 3, dtype="int64"), short], 1), long], 0)
    mask = gf.tensor([[0, 0, 0, 1, 1, 1], [1] * 6])
    cache = Cache(2)
    first = model(ids[:, :5], attention_mask=mask[:, :5], cache=cache).logits
    last = model(ids[:, 5:], attention_mask=mask, cache=cache).logits
    logits = gf.cat([first, last], 1).detach().numpy()
    np.testing.assert_allclose(logits[:1, 3:], model(short).logits.detach().numpy(), atol=1e-10)
    np.testing.assert_allclose(logits[1:], model(long).logits.detach().numpy(), atol=1e-10)


def test_a_mask_of_ones_costs_nothing_and_changes_nothing():
    model, ids = GPT(CONFIG), tokens(2, 5)
    plain, masked = model(ids).logits, model(ids, attention_mask=gf.ones(2, 5)).logits
    np.testing.assert_array_equal(plain.detach().numpy(), masked.detach().numpy())


def test_everything_ignored_gives_nan_and_a_wrong_target_an_error():
    model, ids = GPT(CONFIG), tokens(1, 3)
    assert math.isnan(model(ids, labels=gf.full((1, 3), -100)).loss.item())
    assert model(ids).loss is None
    with pytest.raises(IndexError, match="11"):
        model(ids, shift_labels=gf.full((1, 3), 11))


def test_a_training_step_is_few_nodes():
    """Small models are bound by Python: what counts is the number of operations recorded."""
    model, ids = GPT(CONFIG), tokens(2, 4)
    nodes = set()
    stack = [model(ids, shift_labels=ids).loss.grad_fn]
    while stack:
        node = stack.pop()
        if node in nodes:
            continue
        nodes.add(node)
        stack.extend(edge[0] for edge in node.edges if isinstance(edge, tuple))
    per_block, around = 12, 7
    assert len(nodes) <= 2 * per_block + around, sorted(node.name for node in nodes)


def test_it_learns_a_sequence_by_heart():
    gf.manual_seed(0)
    model = GPT(CONFIG, generator=gf.Generator(0))
    ids = tokens(4, 12)
    optimizer = optim.AdamW(optim.get_parameter_groups(model, 0.01), lr=1e-2)
    for _ in range(60):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    # the first token of each row can't be known: there is no loss on it
    assert loss.item() < 0.1
