"""linear_cross_entropy in Triton: exact, in any tiles, and without the logits in memory."""

import math
from contextlib import ExitStack, contextmanager
from importlib import import_module

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel_calls import DEVICE, DTYPES, LAYOUTS, ON_GPU, bits_equal, dtypes, seeds, walls

# isort: split
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from glassformer_kernels import launch
from glassformer_kernels.launch import Config
from glassformer_kernels.ops.cross_entropy import cross_entropy
from glassformer_kernels.ops.linear_cross_entropy import linear_cross_entropy
from tests.exact_calls import check, exact, far_apart, is_float, padded, run
from tests.row_calls import drawn, launched, limits

# The package's attribute of that name is the public function.
forward = import_module("glassformer_kernels.linear_cross_entropy")
backward = import_module("glassformer_kernels.linear_cross_entropy_backward")

INF, NAN = float("inf"), float("nan")
layouts = st.sampled_from((*LAYOUTS, padded))
smoothings = st.sampled_from((0.0, 0.1, 1.0))
sizes = st.tuples(st.integers(1, 24), st.integers(1, 50), st.integers(1, 20))  # N, V, C


@contextmanager
def small_tiles(block=16, part=16, chunk=64):
    """Take tiles, parts and chunks so small that there are several of each."""
    tile = Config({"BLOCK_M": block, "BLOCK_V": 16, "BLOCK_C": 16, "GROUP": 2})
    product = Config({"BLOCK_M": 16, "BLOCK_N": block, "BLOCK_K": 16, "GROUP": 2})
    with ExitStack() as stack:
        stack.enter_context(
            launch.use_config(
                linear_cross_entropy_forward=tile,
                linear_cross_entropy_d_logits=tile,
                merge_parts=Config({"BLOCK_M": block}),
                product=product,
            )
        )
        constants = {"_PART": (forward, part), "_CHUNK": (backward, chunk), "_STEP": (backward, 16)}
        stack.enter_context(limits(**constants))
        yield


