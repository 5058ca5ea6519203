"""Attention at the edges: the numbers are those of the list of edge cases the project keeps."""

from dataclasses import replace

import pytest

from tests.kernel_calls import DEVICE, LAYOUTS, ON_GPU, bits_equal, contiguous, launch, torch, walls

# isort: split
from glassformer_kernels.attention.backward import backward
from glassformer_kernels.attention.decode import decode
from glassformer_kernels.attention.forward import forward
from glassformer_kernels.attention.problem import make_problem as problem
from glassformer_kernels.ops.attention import attention, scaled_dot_product_attention
from tests.kernels.attention_cases import Case, check, operands, run, tiles
from tests.row_calls import drawn

NAN, INF = float("nan"), float("inf")


def shown(*hidden, shape):
    """A mask that hides what the index tuples say."""
    mask = torch.ones(shape, dtype=torch.bool, device=DEVICE)
    for index in hidden:
        mask[index] = False
    return mask


def results(query, key, value, d_out=None, bias=None, **options):
    """Output, lse and the gradients of all that is given, for gradients of both outputs."""
    leaves = [x.detach().requires_grad_() for x in (query, key, value, bias) if x is not None]
    with tiles():
        out, lse = attention(
            *leaves[:3], bias=leaves[3] if bias is not None else None, return_lse=True, **options
        )
        d_out = drawn(9, out.shape, out.dtype) if d_out is None else d_out
        grads = torch.autograd.grad([out, lse], leaves, [d_out, drawn(8, lse.shape)])
    return [out.detach(), lse.detach(), *grads]


def qkv(b=2, heads=2, kv_heads=1, tq=20, tk=23, d=8, dv=6, dtype=torch.float32):
    shapes = ((b, heads, tq, d), (b, kv_heads, tk, d), (b, kv_heads, tk, dv))
    return [drawn(i, shape, dtype) for i, shape in enumerate(shapes)]


# Rows 0 … 16 of 20 see nothing.
SEE_NOTHING = {
    "mask": lambda: {"mask": shown((slice(0, 17),), shape=(20, 3))},
    "causal": lambda: {"causal": "bottom_right"},
    "window": lambda: {"window": (0, 0)},
    "mask and causal": lambda: {
        "causal": "top_left",
        "mask": shown((slice(0, 17),), shape=(20, 3)),
    },
}


@pytest.mark.parametrize("spoilt", [None, NAN, INF])
@pytest.mark.parametrize("why", SEE_NOTHING)
def test_edge_2_rows_that_see_nothing(why, spoilt):
    query, key, value = qkv(tk=3)
    d_out, bias = drawn(9, (2, 2, 20, 6)), drawn(7, (20, 3))
    clean = results(query, key, value, d_out, bias, **SEE_NOTHING[why]())
    if spoilt is not None:  # what such a query and its gradient hold reaches nothing either
        query[:, :, :17], d_out[:, :, :17] = spoilt, spoilt
    out, lse, *grads = found = results(query, key, value, d_out, bias, **SEE_NOTHING[why]())
    assert not out[:, :, :17].any()
    assert bool(lse[:, :, :17].isneginf().all()) and bool(lse[:, :, 17:].isfinite().all())
    assert not grads[0][:, :, :17].any() and not grads[3][:17].any()
    assert all(bool(g.isfinite().all()) for g in grads)
    assert bool(out[:, :, 17:].any()) and bool(grads[0][:, :, 17:].any())
    assert all(bits_equal(a, b) for a, b in zip(found, clean, strict=True))


@pytest.mark.parametrize("sinks", [False, True])
def test_edge_2_no_keys(sinks):
    query, key, value = (x.requires_grad_() for x in qkv(tk=0))
    sinks = torch.tensor([0.5, -2.0], device=DEVICE) if sinks else None
    out, lse = attention(query, key, value, sinks=sinks, return_lse=True)
    assert not out.any() and out.shape == (2, 2, 20, 6)
    if sinks is None:
        assert bool(lse.isneginf().all())
    else:
        torch.testing.assert_close(lse, sinks[:, None].expand(2, 2, 20))
    out.sum().backward()
    assert not query.grad.any() and key.grad.shape == key.shape


@pytest.mark.parametrize("spoilt", [NAN, INF])
def test_edge_3_a_spoilt_logit_makes_nan_in_its_row_alone(spoilt):
    query, key, value = qkv()
    bias = drawn(3, (2, 2, 20, 23))
    clean = results(query, key, value, bias=bias)
    bias[1, 0, 18, 20] = spoilt
    found = results(query, key, value, bias=bias)
    for name, a, b in zip(("out", "lse", "d_query"), found, clean, strict=False):
        assert bool(a[1, 0, 18].isnan().all()), name
        a[1, 0, 18] = b[1, 0, 18]
        assert bits_equal(a, b), name


