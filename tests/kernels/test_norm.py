"""LayerNorm and RMSNorm in Triton: the exact result, every gradient, both kinds of kernel."""

from contextlib import contextmanager

import pytest
from hypothesis import given, settings
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

import torch.nn.functional as F  # noqa: E402, N812 - after the skips

import glassformer as gf  # noqa: E402
from glassformer import fused  # noqa: E402
from glassformer_kernels import launch, norm, norm_backward  # noqa: E402
from glassformer_kernels.launch import Config  # noqa: E402
from glassformer_kernels.ops import norm as ops  # noqa: E402
from tests.row_calls import drawn, far_off, largest_errors, launched, limits  # noqa: E402

INF, NAN = float("inf"), float("nan")
shapes = st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 24)).flatmap(
    lambda shape: st.sampled_from((shape, shape[1:], shape[2:]))
)
EPS = 1e-5


@contextmanager
def forced(block_m=2, tile=None, groups=1):
    """Take kernels of whole rows, block_m at once, or those that walk in tiles."""
    small = Config({"BLOCK_M": block_m})
    tiled = Config({"BLOCK_N": tile or 1, "STAGES": 1})
    columns = Config({"BLOCK_M": block_m, "BLOCK_N": tile or 1})
    configs = launch.use_config(
        norm_forward=small,
        norm_backward=small,
        norm_tiled_forward=tiled,
        norm_tiled_backward=tiled,
        norm_column_sums=columns,
    )
    longest = {"LONGEST_BLOCK": (norm, norm_backward, 0)} if tile else {}
    with limits(GROUPS=(norm_backward, groups), **longest), configs:
        yield


