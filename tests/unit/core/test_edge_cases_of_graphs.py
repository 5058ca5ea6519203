"""Edge cases 19 to 26: in-place changes, repeated and deep graphs, where gradients may be."""

import gc

import numpy as np
import pytest

import glassformer as gf
from glassformer.graph import Node
from tests.tolerances import assert_close

IN_PLACE = {
    "add_": lambda x: x.add_(1),
    "sub_": lambda x: x.sub_(gf.ones_like(x)),
    "mul_": lambda x: x.mul_(2),
    "div_": lambda x: x.div_(2),
    "copy_": lambda x: x.copy_(gf.zeros_like(x)),
    "fill_": lambda x: x.fill_(3),
    "zero_": lambda x: x.zero_(),
    "clamp_": lambda x: x.clamp_(max=0.5),
    "masked_fill_": lambda x: x.masked_fill_(x > 0, 0.5),
    "assignment": lambda x: x.__setitem__(0, 5.0),
}

in_place = pytest.mark.parametrize("change", IN_PLACE.values(), ids=IN_PLACE)


def leaf(*values, **kwargs):
    return gf.tensor(list(values), dtype="float64", requires_grad=True, **kwargs)


# 19: what backward will read was changed


@in_place
def test_edge_19_change_after_save_is_an_error_that_names_the_operation(change):
    x = leaf(1.0, 2.0, 3.0)
    loss = (x * x).sum()
    with gf.no_grad():
        change(x)
    with pytest.raises(RuntimeError, match=r"^mul saved a tensor of shape \(3,\).*in place.*clone"):
        loss.backward()


