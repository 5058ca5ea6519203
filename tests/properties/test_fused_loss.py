"""cross_entropy and linear_cross_entropy: kernels, references, PyTorch, and the limits."""

import tracemalloc
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import glassformer as gf
from glassformer import fused
from glassformer.backends import memory, threads
from glassformer.fused import loss
from glassformer.fused.loss import cross_entropy, linear_cross_entropy
from tests.fused_calls import (
    check_derivatives,
    check_kernel,
    check_torch,
    drawn,
    dtypes,
    layouts,
    run,
    scales,
    seeds,
    shapes,
)
from tests.tolerances import assert_close

KERNEL, LINEAR_KERNEL = "numpy-tiled", "numpy-blocked"

options = st.fixed_dictionaries(
    {
        "reduction": st.sampled_from(("mean", "sum", "none")),
        "label_smoothing": st.sampled_from((0.0, 0.1, 1.0)),
        "ignore_index": st.sampled_from((-100, 0, 2)),
    }
)


def targets(rng, shape, num_classes, ignore_index):
    """Integers, a third of them ignored."""
    target = rng.integers(0, max(num_classes, 1), shape)
    return np.where(rng.random(shape) < 0.3, ignore_index, target)


def class_weights(rng, num_classes, dtype):
    return np.asarray(rng.uniform(0.1, 2, num_classes), dtype)


@st.composite
def logit_shapes(draw, min_side=0):
    """(V,), (N, V) or (N, V, ...), V at least 1."""
    shape = draw(shapes(max_dims=4, max_side=7, min_side=min_side))
    dim = 0 if len(shape) == 1 else 1
    return (*shape[:dim], draw(st.integers(3, 40)), *shape[dim + 1 :])


def call(rng, shape, dtype, scale, weighted, params):
    dim = 0 if len(shape) == 1 else 1
    target = targets(rng, shape[:dim] + shape[dim + 1 :], shape[dim], params["ignore_index"])
    weight = class_weights(rng, shape[dim], dtype) if weighted else None
    return [drawn(rng, shape, dtype, scale), np.asarray(target), weight]


@given(logit_shapes(), dtypes, scales, st.booleans(), options, layouts, layouts, seeds)
def test_kernel_equals_reference(
    shape, dtype, scale, weighted, params, layout, gradient_layout, seed
):
    logits, target, weight = call(
        np.random.default_rng(seed), shape, dtype, scale, weighted, params
    )
    kernel = "reference" if 0 in shape else KERNEL
    weight = None if weight is None else gf.from_numpy(weight)  # it takes no gradient
    check_kernel(
        "cross_entropy", [layout(logits), layout(target), weight], params, kernel, gradient_layout
    )


@given(logit_shapes(min_side=1), scales, st.booleans(), options, seeds)
def test_equals_pytorch(shape, scale, weighted, params, seed):
    logits, target, weight = call(
        np.random.default_rng(seed), shape, "float64", scale, weighted, params
    )
    theirs = None if weight is None else torch.from_numpy(weight)
    mine = None if weight is None else gf.from_numpy(weight)
    check_torch(
        "cross_entropy",
        [logits, target, mine],
        params,
        lambda x, t, _: F.cross_entropy(x, t, theirs, **params),
    )


@given(
    st.tuples(st.integers(0, 9), st.integers(1, 5), st.integers(3, 300)),
    dtypes,
    st.booleans(),
    options,
    layouts,
    layouts,
    seeds,
)
def test_linear_kernel_equals_reference(
    sizes, dtype, weighted, params, layout, gradient_layout, seed
):
    n, c, v = sizes
    rng = np.random.default_rng(seed)
    arrays = [
        layout(drawn(rng, (n, c), dtype)),
        layout(drawn(rng, (v, c), dtype)),
        layout(targets(rng, (n,), v, params["ignore_index"])),
        gf.from_numpy(class_weights(rng, v, dtype)) if weighted else None,
    ]
    kernel = LINEAR_KERNEL if n else "reference"
    with mock.patch.object(loss, "_BLOCK", 64 * 9):  # several blocks of the vocabulary
        check_kernel("linear_cross_entropy", arrays, params, kernel, gradient_layout, seed)


@given(st.integers(1, 9), st.integers(3, 300), st.booleans(), options, seeds)
def test_linear_equals_pytorch(n, v, weighted, params, seed):
    rng = np.random.default_rng(seed)
    weight = class_weights(rng, v, "float64") if weighted else None
    theirs = None if weight is None else torch.from_numpy(weight)
    check_torch(
        "linear_cross_entropy",
        [
            drawn(rng, (n, 4)),
            drawn(rng, (v, 4)),
            targets(rng, (n,), v, params["ignore_index"]),
            None if weight is None else gf.from_numpy(weight),
        ],
        params,
        lambda h, w, t, _: F.cross_entropy(h @ w.T, t, theirs, **params),
    )


@pytest.mark.parametrize("offset", [-1000, -100, 100, 1000])
def test_linear_with_logits_far_from_zero(offset):
    rng = np.random.default_rng(0)
    hidden, weight = drawn(rng, (5, 4), "float32"), drawn(rng, (200, 4), "float32")
    hidden[:, 0], weight[:, 0] = 1, offset
    target = rng.integers(0, 200, 5)
    with mock.patch.object(loss, "_BLOCK", 64 * 5):
        value, grads, kernel = run("linear_cross_entropy", [hidden, weight, target], {})
    assert kernel == LINEAR_KERNEL
    wide = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in (hidden, weight)]
    expected = F.cross_entropy(wide[0] @ wide[1].T, torch.from_numpy(target))
    # A logit of 1,000 is itself rounded to 6e-5.
    assert value.item() == pytest.approx(expected.item(), abs=1e-4)
    assert all(np.isfinite(g).all() for g in grads[:2])


