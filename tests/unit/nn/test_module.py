"""Module: what it finds, what it saves and loads, its hooks and its table."""

import copy

import numpy as np
import pytest

import glassformer as gf
from glassformer import nn, optim


class Scale(nn.Module):
    def __init__(self, n=2):
        self.gain = nn.Parameter(gf.ones(n))
        self.seen = gf.zeros(1, dtype="int64")  # a buffer that is saved
        self._scratch = gf.zeros(3)  # one that isn't

    def forward(self, x):
        return x * self.gain


class Net(nn.Module):
    def __init__(self):
        self.embed = nn.Embedding(5, 2)
        self.layers = [Scale(), Scale()]
        self.heads = {"a": nn.Linear(2, 3), "b": nn.Linear(2, 5, bias=False)}
        self.heads["b"].weight = self.embed.weight
        self.label = "not a tensor"

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.heads["b"](x)


PARAMETERS = [
    "embed.weight",
    "layers.0.gain",
    "layers.1.gain",
    "heads.a.weight",
    "heads.a.bias",
]


def test_parameters_are_found_in_order_and_tied_ones_once():
    net = Net()
    assert [name for name, _ in net.named_parameters()] == PARAMETERS
    assert net.num_parameters() == 5 * 2 + 2 + 2 + 3 * 2 + 3
    net.embed.requires_grad_(False)
    assert net.num_parameters(only_trainable=True) == 2 + 2 + 3 * 2 + 3


def test_modules_and_children_are_named_by_their_path():
    net = Net()
    children = ["embed", "layers.0", "layers.1", "heads.a", "heads.b"]
    assert [name for name, _ in net.named_modules()] == ["", *children]
    assert [name for name, _ in net.named_children()] == children
    assert next(net.modules()) is net


def test_a_shared_module_is_visited_once():
    net = Net()
    net.layers[1] = net.layers[0]
    assert [name for name, _ in net.named_modules()].count("layers.0") == 1
    assert "layers.1.gain" not in dict(net.named_parameters())
    assert "layers.1.gain" in net.state_dict()


def test_buffers():
    names = [name for name, _ in Net().named_buffers()]
    expected = [f"layers.{i}.{name}" for i in (0, 1) for name in ("seen", "_scratch")]
    assert names == expected


def test_state_dict_has_every_name_and_shares_memory():
    net = Net()
    state = net.state_dict()
    assert sorted(state) == sorted(
        [*PARAMETERS, "layers.0.seen", "layers.1.seen", "heads.b.weight"]
    )
    assert state["heads.b.weight"] is state["embed.weight"]
    state["layers.0.gain"].fill_(7.0)
    assert net.layers[0].gain.tolist() == [7.0, 7.0]
    assert not state["layers.0.gain"].requires_grad


def test_load_state_dict_copies():
    source, target = Net(), Net()
    target.load_state_dict(source.state_dict())
    for name, value in source.state_dict().items():
        np.testing.assert_array_equal(target.state_dict()[name].numpy(), value.numpy())
    source.embed.weight.detach().zero_()
    assert target.embed.weight.detach().numpy().any()


def test_load_state_dict_lists_everything_that_is_wrong_and_changes_nothing():
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = {name: gf.full_like(value, 9) for name, value in before.items()}
    del state["layers.0.gain"], state["heads.a.bias"]
    state["layers.1.gain"] = gf.ones(4)
    state["heads.a.weight"] = gf.ones(2, 3)
    state["extra"] = gf.ones(1)
    with pytest.raises(ValueError) as error:
        net.load_state_dict(state)
    assert str(error.value).splitlines() == [
        "the state_dict does not fit Net:",
        "  missing: heads.a.bias",
        "  missing: layers.0.gain",
        "  shape of heads.a.weight: given (2, 3), the model has (3, 2)",
        "  shape of layers.1.gain: given (4,), the model has (2,)",
        "  unexpected: extra",
    ]
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name].numpy(), err_msg=name)


def test_load_state_dict_not_strict_returns_what_did_not_match():
    net = Net()
    keys = net.load_state_dict({"layers.0.gain": gf.full((2,), 3.0), "x": gf.ones(1)}, strict=False)
    assert keys.unexpected_keys == ["x"]
    assert "embed.weight" in keys.missing_keys and "layers.0.gain" not in keys.missing_keys
    assert net.layers[0].gain.tolist() == [3.0, 3.0]
    with pytest.raises(ValueError, match="shape of layers.0.gain"):
        net.load_state_dict({"layers.0.gain": gf.ones(3)}, strict=False)


@pytest.mark.parametrize("left_out", ["embed.weight", "heads.b.weight"])
def test_a_tied_parameter_loads_from_any_of_its_names(left_out):
    net = Net()
    state = {name: gf.full_like(value, 2) for name, value in net.state_dict().items()}
    del state[left_out]
    net.load_state_dict(state)
    assert net.embed.weight is net.heads["b"].weight
    assert (net.embed.weight.detach().numpy() == 2).all()


