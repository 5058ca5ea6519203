"""Attention against PyTorch: values and gradients in float64, and errors in lower precision."""

import itertools

import numpy as np
import pytest
import torch

import glassformer as gf
from glassformer import fused
from glassformer.fused.attention import attention
from glassformer.fused.dropout_mask import keep_mask
from glassformer.nn import functional as F
from tests.attention_calls import KERNEL, OP, draw, leaves, visible
from tests.tolerances import assert_close

GRADIENTS = ("query", "key", "value", "bias")
OUR_SHARE = {"value": 2.0, "gradient": 3.0}  # of eager PyTorch's error, at most


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread():
    """Tensors are small: threads that wait for each other would take most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def operands(b=2, heads=4, kv_heads=4, tq=9, tk=9, d=5, dv=3, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((b, heads, tq, d), (b, kv_heads, tk, d), (b, kv_heads, tk, dv))
    return tuple(draw(rng, *shape) for shape in shapes)


def torch_leaves(arrays):
    leaves = [None if x is None else torch.tensor(x) for x in arrays]
    for x in leaves:
        if x is not None and x.is_floating_point():
            x.requires_grad_()
    return leaves


# ---- scaled_dot_product_attention, the function of PyTorch's signature ---------------------------

MASKS = {
    "none": None,
    "bool": np.tri(9, dtype=bool)[::-1] | np.eye(9, dtype=bool),
    "bool by head": np.random.default_rng(1).random((1, 4, 9, 9)) < 0.6,
    "bool by key": np.random.default_rng(2).random((2, 1, 1, 9)) < 0.6,
    "float": np.random.default_rng(3).standard_normal((9, 9)),
    "float by batch": np.random.default_rng(4).standard_normal((2, 1, 9, 1)),
    "float with -inf": np.where(np.tri(9, dtype=bool), 0.25, -np.inf),
}
CALLS = {
    f"{name} mask, {options}, {sizes}": (mask, options, sizes)
    for (name, mask), options, sizes in itertools.chain(
        itertools.product(MASKS.items(), ({}, {"scale": 0.3}), ({},)),
        itertools.product(
            MASKS.items(), ({"enable_gqa": True},), ({"kv_heads": 2}, {"kv_heads": 1})
        ),
        itertools.product(
            [("no", None)],
            ({"is_causal": True}, {"is_causal": True, "scale": -1.0}),
            ({}, {"tq": 3}, {"tk": 4}, {"tq": 1}, {"tk": 1}, {"tq": 70, "tk": 600}),
        ),
    )
}


@pytest.mark.parametrize("mask, options, sizes", CALLS.values(), ids=CALLS)
def test_values_and_gradients_are_pytorchs(mask, options, sizes):
    arrays = (*operands(**sizes), mask)
    theirs, ours = torch_leaves(arrays), leaves(*arrays)
    expected = torch.nn.functional.scaled_dot_product_attention(*theirs, **options)
    actual = F.scaled_dot_product_attention(*ours, **options)
    assert fused.last_kernel(OP) == KERNEL
    assert_close(actual.detach().numpy(), expected.detach().numpy(), name="output")
    upstream = draw(np.random.default_rng(5), *expected.shape)
    expected.backward(torch.tensor(upstream))
    actual.backward(gf.tensor(upstream))
    for name, x, y in zip(("query", "key", "value", "mask"), ours, theirs, strict=True):
        if x is not None and x.requires_grad:
            assert_close(x.grad.numpy(), y.grad.numpy(), name=name)


@pytest.mark.parametrize("mask", [False, -np.inf])
def test_a_query_that_sees_nothing_gives_pytorchs_zeros(mask):
    arrays = (*operands(), np.where(np.arange(9)[:, None] == 4, mask, np.full((9, 9), not mask)))
    expected = torch.nn.functional.scaled_dot_product_attention(*map(torch.tensor, arrays))
    actual = F.scaled_dot_product_attention(*map(gf.tensor, arrays)).numpy()
    assert not actual[:, :, 4].any()
    assert_close(actual, expected.numpy())


@pytest.mark.parametrize("dims", [2, 3])
def test_fewer_dimensions(dims):
    arrays = tuple(x[(0,) * (4 - dims)] for x in operands())
    expected = torch.nn.functional.scaled_dot_product_attention(*map(torch.tensor, arrays))
    actual = F.scaled_dot_product_attention(*map(gf.tensor, arrays))
    assert_close(actual.numpy(), expected.numpy())


@pytest.mark.parametrize(
    "sizes, options",
    [({"kv_heads": 3}, {"enable_gqa": True}), ({"kv_heads": 2}, {}), ({"heads": 3}, {})],
)
def test_heads_that_pytorch_refuses_are_refused(sizes, options):
    arrays = operands(**sizes)
    with pytest.raises(RuntimeError):
        torch.nn.functional.scaled_dot_product_attention(*map(torch.tensor, arrays), **options)
    with pytest.raises(ValueError, match="heads"):
        F.scaled_dot_product_attention(*map(gf.tensor, arrays), **options)


# ---- everything else, against the formula in PyTorch's operations --------------------------------


def eager(query, key, value, mask=None, bias=None, *, softcap=None, keep=None, p=0.0, scale=None):
    """softmax(softcap(QKᵀ·scale) + bias)V as one writes it in PyTorch; output and lse."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = torch.softmax(scores, -1)
    if keep is not None:
        weights = torch.where(keep, weights / (1 - p), 0.0)
    return weights @ value, torch.logsumexp(scores, -1)


