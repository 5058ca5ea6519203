"""softmax and log_softmax in Triton: the exact result, every gradient, both kinds of kernel."""

from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.kernel_calls import (
    DEVICE,
    DTYPES,
    GRADIENT,
    assert_near,
    bits_equal,
    contiguous,
    dtypes,
    layouts,
    seeds,
    walls,
)

torch = pytest.importorskip("torch")

import glassformer as gf  # noqa: E402 - after the skips
from glassformer import fused  # noqa: E402
from glassformer_kernels import launch  # noqa: E402
from glassformer_kernels.launch import Config  # noqa: E402
from glassformer_kernels.ops import softmax as ops  # noqa: E402
from tests.row_calls import (  # noqa: E402
    drawn,
    drawn_mask,
    far_off,
    largest_errors,
    launched,
    limits,
)

# The package's attribute of that name is the public function.
kernels = import_module("glassformer_kernels.softmax")

INF, NAN = float("inf"), float("nan")
CAUSAL = (None, "top_left", "bottom_right")
shapes = st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 24)).flatmap(
    lambda shape: st.sampled_from((shape, shape[1:], shape[2:]))
)


@contextmanager
def online(tile):
    """Take the online kernels for rows of any length, in tiles this small."""
    small = Config({"BLOCK_N": tile, "STAGES": 1})
    forced = launch.use_config(softmax_online_forward=small, softmax_online_backward=small)
    with limits(LONGEST_FORWARD=(kernels, 0), LONGEST_BACKWARD=(kernels, 0)), forced:
        yield


def blocks(rows):
    """Take the kernels that hold whole rows, this many at once."""
    config = Config({"BLOCK_M": rows})
    return launch.use_config(softmax_forward=config, softmax_backward=config)