PATHS = {
    "blocks of two rows": lambda: forced(2),
    "blocks of four rows": lambda: forced(4, None, 2),
    "tiles of 4": lambda: forced(2, 4),
    "tiles of 16": lambda: forced(1, 16, 2),
    "default": lambda: limits(),
}
fewer = settings(max_examples=settings.default.max_examples * 2 // 5)  # of what costs more
paths = st.sampled_from(tuple(PATHS)[:4])
every_path = pytest.mark.parametrize("path", PATHS)
both = pytest.mark.parametrize("rms", [False, True])


def named(x, weight, bias, residual):
    """The tensors that are there, by name."""
    given = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    return {name: t for name, t in given.items() if t is not None}


def ours(tensors, g, g_total=None, rms=False, eps=EPS):
    """Results and gradients: y, (x + residual,) d_x, and those of what else was given."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    op, size = ops.rms_norm if rms else ops.layer_norm, tensors["x"].shape[-1]
    results = op(leaves["x"], size, *_affine(leaves, rms), eps, residual=leaves.get("residual"))
    return _differentiated(results, leaves, g, g_total)


def eager(tensors, g, g_total=None, rms=False, eps=EPS):
    leaves = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
    x, size = leaves["x"], tensors["x"].shape[-1:]
    total = x + leaves["residual"] if "residual" in leaves else x
    y = (F.rms_norm if rms else F.layer_norm)(total, size, *_affine(leaves, rms), eps)
    return _differentiated((y, total) if "residual" in leaves else y, leaves, g, g_total)


def _affine(leaves, rms):
    return [leaves.get(name) for name in (("weight",) if rms else ("weight", "bias"))]


def _differentiated(results, leaves, g, g_total):
    if isinstance(results, torch.Tensor):
        results, grads = (results,), (g,)
    else:
        grads = (g, g_total)
    return *(t.detach() for t in results), *torch.autograd.grad(results, [*leaves.values()], grads)


def exact(tensors, g, g_total=None, rms=False, eps=EPS):
    """The same by the engine's composite in float64, as arrays."""
    leaves = {n: gf.tensor(_double(t)).requires_grad_() for n, t in tensors.items()}
    total = leaves["x"] + leaves["residual"] if "residual" in leaves else leaves["x"]
    with fused.use(layer_norm="reference", rms_norm="reference"):
        op = fused.registry.get("rms_norm" if rms else "layer_norm")
        y = op(total, *_affine(leaves, rms), eps=eps)
    results, scalar = [y], (y * gf.tensor(_double(g))).sum()
    if "residual" in leaves:
        results.append(total)
        scalar = scalar + (total * gf.tensor(_double(g_total))).sum()
    scalar.backward()
    return [t.detach().numpy() for t in results] + [t.grad.numpy() for t in leaves.values()]


def _double(t):
    return t.detach().double().cpu().numpy()


def check(tensors, g, g_total=None, rms=False, eps=EPS):
    """Compare all results and gradients, and return them."""
    actual = ours(tensors, g, g_total, rms, eps)

    def by(function):
        def of(g, g_total, *values):
            return function(dict(zip(tensors, values, strict=True)), g, g_total, rms, eps)

        return of

    g_total = g if g_total is None else g_total
    given = (g, g_total, *tensors.values())
    reference = by(exact)(*given)
    errors = largest_errors(by(exact), by(eager), given)
    results = len(actual) - len(tensors)
    names = [*("y", "total")[:results], *tensors]
    dtypes = [tensors["x"].dtype] * results + [t.dtype for t in tensors.values()]
    for i, name in enumerate(names):
        assert actual[i].dtype == dtypes[i], name
        theirs = far_off(reference[i], errors[i])
        assert_near(name, actual[i], reference[i], theirs, 2 if i < results else GRADIENT)
    return actual


def arguments(seed, shape, dtype, has=(True, True, True), layout=contiguous, magnitude=1.0):
    """x, weight, bias, residual by name, those of `has`; and two gradients."""
    x, residual, g, g_total = (
        layout(drawn(seed + i, shape, dtype, m)) for i, m in enumerate((magnitude, 1, 1, 1))
    )
    weight, bias = (layout(drawn(seed + i, shape[-1:], dtype)) for i in (4, 5))
    parts = [t if there else None for t, there in zip((weight, bias, residual), has, strict=True)]
    return named(x, *parts), g, g_total


# ---- values and gradients -----------------------------------------------------------------------

options = st.tuples(st.booleans(), st.booleans(), st.booleans())


@given(shapes, dtypes, layouts, paths, options, st.sampled_from((0.1, 1.0, 50.0)), seeds)
def test_layer_norm(shape, dtype, layout, path, has, magnitude, seed):
    with PATHS[path]():
        check(*arguments(seed, shape, dtype, has, layout, magnitude))


@given(shapes, dtypes, layouts, paths, options, st.sampled_from((0.1, 1.0, 50.0)), seeds)
def test_rms_norm(shape, dtype, layout, path, has, magnitude, seed):
    has = (has[0], False, has[2])
    with PATHS[path]():
        check(*arguments(seed, shape, dtype, has, layout, magnitude), rms=True)


@fewer
@given(shapes, dtypes, layouts, layouts, paths, st.booleans(), seeds)
def test_gradients_of_any_strides(shape, dtype, layout, total_layout, path, rms, seed):
    tensors, g, g_total = arguments(seed, shape, dtype, (True, not rms, True))
    with PATHS[path]():
        expected = ours(tensors, g, g_total, rms)
        actual = ours(tensors, layout(g), total_layout(g_total), rms)
    assert all(bits_equal(a, b) for a, b in zip(actual, expected, strict=True))


@given(shapes, paths, st.floats(-30, 30), seeds)
def test_a_constant_added_to_a_row_changes_layer_norm_by_roundings(shape, path, constant, seed):
    x = (drawn(seed, shape) * 16).round() / 16
    shifted = x + round(constant * 16) / 16  # exact: both have few bits
    with PATHS[path]():
        one, other = ops.layer_norm(x, shape[-1:]), ops.layer_norm(shifted, shape[-1:])
    # The mean is off by a rounding of what was added, the result by that over the deviation.
    deviation = (x.var(-1, correction=0, keepdim=True) + EPS).sqrt()
    assert ((one - other).abs() <= 1e-6 + 1e-6 * (abs(constant) + 1) / deviation).all()


@given(shapes, dtypes, paths, st.sampled_from((0.25, 2.0, 64.0)), seeds)
def test_rms_norm_does_not_see_a_scale(shape, dtype, path, scale, seed):
    x = drawn(seed, shape, torch.float32)  # a power of two scales without rounding
    with PATHS[path]():
        assert bits_equal(
            ops.rms_norm(x, shape[-1:], eps=0.0), ops.rms_norm(x * scale, shape[-1:], eps=0.0)
        )


@fewer
@given(st.integers(2, 3), st.integers(1, 30), dtypes, paths, st.booleans(), seeds)
def test_a_row_does_not_depend_on_the_others(n_rows, n_cols, dtype, path, rms, seed):
    tensors, g, g_total = arguments(seed, (n_rows, n_cols), dtype, (True, not rms, True))
    rows = ("x", "residual")
    with PATHS[path]():
        whole = ours(tensors, g, g_total, rms)
        parts = []
        for i in range(n_rows):
            one = {n: t[i : i + 1] if n in rows else t for n, t in tensors.items()}
            parts.append(ours(one, g[i : i + 1], g_total[i : i + 1], rms))
    for i in range(3):  # y, the sum, d_x
        assert bits_equal(whole[i], torch.cat([part[i] for part in parts]))


@fewer
@given(shapes, dtypes, layouts, paths, st.booleans(), seeds)
def test_edge_16_walls_stay_intact_and_unread(shape, dtype, layout, path, rms, seed):
    tensors, g, g_total = arguments(seed, shape, dtype, (True, not rms, True), layout)
    with PATHS[path](), pytest.MonkeyPatch.context() as patch, walls(patch):
        results = ours(tensors, g, g_total, rms)
    assert all(t.isfinite().all() for t in results)


@fewer
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data(), st.booleans(), seeds)
def test_several_normalised_dimensions(shape, data, rms, seed):
    dims = data.draw(st.integers(1, len(shape)))
    x, g = drawn(seed, shape), drawn(seed + 1, shape)
    weight, bias = (drawn(seed + i, shape[-dims:]) for i in (2, 3))
    tensors = [x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()][: 3 - rms]
    op, like = (ops.rms_norm, F.rms_norm) if rms else (ops.layer_norm, F.layer_norm)
    results = [f(x, tuple(shape[-dims:]), *tensors[1:], eps=0.1) for f in (op, like)]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*(torch.autograd.grad(y, tensors, g) for y in results))


