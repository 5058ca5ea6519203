"""AdamW's step in Triton beside torch.optim.AdamW, in float64 and in the same precision."""

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
    contiguous,
    dtypes,
    is_intact,
    seeds,
    strided,
    walled,
)

# isort: split
import torch

import glassformer as gf
from glassformer import fused
from glassformer_kernels import launch
from glassformer_kernels.launch import Config
from glassformer_kernels.ops.optimizer_step import adamw_step_
from tests.exact_calls import far_apart, padded
from tests.row_calls import drawn, launched

NAN = float("nan")
layouts = st.sampled_from((*LAYOUTS, padded))
shapes = st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple)
hyperparameters = st.fixed_dictionaries(
    {
        "lr": st.sampled_from((0.0, 1e-3, 0.1)),
        "betas": st.sampled_from(((0.9, 0.999), (0.0, 0.5), (0.95, 0.0))),
        "eps": st.sampled_from((1e-8, 1e-3)),
        "weight_decay": st.sampled_from((0.0, 0.1)),
        "maximize": st.booleans(),
    }
)


def small_tiles(rows, columns):
    return launch.use_config(adamw_step=Config({"BLOCK_M": rows, "BLOCK_N": columns}))


tile_rows, tile_columns = st.sampled_from((4, 8)), st.sampled_from((16, 64))


def pytorch(param, grads, dtype, options):
    """Return param and its two means after the steps of PyTorch's AdamW in a precision."""
    p = torch.nn.Parameter(param.to(dtype, copy=True))
    optimizer = torch.optim.AdamW([p], foreach=False, **options)
    for grad in grads:
        p.grad = grad.to(dtype, copy=True)
        optimizer.step()
    state = optimizer.state[p]
    return p.detach(), state["exp_avg"], state["exp_avg_sq"]


def states(shape, dtype=torch.float32):
    return [torch.zeros(shape, dtype=dtype, device=DEVICE) for _ in range(2)]


@given(
    shapes, dtypes, layouts, layouts, hyperparameters, seeds, st.integers(1, 3), tile_rows,
    tile_columns,
)  # fmt: skip
def test_steps_are_pytorchs(shape, dtype, layout, layout_g, options, seed, steps, rows, columns):
    if dtype == torch.float16:
        options = {**options, "eps": 1e-3}  # 1e-8 is 0 to eager PyTorch
    start = drawn(seed, shape, dtype)
    grads = [layout_g(drawn(seed + 1 + t, shape, dtype)) for t in range(steps)]
    p, (m, v) = layout(start), map(layout_g, states(shape, dtype))
    with small_tiles(rows, columns):
        for t, grad in enumerate(grads):
            adamw_step_(p, grad, m, v, step=t + 1, **options)
    exact = pytorch(start, grads, torch.float64, options)
    eager = pytorch(start, grads, dtype, options)
    for name, ours, true, theirs in zip("pmv", (p, m, v), exact, eager, strict=True):
        assert_near(name, ours, true, theirs)


@given(shapes, layouts, hyperparameters, seeds, st.integers(1, 3), tile_rows, tile_columns)
def test_master_weights_are_stepped_and_the_parameter_is_their_rounding(
    shape, layout, options, seed, steps, rows, columns
):
    dtype = DTYPES[-1]  # Triton's interpreter cuts to bfloat16 and doesn't round
    start = drawn(seed, shape)
    grads = [drawn(seed + 1 + t, shape, dtype) for t in range(steps)]
    p, master, (m, v) = layout(start.to(dtype)), layout(start), states(shape)
    p.fill_(NAN)  # it is written and not read
    with small_tiles(rows, columns):
        for t, grad in enumerate(grads):
            adamw_step_(p, grad, m, v, step=t + 1, master=master, **options)
    exact = pytorch(start, grads, torch.float64, options)
    eager = pytorch(start, grads, torch.float32, options)
    for name, ours, true, theirs in zip("pmv", (master, m, v), exact, eager, strict=True):
        assert_near(name, ours, true, theirs)
    assert bits_equal(p, master.to(dtype))


