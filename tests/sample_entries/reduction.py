"""Samples of the reductions."""

import numpy as np
import torch

from glassformer.ops import reduction as ops
from tests.samples import Op, call, distinct, fails, uniform

OUT_OF_RANGE = [
    fails(IndexError, r"dim 2 is out of range .*\(2, 3\)", uniform(2, 3), 2),
    fails(IndexError, r"dim -3 is out of range .*\(2, 3\)", uniform(2, 3), -3),
]
TWICE = [fails(ValueError, r"names a dimension twice .*\(2, 3\)", uniform(2, 3), (0, -2))]
NOT_FLOAT = [fails(TypeError, "floating point.*int64", np.array([1, 2]))]


def over_any_dims(make=uniform, empty=True):
    """Over everything, one dimension, several; 0-d, and where nothing is left to reduce."""
    samples = [
        call(make(3, 4)),
        call(make(3, 4), 0),
        call(make(3, 4), -1, True),
        call(make(2, 3, 4), (0, 2)),
        call(make(2, 3, 2, 2), dim=[1, -1], keepdim=True),
        call(make(2, 1, 3), 1),
        call(make(2, 3), ()),
        call(make()),
        call(make(), 0, keepdim=True),
    ]
    if empty:
        samples += [call(make(0, 3), 0), call(make(2, 0, 3), 1), call(make(2, 0))]
    return [*samples, call(make(0, 3), 1), call(make(2, 0, 3), (0, 2), True)]


def over_one_dim(make):
    return [
        call(make(3, 4), 0),
        call(make(3, 4), -1),
        call(make(2, 3, 2), 1, True),
        call(make(2, 1, 3), 1),
        call(make(), 0),
        call(make(0, 3), 1),
    ]


def single(*shape):
    return distinct(shape)[0]


def spread(name):
    """var() and std(): more elements than `correction`, or the gradient is NaN in PyTorch, too."""
    return Op(
        name,
        getattr(ops, name),
        [
            call(uniform(3, 4)),
            call(uniform(3, 4), 0),
            call(uniform(2, 3, 4), (0, -1), keepdim=True),
            call(uniform(2, 3), dim=-1, correction=0),
            call(uniform(2, 4), dim=1, correction=2),
            call(uniform(2, 0, 3), 1),
            call(uniform(0, 3), -1),
        ],
        [*OUT_OF_RANGE, *TWICE, *NOT_FLOAT],
        torch=lambda x, dim=None, **kwargs: getattr(torch, name)(x, dim=dim, **kwargs),
    )


def extreme(name):
    return Op(
        name,
        getattr(ops, name),
        over_any_dims(single, empty=False),
        [
            *OUT_OF_RANGE,
            *TWICE,
            fails(ValueError, r"over dim 0 .*\(0, 3\).*no elements", uniform(0, 3), 0),
            fails(ValueError, r"\(0,\).*no elements", uniform(0)),
        ],
        torch=lambda x, dim=(), keepdim=False: getattr(torch, name)(x, dim, keepdim),
    )


def extreme_with_index(name):
    return Op(
        name,
        getattr(ops, name),
        [call(single(3, 4)), call(single()), *over_one_dim(single), call(*distinct((2, 3), (3,)))],
        [*OUT_OF_RANGE, fails(ValueError, r"\(2, 0\).*no elements", uniform(2, 0), 1)],
    )


def index_of_extreme(name):
    return Op(
        name,
        getattr(ops, name),
        [call(single(3, 4)), call(single(2, 3), None, True), *over_one_dim(single)],
        [*OUT_OF_RANGE, fails(ValueError, r"\(0,\).*no elements", uniform(0))],
        differentiable=False,
    )


def zeros_and_ones(*shape):
    return np.where(uniform(*shape) > 0.5, 1.0, 0.0)


def truth(name):
    return Op(
        name,
        getattr(ops, name),
        [s for s in over_any_dims(zeros_and_ones) if s.args[1:] != ((),)],
        [*OUT_OF_RANGE, *TWICE],
        differentiable=False,
    )


OPS = [
    Op(
        "sum",
        ops.sum,
        [*over_any_dims(), call(uniform(2, 3), 0, dtype="float64")],
        [*OUT_OF_RANGE, *TWICE],
        torch=lambda x, dim=None, keepdim=False, dtype=None: torch.sum(
            x, dim, keepdim, dtype=dtype and getattr(torch, dtype)
        ),
    ),
    Op("mean", ops.mean, over_any_dims(), [*OUT_OF_RANGE, *TWICE, *NOT_FLOAT]),
    spread("var"),
    spread("std"),
    Op(
        "cumsum",
        ops.cumsum,
        [
            call(uniform(3, 4), 0),
            call(uniform(2, 3, 2), dim=-2),
            call(uniform(2, 1, 3), 1),
            call(uniform(), 0),
            call(uniform(0, 3), 1),
            call(uniform(2, 0), 1),
        ],
        OUT_OF_RANGE,
    ),
    extreme("amax"),
    extreme("amin"),
    extreme_with_index("max"),
    extreme_with_index("min"),
    index_of_extreme("argmax"),
    index_of_extreme("argmin"),
    Op(
        "logsumexp",
        ops.logsumexp,
        [
            *(s for s in over_any_dims() if len(s.args) > 1 and s.args[1] != ()),
            call(np.array([[-np.inf, 1.0], [800.0, 801.0]]), 1),
        ],
        [*OUT_OF_RANGE, *TWICE],
        dtypes=("float64", "float32", "float16", "int64", "int32"),
    ),
    truth("any"),
    truth("all"),
]