# ---- which kernel -------------------------------------------------------------------------------

LONG = ["norm_tiled_backward", "norm_column_sums"]


@both
@pytest.mark.parametrize("n_cols", [1, 4096, 8192, 8193, 32_768, 32_769, 65_536, 100_000])
def test_rows_of_any_length_and_the_kernels_they_take(n_cols, rms):
    tensors, g, _ = arguments(0, (3, n_cols), torch.float16, (True, not rms, False))
    with launched() as names:
        check(tensors, g, rms=rms)
    forward = "norm_forward" if n_cols <= 32_768 else "norm_tiled_forward"
    assert names == [forward, *(["norm_backward"] if n_cols <= 8192 else LONG)]


@pytest.mark.parametrize("n_cols", [16_384, 16_385])
def test_float32_rows_with_a_residual(n_cols):
    with launched() as names:
        check(*arguments(0, (2, n_cols), torch.float32))
    assert names[0] == ("norm_forward" if n_cols <= 16_384 else "norm_tiled_forward")


@fewer
@given(shapes, st.booleans(), seeds)
def test_small_tiles_are_taken_where_they_are_forced(shape, rms, seed):
    tensors, g, g_total = arguments(seed, shape, torch.float32, (True, not rms, True))
    with forced(1, 4), launched() as names:
        tiled = ours(tensors, g, g_total, rms)
    assert names == ["norm_tiled_forward", *LONG]
    with forced(1), launched() as names:
        whole = ours(tensors, g, g_total, rms)
    assert names == ["norm_forward", "norm_backward"]
    assert bits_equal(tiled[1], whole[1])  # the sum


@both
def test_sums_over_rows_are_left_out_where_nobody_needs_them(rms):
    x = drawn(0, (4, 20)).requires_grad_()
    with forced(1, 8), launched() as names:
        (ops.rms_norm if rms else ops.layer_norm)(x, 20, drawn(1, (20,))).sum().backward()
    assert names == ["norm_tiled_forward", "norm_tiled_backward"]


def test_repeats_are_bit_equal():
    tensors, g, g_total = arguments(0, (3, 20), torch.float16)
    for path in ("blocks of four rows", "tiles of 16"):
        with PATHS[path]():
            first = ours(tensors, g, g_total)
            for _ in range(99):
                again = ours(tensors, g, g_total)
                assert all(bits_equal(a, b) for a, b in zip(first, again, strict=True))


# ---- edge cases ---------------------------------------------------------------------------------


@every_path
@both
@pytest.mark.parametrize("value", [NAN, INF])
def test_edge_3_nan_or_inf_spoils_its_own_row_only(path, rms, value):
    tensors, g, g_total = arguments(0, (3, 21), torch.float32, (True, not rms, True))
    with PATHS[path]():
        clean = ours(tensors, g, g_total, rms)
        tensors["x"][1, 4] = value
        y, _, dx, *_ = ours(tensors, g, g_total, rms)
    assert y[1, 4].isnan() and dx[1].isnan().any()
    for row in (0, 2):
        assert bits_equal(y[row], clean[0][row]) and bits_equal(dx[row], clean[2][row])


