"""Attention as PyTorch sees it: operators, torch.compile, the drop-in, and what is refused."""

import inspect

import pytest
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel_calls import DEVICE, bits_equal, launch, seeds, torch

# isort: split
from glassformer_kernels.ops import attention_cache, attention_operator
from glassformer_kernels.ops.attention import attention, scaled_dot_product_attention
from tests.kernels.attention_cases import fewer, tiles
from tests.row_calls import drawn, drawn_mask, launched


def leaf(seed, *shape, dtype=torch.float32):
    return drawn(seed, shape, dtype).requires_grad_()


def ints(*numbers):
    return torch.tensor(numbers, dtype=torch.int32, device=DEVICE)


# ---- operators ----------------------------------------------------------------------------------

PLAIN = {
    "mask": None,
    "bias": None,
    "alibi_slopes": None,
    "sinks": None,
    "cu_seqlens_q": None,
    "cu_seqlens_k": None,
    "max_q": 3,
    "max_k": 5,
    "left": None,
    "right": None,
    "bottom_right": True,
    "scale": 0.5,
    "softcap": None,
    "dropout_p": 0.0,
    "seed": 0,
}
SAMPLES = {
    "nothing": lambda: {},
    "half": lambda: {"dtype": torch.float16},
    "no queries": lambda: {"max_q": 0},
    "split": lambda: {"max_q": 1, "max_k": 1024, "right": 0},
    "mask and causal": lambda: {"mask": drawn_mask(0, (2, 1, 1, 5)), "right": 0},
    "bias and window": lambda: {"bias": leaf(5, 1, 2, 1, 5), "left": 1, "bottom_right": False},
    "bias of another dtype": lambda: {"bias": leaf(5, 1, 2, 1, 5), "dtype": torch.float16},
    "bias without queries": lambda: {
        "bias": leaf(5, 1, 2, 1, 5),
        "dtype": torch.float16,
        "max_q": 0,
    },
    "everything else": lambda: {
        "alibi_slopes": drawn(6, (2,)).abs(),
        "sinks": leaf(7, 2),
        "softcap": 3.0,
        "dropout_p": 0.25,
        "seed": 2**61,
    },
    "sinks in half": lambda: {"sinks": leaf(7, 2, dtype=torch.float16)},
    "packed": lambda: {
        "cu_seqlens_q": ints(0, 2, 3),
        "cu_seqlens_k": ints(0, 0, 5),
        "right": 0,
        "sinks": leaf(7, 2),
    },
}


def sample(name):
    """The arguments of the operator `attention`: two sequences, two heads over one."""
    asked = SAMPLES[name]()
    dtype = asked.pop("dtype", torch.float32)
    options = {**PLAIN, **asked}
    q, k = options["max_q"], options["max_k"]
    if options["cu_seqlens_q"] is not None:
        shapes = ((q, 2, 4), (k, 1, 4), (k, 1, 6))
    else:
        shapes = ((2, 2, q, 4), (2, 1, k, 4), (2, 1, k, 6))
    return (*(leaf(i, *s, dtype=dtype) for i, s in enumerate(shapes)), *options.values())


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck_of_attention(name):
    with tiles(16, 128):
        torch.library.opcheck(attention_operator.attention_op, sample(name))


@pytest.mark.parametrize("needs", [(True, True), (False, True)])
@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck_of_its_backward(name, needs):
    args = tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in sample(name))
    out, stats = attention_operator.attention_op(*args)
    d_lse = drawn(9, stats.shape[1:]) if needs[0] else None
    wanted = (*needs, args[4] is not None, args[6] is not None)
    with tiles(16, 128):
        torch.library.opcheck(
            attention_operator.attention_backward_op, (out, stats, out, d_lse, *wanted, *args)
        )


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_opcheck_of_a_cache(paged, dtype):
    query, sinks, slopes = drawn(0, (2, 2, 1, 4), dtype), drawn(1, (2,)), drawn(2, (2,)).abs()
    key, value = drawn(3, (2, 1, 16, 4), dtype), drawn(4, (2, 1, 16, 6), dtype)
    table = ints(1, 0).view(2, 1) if paged else None
    for extra in ((None, None), (slopes, sinks)):
        args = (query, key, value, *extra, ints(3, 16), table, 16, 2, 0, 0.5, None)
        torch.library.opcheck(attention_cache.attention_cache_op, args)


