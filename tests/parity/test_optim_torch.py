"""Optimizers, clipping and schedules against PyTorch's: 100 steps in float64."""

import math

import numpy as np
import pytest
import torch

import glassformer as gf
from glassformer import optim
from tests.parity.weights import ours

STEPS = 100
TRAJECTORY_TOLERANCE = 1e-9  # after 100 steps in float64, as the project promises
SHAPES = [(4, 3), (3,), (2, 2, 2), ()]


def gradients(values, step):
    """Gradients that depend on the parameters, so that a deviation would grow, and on the step."""
    return [
        np.cos(1.3 * value + i) * 2 + 0.5 * value + np.sin(step * (i + 1)) * np.ones_like(value)
        for i, value in enumerate(values)
    ]


def trajectories(make, torch_make, schedule=None, torch_schedule=None, max_norm=None):
    """Yield after each step the parameters of both sides, side by side."""
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape) for shape in SHAPES]
    params = [gf.Parameter(gf.tensor(value)) for value in start]
    torch_params = [torch.nn.Parameter(torch.tensor(value)) for value in start]
    optimizer, torch_optimizer = make(params), torch_make(torch_params)
    scheduler = schedule and schedule(optimizer)
    torch_scheduler = torch_schedule and torch_schedule(torch_optimizer)
    for step in range(STEPS):
        for side in (params, torch_params):
            values = [p.detach().numpy() for p in side]
            for p, g in zip(side, gradients(values, step), strict=True):
                p.grad = gf.tensor(g) if side is params else torch.tensor(g)
        if max_norm is not None:
            norm = optim.clip_grad_norm_(params, max_norm)
            torch_norm = torch.nn.utils.clip_grad_norm_(torch_params, max_norm)
            assert norm == pytest.approx(float(torch_norm), rel=1e-12)
        optimizer.step()
        torch_optimizer.step()
        if scheduler:
            scheduler.step()
            torch_scheduler.step()
            assert scheduler.get_last_lr() == pytest.approx(torch_scheduler.get_last_lr())
        yield params, torch_params


def assert_same(pairs):
    for step, (params, torch_params) in enumerate(pairs):
        for p, torch_p in zip(params, torch_params, strict=True):
            np.testing.assert_allclose(
                p.detach().numpy(),
                torch_p.detach().numpy(),
                rtol=TRAJECTORY_TOLERANCE,
                atol=TRAJECTORY_TOLERANCE,
                err_msg=f"step {step}",
            )


def groups(params, **settings):
    """Matrices with weight decay, the rest without and with a rate of their own."""
    return [
        {"params": params[:1], "weight_decay": 0.1, **settings},
        {"params": params[1:], "weight_decay": 0.0, "lr": 0.003},
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.05},
        {"lr": 0.05, "weight_decay": 0.1},
        {"lr": 0.02, "momentum": 0.9},
        {"lr": 0.02, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01},
        {"lr": 0.02, "momentum": 0.8, "nesterov": True},
    ],
)
def test_sgd(settings):
    assert_same(
        trajectories(lambda p: optim.SGD(p, **settings), lambda p: torch.optim.SGD(p, **settings))
    )


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1},
        {"lr": 0.01, "betas": (0.0, 0.5), "weight_decay": 0.0},
    ],
)
def test_adam_and_adamw(name, settings):
    ours_class, torch_class = getattr(optim, name), getattr(torch.optim, name)
    assert_same(
        trajectories(lambda p: ours_class(p, **settings), lambda p: torch_class(p, **settings))
    )


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_parameter_groups_with_clipping_and_a_schedule(name):
    ours_class, torch_class = getattr(optim, name), getattr(torch.optim, name)

    def rule(step):  # cosine with warm-up, spelled out
        if step < 10:
            return step / 10
        return 0.5 * (1 + math.cos(math.pi * (step - 10) / 90))

    assert_same(
        trajectories(
            lambda p: ours_class(groups(p), lr=0.02),
            lambda p: torch_class(groups(p), lr=0.02),
            lambda o: optim.get_cosine_schedule_with_warmup(o, 10, 100),
            lambda o: torch.optim.lr_scheduler.LambdaLR(o, rule),
            max_norm=1.5,
        )
    )


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_state_dict_carries_on_where_it_was_taken(name):
    """Saved after 50 steps and loaded into a fresh optimizer, the path goes on as PyTorch's."""
    settings = {"lr": 0.02, "momentum": 0.9} if name == "SGD" else {"lr": 0.02}
    pairs = trajectories(
        lambda p: Swapped(getattr(optim, name), p, settings),
        lambda p: getattr(torch.optim, name)(p, **settings),
    )
    assert_same(pairs)


class Swapped:
    """An optimizer that is replaced half-way by a fresh one with its state."""

    def __init__(self, kind, params, settings):
        self.kind, self.params, self.settings, self.steps = kind, params, settings, 0
        self.optimizer = kind(params, **settings)

    def step(self):
        self.steps += 1
        if self.steps == STEPS // 2:
            state = self.optimizer.state_dict()
            self.optimizer = self.kind(self.params, lr=99.0)
            self.optimizer.load_state_dict(state)
        self.optimizer.step()


def test_the_state_dict_has_pytorchs_form():
    value = torch.ones(2, 3, dtype=torch.float64)
    param, torch_param = gf.Parameter(ours(value)), torch.nn.Parameter(value.clone())
    param.grad, torch_param.grad = ours(value), value.clone()
    optimizer, torch_optimizer = optim.AdamW([param]), torch.optim.AdamW([torch_param])
    optimizer.step()
    torch_optimizer.step()
    state, torch_state = optimizer.state_dict(), torch_optimizer.state_dict()
    assert state["state"].keys() == torch_state["state"].keys() == {0}
    assert state["state"][0].keys() == torch_state["state"][0].keys()
    assert state["state"][0]["step"] == int(torch_state["state"][0]["step"]) == 1
    assert state["param_groups"][0]["params"] == torch_state["param_groups"][0]["params"]
    for name, setting in state["param_groups"][0].items():
        assert torch_state["param_groups"][0][name] == setting


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("max_norm", [0.0, 0.1, 1e6])
def test_clip_grad_norm(dtype, max_norm):
    torch.manual_seed(0)
    torch_params = [torch.nn.Parameter(torch.randn(s).to(getattr(torch, dtype))) for s in SHAPES]
    params = [gf.Parameter(ours(p)) for p in torch_params]
    for p, torch_p in zip(params, torch_params, strict=True):
        torch_p.grad = torch.randn_like(torch_p) * 3
        p.grad = ours(torch_p.grad)
    params.append(gf.Parameter(gf.ones(2)))  # without a gradient: left out
    norm = optim.clip_grad_norm_(params, max_norm)
    torch_norm = torch.nn.utils.clip_grad_norm_(torch_params, max_norm)
    tolerance = 1e-6 if dtype == "float32" else 1e-12
    assert norm == pytest.approx(float(torch_norm), rel=tolerance)
    for p, torch_p in zip(params, torch_params, strict=False):
        np.testing.assert_allclose(p.grad.numpy(), torch_p.grad.numpy(), rtol=tolerance)