VIEWS = {
    "detach": lambda x: x.detach(),
    "slice": lambda x: x[1:],
    "reshape": lambda x: x.reshape(3, 1),
    "transpose": lambda x: x.reshape(1, 3).T,
    "split": lambda x: x.split(2)[1],
    "unbind": lambda x: x.unbind()[2],
    "view of a view": lambda x: x[1:].unsqueeze(0)[0],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_edge_19_change_through_a_view_is_an_error_as_well(view):
    x = leaf(1.0, 2.0, 3.0)
    loss = x.exp().sum() + (x * x).sum()
    with gf.no_grad():
        view(x).add_(1)
    with pytest.raises(RuntimeError, match="mul saved a tensor"):
        loss.backward()


def test_edge_19_change_of_the_base_of_a_saved_view_is_an_error():
    base = gf.zeros(2, 3)
    x = gf.ones(3, requires_grad=True)
    loss = (x * base[1]).sum()
    base[0, 0] = 1.0  # not even the row that was saved, but the memory is one
    with pytest.raises(RuntimeError, match="mul saved a tensor"):
        loss.backward()


def test_edge_19_change_of_a_saved_output_is_an_error():
    x = leaf(1.0, 2.0)
    out = x.exp()
    loss = out.sum()
    with gf.no_grad():
        out.mul_(2)
    with pytest.raises(RuntimeError, match="exp saved a tensor"):
        loss.backward()


def test_edge_19_change_of_what_no_rule_reads_is_fine():
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    loss = (x + y).sum()
    with gf.no_grad():
        x.zero_()
    loss.backward()
    assert x.grad.tolist() == y.grad.tolist() == [1, 1]


def test_edge_19_change_of_a_copy_is_fine():
    """Reshaping and indexing may copy: then the result's memory is its own."""
    x = gf.rand(3, 4, dtype="float64", requires_grad=True)
    expected = 2 * x.detach().numpy()
    loss = (x * x).sum()
    with gf.no_grad():
        for copy in (x.T.reshape(-1), x[[0, 2]], x[x > 2], x.flip(0), gf.einsum("ij->ji", x)):
            copy.fill_(0)
    loss.backward()
    assert_close(x.grad.numpy(), expected)


def test_edge_19_writing_into_the_array_is_noticed_after_bump_version():
    x = leaf(1.0, 2.0)
    loss = (x * x).sum()
    x.array[0] = 7.0
    x.bump_version()
    with pytest.raises(RuntimeError, match="mul saved"):
        loss.backward()


@pytest.mark.parametrize(
    "use",
    [
        lambda x, i: x[i],
        lambda x, i: x[:, i],
        lambda x, i: x.index_select(0, i),
        lambda x, i: x.gather(0, i.unsqueeze(-1)),
    ],
)
def test_edge_19_change_of_an_index_never_gives_a_wrong_gradient(use):
    expected = gf.zeros(3, 3, dtype="float64", requires_grad=True)
    use(expected, gf.tensor([0, 2])).sum().backward()
    x, index = gf.zeros(3, 3, dtype="float64", requires_grad=True), gf.tensor([0, 2])
    loss = use(x, index).sum()
    index.fill_(1)
    try:
        loss.backward()
    except RuntimeError as error:
        assert "changed in place" in str(error)
    else:
        assert x.grad.tolist() == expected.grad.tolist()


# 20: in-place changes of what is recorded


@in_place
def test_edge_20_in_place_on_a_leaf_is_an_error(change):
    x = leaf(1.0, 2.0, 3.0)
    with pytest.raises(
        RuntimeError, match=r"in-place .* a leaf that requires grad \(shape \(3,\)\)"
    ):
        change(x)
    assert x.tolist() == [1, 2, 3]
    assert x.version == 0
    with gf.no_grad():
        change(x)
    assert x.tolist() != [1, 2, 3]


@in_place
def test_edge_20_in_place_on_a_recorded_result_is_an_error(change):
    y = leaf(1.0, 2.0, 3.0) * 2
    with pytest.raises(RuntimeError, match="a tensor in the graph"):
        change(y)
    assert y.tolist() == [2, 4, 6]


def test_edge_20_in_place_with_an_operand_that_requires_grad_is_an_error():
    x, w = gf.zeros(3), gf.ones(3, requires_grad=True)
    for change in (x.add_, x.copy_, lambda w: x.__setitem__(0, w[0])):
        with pytest.raises(RuntimeError, match="in-place"):
            change(w)
    assert x.tolist() == [0, 0, 0]


# 21, 22: how often


def test_edge_21_second_backward_is_an_error():
    x = leaf(1.0, 2.0)
    loss = (x * x).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="second time.*retain_graph=True"):
        loss.backward()
    assert x.grad.tolist() == [2, 4]


def test_edge_21_second_backward_through_a_shared_part_is_an_error():
    shared = leaf(1.0, 2.0).exp()
    shared.sum().backward()
    with pytest.raises(RuntimeError, match="backward through exp a second time"):
        (shared * 2).sum().backward()


def test_edge_21_retained_graph_gives_exactly_twice_the_gradient():
    x = gf.randn(5, generator=gf.Generator(1), requires_grad=True)
    loss = (x.tanh() * x).exp().sum()
    loss.backward(retain_graph=True)
    once = x.grad.numpy().copy()
    loss.backward(retain_graph=True)
    np.testing.assert_array_equal(x.grad.numpy(), 2 * once)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_edge_22_one_tensor_on_both_sides():
    x = leaf(3.0)
    (x * x).backward()
    assert x.grad.tolist() == [6]


def test_edge_22_diamond():
    x = leaf(0.5)
    a = x * 2
    ((a.sin() + a) * a.cos()).backward()
    t = 2 * x.item()  # d/dx (sin t + t) cos t
    expected = 2 * ((np.cos(t) + 1) * np.cos(t) - (np.sin(t) + t) * np.sin(t))
    assert_close(x.grad.numpy(), np.array([expected]))


def test_edge_22_chain_of_diamonds_is_walked_once_per_node():
    x = leaf(1.0)
    y = x
    for _ in range(60):  # 2⁶⁰ paths
        y = y + y
    y.backward()
    assert x.grad.tolist() == [2.0**60]


