"""Learning-rate schedules against their closed forms."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import glassformer as gf
from glassformer import nn, optim


def optimizer(*lrs):
    groups = [{"params": [nn.Parameter(gf.ones(1))], "lr": lr} for lr in lrs]
    return optim.SGD(groups, lr=0.3)


def followed(schedule, steps):
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        schedule.step()
    return rates


counts = st.tuples(st.integers(0, 8), st.integers(1, 20)).map(lambda t: (t[0], t[0] + t[1]))


@given(counts)
def test_linear(steps):
    warmup, total = steps
    rates = followed(
        optim.get_linear_schedule_with_warmup(optimizer(2.0), warmup, total), total + 3
    )
    for step, rate in enumerate(rates):
        rising = step / warmup if step < warmup else 1.0
        falling = (total - step) / (total - warmup)
        assert rate == pytest.approx(2 * max(0.0, min(rising, falling)))


@given(counts, st.sampled_from([0.5, 1.0, 1.5]))
def test_cosine(steps, cycles):
    warmup, total = steps
    schedule = optim.get_cosine_schedule_with_warmup(optimizer(2.0), warmup, total, cycles)
    for step, rate in enumerate(followed(schedule, total + 1)):
        if step < warmup:
            assert rate == pytest.approx(2 * step / warmup)
        else:
            angle = math.tau * cycles * (step - warmup) / (total - warmup)
            assert rate == pytest.approx(1 + math.cos(angle), abs=1e-12)


@given(counts)
def test_cosine_with_a_floor(steps):
    warmup, total = steps
    make = optim.get_cosine_with_min_lr_schedule_with_warmup
    by_rate = followed(make(optimizer(0.3), warmup, total, min_lr_rate=0.1), total + 1)
    by_value = followed(make(optimizer(0.3), warmup, total, min_lr=0.03), total + 1)
    assert by_rate == pytest.approx(by_value)
    assert by_rate[warmup] == pytest.approx(0.3) and by_rate[total] == pytest.approx(0.03)
    middle = followed(make(optimizer(0.3), 0, 10, min_lr_rate=0.1), 6)[5]
    assert middle == pytest.approx((0.3 + 0.03) / 2)


def test_constant_and_constant_with_warmup():
    assert followed(optim.get_constant_schedule(optimizer(2.0)), 3) == [2, 2, 2]
    rates = followed(optim.get_constant_schedule_with_warmup(optimizer(2.0), 4), 6)
    assert rates == [0, 0.5, 1, 1.5, 2, 2]


def test_every_group_keeps_its_proportion():
    source = optimizer(1.0, 0.1)
    schedule = optim.get_linear_schedule_with_warmup(source, 0, 4)
    schedule.step()
    assert schedule.get_last_lr() == pytest.approx([0.75, 0.075])
    assert [group["lr"] for group in source.param_groups] == schedule.get_last_lr()


def test_a_saved_schedule_goes_on():
    first = optim.get_cosine_schedule_with_warmup(optimizer(1.0), 3, 20)
    expected = followed(first, 15)[8:]
    second = optim.get_cosine_schedule_with_warmup(optimizer(1.0), 3, 20)
    followed(second, 8)
    state = json.loads(json.dumps(second.state_dict()))
    third = optim.get_cosine_schedule_with_warmup(optimizer(1.0), 3, 20)
    third.load_state_dict(state)
    assert followed(third, 7) == expected
    with pytest.raises(ValueError, match="saved with 1 parameter groups, the optimizer has 2"):
        optim.get_constant_schedule(optimizer(1.0, 2.0)).load_state_dict(state)


def test_last_epoch_continues():
    source = optimizer(1.0)
    followed(optim.get_linear_schedule_with_warmup(source, 0, 10), 4)
    again = optim.get_linear_schedule_with_warmup(source, 0, 10, last_epoch=4)
    assert again.get_last_lr() == [0.5]
    with pytest.raises(ValueError, match="has no initial_lr"):
        optim.get_constant_schedule(optimizer(1.0), last_epoch=4)


@pytest.mark.parametrize(
    ("name", "kwargs", "rates"),
    [
        ("constant", {}, [1, 1, 1]),
        ("constant_with_warmup", {"num_warmup_steps": 2}, [0, 0.5, 1]),
        ("linear", {"num_warmup_steps": 0, "num_training_steps": 2}, [1, 0.5, 0]),
        ("cosine", {"num_warmup_steps": 1, "num_training_steps": 3}, [0, 1, 0.5]),
        (
            "cosine_with_min_lr",
            {
                "num_warmup_steps": 0,
                "num_training_steps": 2,
                "scheduler_specific_kwargs": {"min_lr_rate": 0.2},
            },
            [1, 0.6, 0.2],
        ),
    ],
)
def test_schedules_by_name(name, kwargs, rates):
    schedule = optim.get_scheduler(name, optimizer(1.0), **kwargs)
    assert followed(schedule, 3) == pytest.approx(rates)


def test_a_schedule_that_is_not_known_or_lacks_its_counts():
    with pytest.raises(ValueError, match="'cosin' is none of constant, constant_with_warmup"):
        optim.get_scheduler("cosin", optimizer(1.0))
    with pytest.raises(ValueError, match="'linear' needs num_training_steps"):
        optim.get_scheduler("linear", optimizer(1.0), num_warmup_steps=3)
    make = optim.get_cosine_with_min_lr_schedule_with_warmup
    for given_rates in ({}, {"min_lr": 0.1, "min_lr_rate": 0.1}):
        with pytest.raises(ValueError, match="give one of min_lr and min_lr_rate"):
            make(optimizer(1.0), 0, 10, **given_rates)
