"""grad(), backward() and what the graph holds on to."""

import weakref

import numpy as np
import pytest
import torch

import glassformer as gf
from glassformer.primitive import Primitive, registry
from tests.tolerances import assert_close


def leaf(*values):
    return gf.tensor(list(values), dtype="float64", requires_grad=True)


def held(tensor):
    """A weak reference that tells whether the graph still keeps a tensor's memory."""
    return weakref.ref(tensor.array)


# grad()


def test_grad_touches_no_leaf():
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    gx, gy = gf.grad((x * y).sum(), [x, y])
    assert (gx.tolist(), gy.tolist()) == ([3, 4], [1, 2])
    assert x.grad is None
    assert y.grad is None


def test_grad_of_an_input_that_was_not_used():
    x, y = leaf(1.0), leaf(2.0)
    with pytest.raises(RuntimeError, match=r"inputs\[1\] of shape \(1,\).*allow_unused=True"):
        gf.grad(x * 2, [x, y])
    gx, gy = gf.grad(x * 2, [x, y], allow_unused=True)
    assert gx.tolist() == [2]
    assert gy is None


def test_grad_of_an_input_that_takes_none():
    x = leaf(1.0)
    with pytest.raises(RuntimeError, match=r"inputs\[0\] of shape \(2,\) doesn't require grad"):
        gf.grad(x * 2, gf.ones(2))


def test_grad_of_a_result_in_the_middle():
    x = leaf(1.0, 2.0)
    y = x * x
    (gy,) = gf.grad((y * y).sum(), y)
    assert gy.tolist() == [2, 8]


def test_grad_of_one_input_computed_from_another():
    """Each gradient is total: the one of x includes what flows through y."""
    x = leaf(3.0)
    y = x * x
    z = y * x
    gx, gy, gz = gf.grad(z, [x, y, z])
    assert (gx.item(), gy.item(), gz.item()) == (27, 3, 1)


def test_grad_of_a_leaf_by_itself():
    x = leaf(1.0, 2.0)
    (g,) = gf.grad(x, x, gf.tensor([5.0, 6.0], dtype="float64"))
    assert g.tolist() == [5, 6]


def test_grad_of_several_outputs_is_their_weighted_sum():
    x = leaf(1.0, 2.0)
    (g,) = gf.grad([x * 2, (x * x).sum()], x, [gf.tensor([1.0, 10.0], dtype="float64"), None])
    assert g.tolist() == [2 + 2, 20 + 4]


def test_grad_computes_no_more_than_it_must():
    computed = []

    def rule(i, g, _out, *_args):
        computed.append(i)
        return g

    add = Primitive("test add", lambda xp, x, y: xp.add(x, y))
    add.defvjp_each(rule)
    del registry["test add"]
    x, y, z = leaf(1.0), leaf(2.0), leaf(3.0)
    left, right = add(x, y), add(z, z)
    gf.grad(add(left, right), x)
    assert computed == [0, 0]  # of the sum towards `left`, of `left` towards x


def test_create_graph_gives_derivatives_of_any_order():
    x = leaf(0.7)
    derivative = x.sin()
    for expected in (np.cos, lambda t: -np.sin(t), lambda t: -np.cos(t), np.sin):
        (derivative,) = gf.grad(derivative, x, create_graph=True)
        assert_close(derivative.detach().numpy(), expected(x.detach().numpy()))


def test_gradients_are_constants_without_create_graph():
    x = leaf(1.0)
    (g,) = gf.grad(x.exp(), x)
    assert not g.requires_grad
    (g,) = gf.grad(x.exp(), x, create_graph=True)
    assert g.requires_grad


def test_gradient_penalty_as_in_pytorch():
    random = np.random.default_rng(0)
    values = [random.normal(size=(3, 4)), random.normal(size=(4, 2))]

    def penalty(framework, grad, x, w):
        (g,) = grad((x @ w).tanh().sum(), x, create_graph=True)
        ((g * g).sum() + framework.sqrt((g * g).sum(-1)).mean()).backward()
        return w.grad

    mine = [gf.tensor(v, requires_grad=True) for v in values]
    theirs = [torch.tensor(v, requires_grad=True) for v in values]
    got = penalty(gf, gf.grad, *mine)
    assert_close(got.numpy(), penalty(torch, torch.autograd.grad, *theirs).numpy())


# backward()


def test_backward_accumulates():
    x = leaf(1.0, 2.0)
    for count in (1, 2, 3):
        (x * 2).sum().backward()
        assert x.grad.tolist() == [2 * count] * 2


def test_backward_with_create_graph_makes_gradients_that_can_be_differentiated():
    x = leaf(2.0)
    (x**3).backward(create_graph=True)
    first = x.grad
    assert first.tolist() == [12]
    x.grad = None
    first.backward()
    assert x.grad.tolist() == [12]


def test_backward_into_named_inputs_only():
    x, y = leaf(1.0), leaf(2.0)
    z = x * y
    (z * z).backward(inputs=[x, z])
    assert (x.grad.item(), y.grad, z.grad.item()) == (8, None, 4)


@pytest.mark.parametrize(("inputs", "problem"), [([], "empty"), ([gf.ones(2)], r"shape \(2,\)")])
def test_backward_into_bad_inputs_is_an_error(inputs, problem):
    with pytest.raises(RuntimeError, match=problem):
        (leaf(1.0) * 2).backward(inputs=inputs)