def arguments(seed, n, v, c, dtype=torch.float32, layout=padded, bias=True, ignored=0.2):
    """Return x, weight, bias and target; logits are of order 1."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, v, (n,), generator=generator)
    target[torch.rand((n,), generator=generator) < ignored] = -100
    x = layout(drawn(seed, (n, c), dtype))
    weight = layout(drawn(seed + 1, (v, c), dtype, 1 / math.sqrt(c)))
    return x, weight, drawn(seed + 2, (v,), dtype) if bias else None, target.to(DEVICE)


def ours(x, weight, bias, target, **options):
    return linear_cross_entropy(x, weight, target, bias, **options)


def eager(x, weight, bias, target, **options):
    return F.cross_entropy(F.linear(x, weight, bias), target, **options)


def summed(args, g, options):
    """Return the largest number in the sums that make the loss and each gradient."""
    x, weight, bias, target = (a.double() if is_float(a) else a for a in args)
    logits = F.linear(x, weight, bias)
    _, d_logits = run(lambda y: F.cross_entropy(y, target, **options), (logits,), g.double())
    d_x = (d_logits[:, :, None] * weight).abs().max()  # summed over the vocabulary
    d_weight = (d_logits[:, :, None] * x[:, None]).abs().max()  # and these over rows
    return 0.0, float(d_x), float(d_weight), float(d_logits.abs().max())


def both(args, g, options):
    return [run(lambda *a, f=f: f(*a, **options), args, g) for f in (ours, eager)]


@given(
    sizes, dtypes, layouts, smoothings, st.sampled_from(("mean", "sum", "none")), seeds,
    st.sampled_from((16, 32)), st.sampled_from((16, 32)), st.sampled_from((1, 300)),
)  # fmt: skip
def test_loss_and_gradients_are_the_references(
    size, dtype, layout, smoothing, reduction, seed, block, part, chunk
):
    n, v, c = size
    x, weight, _, target = args = arguments(seed, n, v, c, dtype, layout, bias=False)
    target[0] = v - 1
    options = dict(label_smoothing=smoothing, reduction=reduction)
    g = drawn(seed + 3, (n,) if reduction == "none" else (), dtype)
    with small_tiles(block, part, chunk):
        mine, theirs = both(args, g, options)
    check(
        "linear_cross_entropy",
        mine,
        exact("linear_cross_entropy", (x, weight, target), g, **options),
        theirs,
        summed(args, g, options),
    )


@given(sizes, dtypes, layouts, smoothings, seeds, st.sampled_from((16, 32)))
def test_with_a_bias_it_is_one_more_channel(size, dtype, layout, smoothing, seed, part):
    """x weightᵀ + bias = [x 1] [weight bias]ᵀ, which the reference can take."""
    n, v, c = size
    x, weight, bias, target = args = arguments(seed, n, v, c, dtype, layout)
    options = dict(label_smoothing=smoothing, reduction="sum")
    g = drawn(seed + 3, (), dtype)
    with small_tiles(part=part):
        mine, theirs = both(args, g, options)
    ones = torch.ones((n, 1), dtype=dtype, device=DEVICE)
    wide = torch.cat([x, ones], -1), torch.cat([weight, bias[:, None]], -1), target
    loss, d_x, d_weight = exact("linear_cross_entropy", wide, g, **options)
    true = loss, d_x[:, :-1], d_weight[:, :-1], d_weight[:, -1]
    check("linear_cross_entropy", mine, true, theirs, summed(args, g, options))


@given(st.integers(2, 20), st.integers(1, 40), st.integers(1, 20), seeds)
def test_splitting_the_batch_changes_no_loss_and_no_gradient_of_x(n, v, c, seed):
    x, weight, bias, target = arguments(seed, n, v, c)
    g = drawn(seed + 3, (n,))

    def part(rows):
        args = x[rows], weight, bias, target[rows]
        return run(lambda *a: ours(*a, reduction="none"), args, g[rows])[:2]

    with small_tiles():
        whole, first, rest = part(slice(None)), part(slice(1)), part(slice(1, None))
    # not bit by bit: NumPy's product of tiles may round by a row's place in the tile
    for together, a, b in zip(whole, first, rest, strict=True):
        torch.testing.assert_close(together, torch.cat([a, b]), rtol=1e-5, atol=1e-5)


def test_all_that_is_written_is_inside(monkeypatch):
    args = arguments(1, 21, 37, 19)
    with walls(monkeypatch), small_tiles():
        results = run(ours, args, torch.ones((), device=DEVICE))
    assert all(x.isfinite().all() for x in results)


@pytest.mark.parametrize("dtype", DTYPES)
def test_200_repeats_are_bit_equal(dtype):
    args = arguments(1, 3, 20, 5, dtype)
    g = torch.ones((), dtype=dtype, device=DEVICE)
    with small_tiles():
        first, *others = (run(ours, args, g) for _ in range(100))
    assert all(bits_equal(a, b) for other in others for a, b in zip(first, other, strict=True))


class _Bytes(TorchDispatchMode):
    """Collects how many bytes each result of PyTorch's operations has."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        found = out if isinstance(out, (tuple, list)) else (out,)
        self.sizes += [x.numel() * x.element_size() for x in found if isinstance(x, torch.Tensor)]
        return out


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_of_the_size_of_the_logits_is_allocated(dtype, monkeypatch):
    n, v, c = 96, 2048, 8
    x, weight, bias, target = arguments(1, n, v, c, dtype)
    allocated = []

    def empty(shape, like, dtype=None):
        allocated.append(math.prod(shape))
        return real(shape, like, dtype)

    real = launch.empty
    monkeypatch.setattr(launch, "empty", empty)
    with _Bytes() as found:
        losses, lse = forward.linear_cross_entropy_forward(x, weight, bias, target)
        # as the docstring has it: four numbers a row for each 1,024 classes
        assert sum(allocated) == 4 * n * 2 + 3 * n
        g = torch.ones_like(losses)
        grads = backward.linear_cross_entropy_backward(g, x, weight, bias, target, lse)
    assert max(allocated) == n * v // 8  # an eighth of the classes
    assert max(found.sizes) < n * v * dtype.itemsize // 4  # the interpreter's copies included
    expected = run(
        lambda *a: eager(*a, reduction="sum"), (x, weight, bias, target), torch.ones_like(x[0, 0])
    )
    for mine, theirs in zip(grads, expected[1:], strict=True):
        torch.testing.assert_close(
            mine, theirs, rtol=1e-2, atol=1e-2 if dtype.itemsize < 4 else 1e-5
        )


