"""Initialisers against the formulas of their papers."""

import math

import numpy as np
import pytest

import glassformer as gf
from glassformer.nn import init

SHAPE = (300, 200)  # fan_in 200, fan_out 300; 60,000 draws
CONV_SHAPE = (40, 30, 5, 10)  # fan_in 30 · 50, fan_out 40 · 50


def filled(fill, shape=SHAPE, dtype="float32", seed=0, **kwargs):
    tensor = gf.empty(*shape, dtype=dtype)
    assert fill(tensor, **kwargs, generator=gf.Generator(seed)) is tensor
    return tensor.numpy()


UNIFORM = [
    (init.uniform_, {"a": -0.5, "b": 0.5}, SHAPE, 0.5),
    (init.xavier_uniform_, {}, SHAPE, math.sqrt(6 / 500)),
    (init.xavier_uniform_, {"gain": 2.0}, SHAPE, 2 * math.sqrt(6 / 500)),
    (init.xavier_uniform_, {}, CONV_SHAPE, math.sqrt(6 / (70 * 50))),
    (init.kaiming_uniform_, {"nonlinearity": "relu"}, SHAPE, math.sqrt(6 / 200)),
    (init.kaiming_uniform_, {"a": math.sqrt(5)}, SHAPE, 1 / math.sqrt(200)),
    (init.kaiming_uniform_, {"a": math.sqrt(5)}, CONV_SHAPE, 1 / math.sqrt(1500)),
]


@pytest.mark.parametrize(("fill", "kwargs", "shape", "bound"), UNIFORM)
def test_uniform_ones_reach_their_bound_and_not_beyond(fill, kwargs, shape, bound):
    values = filled(fill, shape, **kwargs)
    assert 0.999 * bound < np.abs(values).max() <= np.float32(bound)
    assert values.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)  # 60,000 draws: 0.4%


NORMAL = [
    (init.normal_, {"std": 0.02}, 0.02),
    (init.xavier_normal_, {}, math.sqrt(2 / 500)),
    (init.kaiming_normal_, {}, math.sqrt(2 / 200)),
    (init.kaiming_normal_, {"mode": "fan_out"}, math.sqrt(2 / 300)),
    (init.kaiming_normal_, {"nonlinearity": "linear"}, math.sqrt(1 / 200)),
]


@pytest.mark.parametrize(("fill", "kwargs", "std"), NORMAL)
def test_normal_ones_have_their_deviation(fill, kwargs, std):
    values = filled(fill, **kwargs) / std
    assert values.std() == pytest.approx(1, rel=0.02)
    assert abs(values.mean()) < 0.02
    assert (np.abs(values) < 1).mean() == pytest.approx(0.6827, abs=0.01)


def test_truncated_normal():
    values = filled(init.trunc_normal_, mean=1.0, std=2.0, a=-1.0, b=3.0)
    assert values.min() >= -1 and values.max() <= 3
    assert (np.abs(values - 1) < 1).mean() == pytest.approx(0.3829 / 0.6827, abs=0.01)
    with pytest.raises(ValueError, match="within two standard deviations"):
        filled(init.trunc_normal_, mean=10.0)


def test_constants():
    tensor = gf.empty(2, 3)
    for fill, value in ((init.zeros_, 0), (init.ones_, 1)):
        assert fill(tensor).tolist() == [[value] * 3] * 2
    assert init.constant_(tensor, 0.5).tolist() == [[0.5] * 3] * 2


def test_one_seed_gives_one_result_in_every_dtype():
    single, double = (filled(init.normal_, dtype=d, seed=3) for d in ("float32", "float64"))
    np.testing.assert_array_equal(single, double.astype(np.float32))
    assert (filled(init.normal_, seed=4) != single).any()


def test_a_parameter_is_filled_and_stays_a_leaf():
    parameter = gf.Parameter(gf.empty(3, 3))
    init.xavier_uniform_(parameter)
    assert parameter.is_leaf and parameter.requires_grad


def test_fans_need_two_dimensions():
    with pytest.raises(ValueError, match=r"2 or more dimensions, got shape \(3,\)"):
        init.xavier_normal_(gf.empty(3))
    with pytest.raises(ValueError, match="no gain for nonlinearity 'gelu'"):
        init.kaiming_normal_(gf.empty(3, 3), nonlinearity="gelu")
