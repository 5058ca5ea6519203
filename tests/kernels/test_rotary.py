"""Rotary embedding in Triton: the exact rotation and gradients, in place or not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel_calls import (
    DEVICE,
    DTYPES,
    LAYOUTS,
    ON_GPU,
    assert_near,
    bits_equal,
    dtypes,
    seeds,
    walls,
)

# isort: split
import torch

from glassformer_kernels import launch
from glassformer_kernels import rotary as kernels
from glassformer_kernels.launch import Config
from glassformer_kernels.ops.rotary import rotary_embedding, rotary_embedding_
from tests.exact_calls import check, exact, far_apart, padded, run
from tests.row_calls import drawn, launched

layouts = st.sampled_from((*LAYOUTS, padded))
halves = st.one_of(st.integers(1, 12), st.sampled_from((1, 32, 29)))
leads = st.lists(st.integers(1, 3), min_size=0, max_size=3)


def heads_first(x):
    """(B, H, T, D) as a projection gives it: heads beside each other in memory."""
    return padded(x.transpose(-3, -2)).transpose(-3, -2) if x.ndim > 2 else padded(x)


@st.composite
def shapes(draw):
    """Shapes of x, and of cos and sin: (T, D/2) with leading dimensions that are there or 1."""
    lead, length, half = draw(leads), draw(st.integers(1, 6)), draw(halves)
    kept = draw(st.integers(0, len(lead)))
    table = [n if draw(st.booleans()) else 1 for n in lead[len(lead) - kept :]]
    return (*lead, length, 2 * half), (*table, length, half)


def tables(seed, shape, dtype=torch.float32):
    angles = drawn(seed, shape) * 3
    return angles.cos().to(dtype), angles.sin().to(dtype)


def eager(x, cos, sin):
    """Six lines as a user would write them, in x's dtype."""
    x1, x2 = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1)


def small_tiles(rows, columns):
    return launch.use_config(rotary=Config({"BLOCK_M": rows, "BLOCK_D": columns}))


tile_rows, tile_columns = st.sampled_from((2, 4, 16)), st.sampled_from((8, 32))


@given(
    shapes(), dtypes, st.one_of(layouts, st.just(heads_first)), layouts, st.booleans(), seeds,
    tile_rows, tile_columns,
)  # fmt: skip
def test_rotation_and_gradients_are_the_references(
    shape, dtype, layout, layout_g, wide_tables, seed, rows, columns
):
    of_x, of_table = shape
    x, g = layout(drawn(seed, of_x, dtype)), layout_g(drawn(seed + 1, of_x, dtype))
    cos, sin = tables(seed + 2, of_table, torch.float32 if wide_tables else dtype)
    args = x, layout_g(cos), layout_g(sin)
    with small_tiles(rows, columns):
        mine = run(rotary_embedding, args, g)
    check("rotary_embedding", mine, exact("rotary_embedding", args, g), run(eager, args, g))


@given(
    shapes(), dtypes, st.one_of(layouts, st.just(heads_first)), seeds, tile_rows, tile_columns
)  # fmt: skip
def test_in_place_is_the_same_bit_by_bit(shape, dtype, layout, seed, rows, columns):
    x, (cos, sin) = drawn(seed, shape[0], dtype), tables(seed + 2, shape[1])
    g = drawn(seed + 1, shape[0], dtype)
    given_x = layout(x)
    leaf = x.clone().requires_grad_()
    with small_tiles(rows, columns):
        out, d, *_ = run(rotary_embedding, (x, cos, sin), g)
        assert rotary_embedding_(given_x, cos, sin) is given_x
        in_place = rotary_embedding_(leaf * 1, cos, sin)
        (d_in_place,) = torch.autograd.grad(in_place, leaf, g)
    assert bits_equal(given_x, out) and bits_equal(in_place.detach(), out)
    assert bits_equal(d_in_place, d)


@given(shapes(), seeds, tile_rows, tile_columns)
def test_turning_back_gives_what_was_and_lengths_stay(shape, seed, rows, columns):
    x, (cos, sin) = drawn(seed, shape[0]), tables(seed + 2, shape[1])
    with small_tiles(rows, columns):
        there = rotary_embedding(x, cos, sin)
        back = rotary_embedding(there, cos, -sin)
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(there.norm(dim=-1), x.norm(dim=-1), rtol=1e-5, atol=1e-6)