def test_edge_22_tensor_used_many_times():
    x = leaf(1.0, -2.0)
    total = sum((x * k for k in range(1000)), start=x)
    total.sum().backward()
    assert x.grad.tolist() == [1 + 999 * 500] * 2


def test_edge_22_same_tensor_in_one_call_many_times():
    x = leaf(1.0, 2.0)
    gf.cat([x, x, x]).sum().backward()
    gf.einsum("i,i,i->", x, x, x).backward()
    assert x.grad.tolist() == [3 + 3, 3 + 12]


# 23: depth


def test_edge_23_backward_through_a_deep_chain():
    x = leaf(1.0)
    y = x
    for _ in range(20_000):
        y = y * 1.0001
    y.backward()
    assert_close(x.grad.numpy() / 1.0001**20_000, np.ones(1))


def test_edge_23_second_derivative_through_a_deep_chain():
    x = leaf(0.0)
    y = x
    for _ in range(5_000):
        y = y.exp() - 1  # y' = 1 and y'' grows by 1, at 0
    (g,) = gf.grad(y, x, create_graph=True)
    g.backward()
    assert x.grad.tolist() == [5_000]


@pytest.mark.parametrize("walked", [True, False])
def test_edge_23_garbage_collection_of_a_deep_chain(walked):
    x = leaf(1.0)
    y = x
    for _ in range(50_000):
        y = y.sin() if walked else y + 1
    if walked:
        y.backward(retain_graph=True)
    del y
    gc.collect()
    assert not any(type(o) is Node for o in gc.get_objects())


# 24, 25, 26: where gradients may be


def test_edge_24_only_leaves_get_a_gradient_unless_it_is_retained():
    x = leaf(1.0, 2.0)
    y, z = x * 2, x * 3
    z.retain_grad()
    (y + z).sum().backward()
    assert y.grad is None
    assert z.grad.tolist() == [1, 1]
    assert x.grad.tolist() == [5, 5]


@pytest.mark.parametrize("dtype", ["int32", "int64", "bool"])
def test_edge_25_integers_cannot_require_grad(dtype):
    x = gf.ones(2, dtype=dtype)
    for ask in (
        lambda: x.requires_grad_(),
        lambda: setattr(x, "requires_grad", True),
        lambda: gf.tensor([1, 0], dtype=dtype, requires_grad=True),
        lambda: gf.zeros(2, dtype=dtype, requires_grad=True),
        lambda: gf.Parameter(x),
    ):
        with pytest.raises(TypeError, match=f"floating point.*{dtype}"):
            ask()
    assert not x.requires_grad


def test_edge_25_integer_results_are_cut_off():
    x = leaf(1.0, 3.0, 2.0)
    for result in (x.argmax(), x.long(), x > 1, x.sort().indices, gf.isnan(x)):
        assert not result.requires_grad


@pytest.mark.parametrize("shape", [(2,), (0,), (1, 2)])
def test_edge_26_backward_needs_a_gradient_unless_it_starts_from_one_number(shape):
    x = gf.ones(*shape, requires_grad=True)
    with pytest.raises(RuntimeError, match=rf"shape \({shape[0]},.*needs gradient="):
        (x * 2).backward()
    with pytest.raises(RuntimeError, match=r"gradient has shape \(7,\) but its tensor"):
        (x * 2).backward(gf.ones(7))
    (x * 2).backward(gf.full(shape, 3.0))
    assert x.grad.tolist() == gf.full(shape, 6.0).tolist()


def test_edge_26_one_number_in_any_shape_will_do():
    x = gf.ones(1, 1, requires_grad=True)
    (x * 2).backward()
    assert x.grad.tolist() == [[2]]


def test_edge_26_backward_from_what_has_no_graph():
    x = leaf(1.0)
    with gf.no_grad():
        y = x * 2
    with pytest.raises(RuntimeError, match="doesn't require grad, or was computed under no_grad"):
        y.backward()