@every_path
@both
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (2, 0, 7)])
def test_edge_6_empty(path, rms, shape):
    tensors, g, g_total = arguments(0, shape, torch.float16, (True, not rms, True))
    with PATHS[path](), launched() as names:
        y, total, dx, *rest = ours(tensors, g, g_total, rms)
    assert names == [] and y.shape == total.shape == dx.shape == shape
    assert all(t.dtype is torch.float16 for t in (y, total, dx, *rest))
    assert not any(t.any() for t in rest)


@every_path
@pytest.mark.parametrize("n_cols", [1, 2, 5, 17, 127, 129])
def test_edge_7_lengths(path, n_cols):
    with PATHS[path]():
        check(*arguments(0, (3, n_cols), torch.float32))


@every_path
def test_edge_11_expanded_inputs(path):
    base, weight = drawn(0, (1, 30)), drawn(1, (1,))
    grads = []
    with PATHS[path]():
        for op in (ops.layer_norm, F.layer_norm):
            leaves = [t.clone().requires_grad_() for t in (base, weight)]
            y = op(leaves[0].expand(6, 30), (30,), leaves[1].expand(30))
            grads.append(torch.autograd.grad((y * y * y)[:, :7].sum(), leaves))
    torch.testing.assert_close(*grads)


@every_path
@both
def test_edge_14_offsets_beyond_two_to_the_31(path, rms):
    # Rows a billion elements apart; of the 4 GB, only the pages of these rows are ever touched.
    apart = 2**30 + 24
    memory = torch.empty(2 * apart + 40, dtype=torch.float16, device=DEVICE)
    x = memory.as_strided((3, 40), (apart, 1)).copy_(drawn(0, (3, 40), torch.float16))
    tensors = named(x, drawn(1, (40,), torch.float16), None, x)
    near = {name: t.contiguous() for name, t in tensors.items()}
    with PATHS[path]():
        far_results, near_results = ours(tensors, x, x, rms), ours(near, x, x, rms)
    assert all(bits_equal(a, b) for a, b in zip(far_results, near_results, strict=True))


def test_edge_17_grids_have_one_dimension():
    grids = []

    def record(kernel, grid, configs, key=(), **args):
        grids.append(grid(configs[0].blocks) if callable(grid) else grid)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "launch", record)
        for n_cols in (8192, 2**17):
            x = torch.empty(100_000, n_cols, dtype=torch.bfloat16, device="meta")
            y, _, mean, rstd = norm.forward(x, eps=EPS, centre=True)
            norm_backward.backward(y, None, x, None, mean, rstd)
    assert grids == [100_000, 256, 100_000, 100_000, 256 * 256]


@every_path
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, -3e4, 12_345.67])
def test_edge_42_layer_norm_of_a_constant_row_is_the_bias(path, dtype, constant):
    bias, weight = drawn(0, (37,), dtype), drawn(1, (37,), dtype)
    x = torch.full((3, 37), constant, dtype=dtype, device=DEVICE)
    with PATHS[path]():
        assert bits_equal(ops.layer_norm(x, 37, weight, bias), bias.expand(3, 37))


@every_path
@both
def test_large_half_precision_values_do_not_overflow(path, rms):
    tensors, g, _ = arguments(0, (3, 50), torch.float16, (True, not rms, False), magnitude=15_000)
    with PATHS[path]():
        assert all(t.isfinite().all() for t in check(tensors, g, rms=rms))


# ---- options ------------------------------------------------------------------------------------


@every_path
@both
def test_float32_parameters_of_half_precision_inputs(path, rms):
    x, g = drawn(0, (5, 24), torch.float16), drawn(1, (5, 24), torch.float16)
    weight, bias = drawn(2, (24,)), drawn(3, (24,))
    tensors = named(x, weight, None if rms else bias, None)
    with PATHS[path]():
        actual = ours(tensors, g, rms=rms)
    wide = eager({n: t.float() for n, t in tensors.items()}, g.float(), rms=rms)
    assert [t.dtype for t in actual] == [torch.float16] * 2 + [torch.float32] * (2 - rms)
    for a, b in zip(actual, wide, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(actual[2], wide[2])  # sums in float32, kept in float32


@both
@pytest.mark.parametrize("used", [0, 1])
def test_a_gradient_for_one_of_two_results(rms, used):
    grads = []
    for op, like in ((ops.rms_norm, False), (F.rms_norm, True)):
        op = op if rms else (F.layer_norm if like else ops.layer_norm)
        x, residual = (drawn(i, (4, 10)).requires_grad_() for i in (0, 1))
        total = x + residual
        results = (op(total, (10,)), total) if like else op(x, (10,), residual=residual)
        grads.append(torch.autograd.grad(results[used].square().sum() + (x * residual).sum(), x))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("dtype", DTYPES)
def test_default_eps(dtype):
    x = drawn(0, (4, 30), dtype, 0.02)
    torch.testing.assert_close(ops.layer_norm(x, 30), F.layer_norm(x, (30,)))
    x = drawn(0, (4, 30), dtype, 1e-3)
    wide = x.float()
    expected = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 2**-23)
    torch.testing.assert_close(ops.rms_norm(x, 30), expected.to(dtype))
    if dtype is torch.float32:
        torch.testing.assert_close(ops.rms_norm(x, 30), F.rms_norm(x, (30,)))


