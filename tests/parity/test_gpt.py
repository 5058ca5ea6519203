"""GPT against a small re-implementation in PyTorch with copied weights: loss and gradients."""

import functools
import math

import pytest
import torch
import torch.nn.functional as TF
from hypothesis import given
from hypothesis import strategies as st

from glassformer import nn
from glassformer.models import GPT, GPTConfig
from tests.parity.weights import FLOAT64_TOLERANCE, assert_close, ours, randomize_

V, P, C, H, LAYERS = 11, 16, 12, 3, 2


class TorchBlock(torch.nn.Module):
    def __init__(self, bias, activation):
        super().__init__()
        self.ln_1 = torch.nn.LayerNorm(C, bias=bias)
        self.c_attn = torch.nn.Linear(C, 3 * C, bias=bias)
        self.c_proj = torch.nn.Linear(C, C, bias=bias)
        self.ln_2 = torch.nn.LayerNorm(C, bias=bias)
        self.c_fc = torch.nn.Linear(C, 4 * C, bias=bias)
        self.mlp_proj = torch.nn.Linear(4 * C, C, bias=bias)
        self.approximate = "tanh" if activation == "gelu_new" else "none"

    def forward(self, x, mask):
        heads = [
            part.unflatten(-1, (H, C // H)).transpose(1, 2)
            for part in self.c_attn(self.ln_1(x)).split(C, -1)
        ]
        scores = heads[0] @ heads[1].mT / math.sqrt(C // H)
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        x = x + self.c_proj((weights @ heads[2]).transpose(1, 2).flatten(2))
        hidden = TF.gelu(self.c_fc(self.ln_2(x)), approximate=self.approximate)
        return x + self.mlp_proj(hidden)


class TorchGPT(torch.nn.Module):
    def __init__(self, tied=True, bias=True, activation="gelu_new"):
        super().__init__()
        self.wte = torch.nn.Embedding(V, C)
        self.wpe = torch.nn.Embedding(P, C)
        self.h = torch.nn.ModuleList([TorchBlock(bias, activation) for _ in range(LAYERS)])
        self.ln_f = torch.nn.LayerNorm(C, bias=bias)
        self.lm_head = torch.nn.Linear(C, V, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight

    def forward(self, ids, real=None):
        t = ids.shape[1]
        mask = torch.ones(t, t, dtype=torch.bool).tril()
        positions = torch.arange(t).expand(ids.shape)
        if real is not None:
            mask = mask & real[:, None, None, :]
            positions = (real.long().cumsum(-1) - 1).clamp(min=0)
        x = self.wte(ids) + self.wpe(positions)
        for block in self.h:
            x = block(x, mask)
        return self.lm_head(self.ln_f(x))


NAMES = {
    "wte": "embed_tokens",
    "wpe": "embed_positions",
    "h": "blocks",
    "ln_f": "norm",
    "ln_1": "self_attn_norm",
    "ln_2": "feed_forward_norm",
    "c_attn.weight": "self_attn.in_proj_weight",
    "c_attn.bias": "self_attn.in_proj_bias",
    "c_proj": "self_attn.out_proj",
    "c_fc": "feed_forward.linear1",
    "mlp_proj": "feed_forward.linear2",
}


def our_name(name):
    for theirs, our in NAMES.items():
        if name.startswith(f"{theirs}.") or f".{theirs}." in name or name.endswith(f".{theirs}"):
            name = name.replace(theirs, our, 1)
    return name


@functools.cache
def pair(tied=True, bias=True, activation="gelu_new"):
    torch.manual_seed(0)
    reference = randomize_(TorchGPT(tied, bias, activation))
    config = GPTConfig(
        V, P, C, LAYERS, H, tie_word_embeddings=tied, bias=bias, activation_function=activation
    )
    model = GPT(config).to("float64")
    model.load_state_dict({our_name(n): ours(v) for n, v in reference.state_dict().items()})
    return model, reference


def test_names_are_rewritten_one_to_one():
    model, reference = pair(tied=False)
    assert [our_name(name) for name, _ in reference.named_parameters()] == [
        name for name, _ in model.named_parameters()
    ]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
def test_loss_logits_and_every_gradient(tied, bias, activation):
    model, reference = pair(tied, bias, activation)
    ids = torch.randint(0, V, (3, P))
    expected = reference(ids)
    expected_loss = TF.cross_entropy(expected[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    output = model(ours(ids), labels=ours(ids))
    assert_close(output.logits, expected, FLOAT64_TOLERANCE, "logits")
    assert_close(output.loss, expected_loss, FLOAT64_TOLERANCE, "loss")
    model.zero_grad()
    reference.zero_grad()
    expected_loss.backward()
    output.loss.backward()
    gradients = {our_name(name): p.grad for name, p in reference.named_parameters()}
    own = dict(model.named_parameters())
    assert own.keys() == gradients.keys()
    for name, parameter in own.items():
        assert_close(parameter.grad, gradients[name], FLOAT64_TOLERANCE, f"gradient of {name}")


@given(st.integers(1, 3), st.integers(1, P), st.data())
def test_shift_labels_and_the_number_of_items(batch, length, data):
    """Ignored targets don't count; num_items_in_batch replaces the count of those that do."""
    model, reference = pair()
    ids = torch.randint(0, V, (batch, length))
    target = torch.randint(0, V, (batch, length))
    ignored = data.draw(st.integers(0, batch * length - 1))
    target.view(-1)[:ignored] = -100
    logits = reference(ids).flatten(0, 1)
    mean = model(ours(ids), shift_labels=ours(target)).loss
    expected = TF.cross_entropy(logits, target.flatten())
    assert_close(mean, expected, FLOAT64_TOLERANCE, "mean")
    by_count = model(ours(ids), shift_labels=ours(target), num_items_in_batch=7).loss
    expected = TF.cross_entropy(logits, target.flatten(), reduction="sum") / 7
    assert_close(by_count, expected, FLOAT64_TOLERANCE, "by count")


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_with_an_attention_mask(side):
    model, reference = pair()
    ids = torch.randint(0, V, (3, 6))
    real = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]])
    real = real.flip(1) if side == "left" else real
    logits = model(ours(ids), attention_mask=ours(real)).logits
    for i, count in enumerate(real.sum(1).tolist()):
        kept = slice(6 - count, 6) if side == "left" else slice(0, count)
        alone = reference(ids[i : i + 1, kept])
        assert_close(logits[i : i + 1, kept], alone, FLOAT64_TOLERANCE, f"sequence {i}")


def test_the_block_is_the_same_as_the_modules_own_call():
    """A guard for the names above: block by block, not only end to end."""
    model, reference = pair()
    x = torch.randn(2, 5, C, dtype=torch.float64)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    for block, torch_block in zip(model.blocks, reference.h, strict=True):
        assert isinstance(block, nn.TransformerBlock)
        assert_close(block(ours(x)), torch_block(x, mask), FLOAT64_TOLERANCE, "block")