fewer = settings(max_examples=settings.default.max_examples * 2 // 5)  # of what costs more
paths = st.sampled_from(("blocks of two rows", "blocks of four rows", "tiles of 4", "tiles of 16"))
PATHS = {
    "blocks of two rows": lambda: blocks(2),
    "blocks of four rows": lambda: blocks(4),
    "tiles of 4": lambda: online(4),
    "tiles of 16": lambda: online(16),
    "default": nullcontext,
}


def seen(shape, causal, mask):
    """Which elements take part, (shape) bool, from the definition."""
    visible = torch.ones(shape, dtype=torch.bool, device=DEVICE)
    if causal is not None:
        queries, keys = shape[-2:]
        visible = visible.tril(keys - queries if causal == "bottom_right" else 0)
    return visible if mask is None else visible & mask


def exact(x, g, visible, scale, log, dim=-1):
    """Result and gradient of the engine's composite in float64. g counts where it is visible."""
    x, g = (t.double().cpu().numpy() for t in (x, g))
    visible = visible.cpu().numpy()
    name = "log_softmax" if log else "softmax"
    leaf = gf.tensor(x).requires_grad_()
    with fused.use(**{name: "reference"}):
        z = gf.where(gf.tensor(visible), leaf * scale, -np.inf)
        y = fused.registry.get(name)(z, dim=dim)
    y.backward(gf.tensor(np.where(visible, g, 0)))
    return y.detach().numpy(), leaf.grad.numpy()


def eager(x, g, visible, scale, log, dim=-1):
    """Result and gradient by PyTorch in the precision of x, as one would write it."""
    leaf = x.detach().clone().requires_grad_()
    z = leaf if scale == 1 else leaf * scale
    z = z if bool(visible.all()) else z.masked_fill(~visible, -INF)
    y = (torch.log_softmax if log else torch.softmax)(z, dim)
    y.backward(torch.where(visible, g, 0))
    return y.detach(), leaf.grad


def ours(x, g, log, dim=-1, **options):
    leaf = x.detach().requires_grad_()
    y = (ops.log_softmax if log else ops.softmax)(leaf, dim, **options)
    return y.detach(), torch.autograd.grad(y, leaf, g)[0]


def check(x, g, visible, scale=1.0, log=False, dim=-1, **options):
    y, dx = ours(x, g, log, dim, scale=scale, **options)
    assert y.dtype == dx.dtype == x.dtype
    references = [
        partial(f, visible=visible, scale=scale, log=log, dim=dim) for f in (exact, eager)
    ]
    exact_y, exact_dx = references[0](x, g)
    hidden = exact_y == -np.inf  # of log_softmax
    assert (y == -INF).equal(torch.from_numpy(hidden).to(DEVICE))
    exact_y[hidden] = 0
    errors = largest_errors(*references, (x, g))
    y = y.masked_fill(y == -INF, 0)
    assert_near("output", y, exact_y, far_off(exact_y, errors[0]))
    assert_near("gradient", dx, exact_dx, far_off(exact_dx, errors[1]), GRADIENT)


# ---- values and gradients -----------------------------------------------------------------------


@given(shapes, dtypes, layouts, layouts, paths, st.booleans(), st.sampled_from((0.1, 1, 8)), seeds)
def test_rows_of_any_shape_and_strides(
    shape, dtype, layout, gradient_layout, path, log, magnitude, seed
):
    x = layout(drawn(seed, shape, dtype, magnitude))
    g = gradient_layout(drawn(seed + 1, shape, dtype))
    with PATHS[path]():
        check(x, g, seen(shape, None, None), log=log)


@given(st.data(), dtypes, paths, st.booleans(), st.sampled_from(CAUSAL), seeds)
def test_mask_causal_and_scale(data, dtype, path, log, causal, seed):
    dims = data.draw(st.integers(2, 5))
    shape = tuple(data.draw(st.integers(1, 2)) for _ in range(dims - 2))
    shape = (*shape, data.draw(st.integers(1, 5)), data.draw(st.integers(1, 20)))
    masked = [data.draw(st.sampled_from((1, n))) for n in shape][data.draw(st.integers(0, dims)) :]
    mask = data.draw(layouts)(drawn_mask(seed, masked)) if data.draw(st.booleans()) else None
    scale = data.draw(st.sampled_from((1.0, 0.125, 3.0, -1.5)))
    x, g = drawn(seed, shape, dtype), drawn(seed + 1, shape, dtype)
    visible = seen(shape, causal, mask)
    with PATHS[path]():
        check(x, g, visible, scale, log, causal=causal, mask=mask)


@given(st.data(), dtypes, paths, st.booleans(), seeds)
def test_any_dim(data, dtype, path, log, seed):
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    mask = drawn_mask(seed, shape, 0.9) if data.draw(st.booleans()) else None
    x, g = drawn(seed, shape, dtype), drawn(seed + 1, shape, dtype)
    with PATHS[path]():
        check(x, g, seen(shape, None, mask), log=log, dim=dim, mask=mask)


@fewer
@given(shapes, dtypes, layouts, paths, st.booleans(), seeds)
def test_in_place(shape, dtype, layout, path, log, seed):
    source = drawn(seed, shape, dtype, 2)
    g = drawn(seed + 1, shape, dtype)
    leaf = source.clone().requires_grad_()
    x = layout(source)
    with PATHS[path]():
        expected, gradient = ours(source, g, log)
        doubled = leaf * 1
        y = (ops.log_softmax_ if log else ops.softmax_)(doubled)
        assert y is doubled
        y.backward(g)
        assert bits_equal(y.detach(), expected) and bits_equal(leaf.grad, gradient)
        again = (ops.log_softmax_ if log else ops.softmax_)(x)
        assert again.data_ptr() == x.data_ptr() and again.stride() == x.stride()
        assert bits_equal(x, expected)


@given(shapes, dtypes, paths, st.booleans(), seeds)
def test_gradient_written_over_what_it_comes_from(shape, dtype, path, log, seed):
    y = kernels.forward(drawn(seed, shape, dtype), log=log)
    g = drawn(seed + 1, shape, dtype)
    with PATHS[path]():
        expected = kernels.backward(g, y, log=log)
        for out in (g.clone(), y.clone()):
            over_g = out.equal(g)
            dx = kernels.backward(out if over_g else g, y if over_g else out, log=log, out=out)
            assert dx is out and bits_equal(out, expected)


@given(shapes, paths, st.floats(-50, 50), seeds)
def test_a_constant_added_to_a_row_changes_nothing(shape, path, constant, seed):
    # Numbers with few bits, so that the sum is exact and nothing but the kernel could differ.
    x = (drawn(seed, shape) * 16).round() / 16
    shift = round(constant * 16) / 16
    with PATHS[path]():
        assert bits_equal(ops.softmax(x), ops.softmax(x + shift))
        assert bits_equal(ops.log_softmax(x), ops.log_softmax(x + shift))


@fewer
@given(shapes, dtypes, paths, seeds)
def test_a_row_does_not_depend_on_the_others(shape, dtype, path, seed):
    x = drawn(seed, shape, dtype)
    g = drawn(seed + 1, shape, dtype)
    assume(len(x) > 1 and x.ndim > 1)
    with PATHS[path]():
        whole = ours(x, g, False)
        parts = [ours(x[i : i + 1], g[i : i + 1], False) for i in range(len(x))]
    for i, all_of_it in enumerate(whole):
        assert bits_equal(all_of_it, torch.cat([part[i] for part in parts]))


@fewer
@given(shapes, dtypes, paths, st.booleans(), st.sampled_from((NAN, INF, 6e4)), seeds)
def test_edge_4_what_hidden_elements_hold_reaches_nothing(shape, dtype, path, log, poison, seed):
    mask = drawn_mask(seed, shape[-2:])
    x, g = drawn(seed, shape, dtype), drawn(seed + 1, shape, dtype)
    with PATHS[path]():
        clean = ours(x, g, log, mask=mask)
        dirty = ours(x.masked_fill(~mask, poison), g.masked_fill(~mask, poison), log, mask=mask)
    for a, b in zip(clean, dirty, strict=True):
        assert bits_equal(a, b)


@fewer
@given(shapes, dtypes, layouts, paths, st.booleans(), seeds)
def test_edge_16_walls_stay_intact_and_unread(shape, dtype, layout, path, log, seed):
    mask = layout(drawn_mask(seed, shape, 0.9))
    x, g = layout(drawn(seed, shape, dtype)), layout(drawn(seed + 1, shape, dtype))
    with PATHS[path](), pytest.MonkeyPatch.context() as patch, walls(patch):
        y = kernels.forward(x, mask, log=log, scale=0.5)
        dx = kernels.backward(g, y, mask, log=log, scale=0.5)
    rows = mask.any(-1)
    assert not y[rows].isnan().any() and not dx.isnan().any()


# ---- which kernel -------------------------------------------------------------------------------


@pytest.mark.parametrize("n_cols", [1, 1000, 32_768, 32_769, 131_072, 262_144])
def test_rows_of_up_to_262144_and_the_kernel_they_take(n_cols):
    x, g = drawn(0, (2, n_cols), magnitude=3), drawn(1, (2, n_cols))
    with launched() as names:
        check(x, g, seen(x.shape, None, None))
    assert names == [
        "softmax_forward" if n_cols <= 32_768 else "softmax_online_forward",
        "softmax_backward" if n_cols <= 16_384 else "softmax_online_backward",
    ]


@pytest.mark.parametrize("log", [False, True])
def test_long_rows_with_a_mask_and_causal(log):
    shape = (1, 3, 33_000)
    x, g, mask = drawn(0, shape, torch.float16), drawn(1, shape, torch.float16), None
    mask = drawn_mask(2, shape[-1:])
    for causal in CAUSAL:
        with launched() as names:
            visible = seen(shape, causal, mask)
            visible[..., 0] = mask[0] = True
            check(x, g, visible, log=log, causal=causal, mask=mask)
        assert names == ["softmax_online_forward", "softmax_online_backward"]


@fewer
@given(shapes, st.booleans(), seeds)
def test_small_tiles_are_taken_where_they_are_forced(shape, log, seed):
    x = drawn(seed, shape)
    with online(4), launched() as names:
        tiled = ours(x, x, log)
    assert names == ["softmax_online_forward", "softmax_online_backward"]
    with blocks(1), launched() as names:
        whole = ours(x, x, log)
    assert names == ["softmax_forward", "softmax_backward"]
    for a, b in zip(tiled, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6 * max(1, float(b.abs().max())))


def test_repeats_are_bit_equal():
    x, g = drawn(0, (2, 30), torch.float16), drawn(1, (2, 30), torch.float16)
    for path in ("default", "tiles of 16"):
        with PATHS[path]():
            first = ours(x, g, False)
            for _ in range(99):
                again = ours(x, g, False)
                assert all(bits_equal(a, b) for a, b in zip(first, again, strict=True))


# ---- edge cases ---------------------------------------------------------------------------------

every_path = pytest.mark.parametrize("path", PATHS)
both = pytest.mark.parametrize("log", [False, True])


@every_path
@both
@pytest.mark.parametrize("dtype", DTYPES)
def test_edge_1_row_of_all_minus_inf_is_nan(path, log, dtype):
    x = drawn(0, (3, 21), dtype)
    x[1] = -INF
    hidden = torch.ones(3, 21, dtype=torch.bool, device=DEVICE)
    hidden[2] = False
    with PATHS[path]():
        y, dx = ours(x, torch.ones_like(x), log, mask=hidden)
    assert y[0].isfinite().all() and y[1:].isnan().all()
    assert dx[0].isfinite().all() and dx[1].isnan().all()
    assert not dx[2].any()  # nothing of it could be seen


@every_path
@both
def test_some_minus_inf_are_zero_weights(path, log):
    x = drawn(0, (4, 40))
    x[:, ::3] = -INF
    x[1, :38] = -INF
    with PATHS[path]():
        y, dx = ours(x, torch.exp(x), log)
    expected = (torch.log_softmax if log else torch.softmax)(x, -1)
    torch.testing.assert_close(y, expected)
    assert dx.isfinite().all()


@every_path
@both
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("column", [0, 17, 20])
def test_edge_3_nan_or_inf_spoils_its_own_row_only(path, log, value, column):
    x = drawn(0, (3, 21))
    with PATHS[path]():
        clean, clean_dx = ours(x, torch.ones_like(x), log)
        x[1, column] = value
        y, dx = ours(x, torch.ones_like(x), log)
    expected = (torch.log_softmax if log else torch.softmax)(x, -1)
    assert y[1].isnan().equal(expected[1].isnan()) and y[1, column].isnan()
    for row in (0, 2):
        assert bits_equal(y[row], clean[row]) and bits_equal(dx[row], clean_dx[row])


@every_path
def test_edge_5_huge_half_precision_logits(path):
    x = torch.tensor([[6e4, -6e4], [-6e4, 6e4]], dtype=torch.float16, device=DEVICE)
    with PATHS[path]():
        assert ops.softmax(x).tolist() == [[1, 0], [0, 1]]
        assert ops.softmax(x, scale=100.0).tolist() == [[1, 0], [0, 1]]
        assert ops.log_softmax(x)[0].tolist() == [0, -INF]  # -120,000 is beyond float16
        assert ops.log_softmax(x.float())[0].tolist() == [0, -120_000]


@every_path
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (2, 0, 7), (0,)])
def test_edge_6_empty(path, shape):
    x = torch.empty(shape, dtype=torch.float16, device=DEVICE, requires_grad=True)
    with PATHS[path](), launched() as names:
        y = ops.softmax(x)
        assert y.shape == x.shape and y.dtype == x.dtype
        y.sum().backward()
        ops.softmax_(x.detach())
    assert x.grad.shape == x.shape and names == []


