"""The second device against the first: layers, models, training, generation; bfloat16."""

import itertools
import operator

import numpy as np
import pytest
import torch

import glassformer as gf
from glassformer import nn, optim
from glassformer.generation import generate
from glassformer.models import GPT, GPTConfig
from glassformer.nn import functional as F
from tests.device_calls import DEVICE, assert_equal, references, values
from tests.sample_entries import fused as fused_samples

# Fractions of the largest magnitude: a few roundings of the dtype, after a few layers.
NEAR = {"float64": 1e-12, "float32": 2e-5}
CONFIG = GPTConfig(vocab_size=17, n_positions=12, n_embd=24, n_layer=2, n_head=3)


@pytest.fixture(autouse=True)
def _references():
    with references():
        yield


def assert_near(actual, expected, name="", near=None):
    expected = values(expected)
    near = near or NEAR[str(expected.dtype)]
    scale = max(1.0, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(values(actual), expected, rtol=0, atol=near * scale, err_msg=name)


def gpt(device, dtype="float32", **settings):
    config = GPTConfig(**{**vars(CONFIG), **settings})
    return GPT(config, generator=gf.Generator(3)).to(device).to(dtype)


def tokens(device, batch=3, length=9):
    random = np.random.default_rng(1)
    return gf.tensor(random.integers(0, CONFIG.vocab_size, (batch, length)), device=device)


def results_of(module, *inputs):
    """The output, and the gradient of every float input and parameter."""
    inputs = [x.requires_grad_() if x.dtype.is_floating_point else x for x in inputs]
    out = module(*inputs)
    weights = np.random.default_rng(2).uniform(0.5, 1.5, out.shape)
    (out * gf.tensor(weights, dtype=out.dtype, device=out.device)).sum().backward()
    leaves = [*(x for x in inputs if x.requires_grad), *module.parameters()]
    return [out, *(x.grad for x in leaves)]


LAYERS = {
    "linear": lambda: nn.Linear(8, 5),
    "layer_norm": lambda: nn.LayerNorm(8),
    "rms_norm": lambda: nn.RMSNorm(8),
    "attention": lambda: nn.MultiheadAttention(8, 2, causal=True),
    "grouped attention": lambda: nn.MultiheadAttention(8, 4, num_key_value_heads=2),
    "window": lambda: nn.MultiheadAttention(8, 2, window=(2, 1), softcap=3.0),
    "rotary": lambda: nn.MultiheadAttention(8, 2, positions=nn.RotaryPositions(4)),
    "alibi": lambda: nn.MultiheadAttention(8, 2, positions=nn.ALiBiPositions(2)),
    "t5": lambda: nn.MultiheadAttention(8, 2, positions=nn.T5Positions(2)),
    "sinusoidal": lambda: nn.SinusoidalPositions(8),
    "learned": lambda: nn.LearnedPositions(16, 8),
    "gelu": lambda: nn.FeedForward(8, 16, "gelu"),
    "swiglu": lambda: nn.FeedForward(8, 16, "swiglu"),
    "conv": lambda: nn.Conv1d(6, 4, 3, padding=1),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, dtype):
    x = np.random.default_rng(0).standard_normal((2, 6, 8))
    layer = LAYERS[name]().to(dtype)
    expected = results_of(layer, gf.tensor(x, dtype=dtype))
    layer.to(DEVICE)
    found = results_of(layer, gf.tensor(x, dtype=dtype, device=DEVICE))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.device.type == DEVICE
        assert mine.dtype is theirs.dtype
        assert_near(mine, theirs, name)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_gpt_forward_and_backward(dtype):
    found = {}
    for device in ("cpu", DEVICE):
        model, ids = gpt(device, dtype), tokens(device)
        mask = gf.tensor([[0, 0] + [1] * 7, [1] * 9, [1] * 9], device=device)
        output = model(ids, labels=ids, attention_mask=mask)
        output.loss.backward()
        named = {name: p.grad for name, p in model.named_parameters()}
        found[device] = {"logits": output.logits, "loss": output.loss, **named}
    for name, expected in found["cpu"].items():
        assert found[DEVICE][name].device.type == DEVICE
        assert_near(found[DEVICE][name], expected, name)


def test_gpt_with_recomputation_and_dropout():
    """checkpoint() draws the same numbers again, and both devices drop the same elements."""
    found = []
    for device in ("cpu", DEVICE):
        gf.manual_seed(4)
        model, ids = gpt(device, "float64", dropout=0.3), tokens(device)
        loss = gf.checkpoint(lambda: model(ids, labels=ids).loss)  # noqa: B023
        loss.backward()
        found.append([loss, *(p.grad for p in model.parameters())])
    for mine, theirs in zip(found[1], found[0], strict=True):
        assert_near(mine, theirs)


OPTIMIZERS = {
    "AdamW": lambda params: optim.AdamW(params, lr=1e-2, weight_decay=0.1),
    "Adam": lambda params: optim.Adam(params, lr=1e-2, weight_decay=0.1),
    "SGD": lambda params: optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_steps(name):
    found = []
    for device in ("cpu", DEVICE):
        # Without biases: the keys' has a gradient of 0, and Adam would divide rounding by rounding.
        model, ids = gpt(device, "float64", bias=False), tokens(device)
        optimizer = OPTIMIZERS[name](model.parameters())
        norms, losses = [], []
        for _ in range(5):
            optimizer.zero_grad()
            loss = model(ids, labels=ids).loss
            loss.backward()
            norms.append(optim.clip_grad_norm_(model.parameters(), 0.5))
            optimizer.step()
            losses.append(loss.item())
        found.append((norms, losses, [p.detach() for p in model.parameters()]))
        assert losses[-1] < losses[0]
        for state in optimizer.state.values():
            for value in state.values():
                assert not isinstance(value, gf.Tensor) or value.device.type == device
    np.testing.assert_allclose(found[1][:2], found[0][:2], rtol=1e-10)
    for mine, theirs in zip(found[1][2], found[0][2], strict=True):
        assert_near(mine, theirs, near=1e-9)  # Adam divides by the roots of tiny numbers


def test_optimizer_state_moves_to_where_the_parameters_are():
    model = gpt("cpu")
    optimizer = optim.AdamW(model.parameters())
    model(tokens("cpu"), labels=tokens("cpu")).loss.backward()
    optimizer.step()
    saved = optimizer.state_dict()
    there = gpt(DEVICE)
    second = optim.AdamW(there.parameters())
    second.load_state_dict(saved)
    pairs = zip(optimizer.state.values(), second.state.values(), strict=True)
    for mine, theirs in pairs:
        assert theirs["exp_avg"].device.type == DEVICE
        assert_equal(theirs["exp_avg"], mine["exp_avg"])


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "top_k": 5, "seed": 3}])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_chooses_the_same_tokens(settings, use_cache):
    options = {"max_new_tokens": 6, "use_cache": use_cache, "repetition_penalty": 1.2, **settings}
    here = generate(gpt("cpu", "float64"), tokens("cpu", 2, 4), **options)
    there = generate(gpt(DEVICE, "float64"), tokens(DEVICE, 2, 4), **options)
    assert there.device.type == DEVICE
    assert there.tolist() == here.tolist()
    assert generate(gpt(DEVICE, "float64"), [1, 2], max_new_tokens=2).device.type == "cpu"