def test_a_tied_parameter_given_with_two_values_is_an_error():
    net = Net()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    state["heads.b.weight"] = state["heads.b.weight"] + 1
    with pytest.raises(ValueError, match=r"heads\.b\.weight and embed\.weight are tied, but"):
        net.load_state_dict(state)


def test_loading_casts_to_the_models_dtype():
    net = Net()
    state = {name: value.double() for name, value in net.state_dict().items()}
    net.load_state_dict(state)
    assert net.embed.weight.dtype == gf.float32 and net.layers[0].seen.dtype == gf.int64


def test_train_eval_and_zero_grad_reach_every_module():
    net = Net()
    assert net.training
    net.eval()
    assert not any(module.training for module in net.modules())
    net.train()
    assert all(module.training for module in net.modules())
    net(gf.tensor([1, 2])).sum().backward()
    assert net.embed.weight.grad is not None
    net.zero_grad()
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_frozen_part_gets_no_gradient_and_stays_as_it_is_until_thawed():
    net = Net()
    frozen = [net.layers[0].gain, net.embed.weight]
    for part in (net.layers[0], net.embed):
        assert part.requires_grad_(False) is part
    optimizer = optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    before = [p.detach().clone() for p in (*frozen, net.layers[1].gain)]

    def changed_by_a_step():
        net(gf.tensor([1, 2])).sum().backward()
        optimizer.step()
        now = (*frozen, net.layers[1].gain)
        return [
            p.detach().numpy().tobytes() != b.numpy().tobytes()
            for p, b in zip(now, before, strict=True)
        ]

    assert changed_by_a_step() == [False, False, True]
    assert all(p.grad is None for p in frozen)
    net.requires_grad_(True)
    assert changed_by_a_step() == [True, True, True]
    assert all(p.grad is not None for p in frozen)


def test_to_casts_floats_in_place_and_leaves_integers():
    net = Net()
    parameters = list(net.parameters())
    net.to("float64")
    assert [id(p) for p in parameters] == [id(p) for p in net.parameters()]
    assert all(p.dtype == gf.float64 and p.requires_grad and p.is_leaf for p in parameters)
    assert net.layers[0].seen.dtype == gf.int64
    assert net.heads["b"].weight is net.embed.weight
    assert net(gf.tensor([1])).dtype == gf.float64
    with pytest.raises(TypeError, match="parameters are floats"):
        net.to("int64")


def test_apply_visits_children_before_parents():
    net, visited = Net(), []
    assert net.apply(lambda module: visited.append(type(module).__name__)) is net
    assert visited[-1] == "Net" and len(visited) == 6


def test_hooks_see_and_replace_arguments_and_output():
    layer, log = Scale(), []
    pre = layer.register_forward_pre_hook(lambda module, args: log.append(args) or (args[0] + 1,))
    post = layer.register_forward_hook(lambda module, args, output: output * 10)
    watch = layer.register_forward_hook(lambda module, args, output: log.append(output))
    x = gf.tensor([1.0, 2.0])
    assert layer(x).tolist() == [20.0, 30.0]
    assert log[0] == (x,) and log[1].tolist() == [20.0, 30.0]
    pre.remove()
    watch.remove()
    assert layer(x).tolist() == [10.0, 20.0]
    post.remove()
    post.remove()
    assert layer(x).tolist() == [1.0, 2.0]
    assert not list(Scale().named_children())


def test_a_hook_may_remove_itself_while_hooks_run():
    layer, calls = Scale(), []

    def once(module, args, output):
        calls.append("once")
        handle.remove()

    handle = layer.register_forward_hook(once)
    layer.register_forward_hook(lambda module, args, output: calls.append("always"))
    for _ in range(2):
        layer(gf.ones(2))
    assert calls == ["once", "always", "always"]


def test_a_copy_is_independent_and_stays_tied():
    net = Net()
    twin = copy.deepcopy(net)
    assert twin.embed.weight is twin.heads["b"].weight
    assert twin.embed.weight is not net.embed.weight
    twin(gf.tensor([0])).sum().backward()
    assert net.embed.weight.grad is None and twin.embed.weight.grad is not None


def test_a_module_without_forward_says_so():
    with pytest.raises(NotImplementedError, match=r"Module defines no forward\(\)"):
        nn.Module()(1)


def test_repr_of_a_small_net():
    net = Net()
    net.layers[1].requires_grad_(False)
    expected = """
Net()
  embed: Embedding(5, 2)      weight (5, 2)                10
  layers.0 to 1: 2 x Scale()  gain (2,), seen (1,)      2 x 2
  heads.a: Linear(2 -> 3)     weight (3, 2), bias (3,)      9
  heads.b: Linear(2 -> 5)     weight = embed.weight
23 parameters (2 frozen)
"""
    assert repr(net) == expected.strip()
