"""Optimizers: groups, state, and errors. Trajectories are compared in tests/parity."""

import json
import math

import numpy as np
import pytest

import glassformer as gf
from glassformer import nn, optim


def parameter(*shape):
    return nn.Parameter(gf.ones(*shape))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: optim.SGD([]), "got no parameters"),
        (lambda p: optim.SGD([p, p]), r"shape \(2,\) occurs a second time in group 0"),
        (lambda p: optim.SGD([{"params": p}, {"params": [p]}]), "second time in group 1"),
        (lambda p: optim.SGD([p], lr=-1.0), "lr must be 0 or more, got -1.0"),
        (lambda p: optim.AdamW([p], lr=math.nan), "lr must be 0 or more, got nan"),
        (lambda p: optim.AdamW([p], eps=-1.0), "eps must be 0 or more, got -1.0"),
        (lambda p: optim.AdamW([p], weight_decay=-0.1), "weight_decay must be 0 or more, got -0.1"),
        (lambda p: optim.Adam([p], betas=(0.9, 1.0)), r"betas must be .* got \(0.9, 1.0\)"),
        (lambda p: optim.SGD([p], momentum=-0.5), "momentum must be 0 or more, got -0.5"),
        (lambda p: optim.SGD([p], nesterov=True), "nesterov needs momentum"),
        (lambda p: optim.SGD([{"params": [p], "beta": 1}]), "sets beta; SGD knows lr, momentum"),
        (lambda p: optim.SGD([{"params": [p], "lr": -2.0}]), "lr must be 0 or more, got -2.0"),
    ],
)
def test_wrong_settings_show_what_was_given(make, message):
    with pytest.raises(ValueError, match=message):
        make(parameter(2))


def test_only_float_leaves_can_be_optimised():
    with pytest.raises(TypeError, match="not a float Tensor"):
        optim.SGD([gf.arange(3)])
    with pytest.raises(TypeError, match="only leaves can be optimised"):
        optim.SGD([parameter(2) * 2])


def test_a_group_overrides_the_defaults():
    first, second = parameter(1), parameter(1)
    optimizer = optim.SGD([{"params": [first]}, {"params": second, "lr": 0.5}], lr=0.1)
    for p in (first, second):
        p.grad = gf.ones(1)
    optimizer.step()
    assert first.item() == pytest.approx(0.9) and second.item() == pytest.approx(0.5)


def test_parameters_without_a_gradient_are_left_alone():
    first, second = parameter(2), parameter(2)
    optimizer = optim.AdamW([first, second], lr=0.1, weight_decay=0.5)
    first.grad = gf.ones(2)
    optimizer.step()
    assert second.tolist() == [1, 1] and second not in optimizer.state
    assert first.tolist() != [1, 1]


def test_parameters_stay_the_same_leaves():
    p = parameter(2)
    p.grad = gf.ones(2)
    memory = p.array
    optim.AdamW([p]).step()
    assert p.array is memory and p.is_leaf and p.requires_grad


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW])
def test_a_step_invalidates_graphs_that_read_the_parameter(kind):
    p = parameter(2)
    loss = (p * p).sum()
    p.grad = gf.ones(2)
    kind([p], lr=0.1).step()
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_zero_grad():
    p = parameter(2)
    optimizer = optim.SGD([p])
    p.grad = gf.ones(2)
    optimizer.zero_grad(set_to_none=False)
    assert p.grad.tolist() == [0, 0]
    optimizer.zero_grad()
    assert p.grad is None


def test_parameter_groups_of_a_model():
    """Weight decay for matrices, embeddings included; none for biases and norms; none twice."""
    model = nn.TransformerBlock(nn.MultiheadAttention(4, 2), nn.FeedForward(4, 8))
    model.feed_forward.linear2.requires_grad_(False)
    decayed, rest = optim.get_parameter_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1 and rest["weight_decay"] == 0.0
    names = {id(p): name for name, p in model.named_parameters()}
    assert [names[id(p)] for p in decayed["params"]] == [
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "feed_forward.linear1.weight",
    ]
    assert len(decayed["params"]) + len(rest["params"]) == len(names) - 2
    optim.AdamW(optim.get_parameter_groups(nn.Linear(2, 2, bias=False), 0.1))


