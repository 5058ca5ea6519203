"""Triton's kernels in the engine: which calls they serve, and that they give what is defined."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import glassformer as gf
from glassformer import fused, nn
from glassformer.fused.registry import get
from tests import samples
from tests.device_calls import DEVICE, assert_equal, values
from tests.samples import gradients, run, tensors
from tests.tolerances import NEAR

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from glassformer_kernels import launch  # noqa: E402 - after the skips
from glassformer_kernels.register import served  # noqa: E402

pytestmark = pytest.mark.skipif(not launch.INTERPRETED, reason="TRITON_INTERPRET is not set")

TRITON = "triton-interpreted"
OPS = [op for op in samples.registry().values() if op.name in served()]
dtypes = st.sampled_from(["float32", "float16"])
seeds = st.integers(0, 2**32 - 1)


def drawn(seed, shape, dtype="float32"):
    numbers = np.random.default_rng(seed).standard_normal(shape)
    return gf.tensor(numbers, dtype=dtype, device=DEVICE)


def test_every_fused_operation_has_a_kernel():
    fused.registry.load_kernels(DEVICE)
    assert set(served()) == set(fused.registry._ops) - {"square"}  # tests/square_op.py
    for name in served():
        assert [k.name for k in get(name).kernels if k.device == DEVICE] == [TRITON]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("op", OPS, ids=repr)
def test_samples_are_served_and_agree_with_the_reference(op, dtype):
    taken = set()
    for sample in op.samples:
        results = []
        for kernel in (None, "reference"):
            inputs = tensors(sample, dtype=dtype, device=DEVICE, requires_grad=op.differentiable)
            with fused.use(**({} if kernel is None else {op.name: kernel})):
                outputs = run(op, sample, inputs)
                taken.add(fused.last_kernel(op.name))
                results.append([*outputs, *gradients(outputs, inputs)])
        for mine, theirs in zip(*results, strict=True):
            expected = values(theirs)
            scale = max(1.0, np.abs(expected[np.isfinite(expected)]).max(initial=0))
            assert mine.dtype is theirs.dtype
            near = NEAR[dtype] * (0.1 if dtype == "float32" else 1)
            np.testing.assert_allclose(
                values(mine), expected, rtol=0, atol=near * scale, err_msg=f"{op} of {sample}"
            )
    assert TRITON in taken


def adamw(dtype, shape, seed, step):
    arrays = [drawn(seed + i, shape, dtype) for i in range(4)]
    arrays[3] = arrays[3] * arrays[3]
    settings = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}
    get("adamw_step")(*arrays, step=step, **settings)
    return arrays


@given(dtypes, st.lists(st.integers(0, 9), max_size=3), seeds, st.integers(1, 1000))
def test_adamw_changes_parameters_in_place(dtype, shape, seed, step):
    mine = adamw(dtype, shape, seed, step)
    assert fused.last_kernel("adamw_step") == TRITON
    with fused.use(adamw_step="reference"):
        theirs = adamw(dtype, shape, seed, step)
    for one, other in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(values(one), values(other), rtol=0, atol=2 * NEAR[dtype])
    assert [x.version for x in mine] == [x.version for x in mine[:1]] + [0] + [
        x.version for x in mine[2:]
    ]
    assert mine[0].version > 0


REFUSED = {
    "float64": lambda: ("softmax", drawn(0, (2, 3), "float64")),
    "x is (0, 3)": lambda: ("layer_norm", drawn(0, (0, 3))),
    "x is int64": lambda: ("silu", gf.ones(3, dtype="int64", device=DEVICE)),
    "no dim 2": lambda: ("softmax", drawn(0, (2, 3)), {"dim": 2}),
    "up (3,)": lambda: ("swiglu", drawn(0, (2,)), drawn(0, (3,))),
    "classes have weights": lambda: (
        "cross_entropy",
        drawn(0, (2, 3)),
        gf.tensor([0, 1], device=DEVICE),
        drawn(1, (3,)),
    ),
    "weight float16": lambda: (
        "linear_cross_entropy",
        drawn(0, (2, 3)),
        drawn(0, (5, 3), "float16"),
        gf.tensor([0, 1], device=DEVICE),
    ),
    "an odd last dimension": lambda: (
        "rotary_embedding",
        drawn(0, (2, 3)),
        drawn(0, (2, 1)),
        drawn(0, (2, 1)),
    ),
    "head_dim 257, the largest is 256": lambda: (
        "scaled_dot_product_attention",
        *(drawn(i, (1, 1, 2, 257)) for i in range(3)),
        None,
        None,
    ),
    "the interpreter multiplies bfloat16 matrices wrongly": lambda: (
        "scaled_dot_product_attention",
        *(drawn(i, (1, 1, 2, 4), "bfloat16") for i in range(3)),
        None,
        None,
    ),
    "the shapes are": lambda: ("adamw_step", *(drawn(0, (n,)) for n in (2, 2, 2, 3))),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_a_kernel_cannot_serve_it_says_in_words(reason):
    name, *args = REFUSED[reason]()
    params = args.pop() if isinstance(args[-1], dict) else {}
    (candidate,) = [c for c in fused.explain(name, *args, **params) if c.name == TRITON]
    assert not candidate.taken
    words = " ".join(candidate.reasons).replace("Triton's", "the")
    assert all(word in words for word in reason.split()), candidate.reasons
    with pytest.raises(ValueError, match=f"{TRITON} can't serve this"), fused.use(**{name: TRITON}):
        get(name)(*args, **params)


@given(seeds, st.sampled_from([0, 1, 2, -1]), dtypes)
def test_softmax_along_any_dimension(seed, dim, dtype):
    x = drawn(seed, (3, 4, 5), dtype).requires_grad_()
    out = fused.registry.get("softmax")(x, dim=dim)
    assert fused.last_kernel("softmax") == TRITON
    expected = torch.softmax(x.array.double(), dim).numpy()
    np.testing.assert_allclose(values(out), expected, rtol=0, atol=NEAR[dtype])


def test_second_derivatives_go_through_the_reference():
    x = drawn(0, (2, 5)).requires_grad_()
    weights = drawn(1, (2, 5))
    found = []
    for kernel in (TRITON, "reference"):
        with fused.use(softmax=kernel):
            (first,) = gf.grad((nn.functional.softmax(x) * weights).sum(), x, create_graph=True)
            found.append(gf.grad((first * first).sum(), x)[0])
    assert_equal(found[0], found[1], atol=1e-6)


def test_dropout_drops_the_same_weights_as_the_reference():
    q, k, v = (drawn(i, (2, 2, 7, 8)) for i in range(3))
    found = []
    for kernel in (TRITON, "reference"):
        with fused.use(scaled_dot_product_attention=kernel):
            generator = gf.Generator(3)
            found.append(nn.functional.attention(q, k, v, dropout_p=0.4, generator=generator))
    assert_equal(found[0], found[1], atol=1e-5)


@pytest.mark.parametrize("causal", [None, "bottom_right"])
def test_few_queries_over_a_long_cache_take_the_split_kernel(causal):
    from glassformer_kernels import launch

    q, k, v = drawn(0, (1, 4, 1, 16)), drawn(1, (1, 2, 1100, 16)), drawn(2, (1, 2, 1100, 8))
    with launch.recording() as made, fused.use(scaled_dot_product_attention=TRITON):
        nn.functional.attention(q, k, v, causal=causal)
    assert [one.kernel.__name__ for one in made] == ["_attention_decode", "_attention_merge"]
    found = []
    for kernel in (TRITON, "reference"):
        with fused.use(scaled_dot_product_attention=kernel):
            found.append(nn.functional.attention(q, k, v, causal=causal, return_lse=True))
    for mine, theirs in zip(*found, strict=True):
        assert_equal(mine, theirs, atol=1e-5)


def test_a_target_out_of_range_is_refused_before_anything_is_computed():
    for target in ([0, 3], [-1, 0]):
        with pytest.raises(IndexError, match=f"{[t for t in target if t][0]} is out of range"):
            nn.functional.cross_entropy(drawn(0, (2, 3)), gf.tensor(target, device=DEVICE))
        assert fused.last_kernel("cross_entropy") == TRITON


def test_a_gpt_takes_the_kernels_and_learns():
    from glassformer.models import GPT, GPTConfig
    from glassformer.optim import AdamW

    config = GPTConfig(vocab_size=11, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    ids = gf.tensor(np.arange(16).reshape(2, 8) % 11, device=DEVICE)
    found = []
    for kernels in ({}, dict.fromkeys(served(), "reference")):
        model = GPT(config, generator=gf.Generator(0)).to(DEVICE)
        optimizer = AdamW(model.parameters(), lr=1e-2)
        losses = []
        with fused.use(**kernels):
            for _ in range(3):
                optimizer.zero_grad()
                loss = model(ids, labels=ids).loss
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            took = {
                fused.last_kernel(n) for n in ("layer_norm", "gelu", "cross_entropy", "adamw_step")
            }
        assert took == ({"reference"} if kernels else {TRITON})
        found.append(losses)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)
    assert found[0][-1] < found[0][0]
