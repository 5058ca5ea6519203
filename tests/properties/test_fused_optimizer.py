"""AdamW's step: kernel against reference bit by bit, against PyTorch, and in place."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import glassformer as gf
from glassformer import fused
from glassformer.backends import threads
from glassformer.fused.optimizer_step import adamw_step
from tests.fused_calls import (
    backwards,
    contiguous,
    drawn,
    layouts,
    seeds,
    shapes,
    sliced,
    transposed,
)

KERNEL = "numpy-tiled"
settings = st.fixed_dictionaries(
    {
        "step": st.integers(1, 10_000),
        "lr": st.floats(1e-6, 1.0),
        "beta1": st.floats(0, 0.999),
        "beta2": st.floats(0, 0.999),
        "eps": st.floats(1e-10, 1e-2),
        "weight_decay": st.floats(0, 0.5),
    }
)
own_layouts = st.sampled_from((contiguous, transposed, sliced, backwards))  # none overlaps itself


def states(rng, shape, dtype, layout):
    param, exp_avg, exp_avg_sq = (drawn(rng, shape, dtype) for _ in range(3))
    return [layout(x) for x in (param, exp_avg, np.asarray(np.abs(exp_avg_sq)))]


def step(arrays, grad, params):
    param, exp_avg, exp_avg_sq = (gf.from_numpy(x) for x in arrays)
    before = grad.copy()
    adamw_step(param, gf.from_numpy(grad), exp_avg, exp_avg_sq, **params)
    np.testing.assert_array_equal(grad, before)
    return fused.last_kernel("adamw_step")


@given(
    shapes(min_dims=0),
    st.sampled_from(("float64", "float32")),
    settings,
    own_layouts,
    layouts,
    seeds,
)
def test_kernel_is_the_reference_bit_by_bit(shape, dtype, params, layout, gradient_layout, seed):
    rng = np.random.default_rng(seed)
    arrays = states(rng, shape, dtype, layout)
    copies = [x.copy() for x in arrays]
    grad = gradient_layout(drawn(rng, shape, dtype))
    assert step(arrays, grad, params) == KERNEL
    with fused.use(adamw_step="reference"):
        assert step(copies, grad, params) == "reference"
    for mine, other in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(mine, other)


@given(settings, seeds)
def test_equals_pytorch(params, seed):
    rng = np.random.default_rng(seed)
    param, exp_avg, exp_avg_sq = states(rng, (3, 4), "float64", contiguous)
    grad = drawn(rng, (3, 4))
    theirs = torch.nn.Parameter(torch.tensor(param))
    theirs.grad = torch.tensor(grad)
    optimizer = torch.optim.AdamW(
        [theirs],
        lr=params["lr"],
        betas=(params["beta1"], params["beta2"]),
        eps=params["eps"],
        weight_decay=params["weight_decay"],
    )
    optimizer.state[theirs] = {
        "step": torch.tensor(float(params["step"] - 1)),
        "exp_avg": torch.tensor(exp_avg),
        "exp_avg_sq": torch.tensor(exp_avg_sq),
    }
    optimizer.step()
    step([param, exp_avg, exp_avg_sq], grad, params)
    np.testing.assert_allclose(param, theirs.detach().numpy(), rtol=1e-10, atol=1e-12)


def test_same_bits_on_any_number_of_threads():
    rng = np.random.default_rng(0)
    arrays = states(rng, (3001, 200), "float32", contiguous)
    copies = [x.copy() for x in arrays]
    grad = drawn(rng, (3001, 200), "float32")
    params = dict(step=3, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01)
    step(arrays, grad, params)
    before = threads.get_num_threads()
    threads.set_num_threads(1)
    try:
        step(copies, grad, params)
    finally:
        threads.set_num_threads(before)
    for mine, other in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_half_precision_goes_to_the_reference_and_is_computed_in_single():
    param = gf.tensor(np.ones(3, np.float16))
    grad = gf.tensor(np.full(3, 1e-2, np.float16))
    m, v = gf.zeros(3, dtype="float16"), gf.zeros(3, dtype="float16")
    params = dict(step=1, lr=0.1, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=0.0)
    adamw_step(param, grad, m, v, **params)
    assert fused.last_kernel("adamw_step") == "reference"
    np.testing.assert_allclose(param.numpy(), 0.9, atol=1e-3)


@pytest.mark.parametrize("wrong", ["grad", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (gf.ones(3), ValueError, r"{} has shape \(3,\) but param \(2, 3\)"),
        (gf.ones(2, 1), ValueError, r"{} has shape \(2, 1\) but param \(2, 3\)"),
        (gf.ones(2, 3, dtype="float64"), TypeError, "{} is .*float64 but param is .*float32"),
    ],
)
def test_arguments_unlike_the_parameter_are_refused_and_nothing_changes(
    wrong, other, error, message
):
    tensors = {name: gf.ones(2, 3) for name in ("param", "grad", "exp_avg", "exp_avg_sq")}
    tensors[wrong] = other
    params = dict(step=1, lr=0.1, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=0.0)
    with pytest.raises(error, match=message.format(wrong)):
        adamw_step(*tensors.values(), **params)
    assert all((t.numpy() == 1).all() for t in tensors.values())


def test_a_parameter_of_integers_is_refused():
    params = dict(step=1, lr=0.1, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=0.0)
    with pytest.raises(TypeError, match="param is .*int64"):
        adamw_step(*(gf.ones(2, dtype="int64") for _ in range(4)), **params)


def test_a_graph_notices_the_change():
    param = gf.tensor([1.0, 2.0]).requires_grad_()
    out = (param * param).sum()
    with gf.no_grad():
        zeros = gf.zeros(2), gf.zeros(2)
        adamw_step(
            param,
            gf.ones(2),
            *zeros,
            step=1,
            lr=0.1,
            beta1=0.9,
            beta2=0.99,
            eps=0.1,
            weight_decay=0,
        )
    with pytest.raises(RuntimeError, match="in place"):
        out.backward()