def test_scores_depend_on_the_distance_alone():
    """⟨R_i q, R_j k⟩ is a function of i - j: Su et al. 2021, equation 16."""
    length, half = 12, 4
    angles = torch.arange(length, device=DEVICE)[:, None] * torch.tensor(
        [1.0, 0.3, 0.1, 0.03], device=DEVICE
    )
    q, k = (drawn(seed, (1, 2 * half)).expand(length, -1) for seed in (1, 2))
    q, k = (rotary_embedding(x, angles.cos(), angles.sin()) for x in (q, k))
    scores = q @ k.T
    torch.testing.assert_close(scores[1:, 1:], scores[:-1, :-1], rtol=1e-4, atol=1e-5)


def test_a_fused_projection_is_read_where_it_lies():
    whole = drawn(1, (2, 5, 3 * 4 * 8))  # (B, T, 3 H D)
    q = whole.view(2, 5, 3, 4, 8)[:, :, 1].transpose(1, 2)  # (B, H, T, D)
    cos, sin = tables(2, (5, 4))
    assert kernels._as_heads(q).data_ptr() == q.data_ptr()
    expected = rotary_embedding(q.contiguous(), cos, sin)
    others = whole.view(2, 5, 3, 4, 8)[:, :, ::2].clone()
    rotary_embedding_(q, cos, sin)
    assert bits_equal(q, expected)
    assert bits_equal(whole.view(2, 5, 3, 4, 8)[:, :, ::2], others)


def test_all_that_is_written_is_inside(monkeypatch):
    x, (cos, sin) = padded(drawn(1, (2, 5, 14))), tables(2, (5, 7))
    with walls(monkeypatch), small_tiles(4, 4):
        results = run(rotary_embedding, (x, padded(cos), padded(sin)), padded(drawn(3, (2, 5, 14))))
    assert all(x.isfinite().all() for x in results)