@every_path
def test_edge_11_expanded_inputs_and_gradients(path):
    base = drawn(0, (1, 30)).requires_grad_()
    same = base.detach().clone().requires_grad_()
    with PATHS[path]():
        ops.log_softmax(base.expand(6, 30))[:, :3].sum().backward()
    torch.log_softmax(same.expand(6, 30), -1)[:, :3].sum().backward()
    torch.testing.assert_close(base.grad, same.grad)


@every_path
def test_edge_11_expanded_masks_are_not_materialised(path):
    mask = drawn_mask(0, (1, 3, 1, 1, 8))
    mask[..., 0] = True
    x = drawn(1, (2, 3, 2, 5, 8))
    seen_by_kernels = []
    real = launch.launch

    def spy(*args, **kwargs):
        seen_by_kernels.append(kwargs["p_mask"])
        return real(*args, **kwargs)

    with PATHS[path](), pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "launch", spy)
        check(x, x, seen(x.shape, None, mask.expand(x.shape)), mask=mask.expand(x.shape))
    storage = mask.untyped_storage().data_ptr()
    assert {m.untyped_storage().data_ptr() for m in seen_by_kernels} == {storage}


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.uint8])
def test_edge_12_a_mask_that_is_not_bool(dtype):
    x = drawn(0, (2, 3))
    with pytest.raises(TypeError, match=r"mask must be bool \(True takes part\), got torch\."):
        ops.softmax(x, mask=torch.ones(2, 3, dtype=dtype, device=DEVICE))