def test_edge_3_nan_in_a_query_stays_in_its_row():
    query, key, value = qkv()
    clean = attention(query, key, value)
    query[0, 1, 5, 2] = NAN
    out = attention(query, key, value)
    assert bool(out[0, 1, 5].isnan().all())
    out[0, 1, 5] = clean[0, 1, 5]
    assert bits_equal(out, clean)


# What no query may see: the mask's columns, keys after the last query, keys outside every window.
UNSEEN = {
    "mask": (23, lambda: {"mask": shown((..., slice(3, 5)), (..., 22), shape=(20, 23))}),
    "mask of each head": (23, lambda: {"mask": shown((..., slice(0, 17)), shape=(2, 1, 1, 23))}),
    "top_left": (40, lambda: {"causal": "top_left"}),
    "window": (40, lambda: {"causal": "bottom_right", "window": (3, 0)}),
    "mask and window": (
        40,
        lambda: {"window": (2, 2), "mask": shown((..., slice(30, 34)), shape=(1, 40))},
    ),
}


@pytest.mark.parametrize("poison", [NAN, INF, 3e38])
@pytest.mark.parametrize("why", UNSEEN)
def test_edge_4_what_no_query_may_see_reaches_nothing(why, poison):
    tk, options = UNSEEN[why]
    query, key, value = qkv(tk=tk)
    hidden = {
        "mask": [3, 4, 22],
        "mask of each head": range(17),
        "top_left": range(20, 40),
        "window": range(17),
        "mask and window": [*range(18), *range(30, 34)],
    }[why]
    hidden = list(hidden)
    clean = results(query, key, value, **options())
    key[:, :, hidden], value[:, :, hidden] = poison, poison
    found = results(query, key, value, **options())
    for name, a, b in zip(("out", "lse", "d_query", "d_key", "d_value"), found, clean, strict=True):
        assert bits_equal(a, b), name
    assert not found[3][:, :, hidden].any() and not found[4][:, :, hidden].any()


@pytest.mark.parametrize("through", ["products", "bias"])
def test_edge_5_huge_half_precision_logits(through):
    half = {"dtype": torch.float16, "device": DEVICE}
    value = torch.tensor([[1.0, 2.0], [3.0, 4.0]], **half).view(1, 1, 2, 2)
    if through == "products":
        query = torch.tensor([[240.0]], **half).view(1, 1, 1, 1)
        key = torch.tensor([[250.0], [-250.0]], **half).view(1, 1, 2, 1)
        found = results(query, key, value, scale=1.0)
        largest = 6e4
    else:
        query, key = torch.zeros(1, 1, 1, 1, **half), torch.zeros(1, 1, 2, 1, **half)
        bias = torch.tensor([6e4, -6e4], **half).view(1, 1, 1, 2)
        found, largest = results(query, key, value, bias=bias), float(bias[0, 0, 0, 0])
    out, lse, *grads = found
    assert out.flatten().tolist() == [1.0, 2.0]
    assert lse.item() == pytest.approx(largest, rel=1e-6)
    assert all(bool(g.isfinite().all()) for g in grads)


@pytest.mark.parametrize("b, heads, tq", [(0, 2, 5), (2, 2, 0), (2, 0, 5)])
def test_edge_6_empty(b, heads, tq):
    if heads == 0:
        with pytest.raises(ValueError, match="0 query heads can't share 0 key heads"):
            attention(*qkv(heads=0, kv_heads=0))
        return
    query, key, value = (x.requires_grad_() for x in qkv(b=b, tq=tq, dtype=torch.float16))
    bias = drawn(0, (1, 2, 1, 23)).requires_grad_()
    sinks = drawn(0, (2,)).requires_grad_()
    out, lse = attention(query, key, value, bias=bias, sinks=sinks, return_lse=True)
    assert (out.shape, out.dtype) == ((b, heads, tq, 6), torch.float16)
    assert (lse.shape, lse.dtype) == ((b, heads, tq), torch.float32)
    (out.sum() + lse.sum()).backward()
    for leaf in (query, key, value, bias, sinks):
        assert (leaf.grad.shape, leaf.grad.dtype) == (leaf.shape, leaf.dtype)
        assert not leaf.grad.any()