def test_opcheck_of_merging():
    for dtype in (torch.float32, torch.float16):
        args = (drawn(0, (3, 2, 5, 4), dtype), drawn(1, (3, 2, 5)))
        torch.library.opcheck(attention_cache._attention_merge, args)


class Layer(torch.nn.Module):
    """A layer of attention over heads of 4, with what training uses of the options."""

    def __init__(self, **options):
        super().__init__()
        self.qkv = torch.nn.Linear(8, 24)
        self.bias = torch.nn.Parameter(torch.zeros(2, 1, 6))
        self.options = options

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        out = attention(q, k, v, bias=self.bias, **self.options)
        return scaled_dot_product_attention(out, k, v, is_causal=True).square().mean()


@pytest.mark.parametrize(
    "options", [{"causal": "bottom_right"}, {"window": (2, 0), "softcap": 5.0}]
)
def test_a_compiled_layer_trains_as_an_eager_one(options):
    torch.manual_seed(0)
    layer = Layer(**options).to(DEVICE)
    x = drawn(0, (2, 6, 8))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    found = []
    for function in (layer, compiled):
        with launched() as names:
            loss = function(x)
            grads = torch.autograd.grad(loss, list(layer.parameters()))
        found.append((sorted(names), loss, *grads))
    assert found[0][0] == found[1][0]
    assert names.count("attention_forward") == names.count("attention_key_gradients") == 2
    for a, b in zip(found[0][1:], found[1][1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_packed_sequences_and_caches_compile():
    q = drawn(0, (5, 2, 4))
    cu = {"cu_seqlens_q": ints(0, 2, 5), "cu_seqlens_k": ints(0, 2, 5)}

    def packed(q):
        return attention(q, q, q, max_seqlen_q=3, max_seqlen_k=3, **cu)

    def cached(q):
        return attention(q[None].mT, q[None].mT, q[None].mT, key_lengths=ints(3))

    for function in (packed, cached):
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        assert bits_equal(compiled(q), function(q))


# ---- scaled_dot_product_attention ---------------------------------------------------------------


def test_the_signature_is_pytorch_s():
    schema = torch.ops.aten.scaled_dot_product_attention.default._schema
    ours = inspect.signature(scaled_dot_product_attention).parameters
    assert list(ours) == [a.name for a in schema.arguments]
    for theirs in schema.arguments:
        mine = ours[theirs.name]
        assert (mine.kind is mine.KEYWORD_ONLY) == theirs.kwarg_only, theirs.name
        assert (mine.default is not mine.empty) == theirs.has_default_value(), theirs.name
        if theirs.has_default_value():
            assert mine.default == theirs.default_value, theirs.name


def assert_drop_in(leaves, mask=None, **options):
    """Values and gradients of PyTorch's function and ours agree."""
    found = []
    for function in (scaled_dot_product_attention, F.scaled_dot_product_attention):
        given = [x.detach().clone().requires_grad_() for x in leaves]
        extra = mask
        if mask is not None and mask.is_floating_point():
            extra = mask.detach().clone().requires_grad_()
            given.append(extra)
        with tiles():
            out = function(*given[:3], attn_mask=extra, **options)
            d_out = drawn(9, out.shape, out.dtype)
            found.append([out, *torch.autograd.grad(out, given, d_out)])
    near = 2e-5 if leaves[0].dtype is torch.float32 else 1e-2
    for a, b in zip(*found, strict=True):
        assert a.shape == b.shape and a.dtype is b.dtype
        torch.testing.assert_close(
            a, b, rtol=0, atol=near * max(1.0, float(b.detach().abs().max()))
        )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 1, 3)], ids=str)
def test_two_to_five_dimensions(leading, causal):
    shapes = ((5, 4), (7, 4), (7, 3))
    leaves = [drawn(i, (*leading, *s)) for i, s in enumerate(shapes)]
    assert_drop_in(leaves, is_causal=causal)
    assert_drop_in(leaves, drawn_mask(3, (5, 7), 0.8))
    assert_drop_in(leaves, drawn(3, (5, 7)))


@pytest.mark.parametrize(
    "shape", [(5, 7), (3, 1, 7), (2, 1, 5, 7), (1, 2, 1, 1, 7), (2, 2, 3, 5, 7)]
)
def test_masks_of_five_dimensional_operands(shape):
    leaves = [drawn(i, (2, 2, 3, *s)) for i, s in enumerate(((5, 4), (7, 4), (7, 3)))]
    assert_drop_in(leaves, drawn_mask(3, shape, 0.8))
    assert_drop_in(leaves, drawn(3, shape))