# half precision: as near to float64 as its own rounding allows


HALF = {"float16": 2.0**-11, "bfloat16": 2.0**-8}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("op", fused_samples.OPS, ids=repr)
def test_fused_references_round_once(op, dtype):
    """Sums and exponentials are float32: what is left is the rounding of result and inputs."""
    from tests.samples import gradients, run, tensors

    for sample in op.samples:
        if op.name == "rms_norm with the default eps":
            continue  # that depends on the dtype
        rounded = tensors(sample, dtype=dtype if dtype == "float16" else "float32", device=DEVICE)
        rounded = [x.to(dtype) if x.dtype.is_floating_point else x for x in rounded]
        exact = [x.double() if x.dtype.is_floating_point else x for x in rounded]
        found = []
        for inputs in (rounded, exact):
            for x in inputs:
                x.requires_grad_(x.dtype.is_floating_point and op.differentiable)
            outputs = run(op, sample, inputs)
            found.append([*outputs, *gradients(outputs, inputs)])
        for mine, theirs in zip(*found, strict=True):
            if not mine.dtype.is_floating_point:
                continue
            if not np.isfinite(values(theirs)).all():
                np.testing.assert_array_equal(np.isnan(values(mine)), np.isnan(values(theirs)))
                continue
            assert_near(mine, theirs, f"{op} of {sample}", near=4 * HALF[dtype])