@pytest.mark.parametrize("dtype", DTYPES)
def test_200_repeats_are_bit_equal(dtype):
    x, (cos, sin), g = drawn(1, (2, 5, 14), dtype), tables(2, (5, 7)), drawn(3, (2, 5, 14), dtype)
    with small_tiles(4, 4):
        first, *others = (run(rotary_embedding, (x, cos, sin), g) for _ in range(200))
    assert all(bits_equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_second_derivatives():
    x, g = drawn(1, (3, 4)).requires_grad_(), drawn(2, (3, 4)).requires_grad_()
    cos, sin = tables(3, (3, 2))
    (d,) = torch.autograd.grad(rotary_embedding(x, cos, sin), x, g, create_graph=True)
    h = drawn(4, (3, 4))
    (dd,) = torch.autograd.grad(d, g, h)
    torch.testing.assert_close(dd, eager(h, cos, sin))  # d = Rᵀ g, so its derivative is R


# ---- edge cases ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4), (0, 3, 4), (3, 0)])
def test_edge_6_empty(shape):
    x = torch.empty(shape, device=DEVICE)
    cos, sin = tables(1, (shape[-2], shape[-1] // 2))
    for y, n in zip(run(rotary_embedding, (x, cos, sin), x), (x, x, cos, sin), strict=True):
        assert y.shape == n.shape
    assert rotary_embedding_(x, cos, sin) is x


@pytest.mark.parametrize("length", [1, 2, 5, 17, 127, 129])
def test_edge_7_lengths(length):
    x, (cos, sin), g = drawn(1, (length, 6)), tables(2, (length, 3)), drawn(3, (length, 6))
    torch.testing.assert_close(
        run(rotary_embedding, (x, cos, sin), g), run(eager, (x, cos, sin), g)
    )


@pytest.mark.parametrize("head_dim", [1, 3, 21, 59, 111, 203])
def test_edge_8_odd_head_dims_are_an_error_twice_them_are_not(head_dim):
    x, (cos, sin) = drawn(1, (3, 2 * head_dim)), tables(2, (3, head_dim))
    torch.testing.assert_close(rotary_embedding(x, cos, sin), eager(x, cos, sin))
    with pytest.raises(ValueError, match="D even, got"):
        rotary_embedding(x[:, :head_dim], cos, sin)


def test_edge_11_expanded_arguments_sum_their_gradients():
    x, (cos, sin), g = drawn(1, (1, 3, 6)), tables(2, (1, 3)), drawn(3, (4, 3, 6))

    def expanded(function):
        return lambda x, cos, sin: function(
            x.expand(4, 3, 6), cos.expand(4, 3, 3), sin.expand(3, 3)
        )

    args = x, cos, sin
    torch.testing.assert_close(
        run(expanded(rotary_embedding), args, g), run(expanded(eager), args, g)
    )


def test_edge_14_offsets_beyond_2_to_the_31():
    x, (cos, sin) = far_apart(drawn(1, (8,), torch.float16)), tables(2, (3, 4))
    expected = rotary_embedding(x.contiguous(), cos, sin)
    assert bits_equal(rotary_embedding(x, cos, sin), expected)
    assert bits_equal(rotary_embedding_(x, cos, sin), expected)


@pytest.mark.skipif(not ON_GPU, reason="70,000 programs take the interpreter minutes")
def test_edge_17_more_programs_than_65535():
    x, (cos, sin) = drawn(1, (140_000, 4)), tables(2, (140_000, 2))
    with small_tiles(2, 2):
        torch.testing.assert_close(rotary_embedding(x, cos, sin), eager(x, cos, sin))


# ---- operators, errors --------------------------------------------------------------------------


def test_operators_pass_opcheck():
    x, (cos, sin) = drawn(1, (2, 3, 6)), tables(2, (3, 3))
    op = torch.ops.glassformer
    torch.library.opcheck(op.rotary_embedding_.default, (x.clone(), cos, sin))
    for tensor in (x, cos, sin):
        tensor.requires_grad_()
    torch.library.opcheck(op.rotary_embedding.default, (x, cos, sin, False))
    columns = drawn(3, (2, 6, 3)).mT.requires_grad_()
    torch.library.opcheck(op.rotary_embedding.default, (columns, cos, sin, True))


# PyTorch 2.13's tracing warns of what it does itself.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("function", [rotary_embedding, rotary_embedding_])
def test_torch_compile_takes_it_whole(function):
    x, (cos, sin) = drawn(1, (3, 6)).requires_grad_(), tables(2, (3, 3))

    def loss(x):
        return function(x * 2, cos, sin).square().sum()

    (expected,) = torch.autograd.grad(loss(x), x)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert bits_equal(torch.autograd.grad(compiled(x), x)[0], expected)


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, "x must be float32, float16 or bfloat16, got torch.float64",
         {"x": torch.zeros(3, 6, dtype=torch.float64)}),
        (TypeError, "cos must be float32 or torch.float32 as x, got torch.float16",
         {"cos": torch.zeros(3, 3, dtype=torch.float16)}),
        (ValueError, r"x must be \(..., T, D\) with D even, got \(3, 5\)",
         {"x": torch.zeros(3, 5)}),
        (ValueError, r"x must be \(..., T, D\) with D even, got \(6,\)", {"x": torch.zeros(6)}),
        (ValueError, r"cos \(4, 3\) can't be broadcast to \(3, 3\)", {"cos": torch.zeros(4, 3)}),
        (ValueError, r"sin \(2, 3, 3\) can't be broadcast to \(3, 3\)",
         {"sin": torch.zeros(2, 3, 3)}),
        (ValueError, "sin on meta", {"sin": torch.zeros(3, 3, device="meta")}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("function", [rotary_embedding, rotary_embedding_])
def test_arguments_that_do_not_fit(function, error, message, changes):
    given = {"x": torch.zeros(3, 6), "cos": torch.zeros(3, 3), "sin": torch.zeros(3, 3)}
    given = {k: x if x.is_meta else x.to(DEVICE) for k, x in {**given, **changes}.items()}
    with launched() as names, pytest.raises(error, match=f"{function.__name__}: .*{message}"):
        function(**given)
    assert names == []


def test_in_place_where_it_can_not_be():
    x, (cos, sin) = drawn(1, (3, 6)), tables(2, (3, 3))
    with pytest.raises(RuntimeError, match="share memory"):
        rotary_embedding_(x[:1].expand(3, 6), cos, sin)
    with pytest.raises(RuntimeError, match="can't get gradients where x is overwritten"):
        rotary_embedding_(x, cos.requires_grad_(), sin)
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        rotary_embedding_(x.requires_grad_(), cos.detach(), sin)


@pytest.mark.skipif(ON_GPU, reason="bfloat16 is among the dtypes there")
def test_bfloat16_where_nothing_is_multiplied():
    x, (cos, sin) = drawn(1, (5, 8), torch.bfloat16), tables(2, (5, 4))
    g = drawn(3, (5, 8), torch.bfloat16)
    mine, true = (
        run(rotary_embedding, (x, cos, sin), g),
        exact("rotary_embedding", (x, cos, sin), g),
    )
    theirs = run(eager, (x, cos, sin), g)
    for name, a, b, c, factor in zip(("out", "d_x"), mine, true, theirs, (2, 3), strict=False):
        assert_near(name, a, b, c, factor)