def test_edge_6_an_empty_cache():
    query, key, value = qkv(b=0)
    lengths = torch.zeros(0, dtype=torch.int32, device=DEVICE)
    out, lse = attention(query, key, value, key_lengths=lengths, return_lse=True)
    assert (out.shape, lse.shape) == ((0, 2, 20, 6), (0, 2, 20))


@pytest.mark.parametrize("causal", [None, "bottom_right"])
@pytest.mark.parametrize("length", [1, 2, 5, 17, 127, 129])
def test_edge_7_lengths(length, causal):
    check(Case(batch=1, kv_heads=1, groups=1, tq=length, tk=length, causal=causal, tile=(32, 32)))


@pytest.mark.parametrize("dim", [1, 3, 21, 59, 111, 203, 256])
def test_edge_8_head_dims(dim):
    case = Case(batch=1, kv_heads=1, groups=2, tq=5, tk=18, d=dim, dv=dim)
    check(case)
    check(replace(case, dv=7, dtype=torch.float16, causal="bottom_right"))


def test_edge_8_head_dims_beyond_the_largest():
    with pytest.raises(ValueError, match=r"head_dim must be from 1 to 256, got 257 \(query \(2, 2"):
        attention(*qkv(d=257))
    with pytest.raises(ValueError, match="value head_dim must be from 1 to 256, got 257"):
        attention(*qkv(dv=257))
    with pytest.raises(ValueError, match="head_dim must be from 1 to 256, got 0"):
        attention(*qkv(d=0))


def test_edge_9_a_mask_and_causal_both_hold():
    query, key, value = qkv()
    mask = drawn(4, (2, 1, 20, 23)) > -0.5
    below = torch.ones(20, 23, dtype=torch.bool, device=DEVICE).tril(3)
    both = results(query, key, value, mask=mask, causal="bottom_right")
    joined = results(query, key, value, mask=mask & below)
    for a, b in zip(both, joined, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert not torch.allclose(both[0], results(query, key, value, mask=mask)[0])


def test_edge_10_six_query_heads_over_four_key_heads():
    with pytest.raises(ValueError, match="6 query heads can't share 4 key heads; the first must"):
        attention(*qkv(heads=6, kv_heads=4))


@pytest.mark.parametrize("shape", [(1, 2, 23), (2, 1, 23), (2, 2, 1), (1, 1, 1)])
def test_edge_11_expanded_keys_and_values_sum_their_gradients(shape):
    query, *_ = qkv()
    key, value = (drawn(i, (*shape, n)).requires_grad_() for i, n in ((1, 8), (2, 6)))
    full = [x.detach().expand(2, 2, 23, -1).contiguous() for x in (key, value)]
    bias = drawn(3, (20, 23))
    expected = results(query, *full, bias=bias)
    with tiles():
        expanded = [x.expand(2, 2, 23, -1) for x in (key, value)]
        out, lse = attention(query, *expanded, bias=bias, return_lse=True)
        ends = [drawn(9, out.shape), drawn(8, lse.shape)]
        grads = torch.autograd.grad([out, lse], [key, value], ends)
    assert bits_equal(out, expected[0])
    for grad, whole, leaf in zip(grads, expected[3:5], (key, value), strict=True):
        torch.testing.assert_close(grad, whole.sum_to_size(leaf.shape), rtol=1e-5, atol=1e-5)


def test_edge_11_an_expanded_mask_is_read_where_it_lies(monkeypatch):
    query, key, value = qkv()
    mask = drawn(4, (20, 1)) > -0.5
    seen, real = [], launch.launch

    def spy(*args, **kwargs):
        seen.append(kwargs.get("p_mask"))
        return real(*args, **kwargs)

    expected = results(query, key, value, mask=mask.expand(2, 2, 20, 23).contiguous())
    monkeypatch.setattr(launch, "launch", spy)
    found = results(query, key, value, mask=mask.expand(2, 2, 20, 23))
    assert all(bits_equal(a, b) for a, b in zip(found, expected, strict=True))
    storage = {m.untyped_storage().data_ptr() for m in seen if m is not None}
    assert storage == {mask.untyped_storage().data_ptr()}


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32])
def test_edge_12_a_mask_that_is_not_bool(dtype):
    with pytest.raises(TypeError, match=r"mask must be bool \(True takes part\), got torch\."):
        attention(*qkv(), torch.ones(23, dtype=dtype, device=DEVICE))


def test_edge_13_dropout_of_0_is_the_identity():
    plain, dropped = (results(*qkv(), **p) for p in ({}, {"dropout_p": 0.0, "seed": 5}))
    assert all(bits_equal(a, b) for a, b in zip(plain, dropped, strict=True))