@every_path
def test_edge_14_offsets_beyond_two_to_the_31(path):
    # Rows a billion elements apart; of the 4 GB, only the pages of these rows are ever touched.
    apart = 2**30 + 24
    memory = torch.empty(2 * apart + 40, dtype=torch.float16, device=DEVICE)
    x = memory.as_strided((3, 40), (apart, 1))
    x.copy_(drawn(0, (3, 40), torch.float16))
    shown = torch.empty(2 * apart + 40, dtype=torch.bool, device=DEVICE)
    mask = shown.as_strided((3, 40), (apart, 1)).copy_(drawn_mask(1, (3, 40)))
    with PATHS[path]():
        check(x, x, mask.contiguous(), mask=mask)
        expected = ops.softmax(x.contiguous(), mask=mask.contiguous())
        assert bits_equal(ops.softmax_(x, mask=mask).contiguous(), expected)


def test_edge_17_grids_have_one_dimension():
    grids = []

    def record(kernel, grid, configs, key=(), **args):
        grids.append(grid(configs[0].blocks) if callable(grid) else grid)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "launch", record)
        for n_cols in (4096, 2**17):
            x = torch.empty(100_000, n_cols, dtype=torch.bfloat16, device="meta")
            kernels.backward(kernels.forward(x), x)
    assert grids == [100_000] * 4


