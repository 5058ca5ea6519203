"""Hooks on tensors: what they see, replace and keep."""

import pytest

import glassformer as gf


def leaf(*values):
    return gf.tensor(list(values), dtype="float64", requires_grad=True)


def test_a_hook_on_a_leaf_sees_the_sum_of_what_arrives():
    x, seen = leaf(1.0), []
    x.register_hook(lambda g: seen.append(g.item()))
    (x * 2 + x * 3).backward()
    assert seen == [5]


def test_a_hook_on_a_result_sees_the_sum_of_what_arrives():
    x, seen = leaf(1.0), []
    y = x * 10
    y.register_hook(lambda g: seen.append(g.item()))
    (y * 2 + y * 3).backward()
    assert seen == [5]
    assert x.grad.tolist() == [50]


@pytest.mark.parametrize("on_leaf", [True, False])
def test_what_a_hook_returns_replaces_the_gradient(on_leaf):
    x = leaf(1.0, 2.0)
    y = x * 3
    (x if on_leaf else y).register_hook(lambda g: g * 10)
    y.sum().backward()
    assert x.grad.tolist() == [30, 30]


def test_hooks_run_in_the_order_of_registration():
    x, seen = leaf(1.0), []
    x.register_hook(lambda g: g + 1)
    x.register_hook(lambda g: seen.append(g.item()))
    x.register_hook(lambda g: g * 2)
    (x * 1).backward()
    assert seen == [2]
    assert x.grad.tolist() == [4]


@pytest.mark.parametrize("on_leaf", [True, False])
def test_a_removed_hook_is_not_called(on_leaf):
    x, seen = leaf(1.0), []
    y = x * 2
    handle = (x if on_leaf else y).register_hook(seen.append)
    handle.remove()
    handle.remove()
    y.backward()
    assert seen == []


def test_a_hook_may_remove_itself():
    x, seen = leaf(1.0), []

    def once(g):
        seen.append(g.item())
        handle.remove()

    handle = x.register_hook(once)
    for _ in range(2):
        (x * 2).backward()
    assert seen == [2]


def test_hooks_on_each_part_of_a_split():
    x, seen = leaf(1.0, 2.0, 3.0), {}
    first, second = x.split([1, 2])
    first.register_hook(lambda g: seen.update(first=g.tolist()))
    second.register_hook(lambda g: g * 0)
    (first.sum() * 2 + (second * 5).sum()).backward()
    assert seen == {"first": [2]}
    assert x.grad.tolist() == [2, 0, 0]


def test_a_retained_gradient_is_what_the_hooks_left():
    x = leaf(1.0)
    y = x * 2
    y.retain_grad()
    y.register_hook(lambda g: g * 7)
    (y * 1).backward()
    assert y.grad.tolist() == [7]


def test_hooks_are_called_by_grad_where_gradients_pass():
    x, seen = leaf(1.0), []
    y = x * 2
    y.register_hook(lambda g: seen.append(g.item()))
    (g,) = gf.grad(y * 3, x)
    assert (seen, g.item()) == ([3], 6)


def test_a_hook_on_the_tensor_backward_starts_from():
    x = leaf(1.0)
    y = x * 2
    y.register_hook(lambda g: g * 5)
    y.backward()
    assert x.grad.tolist() == [10]


@pytest.mark.parametrize("replacement", [gf.ones(3), gf.ones(2, dtype="float32")])
@pytest.mark.parametrize("on_leaf", [True, False])
def test_a_replacement_must_have_the_shape_and_dtype(replacement, on_leaf):
    x = leaf(1.0, 2.0)
    y = x * 2
    (x if on_leaf else y).register_hook(lambda g: replacement)
    with pytest.raises(RuntimeError, match=r"hook replaced .*\(2,\).*float64.*float32"):
        y.sum().backward()
    assert x.grad is None


@pytest.mark.parametrize("on_leaf", [True, False])
def test_what_a_hook_returned_is_not_changed_by_later_gradients(on_leaf):
    x, constant = leaf(1.0, 2.0), gf.full((2,), 5.0, dtype="float64")
    for _ in range(2):
        y = x + 1
        handle = (x if on_leaf else y).register_hook(lambda g: constant)
        y.sum().backward()
        handle.remove()
    assert constant.tolist() == [5, 5]
    assert x.grad.tolist() == [10, 10]


@pytest.mark.parametrize("on_leaf", [True, False])
def test_what_a_hook_kept_is_not_changed_by_later_gradients(on_leaf):
    x, kept = leaf(1.0, 2.0), []
    for _ in range(2):
        y = x + 1
        handle = (x if on_leaf else y).register_hook(kept.append)
        (y * 2).sum().backward()
        handle.remove()
    assert [g.tolist() for g in kept] == [[2, 2], [2, 2]]
    assert x.grad.tolist() == [4, 4]


def test_operations_in_a_hook_are_recorded_only_with_create_graph():
    x, recorded = leaf(1.0), []
    y = x.exp()
    y.register_hook(lambda g: recorded.append((g * y).requires_grad))
    y.backward(retain_graph=True)
    y.backward(create_graph=True)
    assert recorded == [False, True]


def test_hooks_need_a_gradient():
    with pytest.raises(RuntimeError, match="doesn't require grad"):
        gf.ones(1).register_hook(print)