@pytest.mark.parametrize("poison", [None, INF])
def test_edge_13_dropout_of_1_gives_zeros(poison):
    query, key, value = qkv()
    if poison is not None:
        value[:, :, 4] = poison
    leaves = [x.requires_grad_() for x in (query, key, value)]
    out = attention(*leaves, dropout_p=1.0, seed=0)
    assert not out.any()
    out.sum().backward()
    assert not any(bool(x.grad.any()) for x in leaves)


@pytest.mark.parametrize("p", [-0.1, 1.5, NAN])
def test_edge_13_dropout_outside_0_to_1(p):
    with pytest.raises(ValueError, match=rf"dropout_p must be in \[0, 1\], got {p}"):
        attention(*qkv(), dropout_p=p)


def test_edge_13_backward_drops_what_forward_dropped():
    # With V = 1 the output is the sum of the weights kept, and dV of a key its column's sum.
    query, key, _ = qkv(kv_heads=2, dv=1)
    value = torch.ones(2, 2, 23, 1, device=DEVICE).requires_grad_()
    torch.manual_seed(3)
    out = attention(query, key, value, dropout_p=0.5)
    torch.manual_seed(3)
    assert bits_equal(out, attention(query, key, value, dropout_p=0.5))
    assert not torch.equal(out, attention(query, key, value, dropout_p=0.5))
    out.sum().backward()
    totals = [x.sum((2, 3)) for x in (out, value.grad)]
    torch.testing.assert_close(*totals, rtol=1e-5, atol=1e-5)


def far_apart(x, at=0, memory=[]):  # noqa: B006 - one piece of memory for all
    """The same numbers, rows (the second last dimension) a billion elements apart.

    Of the memory only the pages of these rows are ever touched.
    """
    apart = 2**30 + 24
    rows = x.shape[-2]
    if not memory:
        memory.append(torch.empty(2 * apart + 4096, dtype=torch.float16, device=DEVICE))
    assert rows <= 3 and at + x.numel() <= 4096
    strides = torch.empty(*x.shape[:-2], x.shape[-1]).stride()
    view = memory[0].as_strided(x.shape, (*strides[:-1], apart, 1), at)
    return view.copy_(x)