# ---- PyTorch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", CAUSAL)
@both
def test_opcheck(causal, log):
    x = drawn(0, (2, 3, 4, 6)).requires_grad_()
    mask = drawn_mask(1, (2, 1, 4, 6), 0.9)
    fixed = x.detach().clone()
    for m in (None, mask):
        torch.library.opcheck(ops._softmax, (x, m, 0.5, causal, log))
        torch.library.opcheck(ops._softmax_, (fixed.clone(), m, 0.5, causal, log))
        torch.library.opcheck(ops._softmax_backward, (fixed, fixed, m, 0.5, causal, log))


def test_compiled_functions_take_the_kernels():
    x = drawn(0, (4, 6)).requires_grad_()
    mask = drawn_mask(1, (6,), 0.9)

    def function(x):
        return (ops.softmax(x * 2, 0) + ops.log_softmax(x, mask=mask).exp()).square().sum()

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    with launched() as names:
        actual = torch.autograd.grad(compiled(x), x)[0]
    assert sorted(names) == ["softmax_backward"] * 2 + ["softmax_forward"] * 2
    torch.testing.assert_close(actual, torch.autograd.grad(function(x), x)[0])


def test_in_place_on_what_is_still_needed_is_an_error():
    x = drawn(0, (2, 5)).requires_grad_()
    with pytest.raises(RuntimeError, match="leaf"):
        ops.softmax_(x)
    y = x.exp()
    ops.softmax_(y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [ops.softmax, ops.log_softmax, ops.softmax_, ops.log_softmax_])
@pytest.mark.parametrize(
    ("make", "options", "kind", "message"),
    [
        (lambda: drawn(0, (2, 3), torch.float64), {}, TypeError, "x must be float32, float16 or"),
        (lambda: drawn(0, (2, 3)).int(), {}, TypeError, "got torch.int32"),
        (lambda: drawn(0, (2, 3)), {"dim": 2}, ValueError, r"x \(2, 3\) has no dim 2"),
        (lambda: drawn(0, ()), {}, ValueError, r"x \(\) has no dim -1"),
        (lambda: drawn(0, (2, 3)), {"causal": True}, ValueError, "causal must be None, .*True"),
        (lambda: drawn(0, (3,)), {"causal": "top_left"}, ValueError, r"takes x \(\.\.\., Tq, Tk\)"),
        (
            lambda: drawn(0, (2, 3)),
            {"causal": "top_left", "dim": 0},
            ValueError,
            r"x \(2, 3\) along dim 0",
        ),
        (
            lambda: drawn(0, (2, 3)),
            {"mask": torch.ones(2, 1, 3, dtype=torch.bool, device=DEVICE)},
            ValueError,
            r"mask \(2, 1, 3\) can't be broadcast to \(2, 3\)",
        ),
        (
            lambda: drawn(0, (2, 3)),
            {"mask": torch.ones(2, 3, dtype=torch.bool, device="meta")},
            ValueError,
            f"must be on one device, got x on {DEVICE}.*, mask on meta",
        ),
    ],
)
def test_argument_errors(op, make, options, kind, message):
    with pytest.raises(kind, match=rf"{op.__name__}: .*{message}"):
        op(make(), **options)


def test_in_place_on_elements_that_share_memory():
    with pytest.raises(RuntimeError, match=r"share memory \(shape \(4, 3\), strides \(0, 1\)\)"):
        ops.softmax_(drawn(0, (1, 3)).expand(4, 3))


def test_strided_rows_are_read_where_they_lie():
    x = contiguous(drawn(0, (4, 10)))[:, 2:7]
    with pytest.MonkeyPatch.context() as patch, walls(patch) as buffers:
        kernels.forward(x)
    assert len(buffers) == 1  # the result and no copy