def test_backward_of_several_tensors():
    x = leaf(1.0, 2.0)
    gf.autograd.backward([(x * 2).sum(), x], [None, gf.ones(2, dtype="float64")])
    assert x.grad.tolist() == [3, 3]


def test_backward_converts_the_gradient_it_is_given():
    x = gf.ones(2, dtype="float16", requires_grad=True)
    (x * 2).backward(gf.ones(2, dtype="float64"))
    assert x.grad.dtype == gf.float16


def test_gradients_are_copied_apart():
    """.grad is changed in place later: by accumulation, clipping, the user."""
    a, b, start = leaf(1.0, 2.0), leaf(3.0, 4.0), gf.ones(2, dtype="float64")
    (a + b).backward(start)
    assert not np.shares_memory(a.grad.array, b.grad.array)
    for given in (a, b):
        assert not np.shares_memory(given.grad.array, start.array)
    a.grad.mul_(10)
    assert (b.grad.tolist(), start.tolist()) == ([1, 1], [1, 1])


def test_gradients_that_are_parts_of_one_array_are_copied_apart():
    a, b = leaf(1.0, 2.0), leaf(3.0)
    (gf.cat([a, b]) * 2).sum().backward()
    a.grad.zero_()
    assert b.grad.tolist() == [2]
    x = gf.ones(3, 1, requires_grad=True)
    (x.expand(3, 4).T @ gf.ones(3)).sum().backward()
    x.grad.add_(1)
    assert x.grad.tolist() == [[5]] * 3


def test_a_leaf_used_directly_does_not_get_the_gradient_argument_itself():
    x, start = leaf(1.0), gf.ones(1, dtype="float64")
    x.backward(start)
    x.backward(start)
    assert (x.grad.tolist(), start.tolist()) == ([2], [1])


def test_gradients_accumulate_into_the_tensor_that_is_there():
    x = leaf(1.0)
    x.grad = mine = gf.full((1,), 5.0, dtype="float64")
    (x * 2).backward()
    assert x.grad is mine
    assert mine.tolist() == [7]


# what recording leaves behind


def test_detach_shares_memory_and_cuts_the_graph():
    x = leaf(1.0, 2.0)
    y = x.detach()
    assert np.shares_memory(x.array, y.array)
    assert (y.requires_grad, y.is_leaf) == (False, True)
    (x * y).sum().backward()
    assert x.grad.tolist() == [1, 2]


def test_clone_copies_and_keeps_the_graph():
    x = leaf(1.0, 2.0)
    y = x.clone()
    assert not np.shares_memory(x.array, y.array)
    y.sum().backward()
    assert x.grad.tolist() == [1, 1]


def test_retain_grad():
    x = leaf(1.0)
    y = x * 2
    y.retain_grad()
    (y * y).backward()
    assert (y.grad.tolist(), x.grad.tolist()) == ([4], [8])
    y.grad.zero_()
    assert x.grad.tolist() == [8]
    with pytest.raises(RuntimeError, match="doesn't require grad"):
        gf.ones(1).retain_grad()


def test_a_retained_gradient_keeps_nothing_alive():
    x = leaf(1.0)
    y = x * 2
    y.retain_grad()
    z = y * 3
    gone = weakref.ref(y)
    del y
    z.backward()
    assert gone() is None
    assert x.grad.tolist() == [6]


def test_what_was_saved_is_released_by_backward():
    x = leaf(1.0, 2.0)
    y = x * 2
    loss = (y * y).sum()
    saved = held(y)
    del y
    assert saved() is not None
    loss.backward()
    assert saved() is None
    assert loss.grad_fn is not None


def test_what_was_saved_is_released_on_the_way():
    x = leaf(1.0, 2.0)
    late = x.exp()
    y = late
    for _ in range(3):
        y = y.sin()
    saved = held(y)
    loss = y.cos().sum()
    del y
    alive = []
    late.register_hook(lambda g: alive.append(saved() is not None))
    loss.backward()
    assert alive == [False]


def test_a_retained_graph_keeps_what_was_saved():
    x = leaf(1.0, 2.0)
    y = x * 2
    loss = (y * y).sum()
    saved = held(y)
    del y
    loss.backward(retain_graph=True)
    assert saved() is not None
    del loss
    assert saved() is None


def test_what_no_rule_reads_is_not_kept():
    x = leaf(1.0, 2.0)
    y = x * 2
    loss = (y + 1).reshape(2, 1).sum()
    unread = held(y)
    del y
    assert unread() is None
    loss.backward()


def test_nothing_is_kept_without_recording():
    x = leaf(1.0, 2.0)
    with gf.no_grad():
        y = x * 2
        z = y * y
    unread = held(y)
    del y
    assert unread() is None
    assert z.is_leaf


def test_a_parameter_is_a_leaf_over_the_same_memory():
    x = gf.ones(2)
    p = gf.Parameter(x)
    assert (p.requires_grad, p.is_leaf) == (True, True)
    assert np.shares_memory(p.array, x.array)
    loss = (p * p).sum()
    x.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_requires_grad_is_for_leaves():
    x = leaf(1.0)
    with pytest.raises(RuntimeError, match="leaves only"):
        (x * 2).requires_grad_(False)
    x.requires_grad = False
    assert not (x * 2).requires_grad
