"""Attention's derivatives of both orders, its dropout, and many threads at once."""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

import glassformer as gf
from glassformer import fused
from glassformer.fused.attention import attention
from tests.attention_calls import KERNEL, OP, REFERENCE, call, draw, expanded, leaves, operands, run
from tests.tolerances import assert_close

both = pytest.mark.parametrize("kernel", [KERNEL, REFERENCE])


# ---- derivatives --------------------------------------------------------------------------------

DERIVATIVES = {
    "plain": {},
    "causal": {"causal": "top_left"},
    "cache": {"causal": "bottom_right", "scale": 0.7},
    "window": {"window": (1, 1)},
    "softcap": {"softcap": 0.8},
    "dropout": {"dropout_p": 0.4, "seed": 3},
    "all": {"causal": "bottom_right", "window": (3, None), "softcap": 1.5, "dropout_p": 0.2},
}


def differentiable(options, masked=True):
    """A function of query, key, value and bias that gives output and lse; and its inputs."""
    rng = np.random.default_rng(4)
    mask = gf.tensor(rng.random((2, 1, 1, 5)) < 0.7) if masked else None
    arrays = (*operands(2, 2, 1, 3, 5, 2, 2), draw(rng, 2, 1, 5))

    def function(query, key, value, bias):
        out, lse = attention(
            query, key, value, mask, bias, return_lse=True, **({"seed": 1} | options)
        )
        return out, gf.where(lse == -math.inf, 0.0, lse)

    return function, leaves(*arrays)


@pytest.mark.parametrize("options", DERIVATIVES.values(), ids=DERIVATIVES)
def test_gradients_are_the_slopes(options):
    assert gf.gradcheck(*differentiable(options))
    assert fused.last_kernel(OP) == KERNEL


@pytest.mark.parametrize("options", DERIVATIVES.values(), ids=DERIVATIVES)
def test_second_derivatives_are_the_slopes_of_gradients(options):
    assert gf.gradgradcheck(*differentiable(options))
    assert fused.last_kernel(OP) == KERNEL


def test_second_derivatives_are_those_of_the_reference():
    function, inputs = differentiable(DERIVATIVES["all"])

    def second(kernel):
        with fused.use(**{OP: kernel}):
            out, lse = function(*inputs)
            first = gf.grad((out * out).sum() + lse.sum(), inputs, create_graph=True)
            return gf.grad(sum((g * g).sum() for g in first), inputs)

    for actual, expected in zip(second(KERNEL), second(REFERENCE), strict=True):
        assert_close(actual.numpy(), expected.numpy())


def test_self_attention_of_one_tensor():
    """Query, key and value are the same tensor, or one computed from another: all paths add up."""
    assert gf.gradgradcheck(lambda x: attention(x, x, x), leaves(operands(1, 1, 1, 3, 3, 2)[0]))

    def chained(x):
        key = x.tanh()
        return attention(x, key, key * x, causal="top_left")

    x = leaves(operands(1, 1, 1, 3, 3, 2)[0])
    assert gf.gradcheck(chained, x) and gf.gradgradcheck(chained, x)
    (kernels,) = gf.grad(chained(*x).sum(), x)
    (references,) = gf.grad(chained(*x).sum(), x, create_graph=True)
    assert_close(references.detach().numpy(), kernels.numpy())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gradients_of_expanded_tensors_are_summed(axis):
    """Repeated with stride 0 by expand(): the leaf's gradient is the sum over its copies."""
    arrays = operands(2, 2, 2, 5, 5, 3, 3)
    mask = np.random.default_rng(2).random((2, 2, 5, 5)) < 0.7
    copies = leaves(*(np.ascontiguousarray(expanded(x, axis)) for x in arrays))
    attention(*copies, gf.tensor(mask)).sum().backward()
    singles = leaves(*(x.take([0], axis) for x in arrays))
    attention(*(x.expand(2, 2, 5, 3) for x in singles), gf.tensor(mask)).sum().backward()
    for single, copied in zip(singles, copies, strict=True):
        assert_close(single.grad.numpy(), copied.grad.numpy().sum(axis, keepdims=True))


@pytest.mark.parametrize("position", range(5))
def test_each_input_can_be_the_only_one_that_requires_grad(position):
    arrays = (*operands(), np.ones((5, 7), bool), np.zeros((5, 7)))
    expected = run(arrays)
    name = ("query", "key", "value", "mask", "bias")[position]
    tensors = [gf.tensor(x) for x in arrays]
    if name == "mask":
        assert not attention(*tensors).requires_grad
        return
    tensors[position].requires_grad_()
    outputs = attention(*tensors, return_lse=True)
    rng = np.random.default_rng(7)
    gf.backward(outputs, [gf.from_numpy(draw(rng, *x.shape)) for x in outputs])
    np.testing.assert_array_equal(tensors[position].grad.numpy(), expected[f"d_{name}"])
    assert all(x.grad is None for i, x in enumerate(tensors) if i != position)


