"""What a fused operation records, what its derivatives are, and what a failing kernel does."""

import gc
import weakref

import numpy as np
import pytest

import glassformer as gf
from glassformer import fused
from glassformer.fused import FusedOp, Kernel
from tests.square_op import values, watched

# ---- recording ----------------------------------------------------------------------------------


def test_a_kernels_backward_gives_the_first_derivative(op):
    x, y = values(), values()
    op(x, y, factor=3.0).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [6.0, 12.0, 18.0])
    np.testing.assert_array_equal(y.grad.numpy(), [1.0, 1.0, 1.0])
    with gf.no_grad():
        assert not op(x, y, factor=3.0).requires_grad


def test_the_second_derivative_is_the_references():
    op, log = watched()
    x = values()
    (first,) = gf.grad(op(x, factor=3.0).sum(), x, create_graph=True)
    assert log == ["forward", "reference"]
    (second,) = gf.grad((first * first).sum(), x)
    np.testing.assert_array_equal(second.numpy(), 2 * 36.0 * np.arange(1, 4))
    assert "backward" not in log
    assert gf.gradgradcheck(lambda x: op(x * x, factor=0.5), [values()])


def test_a_kernel_without_backward_leaves_it_to_the_reference():
    op, log = watched(None)
    x = values()
    op(x, factor=3.0).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [6.0, 12.0, 18.0])
    assert log == ["forward", "reference"]


def test_an_input_computed_from_another_gets_its_own_gradient_alone():
    """z = f(x, y) with y = x³: dz/dx goes through both, once each, in both orders."""
    op, _ = watched()

    def function(x):
        return op(x, x * x * x, factor=2.0)

    assert gf.gradcheck(function, [values()]) and gf.gradgradcheck(function, [values()])
    x = values()
    n = np.arange(1, 4)
    (first,) = gf.grad(function(x).sum(), x, create_graph=True)
    np.testing.assert_allclose(first.detach().numpy(), 4 * n + 3 * n**2, rtol=1e-15)
    (second,) = gf.grad(first.sum(), x)
    np.testing.assert_allclose(second.numpy(), 4 + 6 * n, rtol=1e-15)
    y = x * x * x
    (gy,) = gf.grad(op(x, y, factor=2.0).sum(), y, create_graph=True)
    np.testing.assert_array_equal(gy.detach().numpy(), [1.0, 1.0, 1.0])


def test_several_outputs_of_which_some_get_no_gradient():
    def reference(x):
        return x * x, x.exp()

    def kernel_backward(grads, arrays, outs, residuals, needs):
        asked.append(tuple(g is not None for g in grads))
        parts = zip(grads, (2 * arrays[0], np.exp(arrays[0])), strict=True)
        return (sum(g * slope for g, slope in parts if g is not None),)

    asked = []
    op, log = watched(kernel_backward, lambda x: ((x * x, np.exp(x)), ()), reference)
    for weights in ((1, 0), (0, 1), (1, 1)):
        x = values()
        square, power = op(x)
        sum(w * out.sum() for w, out in zip(weights, (square, power), strict=True) if w).backward()
        expected = weights[0] * 2 * np.arange(1, 4) + weights[1] * np.exp(np.arange(1, 4))
        np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-15)
    assert asked == [(True, False), (False, True), (True, True)]
    assert gf.gradgradcheck(lambda x: op(x)[1], [values()])


def test_outputs_are_handed_to_a_backward_that_saves_them():
    def exp_backward(grads, arrays, outs, residuals, needs):
        given.append(outs)
        return (grads[0] * np.exp(arrays[0]),)

    for saves_output in (False, True):
        given = []
        op = FusedOp("exponential", lambda x: x.exp())
        op.register(
            Kernel("kernel", "cpu", 1, lambda x: (np.exp(x), ()), exp_backward, None, saves_output)
        )
        x = values()
        out = op(x)
        out.sum().backward()
        if saves_output:
            np.testing.assert_array_equal(given[0][0], np.exp([1.0, 2.0, 3.0]))
        else:
            assert given == [None]
        out = op(x)
        with gf.no_grad():
            out.add_(1.0)
        if saves_output:
            with pytest.raises(RuntimeError, match=r"exponential saved a tensor of shape \(3,\)"):
                out.sum().backward()
        else:
            out.sum().backward()


def test_residuals_live_until_backward(op):
    def alive():
        gc.collect()
        return residual() is not None

    x = values()
    out = op(x, factor=1.0)
    residual = weakref.ref(out.grad_fn.saved[0][0])
    assert alive()
    out.sum().backward(retain_graph=True)
    assert alive()
    out.sum().backward()
    assert not alive()
    with pytest.raises(RuntimeError, match="second time"):
        out.sum().backward()
    out = op(x, factor=1.0)
    residual = weakref.ref(out.grad_fn.saved[0][0])
    del out
    assert not alive(), "a result that is dropped takes them along"


def test_a_saved_input_changed_in_place_is_an_error(op):
    x, y = values(), values()
    out = op(x, y, factor=1.0)
    with gf.no_grad():
        x.mul_(2.0)
    with pytest.raises(RuntimeError, match=r"scaled_square saved a tensor of shape \(3,\)"):
        out.sum().backward()


def test_an_operation_in_place_is_noted_and_never_recorded():
    def add_one(x):
        with gf.no_grad():
            x.add_(1.0)

    op = FusedOp("add_one", add_one, mutates=(0,))

    def kernel_forward(x):
        x += 1
        return None, ()

    op.register(Kernel("kernel", "cpu", 1, kernel_forward))
    for name in ("kernel", "reference"):
        x = values()
        kept = x * x  # saves x
        with fused.use(add_one=name), gf.no_grad():
            assert op(x) is None
        assert x.is_leaf and x.version == 1
        np.testing.assert_array_equal(x.detach().numpy(), [2.0, 3.0, 4.0])
        with pytest.raises(RuntimeError, match="changed in place"):
            kept.sum().backward()


# ---- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [MemoryError, ValueError, NotImplementedError])
def test_an_exception_of_a_kernel_is_the_callers(error):
    """Never another kernel, never the reference, forward or backward; and life goes on."""

    def fail(*_, **__):
        raise error("out of luck")

    op, log = watched(kernel_forward=fail)
    with pytest.raises(error, match="out of luck"):
        op(values(), factor=1.0)
    assert log == ["forward"]

    op, log = watched(kernel_backward=fail)
    x = values()
    out = op(x, factor=1.0)
    with pytest.raises(error, match="out of luck"):
        out.sum().backward()
    assert log == ["forward", "backward"] and x.grad is None
    with fused.use(watched="reference"):
        op(x, factor=1.0).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [2.0, 4.0, 6.0])


def test_floating_point_warnings_stay_inside_kernels():
    """Infinities and NaNs are values; the suite would turn NumPy's warnings into errors."""

    def kernel_backward(grads, arrays, outs, residuals, needs):
        return (grads[0] / arrays[0],)

    op, _ = watched(kernel_backward, lambda x: (np.log(x), ()), lambda x: x.log())
    x = gf.tensor([0.0, -1.0, 1.0], requires_grad=True)
    out = op(x)
    out.sum().backward()
    np.testing.assert_array_equal(out.detach().numpy(), [-np.inf, np.nan, 0.0])
    np.testing.assert_array_equal(x.grad.numpy(), [np.inf, -1.0, 1.0])