def test_everything_ignored():
    logits = gf.randn(3, 5).requires_grad_()
    target = gf.tensor([-100, -100, -100])
    mean = cross_entropy(logits, target)
    assert fused.last_kernel("cross_entropy") == KERNEL
    assert np.isnan(mean.item())
    mean.backward()
    assert (logits.grad.numpy() == 0).all()
    assert cross_entropy(logits, target, reduction="sum").item() == 0
    assert cross_entropy(logits, target, reduction="none").tolist() == [0, 0, 0]


@pytest.mark.parametrize("kernel", ["reference", KERNEL])
def test_nan_in_an_ignored_row_stays_there(kernel):
    x = drawn(np.random.default_rng(0), (3, 4), "float32")
    x[1] = np.nan
    logits = gf.from_numpy(x).requires_grad_()
    with fused.use(cross_entropy=kernel):
        value = cross_entropy(logits, gf.tensor([1, -100, 3]), label_smoothing=0.1)
    value.backward()
    expected = cross_entropy(gf.from_numpy(x[[0, 2]]), gf.tensor([1, 3]), label_smoothing=0.1)
    assert_close(value.detach().numpy(), expected.numpy())
    assert np.isfinite(logits.grad.numpy()).all()
    assert (logits.grad.numpy()[1] == 0).all()


@pytest.mark.parametrize("kernel", ["reference", KERNEL])
@pytest.mark.parametrize("wrong", [-1, 5, 99])
def test_a_target_out_of_range(kernel, wrong):
    message = f"index {wrong} is out of range, the limit is 5"
    with fused.use(cross_entropy=kernel), pytest.raises(IndexError, match=message):
        cross_entropy(gf.zeros(2, 5), gf.tensor([1, wrong]))


@pytest.mark.parametrize("wrong", [-1, 5])
def test_linear_target_out_of_range(wrong):
    with pytest.raises(IndexError, match=f"index {wrong} is out of range, the limit is 5"):
        linear_cross_entropy(gf.zeros(2, 3), gf.zeros(5, 3), gf.tensor([1, wrong]))
    assert fused.last_kernel("linear_cross_entropy") == LINEAR_KERNEL


def test_errors():
    x, t = gf.zeros(2, 5), gf.tensor([1, 2])
    for error, arguments, params in (
        (r"logits \(2, 5\) and target \(3,\)", (x, gf.tensor([1, 2, 3])), {}),
        (r"weight must be \(5,\), got \(2,\)", (x, t, gf.ones(2)), {}),
        ("reduction must be one of .* got 'avg'", (x, t), {"reduction": "avg"}),
        (r"label_smoothing must be in \[0, 1\], got 2", (x, t), {"label_smoothing": 2}),
        ("got glassformer.float32 and glassformer.float32", (x, gf.zeros(2)), {}),
    ):
        with pytest.raises(ValueError, match=error):
            cross_entropy(*arguments, **params)


def test_precise_with_a_large_vocabulary():
    rng = np.random.default_rng(0)
    x, t = drawn(rng, (20, 50257), "float32", 3.0), rng.integers(0, 50257, 20)
    expected = F.cross_entropy(torch.from_numpy(x).double(), torch.from_numpy(t)).item()
    assert cross_entropy(gf.from_numpy(x), gf.from_numpy(t)).item() == pytest.approx(expected, 1e-6)


def test_many_chunks_on_any_number_of_threads():
    rng = np.random.default_rng(0)
    arrays = [drawn(rng, (3001, 200), "float32", 3.0), rng.integers(0, 200, 3001), None]
    params = {"label_smoothing": 0.1}
    check_kernel("cross_entropy", arrays, params, KERNEL)
    two = run("cross_entropy", arrays, params)[:2]
    before = threads.get_num_threads()
    threads.set_num_threads(1)
    try:
        one = run("cross_entropy", arrays, params)[:2]
    finally:
        threads.set_num_threads(before)
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1][0], two[1][0])


def test_linear_never_holds_the_logits():
    # 2,000 x 50,000 logits would take 400 MB; the weight and its gradient take 6.4 MB.
    hidden, weight = gf.randn(2000, 16).requires_grad_(), gf.randn(50_000, 16).requires_grad_()
    target = gf.randint(0, 50_000, (2000,))
    memory.clear()
    tracemalloc.start()
    linear_cross_entropy(hidden, weight, target).backward()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert fused.last_kernel("linear_cross_entropy") == LINEAR_KERNEL
    assert peak < 80e6


@pytest.mark.parametrize("params", [{}, {"reduction": "none", "label_smoothing": 0.1}])
def test_first_and_second_derivatives(params):
    rng = np.random.default_rng(0)
    target = np.array([1, -100, 4])
    check_derivatives("cross_entropy", [drawn(rng, (3, 5)), target], params)
    arrays = [drawn(rng, (3, 2)), drawn(rng, (5, 2)), target]
    check_derivatives("linear_cross_entropy", arrays, params)