def test_nothing_that_is_passed_in_changes():
    """Not the arguments, the output, nor the gradients, whatever kernel works on them."""
    rng = np.random.default_rng(0)
    arrays = (*operands(), rng.random((5, 7)) < 0.8, draw(rng, 5, 7))
    tensors = leaves(*arrays)
    out, lse = attention(*tensors, softcap=2.0, dropout_p=0.2, seed=1, return_lse=True)
    kept = (out.detach().numpy().copy(), lse.detach().numpy().copy())
    upstream = [draw(rng, *x.shape) for x in kept]
    gf.backward([out, lse], [gf.tensor(x) for x in upstream])
    for tensor, array in zip((*tensors, out, lse), (*arrays, *kept), strict=True):
        np.testing.assert_array_equal(tensor.detach().numpy(), array)


@pytest.mark.parametrize("position", range(7))
def test_a_change_in_place_before_backward_is_an_error(position):
    tensors = leaves(*operands(), np.ones((5, 7), bool), np.zeros((5, 7)))
    outputs = attention(*tensors, return_lse=True)
    with gf.no_grad():
        (*tensors, *outputs)[position].zero_()
    with pytest.raises(RuntimeError, match="scaled_dot_product_attention saved a tensor of shape"):
        outputs[0].sum().backward()


# ---- dropout ------------------------------------------------------------------------------------


@both
def test_dropout_0_is_the_identity_bit_by_bit(kernel):
    arrays = operands()
    expected, actual = run(arrays, kernel), run(arrays, kernel, dropout_p=0.0, seed=5)
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)


@both
def test_dropout_1_gives_zeros(kernel):
    found = run(operands(), kernel, "out", dropout_p=1.0, seed=5)
    lse = found.pop("lse")
    np.testing.assert_array_equal(lse, call(*operands(), kernel=kernel, return_lse=True)[1])
    assert not any(x.any() for x in found.values())


@both
def test_dropout_is_decided_by_its_seed(kernel):
    arrays = operands(tq=20, tk=20)
    drop = partial(call, *arrays, kernel=kernel, dropout_p=0.5)
    np.testing.assert_array_equal(drop(seed=1), drop(seed=1))
    assert (drop(seed=1) != drop(seed=2)).any()
    gf.manual_seed(0)
    first, second = drop(), drop()
    gf.manual_seed(0)
    np.testing.assert_array_equal(drop(), first)
    assert (first != second).any()


def test_without_dropout_no_random_number_is_drawn():
    state = gf.default_generator.get_state()
    call(*operands())
    assert gf.default_generator.get_state() == state


def test_dropout_keeps_the_mean():
    """The mean over 4,000 batch elements is the output without dropout, by its standard error."""
    query, key, value = operands(b=1, heads=1, kv_heads=1, tq=4, tk=6)
    wide = [np.broadcast_to(x, (4000, *x.shape[1:])) for x in (query, key, value)]
    out = call(*wide, dropout_p=0.3, seed=9)
    error = (out.mean(0) - call(query, key, value)[0]) / (out.std(0) / np.sqrt(len(out)))
    assert np.abs(error).max() < 4.5


def test_checkpoint_drops_the_same_weights_again():
    def gradients(wrap):
        tensors = leaves(*operands())
        gf.manual_seed(3)
        wrap(lambda *args: attention(*args, dropout_p=0.5), *tensors).sum().backward()
        return [x.grad.numpy() for x in tensors]

    plain = gradients(lambda function, *args: function(*args))
    for actual, expected in zip(gradients(gf.checkpoint), plain, strict=True):
        np.testing.assert_array_equal(actual, expected)


# ---- threads ------------------------------------------------------------------------------------


def test_four_threads_at_once_compute_what_one_does():
    """Bit by bit, forward and backward, with problems of several blocks and tiles."""
    rng = np.random.default_rng(0)
    problems = []
    for i in range(8):
        arrays = operands(b=2, heads=4, tq=150, tk=600 + i, d=16, dv=8, dtype="float32", seed=i)
        bias = draw(rng, 1, 4, 150, 600 + i, dtype="float32") if i % 2 else None
        mask = rng.random((150, 600 + i)) < 0.9
        options = {"causal": "bottom_right", "dropout_p": 0.1 * (i % 3), "seed": i}
        problems.append(partial(run, (*arrays, mask, bias), **options))
    serial = [problem() for problem in problems]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda problem: problem(), problems * 2))
    for actual, expected in zip(threaded, serial * 2, strict=True):
        for name in expected:
            np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)