@given(shapes, hyperparameters, seeds, st.integers(1, 1000), tile_columns)
def test_a_step_is_the_engines_and_element_by_element(shape, options, seed, step, columns):
    p, g, m = (drawn(seed + i, shape) for i in range(3))
    v = drawn(seed + 3, shape).abs()
    arrays = [gf.tensor(x.double().cpu().numpy()) for x in (p, g, m, v)]
    options = {**options, "maximize": False}
    reference = {k: options[k] for k in ("lr", "eps", "weight_decay")}
    reference |= dict(zip(("beta1", "beta2"), options["betas"], strict=True))
    with fused.use(adamw_step="reference"):
        fused.registry.get("adamw_step")(*arrays, step=step, **reference)
    eager = [x.clone() for x in (p, m, v)]
    eager_step(*eager, g, step, options)
    halves = [x.clone().reshape(-1) for x in (p, g, m, v)]
    with small_tiles(1, columns):
        adamw_step_(p, g, m, v, step=step, **options)
        for part in (slice(1), slice(1, None)):
            adamw_step_(*(x[part] for x in halves), step=step, **options)
    for i, (name, ours) in enumerate(zip("pmv", (p, m, v), strict=True)):
        assert_near(name, ours, arrays[(0, 2, 3)[i]].numpy(), eager[i])
        assert bits_equal(ours.reshape(-1), halves[(0, 2, 3)[i]])


