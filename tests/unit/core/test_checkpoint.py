"""checkpoint(): the same results, from less memory."""

import threading
import tracemalloc
import weakref

import numpy as np
import pytest

import glassformer as gf
from glassformer.backends import memory


def block(x, w):
    """One layer with a random part, as dropout has one."""
    h = (x @ w).tanh()
    return h * (gf.rand_like(h) > 0.3).to(h.dtype) + x


def run(wrap, seed=5, layers=3):
    gf.manual_seed(seed)
    x = gf.randn(4, 6, dtype="float64", requires_grad=True)
    weights = [gf.randn(6, 6, dtype="float64", requires_grad=True) for _ in range(layers)]
    h = x
    for w in weights:
        h = wrap(block, h, w)
    return h, [x, *weights]


def plain(function, *args):
    return function(*args)


def nested(function, *args):
    return gf.checkpoint(lambda *inner: gf.checkpoint(function, *inner), *args)


@pytest.mark.parametrize("wrap", [gf.checkpoint, nested])
def test_values_gradients_and_random_numbers_are_those_of_a_plain_call(wrap):
    results = []
    for call in (plain, wrap):
        out, inputs = run(call)
        after_forward = gf.rand(2).tolist()
        (out * out).sum().backward()
        after_backward = gf.rand(2).tolist()
        results.append([out, *(x.grad for x in inputs), after_forward, after_backward])
    for expected, got in zip(*results, strict=True):
        if isinstance(got, gf.Tensor):
            got, expected = got.detach().numpy(), expected.detach().numpy()
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("wrap", [gf.checkpoint, nested])
def test_second_derivatives_are_those_of_a_plain_call(wrap):
    results = []
    for call in (plain, wrap):
        out, inputs = run(call)
        first = gf.grad((out * out).sum(), inputs, create_graph=True)
        second = gf.grad(sum((g * g).sum() for g in first), inputs)
        results.append([g.detach().numpy() for g in (*first, *second)])
    for expected, got in zip(*results, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_gradcheck_through_a_checkpoint():
    x = gf.randn(3, 2, dtype="float64", generator=gf.Generator(1), requires_grad=True)
    w = gf.randn(2, 2, dtype="float64", generator=gf.Generator(2), requires_grad=True)

    def function(x, w):
        return gf.checkpoint(lambda x, w: ((x @ w).exp() * x).sin(), x, w)

    assert gf.gradcheck(function, [x, w])
    assert gf.gradgradcheck(function, [x, w])


def test_several_outputs_and_keyword_arguments():
    x = gf.tensor([0.5, 1.5], requires_grad=True)

    def function(x, *, power):
        return x**power, {"sin": x.sin()}

    cube, rest = gf.checkpoint(function, x, power=3)
    (cube + rest["sin"]).sum().backward()
    expected = 3 * x.detach().numpy() ** 2 + np.cos(x.detach().numpy())
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-6)


def test_what_the_function_closes_over_gets_its_gradient():
    x, w = gf.ones(2, requires_grad=True), gf.full((2,), 3.0, requires_grad=True)
    gf.checkpoint(lambda x: (x * w).exp(), x).sum().backward()
    np.testing.assert_allclose(w.grad.numpy(), np.exp([3.0, 3.0]), rtol=1e-6)


def test_a_retained_graph_can_be_walked_twice_and_a_released_one_cannot():
    x = gf.ones(2, requires_grad=True)
    loss = gf.checkpoint(lambda x: (x * x).exp(), x).sum()
    loss.backward(retain_graph=True)
    once = x.grad.numpy().copy()
    loss.backward()
    np.testing.assert_array_equal(x.grad.numpy(), 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_without_recording_it_is_a_plain_call():
    x = gf.ones(2, requires_grad=True)
    with gf.no_grad():
        assert not gf.checkpoint(lambda x: x * 2, x).requires_grad


def test_the_function_runs_once_more_and_only_for_a_backward():
    calls = []

    def function(x):
        calls.append(threading.get_ident())
        return (x * x).exp()

    x = gf.ones(2, requires_grad=True)
    out = gf.checkpoint(function, x)
    assert len(calls) == 1
    out.sum().backward()
    assert len(calls) == 2


def test_intermediate_results_are_let_go():
    kept = {}

    def function(name):
        def call(x):
            y = x.exp()
            kept[name] = weakref.ref(y.array)
            return y.sin()

        return call

    x = gf.ones(3, requires_grad=True)
    outputs = [function("plain")(x), gf.checkpoint(function("checkpointed"), x)]
    assert kept["plain"]() is not None
    assert kept["checkpointed"]() is None
    sum(out.sum() for out in outputs).backward()
    assert kept["checkpointed"]() is None


@pytest.mark.parametrize("elements", [100, 50_000])
def test_peak_memory_is_lower(elements):
    """16 blocks of 8 saved arrays each: 16 + 8 arrays at the peak, instead of 128."""

    def function(x):
        for _ in range(8):
            x = x.sin()
        return x

    def peak(wrap):
        memory.clear()
        tracemalloc.start()
        h = gf.ones(elements, dtype="float64", requires_grad=True)
        for _ in range(16):
            h = wrap(function, h)
        h.sum().backward()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    arrays = 8 * elements
    if elements > 1000:
        assert peak(gf.checkpoint) < 40 * arrays < 120 * arrays < peak(plain)
    else:
        assert peak(gf.checkpoint) < 2 * peak(plain)


@pytest.mark.parametrize("what", ["argument", "closed over"])
def test_an_in_place_change_before_backward_is_an_error(what):
    """Running the function again would compute something else, and nobody would notice."""
    x, w = gf.ones(2, requires_grad=True), gf.ones(2, requires_grad=True)
    out = gf.checkpoint(lambda x: (x + w).exp(), x)
    with gf.no_grad():
        (x if what == "argument" else w).add_(1)
    with pytest.raises(RuntimeError, match=r"an input of .* was changed in place since checkpoint"):
        out.sum().backward()


def test_a_function_that_does_something_else_the_second_time_is_an_error():
    calls = []

    def function(x):
        calls.append(1)
        return x.exp().sin() if len(calls) == 1 else x.exp()

    out = gf.checkpoint(function, gf.ones(2, requires_grad=True))
    with pytest.raises(RuntimeError, match="recorded 2 operations the first time and 1"):
        out.sum().backward()


def test_an_error_in_the_second_run_leaves_everything_usable():
    calls = []

    def function(x):
        calls.append(1)
        if len(calls) == 2:
            raise ArithmeticError("the second time")
        return (x * x).exp()

    x = gf.zeros(2, requires_grad=True)
    loss = gf.checkpoint(function, x).sum()
    state = gf.default_generator.get_state()
    with pytest.raises(ArithmeticError):
        loss.backward(retain_graph=True)
    assert gf.is_grad_enabled()
    assert gf.default_generator.get_state() == state
    loss.backward()
    assert x.grad.tolist() == [0, 0]
