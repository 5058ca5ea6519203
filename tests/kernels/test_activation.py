"""gelu, silu and swiglu in Triton: exact values and gradients for any shape and strides."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel_calls import (
    DEVICE,
    DTYPES,
    GRADIENT,
    LAYOUTS,
    ON_GPU,
    OUTPUT,
    assert_near,
    bits_equal,
    dtypes,
    seeds,
    walls,
)

# isort: split
import torch
import torch.nn.functional as F

from glassformer_kernels import elementwise, launch
from glassformer_kernels.launch import Config
from glassformer_kernels.ops.activation import gelu, silu, swiglu
from tests.exact_calls import check, exact, far_apart, padded, run
from tests.row_calls import drawn, launched

INF, NAN = float("inf"), float("nan")
layouts = st.sampled_from((*LAYOUTS, padded))
shapes = st.one_of(
    st.lists(st.integers(1, 6), min_size=0, max_size=3).map(tuple),
    st.tuples(st.integers(1, 4), st.sampled_from((1, 2, 5, 17, 127, 129))),
)
magnitudes = st.sampled_from((0.1, 1.0, 5.0, 100.0))
KINDS = {
    "gelu": (gelu, F.gelu, {}),
    "gelu_tanh": (gelu, F.gelu, {"approximate": "tanh"}),
    "silu": (silu, F.silu, {}),
}


def small_tiles(rows, columns):
    """Force tiles so small that most tensors take several, in either direction."""
    tile = Config({"BLOCK_M": rows, "BLOCK_N": columns})
    names = ("activation_forward", "activation_backward", "swiglu_forward", "swiglu_backward")
    return launch.use_config(**dict.fromkeys(names, tile))


tile_rows, tile_columns = st.sampled_from((2, 4, 8)), st.sampled_from((16, 64))


@given(
    st.sampled_from(sorted(KINDS)), shapes, dtypes, layouts, layouts, magnitudes, seeds,
    tile_rows, tile_columns,
)  # fmt: skip
def test_value_and_gradient_are_the_references(
    kind, shape, dtype, layout, layout_g, magnitude, seed, rows, columns
):
    ours, eager, options = KINDS[kind]
    x = layout(drawn(seed, shape, dtype, magnitude)) if shape else drawn(seed, shape, dtype)
    g = layout_g(drawn(seed + 1, shape, dtype)) if shape else drawn(seed + 1, shape, dtype)
    with small_tiles(rows, columns):
        mine = run(lambda x: ours(x, **options), (x,), g)
    theirs = run(lambda x: eager(x, **options), (x,), g)
    check(kind, mine, exact(kind.partition("_")[0], (x,), g, **options), theirs)
    assert mine[0].is_contiguous()


@given(shapes, dtypes, layouts, layouts, magnitudes, seeds, tile_rows, tile_columns)
def test_swiglu_and_its_gradients_are_the_references(
    shape, dtype, layout_gate, layout_up, magnitude, seed, rows, columns
):
    gate, up = drawn(seed, shape, dtype, magnitude), drawn(seed + 1, shape, dtype)
    if shape:
        gate, up = layout_gate(gate), layout_up(up)
    g = drawn(seed + 2, shape, dtype)
    with small_tiles(rows, columns):
        mine = run(swiglu, (gate, up), g)
    theirs = run(lambda gate, up: F.silu(gate) * up, (gate, up), g)
    check("swiglu", mine, exact("swiglu", (gate, up), g), theirs)


@given(st.integers(1, 5), st.integers(1, 40), dtypes, seeds, tile_rows, tile_columns)
def test_halves_of_one_tensor_are_read_where_they_lie(n, width, dtype, seed, rows, columns):
    whole = drawn(seed, (n, 2 * width), dtype)
    gate, up = whole.chunk(2, -1)
    seen = elementwise.as_rows(gate, up)
    assert [x.data_ptr() for x in seen] == [gate.data_ptr(), up.data_ptr()]
    g = drawn(seed + 1, (n, width), dtype)
    with small_tiles(rows, columns):
        mine = run(swiglu, (gate, up), g)
        apart = run(swiglu, (gate.contiguous(), up.contiguous()), g)
    assert all(map(bits_equal, mine, apart))


@given(st.sampled_from(sorted(KINDS)), st.integers(1, 130), dtypes, seeds, tile_columns)
def test_each_element_is_on_its_own(kind, length, dtype, seed, columns):
    """Reordering the elements reorders the results, bit by bit."""
    ours, _, options = KINDS[kind]
    x, g = drawn(seed, (length,), dtype, 3.0), drawn(seed + 1, (length,), dtype)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(x.numel())).to(DEVICE)
    with small_tiles(1, columns):
        straight = run(lambda x: ours(x, **options), (x,), g)
        mixed = run(lambda x: ours(x, **options), (x[order],), g[order])
    for a, b in zip(straight, mixed, strict=True):
        assert bits_equal(a[order], b)


def test_known_values():
    x = torch.tensor([0.0, 1.0, -1.0], device=DEVICE)
    phi = 0.5 * (1 + math.erf(math.sqrt(0.5)))
    sigmoid = 1 / (1 + math.exp(-1))
    near = dict(rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gelu(x), torch.tensor([0, phi, phi - 1], device=DEVICE), **near)
    torch.testing.assert_close(
        silu(x), torch.tensor([0, sigmoid, sigmoid - 1], device=DEVICE), **near
    )
    assert swiglu(x, x)[0] == 0


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_far_from_0_it_is_the_identity_or_0(kind):
    ours, _, options = KINDS[kind]
    x = torch.tensor([1e4, -1e4, 200.0, -200.0], device=DEVICE)
    y, d = run(lambda x: ours(x, **options), (x,), torch.ones(4, device=DEVICE))
    assert y.tolist() == [1e4, 0, 200, 0] and d.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_infinities_and_nan_are_as_pytorchs(kind):
    ours, eager, options = KINDS[kind]
    x = torch.tensor([INF, -INF, NAN, 1.0], device=DEVICE)
    # in float64: PyTorch 2.13's gelu(inf) is NaN on a CPU in float32
    exact = eager(x.double(), **options).float()
    torch.testing.assert_close(ours(x, **options), exact, equal_nan=True)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_all_that_is_written_is_inside(kind, monkeypatch):
    ours, _, options = KINDS[kind]
    x, g = padded(drawn(1, (5, 37))), padded(drawn(2, (5, 37)))
    with walls(monkeypatch), small_tiles(2, 16):
        results = run(lambda x: ours(x, **options), (x,), g)
        results += run(swiglu, (x, g), g)
    assert all(x.isfinite().all() for x in results)


@pytest.mark.parametrize("dtype", DTYPES)
def test_200_repeats_are_bit_equal(dtype):
    gate, up, g = (drawn(seed, (2, 30), dtype) for seed in (1, 2, 3))
    with small_tiles(2, 16):
        first, *others = (run(swiglu, (gate, up), g) for _ in range(200))
    assert all(bits_equal(a, b) for other in others for a, b in zip(first, other, strict=True))


# ---- edge cases ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_edge_6_empty(shape, dtype):
    x = torch.empty(shape, dtype=dtype, device=DEVICE)
    for y in (*run(gelu, (x,), x), *run(swiglu, (x, x), x)):
        assert y.shape == shape and y.dtype == dtype


@pytest.mark.parametrize("length", [1, 2, 5, 17, 127, 129])
def test_edge_7_lengths(length):
    x, g = drawn(1, (3, length)), drawn(2, (3, length))
    torch.testing.assert_close(run(silu, (x,), g), run(F.silu, (x,), g))


def test_edge_11_expanded_inputs_sum_their_gradients():
    x, g = drawn(1, (1, 9)), drawn(2, (4, 9))
    up = drawn(3, (4, 9))

    def ours(x, up):
        return swiglu(x.expand(4, 9), up)

    def theirs(x, up):
        return F.silu(x.expand(4, 9)) * up

    torch.testing.assert_close(run(ours, (x, up), g), run(theirs, (x, up), g))
    (y, d) = run(gelu, (drawn(1, (3, 5)),), torch.ones((), device=DEVICE).expand(3, 5))
    assert y.shape == d.shape == (3, 5)


def test_edge_14_offsets_beyond_2_to_the_31():
    x = far_apart(drawn(1, (9,), torch.float16))
    g = drawn(2, (3, 9), torch.float16)
    for function, args in ((gelu, (x,)), (swiglu, (x, x)), (swiglu, (g, x))):
        far = run(function, args, g)
        assert all(map(bits_equal, far, run(function, [a.contiguous() for a in args], g)))


@pytest.mark.skipif(not ON_GPU, reason="70,000 programs take the interpreter minutes")
def test_edge_17_more_programs_than_65535():
    x, g = drawn(1, (70_000, 16)), drawn(2, (70_000, 16))
    with small_tiles(1, 16):
        torch.testing.assert_close(run(silu, (x,), g), run(F.silu, (x,), g))


# ---- operators, errors --------------------------------------------------------------------------


def test_operators_pass_opcheck():
    x, y = (drawn(seed, (3, 5)).requires_grad_() for seed in (1, 2))
    op, g = torch.ops.glassformer, drawn(3, (3, 5))
    for kind in KINDS:
        torch.library.opcheck(op.activation.default, (x, kind))
    torch.library.opcheck(op.activation_backward.default, (g, x.detach(), "gelu"))
    columns = drawn(4, (5, 3)).mT.requires_grad_()
    torch.library.opcheck(op.swiglu.default, (x, columns))
    torch.library.opcheck(op.swiglu_backward.default, (g, x.detach(), y.detach()))


def test_torch_compile_takes_it_whole():
    x = drawn(1, (4, 9)).requires_grad_()

    def function(x):
        return swiglu(gelu(x * 2, approximate="tanh"), silu(x)).sum()

    (expected,) = torch.autograd.grad(function(x), x)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert bits_equal(torch.autograd.grad(compiled(x), x)[0], expected)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "gelu: x must be float32, .* got torch.float64",
         lambda x: gelu(x.double())),
        (TypeError, "silu: x must be float32, .* got torch.int64", lambda x: silu(x.long())),
        (ValueError, "gelu: approximate must be 'none' or 'tanh', got True",
         lambda x: gelu(x, approximate=True)),
        (TypeError, "swiglu: .* gate torch.float32, up torch.float16",
         lambda x: swiglu(x, x.half())),
        (ValueError, r"swiglu: .* got \(2, 3\) and \(1, 3\)", lambda x: swiglu(x, x[:1])),
        (ValueError, "swiglu: .* up on meta", lambda x: swiglu(x, x.to("meta"))),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit(error, message, call):
    with launched() as names, pytest.raises(error, match=message):
        call(torch.zeros((2, 3), device=DEVICE))
    assert names == []


@pytest.mark.skipif(ON_GPU, reason="bfloat16 is among the dtypes there")
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_bfloat16_where_nothing_is_multiplied(kind):
    ours, eager, options = KINDS[kind]
    x, g = (drawn(seed, (4, 33), torch.bfloat16) for seed in (1, 2))
    mine = run(lambda x: ours(x, **options), (x,), g)
    theirs = run(lambda x: eager(x, **options), (x,), g)
    true = exact(kind.partition("_")[0], (x,), g, **options)
    assert_near("value", mine[0], true[0], theirs[0], OUTPUT)
    assert_near("gradient", mine[1], true[1], theirs[1], GRADIENT)