DTYPES = ("bool", "int64", "float16", "bfloat16", "float32", "float64")
TENSORS = [(dtype, shape) for dtype in DTYPES for shape in ((2,), ())]
NUMBERS = (True, 2, 1.5)
PAIRS = [
    pair
    for pair in [
        *itertools.product(TENSORS, TENSORS),
        *itertools.product(TENSORS, NUMBERS),
        *itertools.product(NUMBERS, TENSORS),
    ]
    if any(isinstance(spec, tuple) and spec[0] == "bfloat16" for spec in pair)
]


def made(framework, spec):
    if not isinstance(spec, tuple):
        return spec
    dtype, shape = spec
    if framework is torch:
        return torch.full(shape, 3.0).to(getattr(torch, dtype))
    return gf.full(shape, 3.0, dtype=dtype, device=DEVICE)


def test_bfloat16_promotes_as_in_pytorch():
    operations = (operator.add, operator.mul, operator.truediv, operator.pow, operator.gt)
    compared = 0
    for pair in PAIRS:
        theirs = torch.result_type(*(made(torch, spec) for spec in pair))
        assert f"torch.{gf.result_type([made(gf, spec) for spec in pair]).name}" == str(theirs)
        for operation in operations:
            expected = operation(*(made(torch, spec) for spec in pair))
            found = operation(*(made(gf, spec) for spec in pair))
            assert found.array.dtype == expected.dtype, (operation, pair)
            assert torch.equal(found.array, expected), (operation, pair)
            compared += 1
    assert compared > 200
    for first, second in itertools.product(DTYPES, DTYPES):
        theirs = torch.promote_types(getattr(torch, first), getattr(torch, second))
        assert (
            str(theirs) == f"torch.{gf.promote_types(getattr(gf, first), getattr(gf, second)).name}"
        )


@pytest.mark.parametrize("dtype", HALF)
def test_a_gpt_in_half_precision_is_near_the_exact_one(dtype):
    exact, half = gpt(DEVICE, "float64"), gpt(DEVICE, dtype)
    half.load_state_dict(exact.state_dict())
    ids = tokens(DEVICE)
    found = []
    for model in (half, exact):
        output = model(ids, labels=ids)
        output.loss.backward()
        found.append([output.logits, output.loss, *(p.grad for p in model.parameters())])
    assert found[0][0].dtype.name == dtype
    assert all(p.grad.dtype.name == dtype for p in half.parameters())
    for mine, theirs in zip(*found, strict=True):
        assert_near(mine, theirs, near=16 * HALF[dtype])


@pytest.mark.parametrize("dtype", HALF)
def test_the_norm_of_half_precision_gradients_does_not_overflow(dtype):
    layer = nn.Linear(40, 40, bias=False).to(DEVICE).to(dtype)
    layer.weight.grad = gf.full((40, 40), 300.0, dtype=dtype, device=DEVICE)
    assert optim.clip_grad_norm_(layer.parameters(), 1.0) == pytest.approx(12_000, rel=4e-3)
    assert values(layer.weight.grad).max() == pytest.approx(1 / 40, rel=1e-2)


def test_adamw_of_half_precision_is_near_the_exact_one():
    start = np.random.default_rng(0).standard_normal((5, 7))
    found = []
    for dtype in ("bfloat16", "float64"):
        param = gf.tensor(start, dtype="bfloat16", device=DEVICE).to(dtype).requires_grad_()
        optimizer = optim.AdamW([param], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (param * param).sum().backward()
            optimizer.step()
        found.append(param)
    assert found[0].dtype is gf.bfloat16
    assert_near(found[0], found[1], near=8 * HALF["bfloat16"])


def test_softmax_and_attention_take_bfloat16():
    random = np.random.default_rng(0)
    q, k, v = (
        gf.tensor(random.standard_normal((1, 2, 5, 4)), dtype="bfloat16", device=DEVICE)
        for _ in range(3)
    )
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.array.double() for x in (q, k, v)), is_causal=True
    )
    assert out.dtype is gf.bfloat16
    np.testing.assert_allclose(values(out), expected.numpy(), atol=2 * HALF["bfloat16"])