def test_small_gradients_do_not_vanish_in_half_precision():
    """2⁻²⁰ · softmax is below what float16 holds; its sum over the classes isn't, once scaled."""
    x, weight, _, target = arguments(1, 4, 600, 16, torch.float16, bias=False, ignored=0)
    g = torch.full((4,), 2.0**-20, device=DEVICE)
    _, lse = forward.linear_cross_entropy_forward(x, weight, None, target)
    grads = [
        backward.linear_cross_entropy_backward(scale * g, x, weight, None, target, lse)[0]
        for scale in (1, 2**20)
    ]
    assert bool(grads[0].any())
    torch.testing.assert_close(grads[0].float() * 2**20, grads[1].float(), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, False), (False, False, True)]
)
def test_only_the_gradients_that_are_needed(needs):
    x, weight, bias, target = args = arguments(1, 5, 20, 6)
    full = run(ours, args, torch.ones((), device=DEVICE))[1:]
    for tensor, need in zip((x, weight, bias), needs, strict=True):
        tensor.requires_grad_(need)
    ours(*args).backward()
    for tensor, need, expected in zip((x, weight, bias), needs, full, strict=True):
        assert (tensor.grad is not None) == need
        assert not need or bits_equal(tensor.grad, expected)


def test_leading_dimensions_are_rows():
    x, weight, bias, target = arguments(1, 6, 20, 5)
    options = dict(reduction="none")
    flat = ours(x, weight, bias, target, **options)
    assert bits_equal(
        ours(x.reshape(2, 3, 5), weight, bias, target.reshape(2, 3), **options), flat.reshape(2, 3)
    )


# ---- edge cases ---------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_edge_1_logits_of_minus_inf(smoothing):
    """By the bias: all but the last part of the vocabulary, then all of it."""
    x, weight, bias, target = arguments(1, 3, 40, 5, ignored=0)
    bias[:32] = -INF
    target[:] = 35
    options = dict(label_smoothing=smoothing, reduction="none")
    with small_tiles():
        loss = ours(x, weight, bias, target, **options)
        torch.testing.assert_close(loss, eager(x, weight, bias, target, **options))
        bias[:] = -INF
        assert ours(x, weight, bias, target, **options).isnan().all()


@pytest.mark.parametrize("bad", [INF, NAN])
def test_edge_3_inf_or_nan_makes_nan_in_its_row_alone(bad):
    x, weight, bias, target = arguments(1, 3, 40, 5, ignored=0)
    x[1, 2] = bad
    loss = ours(x, weight, bias, target, reduction="none")
    assert loss.isnan().tolist() == [False, True, False]


def test_edge_6_no_rows_and_no_channels():
    x, weight, bias, target = arguments(1, 0, 9, 5)
    loss, d_x, d_weight, d_bias = run(
        lambda *a: ours(*a, reduction="sum"),
        (x, weight, bias, target),
        torch.ones((), device=DEVICE),
    )
    assert float(loss) == 0 and d_x.shape == (0, 5)
    assert d_weight.shape == (9, 5) and not d_weight.any() and not d_bias.any()
    x, weight, bias, target = arguments(1, 3, 9, 1)
    loss = ours(x[:, :0], weight[:, :0], bias, target)
    torch.testing.assert_close(loss, F.cross_entropy(bias.expand(3, 9), target))


@pytest.mark.parametrize("length", [1, 2, 5, 17, 127, 129])
def test_edge_7_lengths(length):
    args = arguments(1, length, length, length, ignored=0)
    mine, theirs = both(args, torch.ones((), device=DEVICE), {})
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_edge_11_expanded_rows_sum_their_gradients():
    x, weight, bias, _ = arguments(1, 1, 20, 5)
    target = torch.tensor([1, 2, 2, -100], device=DEVICE)
    args = x, weight, bias, target
    g = torch.ones((), device=DEVICE)
    mine = run(lambda x, *a: ours(x.expand(4, 5), *a), args, g)
    torch.testing.assert_close(mine, run(lambda x, *a: eager(x.expand(4, 5), *a), args, g))


def test_class_156_of_a_uint8_is_not_the_ignored_minus_100():
    x, weight, bias, _ = arguments(1, 2, 300, 5)
    target, g = torch.tensor([156, 50], device=DEVICE), torch.ones((), device=DEVICE)
    narrow, wide = (run(ours, (x, weight, bias, t), g) for t in (target.to(torch.uint8), target))
    assert all(map(bits_equal, narrow, wide))


