"""cross_entropy in Triton: the exact loss and gradient, in place or not, whatever the tiles."""

from importlib import import_module

import numpy as np
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
import torch.nn.functional as F

from glassformer_kernels import launch
from glassformer_kernels.launch import Config
from glassformer_kernels.ops.cross_entropy import cross_entropy
from tests.exact_calls import check, exact, far_apart, padded, run
from tests.row_calls import drawn, launched

# The package's attribute of that name is the public function.
kernels = import_module("glassformer_kernels.cross_entropy")

INF, NAN = float("inf"), float("nan")
layouts = st.sampled_from((*LAYOUTS, padded))
smoothings = st.sampled_from((0.0, 0.1, 0.7, 1.0))
reductions = st.sampled_from(("mean", "sum", "none"))
leads = st.one_of(st.tuples(st.integers(1, 5)), st.tuples(st.integers(1, 2), st.integers(1, 3)))
widths = st.one_of(st.integers(1, 40), st.sampled_from((1, 2, 5, 17, 70)))


@st.composite
def tiles(draw):
    """Force small tiles: a row then takes many."""
    strips, block_v = draw(st.sampled_from((1, 2, 4))), draw(st.sampled_from((4, 8, 32)))
    return {
        "cross_entropy_forward": Config({"STRIPS": strips, "BLOCK_V": block_v}),
        "cross_entropy_backward": Config({"BLOCK_V": draw(st.sampled_from((8, 16, 64)))}),
    }


def drawn_target(seed, shape, num_classes, ignore_index=-100, ignored=0.2):
    generator = torch.Generator().manual_seed(seed + 1)
    target = torch.randint(0, num_classes, shape, generator=generator)
    hidden = torch.rand(shape, generator=generator) < ignored
    return target.masked_fill(hidden, ignore_index).to(DEVICE)


def eager(options):
    def function(logits, target):
        flat = logits.reshape(-1, logits.shape[-1])
        out = F.cross_entropy(flat, target.reshape(-1), **options)
        return out.reshape(target.shape) if options["reduction"] == "none" else out

    return function


def reference(logits, target, g, options):
    """Of logits with the classes last; the engine's has them second."""
    rows = logits.reshape(-1, logits.shape[-1])
    loss, d = exact("cross_entropy", (rows, target.reshape(-1)), g, **options)
    return loss.reshape(target.shape) if loss.ndim else loss, d.reshape(logits.shape)


@given(
    leads, widths, dtypes, layouts, smoothings, reductions, tiles(), seeds,
    st.sampled_from((1.0, 30.0)), st.sampled_from((-100, 0, 3)),
)  # fmt: skip
def test_loss_and_gradient_are_the_references(
    lead, width, dtype, layout, smoothing, reduction, tile, seed, magnitude, ignore_index
):
    logits = layout(drawn(seed, (*lead, width), dtype, magnitude))
    target = drawn_target(seed, lead, width, ignore_index)
    if bool((target == ignore_index).all()):
        target.flatten()[0] = width - 1
    options = dict(ignore_index=ignore_index, label_smoothing=smoothing, reduction=reduction)
    g = drawn(seed + 2, lead if reduction == "none" else (), dtype)
    with launch.use_config(**tile):
        ours = run(lambda x, t: cross_entropy(x, t, **options), (logits, target), g)
    theirs = run(eager(options), (logits, target), g)
    check("cross_entropy", ours, reference(logits, target, g, options), theirs)


@given(leads, widths, dtypes, layouts, smoothings, reductions, tiles(), seeds)
def test_in_place_the_gradient_is_the_same_bit_by_bit(
    lead, width, dtype, layout, smoothing, reduction, tile, seed
):
    target = drawn_target(seed, lead, width)
    g = drawn(seed + 2, lead if reduction == "none" else (), dtype)
    results = []
    for in_place in (False, True):
        logits = layout(drawn(seed, (*lead, width), dtype)).requires_grad_()
        with launch.use_config(**tile):
            loss = cross_entropy(
                logits, target, label_smoothing=smoothing, reduction=reduction,
                inplace_backward=in_place,
            )  # fmt: skip
            (d,) = torch.autograd.grad(loss, logits, g)
        results.append((loss, d))
    (loss, d), (loss_in_place, d_in_place) = results
    assert bits_equal(loss, loss_in_place) and bits_equal(d, d_in_place)
    assert d_in_place.data_ptr() == logits.data_ptr() and bits_equal(d, logits.detach())