def test_edge_14_offsets_beyond_two_to_the_31():
    query, key, value = qkv(b=1, kv_heads=2, tq=3, tk=3, dtype=torch.float16)
    d_out, bias = drawn(9, (1, 2, 3, 6), torch.float16), drawn(7, (1, 2, 3, 3), torch.float16)
    expected = results(query, key, value, d_out, bias)
    ours = [far_apart(x, 256 * i) for i, x in enumerate((query, key, value, d_out, bias))]
    assert max(s * n for s, n in zip(ours[0].stride(), (1, 1, 2, 8), strict=True)) >= 2**31
    found = results(*ours)
    assert all(bits_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("paged", [False, True])
def test_edge_14_a_cache_of_more_than_two_to_the_31_elements(paged):
    if paged:  # three pages, of sixteen keys each: the page is the dimension that is far apart
        key, value = (drawn(i, (3, 2, 16, 4), torch.float16) for i in (1, 2))
        laid = []
        for i, x in enumerate((key, value)):
            flat = x.reshape(3, 128)
            laid.append(far_apart(flat, 512 * i).as_strided((3, 2, 16, 4), (2**30 + 24, 64, 4, 1)))
        table = torch.tensor([[2, 0], [1, 2]], dtype=torch.int32, device=DEVICE)
        lengths = [20, 31]
    else:
        key, value = (drawn(i, (2, 2, 3, 4), torch.float16) for i in (1, 2))
        laid, table, lengths = (
            [far_apart(x, 512 * i) for i, x in enumerate((key, value))],
            None,
            [3, 2],
        )
    options = {
        "key_lengths": torch.tensor(lengths, dtype=torch.int32, device=DEVICE),
        "block_table": table,
    }
    query = drawn(0, (2, 4, 1, 4), torch.float16)
    with tiles():
        assert bits_equal(
            attention(query, *laid, **options), attention(query, key, value, **options)
        )


def heads_last(x):
    """(B, T, H, D) in memory, as a linear layer leaves it."""
    return contiguous(x.transpose(1, 2)).transpose(1, 2)


LAID_OUT = Case(
    batch=1,
    kv_heads=1,
    causal="bottom_right",
    mask=(True, False, True),
    bias=(False, True, True),
    sinks=True,
    alibi=True,
)


@pytest.mark.parametrize("layout", [*LAYOUTS, heads_last])
def test_edge_15_strides_and_alignment_change_no_bit(layout):
    x = operands(LAID_OUT)
    expected, found = run(LAID_OUT, x), run(replace(LAID_OUT, layout=layout), x)
    assert all(bits_equal(found[name], expected[name]) for name in expected)


def test_edge_15_gradients_of_stride_0():
    leaves = [x.requires_grad_() for x in qkv()]
    out = attention(*leaves)
    expected = torch.autograd.grad(out, leaves, torch.ones_like(out), retain_graph=True)
    found = torch.autograd.grad(out.sum(), leaves)  # expanded from one number
    assert all(bits_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("causal", [None, "top_left"])
def test_edge_16_walls_stay_intact_and_unread(monkeypatch, layout, causal):
    case = replace(LAID_OUT, causal=causal, layout=layout, d=5, dv=17, tq=17, tk=19)
    x = operands(case)
    before = {n: t.clone() for n, t in vars(x).items()}
    with walls(monkeypatch) as buffers:
        found = run(case, x)
    assert len(buffers) == 7  # out, the statistics, Δ, and the gradients but for the sinks'
    assert all(bool(t.isfinite().all()) for t in found.values())
    assert all(bits_equal(t, before[n]) for n, t in vars(x).items())


@pytest.mark.parametrize("packed", [False, True])
def test_edge_16_inputs_stay_as_they_were(monkeypatch, packed):
    given = [drawn(i, (20, 2, 8)) for i in range(3)] if packed else qkv()
    cu = torch.tensor([0, 3, 20], dtype=torch.int32, device=DEVICE)
    options = {"cu_seqlens_q": cu, "cu_seqlens_k": cu} if packed else {}
    before = [x.clone() for x in given]
    with walls(monkeypatch):
        found = results(*given, **options)
    assert all(bool(x.isfinite().all()) for x in found)
    assert all(bits_equal(a, b) for a, b in zip(given, before, strict=True))
    assert cu.tolist() == [0, 3, 20]


def test_edge_16_walls_of_decoding(monkeypatch):
    query, key, value = qkv(tq=1, tk=40)
    lengths = torch.tensor([33, 7], dtype=torch.int32, device=DEVICE)
    for b, n in enumerate((33, 7)):
        key[b, :, n:], value[b, :, n:] = NAN, NAN
    with walls(monkeypatch), tiles():
        out = attention(query, key, value, key_lengths=lengths)
    assert bool(out.isfinite().all())


def test_edge_17_grids_have_one_dimension(monkeypatch):
    grids = []

    def record(kernel, grid, configs, key=(), **args):
        blocks = {"BLOCK_M": 16, "BLOCK_N": 16}
        grids.append(grid(blocks) if callable(grid) else grid)

    monkeypatch.setattr(launch, "launch", record)
    b, heads = 500, 140  # of 70,000 slices
    x = torch.empty(b, heads, 1, 4, device="meta")
    bias = torch.empty(b, heads, 1, 1, device="meta")
    asked = problem(x, x, x, None, bias, *[None] * 4, 1, 1, None, None, True, 0.5, None, 0.0, 0)
    out, stats = forward(asked)
    backward(asked, out, stats, out, None, bias_shape=(b, heads, 1))
    decode(replace(asked, bias=None), splits=1)
    # forward; Δ, keys, queries, bias; decode and merge (of 16 rows a program)
    assert grids == [b * heads] * 6 + [b * heads // 16]
    assert all(type(grid) is int for grid in grids)


@pytest.mark.skipif(not ON_GPU, reason="there are no streams without a GPU")
def test_edge_18_the_current_stream_is_used():
    leaves = [x.requires_grad_() for x in qkv()]
    expected = scaled_dot_product_attention(*leaves, enable_gqa=True)
    expected_grads = torch.autograd.grad(expected.sum(), leaves)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**8)
        late = [x * 1 for x in leaves]
        out = scaled_dot_product_attention(*late, enable_gqa=True)
        grads = torch.autograd.grad(out.sum(), leaves)
    stream.synchronize()
    assert bits_equal(out, expected)
    assert all(bits_equal(a, b) for a, b in zip(grads, expected_grads, strict=True))


@pytest.mark.skipif(not ON_GPU or torch.cuda.device_count() < 2, reason="there is one GPU at most")
def test_edge_18_the_tensors_own_device_is_used():
    given = qkv()
    expected = attention(*given)
    out = attention(*(x.to("cuda:1") for x in given))
    assert out.device == torch.device("cuda:1")
    assert bits_equal(out.to(DEVICE), expected)