def test_edge_14_offsets_beyond_2_to_the_31():
    x, weight = (far_apart(drawn(seed, (16,), torch.float16)) for seed in (1, 2))
    weight[1:] = -weight[1:]  # where all classes are equal, the loss doesn't depend on x
    target = torch.tensor([1, 2, 0], device=DEVICE)
    g = torch.ones((), device=DEVICE).half()
    far = run(ours, (x, weight, None, target), g)
    near = run(ours, (x.contiguous(), weight.contiguous(), None, target), g)
    assert all(map(bits_equal, far, near))


@pytest.mark.skipif(not ON_GPU, reason="70,000 programs take the interpreter minutes")
def test_edge_17_more_programs_than_65535():
    args = arguments(1, 70_000 * 16, 16, 16)
    with small_tiles():
        mine, theirs = both(args, torch.ones((), device=DEVICE), {})
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_edge_41_all_ignored_is_nan_and_has_no_gradient():
    x, weight, bias, target = arguments(1, 3, 9, 5, ignored=1.1)
    loss, *grads = run(ours, (x, weight, bias, target), torch.ones((), device=DEVICE))
    assert loss.isnan() and not any(d.any() for d in grads)


def test_edge_41_target_out_of_range():
    x, weight, bias, target = arguments(1, 3, 9, 5)
    target[1] = 9
    message = "linear_cross_entropy: target 9 is out of range for 9 classes"
    with launched() as names, pytest.raises(IndexError, match=message):
        ours(x, weight, bias, target)
    assert names == []
    loss = ours(x, weight, bias, target, reduction="none", check_targets=False)
    assert loss.isnan().tolist() == [False, True, False]


# ---- operators, errors --------------------------------------------------------------------------


def test_it_is_cross_entropy_of_the_linear_layer():
    x, weight, bias, target = arguments(1, 4, 30, 5)
    logits = F.linear(x, weight, bias)
    torch.testing.assert_close(ours(x, weight, bias, target), cross_entropy(logits, target))


@pytest.mark.parametrize("bias", [True, False])
def test_operators_pass_opcheck(bias):
    x, weight, b, target = arguments(1, 4, 7, 5, bias=bias)
    for tensor in (x, weight, b):
        if tensor is not None:
            tensor.requires_grad_()
    op = torch.ops.glassformer
    torch.library.opcheck(op.linear_cross_entropy.default, (x, weight, b, target, -100, 0.1))
    x, weight, b = (t if t is None else t.detach() for t in (x, weight, b))
    _, lse = forward.linear_cross_entropy_forward(x, weight, b, target)
    g, needs = drawn(2, (4,)), [True, False, bias]
    sample = (g, x, weight, b, target, lse, -100, 0.0, needs)
    torch.library.opcheck(op.linear_cross_entropy_backward.default, sample)


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, "x must be float32, float16 or bfloat16, got torch.float64",
         {"x": torch.zeros(3, 5, dtype=torch.float64)}),
        (TypeError, "x torch.float32, weight torch.float16",
         {"weight": torch.zeros(9, 5, dtype=torch.float16)}),
        (TypeError, "bias torch.float16", {"bias": torch.zeros(9, dtype=torch.float16)}),
        (TypeError, "target must be of an integer dtype", {"target": torch.zeros(3)}),
        (ValueError, r"x must be \(..., C\) and weight \(V, C\), got \(3, 5\) and \(9, 4\)",
         {"weight": torch.zeros(9, 4)}),
        (ValueError, r"got x \(3, 5\) and target \(2,\)",
         {"target": torch.zeros(2, dtype=torch.int64)}),
        (ValueError, r"bias must be \(9,\) for weight \(9, 5\), got \(1,\)",
         {"bias": torch.zeros(1)}),
        (ValueError, "weight on meta", {"weight": torch.zeros(9, 5, device="meta")}),
        (ValueError, "reduction must be one of", {"reduction": None}),
        (ValueError, "label_smoothing must be", {"label_smoothing": -0.1}),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit(error, message, changes):
    given = {
        "x": torch.zeros(3, 5),
        "weight": torch.zeros(9, 5),
        "target": torch.zeros(3, dtype=torch.int64),
    }
    given = {
        k: x.to(DEVICE) if isinstance(x, torch.Tensor) and x.device.type != "meta" else x
        for k, x in {**given, **changes}.items()
    }
    with launched() as names, pytest.raises(error, match=f"linear_cross_entropy: .*{message}"):
        linear_cross_entropy(**given)
    assert names == []