@given(
    seeds,
    st.tuples(*[st.integers(1, 2)] * 3, *[st.integers(1, 20)] * 4),
    st.sampled_from(["none", "bool", "float", "causal"]),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.sampled_from([None, 0.3, 1.0]),
    st.sampled_from([torch.float32, torch.float16]),
)
@fewer(60)
def test_it_is_a_drop_in(seed, sizes, kind, kept, scale, dtype):
    b, kv_heads, groups, tq, tk, d, dv = sizes
    heads = kv_heads * groups
    shapes = ((b, heads, tq, d), (b, kv_heads, tk, d), (b, kv_heads, tk, dv))
    leaves = [drawn(seed % 2**31 + i, shape, dtype) for i, shape in enumerate(shapes)]
    own = [n if keep else 1 for n, keep in zip((b, heads, tq), kept, strict=True)]
    mask = None
    if kind == "bool":
        mask = drawn_mask(seed, (*own, tk), 0.7)
    elif kind == "float":
        mask = drawn(seed, (*own, tk), dtype)
    options = {"enable_gqa": True} if groups > 1 else {}
    assert_drop_in(leaves, mask, is_causal=kind == "causal", scale=scale, **options)


def test_a_float_mask_of_minus_inf_hides():
    leaves = [drawn(i, (1, 2, 5, 4)) for i in range(3)]
    mask = torch.where(drawn_mask(3, (5, 5), 0.5), 0.0, -float("inf"))
    mask[2] = -float("inf")
    out = scaled_dot_product_attention(*leaves, mask)
    hidden = mask == 0
    torch.testing.assert_close(out, F.scaled_dot_product_attention(*leaves, hidden))
    assert not out[:, :, 2].any()
    given = [x.requires_grad_() for x in (*leaves, mask)]
    grads = torch.autograd.grad(scaled_dot_product_attention(*given).sum(), given)
    assert all(bool(g.isfinite().all()) for g in grads)


def test_dropout_keeps_the_mean():
    value = torch.ones(1, 2, 64, 1, device=DEVICE)
    query, key = drawn(0, (1, 2, 200, 4)), drawn(1, (1, 2, 64, 4))
    with tiles(32, 32):
        out = scaled_dot_product_attention(query, key, value, dropout_p=0.25)
    assert out.unique().numel() > 100
    assert abs(float(out.mean()) - 1) < 0.02


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q: {"query": q[0, 0, 0]}, r"equally many dims, 2 or more \(query \(4,\)"),
        (lambda q: {"key": q[0]}, r"equally many dims.*key \(4, 5, 4\)"),
        (
            lambda q: {"attn_mask": drawn_mask(0, (5, 5)), "is_causal": True},
            "attn_mask and is_causal=True exclude each other",
        ),
        (
            lambda q: {"key": q[:, :2], "value": q[:, :2]},
            r"key has other heads than query; pass enable_gqa=True .*key \(2, 2, 5, 4\)",
        ),
        (
            lambda q: {"key": q[:, :3], "value": q[:, :3], "enable_gqa": True},
            "4 query heads can't share 3 key heads",
        ),
    ],
)
def test_errors_of_the_drop_in(change, message):
    q = drawn(0, (2, 4, 5, 4))
    with pytest.raises(ValueError, match=message):
        scaled_dot_product_attention(**{"query": q, "key": q, "value": q, **change(q)})


# ---- what is refused ----------------------------------------------------------------------------