@given(st.integers(1, 5), widths, smoothings, tiles(), seeds, st.sampled_from((-512.0, 1024.0)))
def test_a_constant_added_to_a_row_changes_nothing(rows, width, smoothing, tile, seed, shift):
    logits = (drawn(seed, (rows, width)) * 64).round() / 64  # so that sums with `shift` are exact
    target = drawn_target(seed, (rows,), width)
    options = dict(label_smoothing=smoothing, reduction="none")
    g = drawn(seed + 2, (rows,))
    with launch.use_config(**tile):
        results = [
            run(lambda x, t: cross_entropy(x, t, **options), (x, target), g)
            for x in (logits, logits + shift)
        ]
    for before, after in zip(*results, strict=True):
        assert bits_equal(before, after)


@given(st.integers(2, 4), widths, dtypes, smoothings, tiles(), seeds)
def test_splitting_the_batch_changes_nothing(rows, width, dtype, smoothing, tile, seed):
    logits, target = drawn(seed, (rows, width), dtype), drawn_target(seed, (rows,), width)
    g = drawn(seed + 2, (rows,), dtype)

    def part(rows):
        options = dict(label_smoothing=smoothing, reduction="none")
        args = (logits[rows], target[rows])
        return run(lambda x, t: cross_entropy(x, t, **options), args, g[rows])

    with launch.use_config(**tile):
        whole, first, rest = part(slice(None)), part(slice(1)), part(slice(1, None))
    for together, a, b in zip(whole, first, rest, strict=True):
        assert bits_equal(together, torch.cat([a, b]))


@given(st.integers(1, 5), widths, dtypes, smoothings, tiles(), seeds)
def test_a_rows_gradient_sums_to_zero_and_has_one_negative_side(
    rows, width, dtype, smoothing, tile, seed
):
    """Σ_c softmax_c = Σ_c q_c = 1."""
    logits, target = drawn(seed, (rows, width), dtype), drawn_target(seed, (rows,), width)
    g = torch.ones((rows,), dtype=dtype, device=DEVICE)
    options = dict(label_smoothing=smoothing, reduction="none")
    with launch.use_config(**tile):
        _, d = run(lambda x, t: cross_entropy(x, t, **options), (logits, target), g)
    # each of the `width` terms, at most 1, is rounded once more than the terms of the softmax
    assert float(d.double().sum(-1).abs().max()) <= 4 * width * torch.finfo(dtype).eps
    assert not d[target == -100].any()


def test_all_that_is_written_is_inside(monkeypatch):
    logits, target = padded(drawn(1, (5, 37))), drawn_target(1, (5,), 37)
    tile = Config({"STRIPS": 2, "BLOCK_V": 8}), Config({"BLOCK_V": 16})
    with walls(monkeypatch), launch.use_config(
        cross_entropy_forward=tile[0], cross_entropy_backward=tile[1]
    ):  # fmt: skip
        loss, d = run(cross_entropy, (logits, target), torch.ones((), device=DEVICE))
    assert loss.isfinite() and d.isfinite().all()


