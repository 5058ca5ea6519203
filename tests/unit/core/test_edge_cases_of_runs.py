"""Edge cases 32 to 35: threads, errors half way, and memory over many steps."""

import gc
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import glassformer as gf
from glassformer.primitive import Primitive, registry
from tests.tolerances import assert_close

# 32, 33: threads


def test_edge_32_no_grad_is_per_thread():
    x = gf.ones(2, requires_grad=True)
    inside, done = threading.Event(), threading.Event()

    def without():
        with gf.no_grad():
            inside.set()
            done.wait(10)
            return (x * 2).requires_grad

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(without)
        assert inside.wait(10)
        assert gf.is_grad_enabled()
        assert (x * 2).requires_grad
        done.set()
        assert other.result() is False


def test_edge_32_new_threads_record_whatever_their_parent_does():
    with gf.no_grad(), ThreadPoolExecutor(1) as pool:
        assert pool.submit(gf.is_grad_enabled).result()
        assert not gf.is_grad_enabled()


def test_edge_32_no_grad_is_restored_after_an_exception():
    with pytest.raises(ZeroDivisionError), gf.no_grad():
        raise ZeroDivisionError
    assert gf.is_grad_enabled()
    with gf.no_grad():
        with pytest.raises(ZeroDivisionError), gf.enable_grad():
            assert gf.is_grad_enabled()
            raise ZeroDivisionError
        assert not gf.is_grad_enabled()


def test_edge_32_no_grad_as_a_decorator():
    x = gf.ones(2, requires_grad=True)

    @gf.no_grad()
    def double():
        return x * 2

    assert not double().requires_grad
    assert not double().requires_grad
    assert gf.is_grad_enabled()


def network(x, weights):
    """A little of everything, on arrays large enough to come from reused memory."""
    for w in weights:
        h = (x @ w).tanh()
        scores = (h @ h.mT).masked_fill(gf.ones(64, 64, dtype="bool").triu(1), float("-inf"))
        weights_ = (scores - scores.logsumexp(-1, True)).exp()
        x = weights_ @ h + x.mean(-1, keepdim=True) * gf.erf(x)
    return x


@pytest.fixture
def problem():
    generator = gf.Generator(3)
    weights = [gf.randn(128, 128, generator=generator) / 8 for _ in range(2)]
    inputs = [gf.randn(3, 64, 128, generator=generator) for _ in range(16)]
    return inputs, [gf.Parameter(w) for w in weights]


def test_edge_33_inference_in_16_threads_is_bitwise_the_serial_one(problem):
    inputs, weights = problem

    @gf.no_grad()
    def infer(x):
        return network(x, weights).numpy().copy()

    serial = [infer(x) for x in inputs]
    with ThreadPoolExecutor(16) as pool:
        for got, expected in zip(pool.map(infer, inputs * 2), serial * 2, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_edge_33_gradients_in_16_threads_are_bitwise_the_serial_ones(problem):
    inputs, weights = problem

    def gradients(x):
        found = gf.grad(network(x, weights).sum(), weights)
        return [g.numpy().copy() for g in found]

    serial = [gradients(x) for x in inputs]
    with ThreadPoolExecutor(16) as pool:
        for got, expected in zip(pool.map(gradients, inputs), serial, strict=True):
            for g, e in zip(got, expected, strict=True):
                np.testing.assert_array_equal(g, e)


# 34: errors half way


@pytest.fixture
def failing():
    """A primitive whose rule raises until `failing.cured` is set."""

    def rule(g, _out, _x):
        if not primitive.cured:
            raise ArithmeticError("half way")
        return g

    primitive = Primitive("failing", lambda xp, x: xp.copy(x))
    primitive.defvjp(rule)
    primitive.cured = False
    yield primitive
    del registry["failing"]


@pytest.mark.parametrize("create_graph", [False, True])
def test_edge_34_an_error_in_a_rule_leaves_everything_usable(failing, create_graph):
    x, w = gf.ones(2, requires_grad=True), gf.ones(2, requires_grad=True)
    loss = (failing(x * w) * w).sum()
    for _ in range(2):
        with pytest.raises(ArithmeticError, match="half way"):
            loss.backward(retain_graph=True, create_graph=create_graph)
    assert gf.is_grad_enabled()
    assert x.grad is None
    assert w.grad is None  # not even the part that had arrived
    failing.cured = True
    loss.backward()
    assert (x.grad.tolist(), w.grad.tolist()) == ([1, 1], [2, 2])


def test_edge_34_an_error_in_a_hook_leaves_everything_usable():
    x = gf.ones(2, requires_grad=True)
    y = x * 2

    def fail(_):
        raise ArithmeticError("half way")

    handle = y.register_hook(fail)
    loss = (y * y).sum()
    with gf.no_grad(), pytest.raises(ArithmeticError, match="half way"):
        loss.backward(retain_graph=True)
    handle.remove()
    loss.backward()
    assert x.grad.tolist() == [8, 8]


def test_edge_34_an_error_without_a_retained_graph_asks_for_a_new_forward():
    x = gf.ones(2, requires_grad=True)
    handle = (y := x.exp()).register_hook(lambda g: 1 / 0)
    loss = (y * y).sum()
    with pytest.raises(ZeroDivisionError):
        loss.backward()
    handle.remove()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    x.exp().sum().backward()
    assert_close(x.grad.numpy(), np.exp(np.ones(2, np.float32)))


# 35: memory


def test_edge_35_memory_is_flat_over_10_000_steps_without_the_garbage_collector():
    """No step leaves a reference cycle behind: memory returns at once, collector or not."""
    x, w = gf.randn(4, 8, generator=gf.Generator(0)), gf.Parameter(gf.zeros(8, 3))

    def steps(count):
        for _ in range(count):
            (x @ w)[:, 1:].tanh().sum().backward()
            with gf.no_grad():
                w.sub_(w.grad * 0.01)
            w.grad = None

    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        steps(3_000)  # Python keeps some thousand small objects for reuse
        before = tracemalloc.get_traced_memory()[0]
        steps(7_000)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
        gc.enable()
    assert grown < 20_000, f"10,000 steps left {grown} bytes behind"