Q = (2, 4, 5, 8)
ERRORS = {
    "double": (
        lambda: {"query": drawn(0, Q, torch.float64)},
        TypeError,
        r"query must be float32, float16 or bfloat16, got torch\.float64",
    ),
    "whole": (lambda: {"value": drawn(0, Q).int()}, TypeError, r"value must be .*torch\.int32"),
    "mixed dtypes": (
        lambda: {"key": drawn(0, Q, torch.float16)},
        TypeError,
        r"one dtype, got query torch\.float32, key torch\.float16, value torch\.float32",
    ),
    "devices": (
        lambda: {"value": drawn(0, Q).to("meta")},
        ValueError,
        f"one device, got query on {DEVICE}.*, key on {DEVICE}.*, value on meta",
    ),
    "dims": (
        lambda: {"query": drawn(0, Q[1:])},
        ValueError,
        r"attention takes \(B, heads, T, head_dim\) tensors: query \(4, 5, 8\), key \(2, 4, 5, 8\)",
    ),
    "head dims": (
        lambda: {"query": drawn(0, (2, 4, 5, 6))},
        ValueError,
        r"query has head_dim 6 but key has 8; both must match \(query \(2, 4, 5, 6\), key \(2",
    ),
    "lengths": (
        lambda: {"value": drawn(0, (2, 4, 6, 8))},
        ValueError,
        r"key and value must agree but for head_dim .*key \(2, 4, 5, 8\), value \(2, 4, 6, 8\)",
    ),
    "batch": (
        lambda: {"query": drawn(0, (3, 4, 5, 8))},
        ValueError,
        r"query and key must have equal batch \(query \(3, 4, 5, 8\), key \(2, 4, 5, 8\)",
    ),
    "heads": (
        lambda: {"query": drawn(0, (2, 6, 5, 8))},
        ValueError,
        r"6 query heads can't share 4 key heads.*query \(2, 6, 5, 8\), key \(2, 4, 5, 8\)",
    ),
    "mask's dtype": (
        lambda: {"mask": torch.ones(5, 5, device=DEVICE)},
        TypeError,
        r"mask must be bool \(True takes part\), got torch\.float32; convert one of 1 and 0",
    ),
    "mask's shape": (
        lambda: {"mask": drawn_mask(0, (3, 5))},
        ValueError,
        r"mask \(3, 5\) can't be broadcast to \(2, 4, 5, 5\)",
    ),
    "mask's device": (
        lambda: {"mask": drawn_mask(0, (5, 5)).to("meta")},
        ValueError,
        f"one device, got query on {DEVICE}.*, mask on meta",
    ),
    "bias' dtype": (
        lambda: {"bias": torch.ones(5, 5, dtype=torch.bool, device=DEVICE)},
        TypeError,
        r"bias must be float32, float16 or bfloat16, got torch\.bool",
    ),
    "bias' shape": (
        lambda: {"bias": drawn(0, (1, 2, 4, 5, 5))},
        ValueError,
        r"bias \(1, 2, 4, 5, 5\) can't be broadcast to \(2, 4, 5, 5\)",
    ),
    "slopes' shape": (
        lambda: {"alibi_slopes": drawn(0, (4, 2))},
        ValueError,
        r"alibi_slopes must be \(4,\) or \(2, 4\), .*, got \(4, 2\)",
    ),
    "slopes' gradient": (
        lambda: {"alibi_slopes": leaf(0, 4)},
        ValueError,
        "alibi_slopes get no gradient here; to learn them pass the bias",
    ),
    "sinks' shape": (
        lambda: {"sinks": drawn(0, (5,))},
        ValueError,
        r"sinks must be \(4,\).*\(5,\)",
    ),
    "sinks' device": (
        lambda: {"sinks": drawn(0, (4,)).to("meta")},
        ValueError,
        f"got query on {DEVICE}.*, sinks on meta",
    ),
    "causal": (
        lambda: {"causal": True},
        ValueError,
        "causal must be None, 'top_left' or 'bottom_right', got True; 'top_left' is PyTorch's",
    ),
    "causal's name": (lambda: {"causal": "top-left"}, ValueError, "got 'top-left'"),
    "one window": (
        lambda: {"window": 4},
        TypeError,
        r"window must be a pair \(left, right\), .*, got 4; \(4, 0\) shows 4 before it",
    ),
    "window 0": (lambda: {"window": 0}, TypeError, "window must be a pair .*, got 0"),
    "window of three": (lambda: {"window": (1, 2, 3)}, TypeError, "got .1, 2, 3.;"),
    "window": (lambda: {"window": (3, -2)}, ValueError, r"window \(3, -2\): left and right count"),
    "softcap 0": (lambda: {"softcap": 0.0}, ValueError, "positive and finite, got 0.0; None for"),
    "softcap inf": (lambda: {"softcap": float("inf")}, ValueError, "finite, got inf"),
    "dropout": (
        lambda: {"dropout_p": 1.01},
        ValueError,
        r"dropout_p must be in \[0, 1\], got 1.01",
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_argument_errors_come_before_any_launch(what, monkeypatch):
    change, kind, message = ERRORS[what]
    monkeypatch.setattr(launch, "launch", lambda *_, **__: pytest.fail("launched"))
    given = {name: drawn(i, Q) for i, name in enumerate(("query", "key", "value"))}
    with pytest.raises(kind, match=message):
        attention(**{**given, **change()})