def eager_step(p, m, v, g, step, options):
    """AdamW in PyTorch's operations, from means in the middle of a run."""
    beta1, beta2 = options["betas"]
    m.mul_(beta1).add_(g, alpha=1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    denominator = (v.sqrt() / (1 - beta2**step) ** 0.5).add_(options["eps"])
    p.mul_(1 - options["lr"] * options["weight_decay"])
    p.addcdiv_(m, denominator, value=-options["lr"] / (1 - beta1**step))


@pytest.mark.parametrize("mixed", [False, True])
def test_many_steps_stay_with_pytorch(mixed):
    """300 steps towards the minimum of a quadratic, in float32 or with master weights."""
    options = dict(lr=0.02, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.05)
    goal, start = drawn(1, (50,)), drawn(2, (50,))
    p, master, (m, v) = start.clone(), None, states((50,))
    if mixed:
        master, p = p, p.bfloat16()
    weights = p if master is None else master
    grads = []
    for t in range(300):
        grads.append((weights - goal).to(p.dtype))
        adamw_step_(p, grads[-1], m, v, step=t + 1, master=master, **options)
    exact = pytorch(start, grads, torch.float64, options)
    eager = pytorch(start, grads, torch.float32, options)
    for name, ours, true, theirs in zip("pmv", (weights, m, v), exact, eager, strict=True):
        assert_near(name, ours, true, theirs)
    assert float((weights - goal).abs().max()) < 0.2 < float((start - goal).abs().max())


@pytest.mark.parametrize("grad_dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_half_precision_for_a_float32_parameter(grad_dtype):
    g = drawn(1, (33,), grad_dtype)
    results = []
    for grad in (g, g.float()):
        p, (m, v) = drawn(2, (33,)), states((33,))
        adamw_step_(p, grad, m, v, lr=0.1, step=1)
        results.append((p, m, v))
    assert all(map(bits_equal, *results))


def test_a_transposed_parameter_is_one_long_row():
    p, g, m, v = (drawn(seed, (5, 7)).abs().mT for seed in range(4))
    with launch.recording() as launches:
        adamw_step_(p, g, m, v, lr=0.1, step=1)
    args = launches[0].arguments(launches[0].configs[0])
    assert (args["num_rows"], args["num_columns"]) == (1, 35)
    assert args["p_param"].data_ptr() == p.data_ptr()


@pytest.mark.parametrize("layout", [contiguous, padded, strided])
def test_nothing_is_written_outside(layout):
    """contiguous has walls; the others have NaN between the elements, which must stay."""
    parts, wholes = [], []
    for seed in range(4):
        part, whole = walled((5, 40), torch.float32)
        whole.fill_(NAN)
        inner = {contiguous: part, padded: part[:, 1:38], strided: part[:, ::2]}[layout]
        inner.copy_(drawn(seed, inner.shape).abs())
        parts.append(inner)
        wholes.append(whole)
    with small_tiles(2, 16):
        adamw_step_(*parts, lr=0.1, step=1)
    for part, whole in zip(parts, wholes, strict=True):
        assert is_intact(whole) and part.isfinite().all()
        assert int(whole.isfinite().sum()) == part.numel()


@pytest.mark.parametrize("dtype", DTYPES)
def test_200_repeats_are_bit_equal(dtype):
    results = []
    for _ in range(200):
        p, g = drawn(1, (2, 30), dtype), drawn(2, (2, 30), dtype)
        m, v = drawn(3, (2, 30)), drawn(4, (2, 30)).abs()
        with small_tiles(2, 16):
            adamw_step_(p, g, m, v, lr=0.1, step=3)
        results.append((p, m, v))
    first, *others = results
    assert all(bits_equal(a, b) for other in others for a, b in zip(first, other, strict=True))


# ---- edge cases ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
def test_edge_6_empty(shape):
    p, g, m, v = (torch.empty(shape, device=DEVICE) for _ in range(4))
    assert adamw_step_(p, g, m, v, lr=0.1, step=1) is None


def test_a_scalar_parameter():
    p, g = torch.tensor(1.0, device=DEVICE), torch.tensor(0.5, device=DEVICE)
    adamw_step_(p, g, *states(()), lr=0.1, weight_decay=0.0, step=1)
    torch.testing.assert_close(p, torch.tensor(0.9, device=DEVICE))  # lr times the sign, at first


@pytest.mark.parametrize("length", [1, 2, 5, 17, 127, 129])
def test_edge_7_lengths(length):
    start, g = drawn(1, (length,)), drawn(2, (length,))
    p, (m, v) = start.clone(), states((length,))
    adamw_step_(p, g, m, v, lr=0.1, step=1)
    torch.testing.assert_close((p, m, v), pytorch(start, [g], torch.float32, {"lr": 0.1}))


def test_edge_14_offsets_beyond_2_to_the_31():
    p = far_apart(drawn(1, (9,), torch.float16))
    near, g = p.clone(), drawn(2, (3, 9))
    for x in (p, near):
        adamw_step_(x, g, *states((3, 9)), lr=0.1, step=1)
    assert bits_equal(p, near)


@pytest.mark.skipif(not ON_GPU, reason="70,000 programs take the interpreter minutes")
def test_edge_17_more_programs_than_65535():
    start, g = drawn(1, (70_000 * 16,)), drawn(2, (70_000 * 16,))
    p, (m, v) = start.clone(), states(start.shape)
    with small_tiles(1, 16):
        adamw_step_(p, g, m, v, lr=0.1, step=1)
    torch.testing.assert_close((p, m, v), pytorch(start, [g], torch.float32, {"lr": 0.1}))


# ---- operators, errors --------------------------------------------------------------------------


@pytest.mark.parametrize("master", [False, True])
def test_operator_passes_opcheck(master):
    p, g, m, v, w = (drawn(seed, (3, 5)).abs() for seed in range(5))
    sample = (p, g, m, v, w if master else None, 1, 0.1, 0.9, 0.99, 1e-8, 0.1, False)
    torch.library.opcheck(torch.ops.glassformer.adamw_step.default, sample)


def test_a_parameter_that_requires_grad_is_stepped_and_autograd_knows():
    p = drawn(1, (3, 5)).requires_grad_()
    loss = p.square().sum()
    adamw_step_(p, torch.ones_like(p), *states((3, 5)), lr=0.1, step=1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, "param must be float32, float16 or bfloat16, got torch.float64",
         {"param": torch.zeros(3, dtype=torch.float64)}),
        (TypeError, "grad must be float32, float16 or bfloat16, got torch.int64",
         {"grad": torch.zeros(3, dtype=torch.int64)}),
        (TypeError, "master must be float32, got torch.float16",
         {"master": torch.zeros(3, dtype=torch.float16)}),
        (ValueError, r"exp_avg is \(4,\), but param \(3,\)", {"exp_avg": torch.zeros(4)}),
        (ValueError, r"grad is \(1,\), but param \(3,\)", {"grad": torch.zeros(1)}),
        (ValueError, r"master is \(2,\), but param \(3,\)", {"master": torch.zeros(2)}),
        (ValueError, "exp_avg_sq on meta", {"exp_avg_sq": torch.zeros(3, device="meta")}),
        (RuntimeError, "several elements of param share memory",
         {"param": torch.zeros(1).expand(3)}),
        (ValueError, r"betas must be in \[0, 1\), got \(0.9, 1.0\)", {"betas": (0.9, 1.0)}),
        (ValueError, "step counts from 1, got 0", {"step": 0}),
        (ValueError, "can't be negative, got -1", {"lr": -1}),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit(error, message, changes):
    names = ("param", "grad", "exp_avg", "exp_avg_sq")
    given = {name: torch.zeros(3) for name in names} | {"lr": 0.1, "step": 1} | changes
    given = {
        k: x.to(DEVICE) if isinstance(x, torch.Tensor) and not x.is_meta else x
        for k, x in given.items()
    }
    with launched() as kernels, pytest.raises(error, match=f"adamw_step_: .*{message}"):
        adamw_step_(**given)
    assert kernels == []