def stepped(kind, **kwargs):
    p = parameter(2, 3)
    optimizer = kind([p], **kwargs)
    for _ in range(3):
        p.grad = gf.randn(2, 3)
        optimizer.step()
    return p, optimizer


def test_loading_copies_the_tensors():
    _, source = stepped(optim.AdamW)
    state = source.state_dict()
    other = optim.AdamW([parameter(2, 3)], lr=0.5)
    other.load_state_dict(state)
    assert other.param_groups[0]["lr"] == 1e-3
    (values,) = other.state.values()
    assert values["step"] == 3
    np.testing.assert_array_equal(values["exp_avg"].numpy(), state["state"][0]["exp_avg"].numpy())
    state["state"][0]["exp_avg"].fill_(5.0)
    assert (values["exp_avg"].numpy() != 5.0).all()


def test_state_goes_through_json_apart_from_its_tensors():
    _, source = stepped(optim.SGD, momentum=0.9)
    state = source.state_dict()
    tensors = {str(n): s for n, s in state["state"].items()}  # JSON's keys are strings
    groups = json.loads(json.dumps(state["param_groups"]))
    other = optim.SGD([parameter(2, 3)])
    other.load_state_dict({"state": tensors, "param_groups": groups})
    assert other.param_groups[0]["momentum"] == 0.9
    assert len(other.state) == 1


def test_state_that_does_not_fit_changes_nothing():
    _, source = stepped(optim.AdamW, lr=0.7)
    for params, message in (
        ([parameter(2, 3), parameter(1)], r"groups of \[1\] parameters, the optimizer of \[2\]"),
        ([parameter(3, 2)], r"exp_avg of parameter 0 has shape \(2, 3\), but .* \(3, 2\)"),
    ):
        other = optim.AdamW(params)
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(source.state_dict())
        assert not other.state and other.param_groups[0]["lr"] == 1e-3


def test_repr_shows_groups():
    p = parameter(1)
    assert repr(optim.SGD([p], lr=0.1)) == (
        "SGD\n  group 0: 1 parameters, lr=0.1, momentum=0.0, dampening=0.0, weight_decay=0.0, "
        "nesterov=False"
    )


# ---- clipping -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_gradients_that_are_not_finite_are_reported_and_left_alone(bad):
    first, second = parameter(2), parameter(2)
    first.grad, second.grad = gf.tensor([bad, 1.0]), gf.tensor([3.0, 4.0])
    norm = optim.clip_grad_norm_([first, second], 1.0)
    assert not math.isfinite(norm)
    assert second.grad.tolist() == [3, 4]
    with pytest.raises(RuntimeError, match="the norm of 2 gradients is"):
        optim.clip_grad_norm_([first, second], 1.0, error_if_nonfinite=True)


def test_half_precision_gradients_do_not_overflow_their_norm():
    p = nn.Parameter(gf.ones(2, dtype="float16"))
    p.grad = gf.tensor([30000.0, 40000.0], dtype="float16")
    assert optim.clip_grad_norm_(p, 1.0) == pytest.approx(50000, rel=1e-3)
    assert p.grad.dtype == gf.float16
    np.testing.assert_allclose(p.grad.numpy(), [0.6, 0.8], rtol=2e-3)


def test_clipping_without_gradients_or_with_a_wrong_bound():
    assert optim.clip_grad_norm_([parameter(2)], 1.0) == 0.0
    with pytest.raises(ValueError, match="max_norm must be 0 or more, got -1"):
        optim.clip_grad_norm_([parameter(2)], -1)