# ---- PyTorch ------------------------------------------------------------------------------------


@both
def test_opcheck(rms):
    x, residual = drawn(0, (2, 3, 8)).requires_grad_(), drawn(1, (2, 3, 8)).requires_grad_()
    weight, bias = drawn(2, (8,)).requires_grad_(), drawn(3, (8,)).requires_grad_()
    for parts in ((None, None, None), (weight, None if rms else bias, residual)):
        torch.library.opcheck(ops._forward, (x, *parts, EPS, not rms))
    fixed = [t.detach() for t in ops._forward(x, weight, None, residual, EPS, not rms)]
    y, total, mean, rstd = fixed
    for g_total, needs_sums in ((None, True), (y, False)):
        args = (y, g_total, total, weight.detach(), None if rms else mean, rstd, needs_sums)
        torch.library.opcheck(ops._backward, args)


@both
def test_opcheck_of_empty_rows(rms):
    x, weight = drawn(0, (3, 0)).requires_grad_(), drawn(2, (0,)).requires_grad_()
    torch.library.opcheck(ops._forward, (x, weight, None, None, EPS, not rms))


def test_compiled_functions_take_the_kernels():
    leaves = [drawn(i, shape).requires_grad_() for i, shape in enumerate([(4, 6), (6,), (6,)])]

    def function(x, weight, bias):
        y, total = ops.layer_norm(x * 2, 6, weight, bias, residual=x)
        return (ops.rms_norm(y, (6,), weight) * total).sum()

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    with launched() as names:
        actual = torch.autograd.grad(compiled(*leaves), leaves)
    assert sorted(names) == ["norm_backward"] * 2 + ["norm_forward"] * 2
    torch.testing.assert_close(actual, torch.autograd.grad(function(*leaves), leaves))


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [ops.layer_norm, ops.rms_norm])
@pytest.mark.parametrize(
    ("dtype", "size", "options", "kind", "message"),
    [
        (torch.float64, 3, {}, TypeError, "x must be float32, float16 or bfloat16"),
        (torch.int32, 3, {}, TypeError, "got torch.int32"),
        (torch.float32, 2, {}, ValueError, r"got \(2,\) for x \(2, 3\)"),
        (torch.float32, (), {}, ValueError, r"got \(\) for x \(2, 3\)"),
        (torch.float32, (1, 2, 3), {}, ValueError, r"got \(1, 2, 3\) for x \(2, 3\)"),
        (torch.float32, 3, {"weight": (4,)}, ValueError, r"weight must have .* \(3,\), got \(4,\)"),
        (torch.float32, 3, {"residual": (3,)}, ValueError, r"shape \(2, 3\), got \(3,\)"),
        (torch.float16, 3, {"residual": (2, 3)}, TypeError, "x torch.float16, residual torch.fl"),
    ],
)
def test_argument_errors(op, dtype, size, options, kind, message):
    x = torch.zeros(2, 3, dtype=dtype, device=DEVICE)
    given = {name: drawn(0, shape) for name, shape in options.items()}
    with pytest.raises(kind, match=rf"{op.__name__}: .*{message}"):
        op(x, size, **given)


def test_errors_of_parameters():
    x = drawn(0, (2, 3))
    with pytest.raises(ValueError, match=r"layer_norm: bias must have .* \(3,\), got \(2,\)"):
        ops.layer_norm(x, 3, bias=drawn(0, (2,)))
    with pytest.raises(TypeError, match="layer_norm: bias must be float32, float16 or bfloat16"):
        ops.layer_norm(x, 3, bias=drawn(0, (3,)).double())
    with pytest.raises(ValueError, match="rms_norm: tensors must be on one device, .*on meta"):
        ops.rms_norm(x, 3, weight=torch.zeros(3, device="meta"))


def test_strided_rows_are_read_where_they_lie():
    x = contiguous(drawn(0, (4, 10)))[:, 2:7]
    with pytest.MonkeyPatch.context() as patch, walls(patch) as buffers:
        norm.forward(x, eps=EPS, centre=False)
    assert len(buffers) == 2  # the result and rstd, and no copy