OPTIONS = {
    "softcap": ({"softcap": 1.5}, {}),
    "window": ({"window": (2, 3)}, {}),
    "causal window": ({"causal": "bottom_right", "window": (4, None)}, {"tk": 13}),
    "top left": ({"causal": "top_left"}, {"tk": 13}),
    "dropout": ({"dropout_p": 0.3, "seed": 2**40 + 3}, {"kv_heads": 2}),
    "all": (
        {"causal": "bottom_right", "window": (90, None), "softcap": 2.0, "dropout_p": 0.2,
         "seed": 8, "scale": 0.9},
        {"kv_heads": 2, "tq": 130, "tk": 700},
    ),
}  # fmt: skip


@pytest.mark.parametrize("options, sizes", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("bias_shape", [None, (1, 4, 1, 1), "full"])
def test_every_option_and_the_gradient_of_the_lse(options, sizes, bias_shape):
    query, key, value = operands(**sizes)
    full = (*query.shape[:3], key.shape[2])
    shape = full if bias_shape == "full" else bias_shape
    bias = None if shape is None else draw(np.random.default_rng(6), *shape)
    arrays = (query, key, value, bias)
    theirs, ours = torch_leaves(arrays), leaves(*arrays)

    seen = visible(full, None, options.get("causal"), options.get("window"))
    p = options.get("dropout_p", 0.0)
    keep = torch.tensor(keep_mask(options["seed"], p, full)) if p else None
    own = {name: options.get(name) for name in ("softcap", "scale")}
    expected = eager(*theirs[:3], torch.tensor(seen), theirs[3], keep=keep, p=p, **own)
    actual = attention(*ours[:3], None, ours[3], return_lse=True, **options)
    assert fused.last_kernel(OP) == KERNEL
    for name, x, y in zip(("output", "lse"), actual, expected, strict=True):
        assert_close(x.detach().numpy(), y.detach().numpy(), name=name)

    upstream = [draw(np.random.default_rng(7), *x.shape) for x in expected]
    torch.autograd.backward(expected, [torch.tensor(g) for g in upstream])
    gf.backward(actual, [gf.tensor(g) for g in upstream])
    for name, x, y in zip(GRADIENTS, ours, theirs, strict=True):
        if x is not None:
            assert_close(x.grad.numpy(), y.grad.numpy(), name=name)


# ---- errors in lower precision -------------------------------------------------------------------

PROBLEMS = {
    "two keys": ({"tq": 64, "tk": 2, "d": 16, "dv": 16}, {}, 1.0),
    "short": ({"tq": 17, "tk": 17, "d": 16, "dv": 16}, {}, 1.0),
    "long": ({"b": 1, "heads": 2, "kv_heads": 2, "tq": 65, "tk": 600, "d": 64, "dv": 64}, {}, 1.0),
    "peaked": ({"b": 1, "heads": 2, "kv_heads": 1, "tq": 65, "tk": 600, "d": 64}, {}, 4.0),
    "causal": ({"b": 1, "tq": 150, "tk": 150, "d": 32, "dv": 32}, {"causal": "top_left"}, 1.0),
    "grouped": ({"kv_heads": 1, "tq": 64, "tk": 64, "d": 21, "dv": 59}, {}, 1.0),
    "softcap": ({"tq": 64, "tk": 129, "d": 32, "dv": 32}, {"softcap": 5.0}, 2.0),
}


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("sizes, options, spread", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_error_is_no_larger_than_eager_pytorchs(dtype, sizes, options, spread, biased):
    """By its largest element and by its mean square, both against float64 on the same inputs.

    The floor is the rounding of the largest element.
    """
    query, key, value = operands(**sizes)
    full = (*query.shape[:3], key.shape[2])
    bias = draw(np.random.default_rng(8), 1, *full[1:]) if biased else None
    mask = visible(full, None, options.get("causal"))
    arrays = [None if x is None else x.astype(dtype) for x in (query * spread, key, value, bias)]
    upstream = draw(np.random.default_rng(9), *query.shape[:3], value.shape[3], dtype=dtype)
    own = {"softcap": options.get("softcap")}

    def in_torch(precision):
        leaves = [None if x is None else torch.tensor(x.astype(precision)) for x in arrays]
        leaves = [None if x is None else x.requires_grad_() for x in leaves]
        out, _ = eager(*leaves[:3], torch.tensor(mask), leaves[3], **own)
        out.backward(torch.tensor(upstream.astype(precision)))
        found = [out.detach(), *(None if x is None else x.grad for x in leaves)]
        return [None if x is None else x.numpy().astype("float64") for x in found]

    oracle, theirs = in_torch("float64"), in_torch(dtype)
    tensors = leaves(*arrays)
    out = attention(*tensors[:3], None, tensors[3], **options)
    assert fused.last_kernel(OP) == KERNEL
    out.backward(gf.tensor(upstream))
    ours = [out.detach(), *(None if x is None else x.grad for x in tensors)]

    rounding = np.finfo(dtype).eps / 2
    for name, x, y, exact in zip(("output", *GRADIENTS), ours, theirs, oracle, strict=True):
        if exact is None:
            continue
        share = OUR_SHARE["value" if name == "output" else "gradient"]
        floor = rounding * np.abs(exact).max()
        for norm in (lambda e: np.abs(e).max(), lambda e: np.sqrt((e**2).mean())):
            error, allowed = norm(x.numpy() - exact), share * norm(y - exact)
            assert error <= allowed + floor, f"{name}: {error:.2e}, eager {allowed / share:.2e}"