def test_a_gradient_in_place_leaves_what_is_between_the_rows():
    whole = torch.full((5, 40), NAN, device=DEVICE)
    logits = whole[:, 1:38].copy_(drawn(1, (5, 37))).requires_grad_()
    target = drawn_target(1, (5,), 37)
    cross_entropy(logits, target, inplace_backward=True).backward()
    assert whole[:, :1].isnan().all() and whole[:, 38:].isnan().all()
    assert whole[:, 1:38].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_200_repeats_are_bit_equal(dtype):
    logits, target = drawn(1, (2, 30), dtype), drawn_target(1, (2,), 30, ignored=0)
    g = torch.ones((), dtype=dtype, device=DEVICE)
    tile = Config({"STRIPS": 2, "BLOCK_V": 8})
    with launch.use_config(cross_entropy_forward=tile):
        first, *others = (run(cross_entropy, (logits, target), g) for _ in range(200))
    assert all(bits_equal(a, b) for other in others for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("width", [32_000, 262_144])
def test_a_long_row_goes_through_many_tiles(width):
    logits, target = drawn(1, (2, width), magnitude=4), drawn_target(1, (2,), width, ignored=0)
    g = torch.ones((), device=DEVICE)
    options = dict(ignore_index=-100, label_smoothing=0.1, reduction="mean")
    blocks = kernels._forward_configs(width, 4)[0].blocks
    assert blocks["STRIPS"] * blocks["BLOCK_V"] <= width // 4
    ours = run(lambda x, t: cross_entropy(x, t, label_smoothing=0.1), (logits, target), g)
    check("cross_entropy", ours, reference(logits, target, g, options), run(
        eager(options), (logits, target), g))  # fmt: skip


@pytest.mark.parametrize("size", [torch.int32, torch.int16, torch.int8, torch.uint8])
def test_targets_of_other_integers(size):
    logits, target = drawn(1, (6, 9)), drawn_target(1, (6,), 9, ignored=0)
    assert bits_equal(cross_entropy(logits, target.to(size)), cross_entropy(logits, target))


@pytest.mark.parametrize("size, values", [(torch.int8, [1, 50, 127]), (torch.uint8, [0, 50, 156])])
def test_numbers_that_a_narrow_target_can_not_hold(size, values):
    """PyTorch compares in the tensor's dtype: as a uint8, 300 classes are 44 and -100 is 156."""
    logits, target = drawn(1, (3, 300)), torch.tensor(values, device=DEVICE)
    g = torch.ones((), device=DEVICE)
    narrow, wide = (run(cross_entropy, (logits, t), g) for t in (target.to(size), target))
    assert all(map(bits_equal, narrow, wide))


def test_expanded_and_scalar_gradients_are_read_as_they_are():
    logits, target = drawn(1, (4, 9)), drawn_target(1, (4,), 9)
    options = dict(reduction="none")
    for g in (torch.full((), 0.5, device=DEVICE).expand(4), drawn(2, (8,))[::2]):
        _, d = run(lambda x, t: cross_entropy(x, t, **options), (logits, target), g)
        _, e = run(lambda x, t: F.cross_entropy(x, t, **options), (logits, target), g)
        torch.testing.assert_close(d, e)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_and_gradients_without_autograd(reduction):
    logits, target = drawn(1, (4, 9)), drawn_target(1, (4,), 9)
    losses, lse = kernels.cross_entropy_forward(logits, target)
    loss = kernels.reduced(losses, target, -100, reduction, torch.float32)
    g = drawn(2, loss.shape)
    spread = kernels.spread(g, target, -100, reduction)
    d = kernels.cross_entropy_backward(spread, logits, target, lse)
    e = run(lambda x, t: F.cross_entropy(x, t, reduction=reduction), (logits, target), g)
    torch.testing.assert_close((loss, d), e)


# ---- edge cases ---------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_edge_1_row_of_all_minus_inf_is_nan(smoothing):
    logits = drawn(1, (3, 9))
    logits[1] = -INF
    target = torch.tensor([1, 2, 3], device=DEVICE)
    options = dict(label_smoothing=smoothing, reduction="none")
    loss, d = run(
        lambda x, t: cross_entropy(x, t, **options), (logits, target), torch.ones(3, device=DEVICE)
    )
    assert loss.isnan().tolist() == [False, True, False]
    assert d.isnan().all(-1).tolist() == [False, True, False] and not d[[0, 2]].isnan().any()


@pytest.mark.parametrize("bad", [INF, NAN])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_edge_3_inf_or_nan_logit_makes_nan_in_its_row_alone(bad, smoothing):
    logits = drawn(1, (3, 20))
    logits[1, 13] = bad
    target = torch.tensor([1, 2, 3], device=DEVICE)
    options = dict(label_smoothing=smoothing, reduction="none")
    tile = Config({"STRIPS": 2, "BLOCK_V": 4})
    with launch.use_config(cross_entropy_forward=tile):
        loss, d = run(
            lambda x, t: cross_entropy(x, t, **options),
            (logits, target),
            torch.ones(3, device=DEVICE),
        )
    assert loss.isnan().tolist() == [False, True, False]
    assert not d[[0, 2]].isnan().any() and bool(d[1].isnan().any())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_target_of_probability_0_costs_infinity(smoothing):
    logits = torch.tensor([[-INF, 0.0, 1.0], [-INF, 0.0, 1.0]], device=DEVICE)
    target = torch.tensor([0, 1], device=DEVICE)
    options = dict(label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(
        cross_entropy(logits, target, **options), F.cross_entropy(logits, target, **options)
    )


def test_edge_5_huge_half_precision_logits():
    logits = torch.tensor([[6e4, -6e4]], dtype=torch.float16, device=DEVICE)
    target = torch.tensor([0], device=DEVICE)
    loss, d = run(cross_entropy, (logits, target), torch.ones((), device=DEVICE).half())
    assert float(loss) == 0 and d.tolist() == [[0.0, 0.0]]


def test_edge_6_no_rows():
    logits = torch.empty((0, 7), device=DEVICE, requires_grad=True)
    target = torch.empty((0,), dtype=torch.int64, device=DEVICE)
    assert cross_entropy(logits, target).isnan()
    losses = cross_entropy(logits, target, reduction="none")
    (d,) = torch.autograd.grad(losses.sum(), logits)
    assert losses.shape == (0,) and d.shape == (0, 7) and d.dtype == torch.float32


@pytest.mark.parametrize("width", [1, 2, 5, 17, 127, 129])
def test_edge_7_lengths(width):
    logits, target = drawn(1, (3, width)), drawn_target(1, (3,), width, ignored=0)
    g = torch.ones((), device=DEVICE)
    torch.testing.assert_close(
        run(cross_entropy, (logits, target), g), run(F.cross_entropy, (logits, target), g)
    )


@pytest.mark.parametrize("in_place", [False, True])
def test_edge_11_expanded_logits_sum_their_gradients(in_place):
    row = drawn(1, (1, 9)).requires_grad_()
    target = torch.tensor([1, 2, 2, -100], device=DEVICE)
    kept = row.detach().clone()
    loss = cross_entropy(row.expand(4, 9), target, inplace_backward=in_place)
    (d,) = torch.autograd.grad(loss, row)
    (e,) = torch.autograd.grad(F.cross_entropy(row.expand(4, 9), target), row)
    torch.testing.assert_close(d, e)
    assert bits_equal(row.detach(), kept)  # four rows can't be written over one


def test_edge_14_offsets_beyond_2_to_the_31():
    logits = far_apart(drawn(1, (9,), torch.float16))
    target = torch.tensor([1, 2, 3], device=DEVICE)
    g = torch.ones((), device=DEVICE).half()
    ours = run(cross_entropy, (logits, target), g)
    assert all(map(bits_equal, ours, run(cross_entropy, (logits.contiguous(), target), g)))


@pytest.mark.skipif(not ON_GPU, reason="70,000 programs take the interpreter minutes")
def test_edge_17_more_programs_than_65535():
    logits, target = drawn(1, (70_000, 3)), drawn_target(1, (70_000,), 3)
    g = torch.ones((), device=DEVICE)
    torch.testing.assert_close(
        run(cross_entropy, (logits, target), g), run(F.cross_entropy, (logits, target), g)
    )


@pytest.mark.skipif(not ON_GPU, reason="there are no streams without a GPU")
def test_edge_18_the_current_stream_is_used():
    logits, target = drawn(1, (64, 1000)), drawn_target(1, (64,), 1000)
    expected = cross_entropy(logits, target)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**8)
        late = logits * 1
        loss = cross_entropy(late, target, check_targets=False)
    stream.synchronize()
    assert bits_equal(loss, expected)


def test_edge_41_all_ignored_is_nan_and_has_no_gradient():
    logits = torch.full((3, 9), NAN, device=DEVICE)
    target = torch.full((3,), -100, device=DEVICE)
    loss, d = run(cross_entropy, (logits, target), torch.ones((), device=DEVICE))
    assert loss.isnan() and not d.any()
    assert float(cross_entropy(logits, target, reduction="sum")) == 0


@pytest.mark.parametrize("value", [-1, 9, 2**40])
def test_edge_41_target_out_of_range(value):
    logits, target = drawn(1, (3, 9)), torch.tensor([1, value, 2], device=DEVICE)
    with launched() as names, pytest.raises(
        IndexError, match=f"cross_entropy: target {value} is out of range for 9 classes"
    ):  # fmt: skip
        cross_entropy(logits, target)
    assert names == []
    assert not cross_entropy(logits, target, ignore_index=value).isnan()


@pytest.mark.parametrize("value", [-1, 9, 2**40])
def test_unchecked_an_impossible_target_is_nan(value):
    logits, target = drawn(1, (3, 9)), torch.tensor([1, value, 2], device=DEVICE)
    loss = cross_entropy(logits, target, reduction="none", check_targets=False)
    assert loss.isnan().tolist() == [False, True, False]


# ---- autograd, operators, errors ----------------------------------------------------------------


def test_in_place_a_second_backward_is_an_error():
    x, target = drawn(1, (3, 9)).requires_grad_(), drawn_target(1, (3,), 9, ignored=0)
    loss = cross_entropy(x * 1, target, inplace_backward=True)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_in_place_whoever_still_needs_the_logits_is_told():
    x, target = drawn(1, (3, 9)).requires_grad_(), drawn_target(1, (3,), 9, ignored=0)
    logits = x.exp()  # keeps its result for backward
    loss = cross_entropy(logits, target, inplace_backward=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_second_derivative_is_an_error():
    x, target = drawn(1, (3, 9)).requires_grad_(), drawn_target(1, (3,), 9)
    (d,) = torch.autograd.grad(cross_entropy(x, target), x, create_graph=True)
    with pytest.raises(RuntimeError, match="cross_entropy of .* can be differentiated only once"):
        d.sum().backward()


@pytest.mark.parametrize("in_place", [False, True])
def test_operators_pass_opcheck(in_place):
    logits, target = drawn(1, (2, 3, 7)), drawn_target(1, (2, 3), 7)
    op = torch.ops.glassformer
    sample = (logits.clone().requires_grad_(), target, -100, 0.1, in_place)
    if not in_place:  # opcheck runs it again and again on the same logits
        torch.library.opcheck(op.cross_entropy.default, sample)
    _, lse = kernels.cross_entropy_forward(logits, target, -100, 0.1)
    backward = op.cross_entropy_backward_ if in_place else op.cross_entropy_backward
    torch.library.opcheck(backward.default, (drawn(2, (2, 3)), logits, target, lse, -100, 0.1))


@pytest.mark.parametrize("in_place", [False, True])
def test_torch_compile_takes_it_whole(in_place):
    x, target = drawn(1, (4, 9)).requires_grad_(), drawn_target(1, (4,), 9)

    def loss(x):
        return cross_entropy(x * 2, target, inplace_backward=in_place)

    (expected,) = torch.autograd.grad(loss(x), x)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (d,) = torch.autograd.grad(compiled(x), x)
    assert bits_equal(d, expected)


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, "logits must be float32, float16 or bfloat16, got torch.float64",
         {"logits": torch.zeros(3, 9, dtype=torch.float64)}),
        (TypeError, "target must be of an integer dtype, got torch.float32",
         {"target": torch.zeros(3)}),
        (TypeError, "target must be of an integer dtype, got torch.bool",
         {"target": torch.zeros(3, dtype=torch.bool)}),
        (ValueError, r"logits \(3, 9\) and target \(4,\)",
         {"target": torch.zeros(4, dtype=torch.int64)}),
        (ValueError, r"logits \(\) and target \(\)",
         {"logits": torch.zeros(()), "target": torch.zeros((), dtype=torch.int64)}),
        (ValueError, "logits on .*, target on meta",
         {"target": torch.zeros(3, dtype=torch.int64, device="meta")}),
        (ValueError, "reduction must be one of .* got 'average'", {"reduction": "average"}),
        (ValueError, r"label_smoothing must be in \[0, 1\], got 1.5", {"label_smoothing": 1.5}),
        (ValueError, r"label_smoothing must be in \[0, 1\], got nan", {"label_smoothing": NAN}),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit(error, message, changes):
    given = {"logits": torch.zeros(3, 9), "target": torch.zeros(3, dtype=torch.int64)}
    given |= changes
    given = {
        k: x.to(DEVICE) if isinstance(x, torch.Tensor) and x.device.type != "meta" else x
        for k, x in given.items()
    }
    with launched() as names, pytest.raises(error, match=f"cross_entropy: .*{message}"):
        cross_entropy(given.pop("logits"), given.pop("target"), **given)
    assert names == []


@pytest.mark.skipif(ON_GPU, reason="bfloat16 is among the dtypes there")
def test_bfloat16_where_nothing_is_multiplied():
    logits, target = drawn(1, (4, 33), torch.bfloat16), drawn_target(1, (4,), 33)
    g = torch.ones((), dtype=torch.bfloat16, device=DEVICE)
    options = dict(ignore_index=-100, label_smoothing=0.1, reduction="mean")
    loss, d = run(lambda x, t: cross_entropy(x, t, **options), (logits, target), g)
    true_loss, true_d = reference(logits, target, g, options)
    theirs = run(eager(options), (logits, target), g)
    assert_near("loss", loss, np.asarray(true_loss), theirs[0])
    assert_near("gradient", d, true_d, theirs[1], 3)
