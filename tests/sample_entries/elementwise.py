"""Samples of the elementwise operations."""

import operator
from types import SimpleNamespace

import numpy as np
import torch

from glassformer.ops import choice, conversion, elementwise
from tests.samples import Op, away_from_steps, away_from_zero, call, distinct, fails, mask, uniform

ops = SimpleNamespace(**{**vars(conversion), **vars(choice), **vars(elementwise)})

SHAPES = [(), (3, 4), (0,), (2, 0, 3), (1,), (2, 1, 3, 2)]
PAIRS = [
    ((3, 4), (3, 4)),
    ((), (3,)),
    ((2, 3), ()),
    ((), ()),
    ((2, 1, 3), (4, 1)),
    ((0, 3), (1, 3)),
    ((1,), (0,)),
    ((1,), (5,)),
    ((1, 2, 1, 2, 1), (2, 1, 3, 1, 2)),
]
FLOATS = ("float64", "float32", "float16")


def unary(make=uniform, **domain):
    return [call(make(*shape, **domain)) for shape in SHAPES]


def binary(left=uniform, right=uniform, scalars=(1.5, 2)):
    """Pairs of tensors, and tensors with a number on either side."""
    pairs = [call(left(*a), right(*b)) for a, b in PAIRS]
    return [
        *pairs,
        *(call(left(2, 3), number) for number in scalars),
        *(call(number, right(2, 3)) for number in scalars),
        call(left(), scalars[0]),
    ]


NO_TENSOR = [fails(TypeError, r"Tensor.*(list|\[1\.0\])", [1.0])]
MISMATCH = [
    fails(ValueError, r"\(2, ?3\).*\(4,?\)", uniform(2, 3), uniform(4)),
    fails(TypeError, "Tensor or a Python number, got str", uniform(2), "a"),
]
SWAPPED = [
    fails(ValueError, r"\(4,?\).*\(2, ?3\)", uniform(2, 3), uniform(4)),
    fails(TypeError, "Tensor or a Python number, got str", uniform(2), "a"),
]


def positive(*shape):
    return uniform(*shape, low=0.5, high=3.0)


def math_op(name, make=uniform, **kwargs):
    return Op(name, getattr(ops, name), unary(make), NO_TENSOR, **kwargs)


def comparison(name):
    operation = getattr(operator, name)
    samples = [*binary(), call(np.array([1.0, 2.0, np.nan]), np.array([1.0, 3.0, np.nan]))]
    return Op(name, getattr(ops, name), samples, MISMATCH, torch=operation, differentiable=False)


def pair_without_ties():
    return [call(*distinct(a, b)) for a, b in PAIRS] + [call(*distinct((2, 3)), 0.123)]


def torch_extreme(tensors, number):
    """maximum() and minimum() take a number as well; PyTorch has clamp() for that."""
    return lambda x, y: tensors(x, y) if isinstance(y, torch.Tensor) else number(x, y)


ARITHMETIC = [
    Op(
        "add",
        ops.add,
        binary(),
        MISMATCH,
        torch=operator.add,
    ),
    Op(
        "add with alpha",
        ops.add,
        [call(uniform(2, 3), uniform(3), alpha=2), call(uniform(), uniform(0), alpha=-1)],
        [fails(TypeError, "got str", uniform(2), uniform(2), alpha="a")],
        torch=torch.add,
        dtypes=(*FLOATS, "int64", "int32"),
    ),
    Op("sub", ops.sub, binary(), MISMATCH, torch=operator.sub),
    Op("rsub", ops.rsub, binary(), SWAPPED, torch=lambda x, y: y - x),
    Op("mul", ops.mul, binary(), MISMATCH, torch=operator.mul),
    Op("div", ops.div, binary(right=away_from_zero), MISMATCH, torch=operator.truediv),
    Op("rdiv", ops.rdiv, binary(left=away_from_zero), SWAPPED, torch=lambda x, y: y / x),
    Op(
        "floor_divide",
        ops.floor_divide,
        binary(right=away_from_zero),
        [*MISMATCH, fails(ZeroDivisionError, "floor_divide of integers", np.array([1]), 0)],
        torch=operator.floordiv,
        differentiable=False,
        dtypes=(*FLOATS, "int64", "int32"),
    ),
    Op(
        "remainder",
        ops.remainder,
        binary(right=away_from_zero),
        [
            *MISMATCH,
            fails(ZeroDivisionError, "remainder of integers", np.array([1]), np.array([0])),
        ],
        torch=operator.mod,
        dtypes=(*FLOATS, "int64", "int32"),
    ),
    Op(
        "rfloor_divide",
        ops.rfloor_divide,
        binary(left=away_from_zero),
        [*SWAPPED, fails(ZeroDivisionError, "floor_divide of integers", np.array([0]), 1)],
        torch=lambda x, y: y // x,
        differentiable=False,
        dtypes=(*FLOATS, "int64", "int32"),
    ),
    Op(
        "rremainder",
        ops.rremainder,
        binary(left=away_from_zero),
        [*SWAPPED, fails(TypeError, "remainder takes numbers, not bools", mask(2), True)],
        torch=lambda x, y: y % x,
        dtypes=(*FLOATS, "int64", "int32"),
    ),
    Op(
        "pow",
        ops.pow,
        [
            *binary(positive, uniform, scalars=(1.5, 2)),
            call(away_from_zero(2, 3), 3),
            call(away_from_zero(2, 3), -1.0),
            call(uniform(2, 3), 0),
            call(uniform(2, 3), 1),
        ],
        [
            *MISMATCH,
        ],
        torch=operator.pow,
        dtypes=FLOATS,
    ),
    Op(
        "pow of integers",
        ops.pow,
        [
            call(np.array([-2, 0, 3]), 3),
            call(np.array([-2, 0, 3]), np.array([2, 0, 1])),
            call(np.array(3), np.array([], int)),
        ],
        [
            fails(ValueError, "negative integer powers", np.array([2, 3]), -1),
            fails(ValueError, "negative integer powers", np.array([2, 3]), np.array([1, -1])),
        ],
        torch=operator.pow,
        differentiable=False,
    ),
    Op(
        "rpow",
        ops.rpow,
        binary(uniform, positive),
        SWAPPED,
        torch=lambda x, y: y**x,
        dtypes=FLOATS,
    ),
]

FUNCTIONS = [
    math_op("neg"),
    math_op("exp"),
    math_op("log", positive),
    math_op("sqrt", positive),
    math_op("rsqrt", positive),
    math_op("sin"),
    math_op("cos"),
    math_op("tanh"),
    math_op("sigmoid"),
    math_op("erf"),
    math_op("relu", away_from_zero),
    math_op("abs", away_from_zero),
    math_op("sign", away_from_zero, dtypes=(*FLOATS, "int64", "int32")),
    math_op("floor", away_from_steps),
    math_op("ceil", away_from_steps),
    math_op("round", away_from_steps),
]

CHOICE = [
    Op(
        "maximum",
        ops.maximum,
        pair_without_ties(),
        MISMATCH,
        torch=torch_extreme(torch.maximum, lambda x, y: x.clamp(min=y)),
    ),
    Op(
        "minimum",
        ops.minimum,
        pair_without_ties(),
        MISMATCH,
        torch=torch_extreme(torch.minimum, lambda x, y: x.clamp(max=y)),
    ),
    Op(
        "clamp",
        ops.clamp,
        [
            *(call(uniform(*shape), -0.5, 1.25) for shape in SHAPES),
            call(uniform(3, 4), min=0.25),
            call(uniform(3, 4), max=0.25),
            call(uniform(3, 4), 1.0, -1.0),
            call(uniform(3, 4), 0, 1),
        ],
        [
            fails(ValueError, "min, max or both", uniform(3)),
            fails(TypeError, "numbers as limits", uniform(3), uniform(3)),
        ],
    ),
    Op(
        "where",
        ops.where,
        [
            *(call(mask(*np.broadcast_shapes(a, b)), uniform(*a), uniform(*b)) for a, b in PAIRS),
            call(mask(3, 1), uniform(4), uniform(2, 1, 4)),
            call(mask(3), uniform(3), 1.5),
            call(mask(3), 2, uniform(2, 3)),
            call(mask(3), 1.0, 0.0),
            call(mask(3), 1, 0),
            call(mask(), uniform(), uniform(2)),
        ],
        [
            fails(TypeError, "bool condition, got glassformer.int64", np.array([1, 0]), 1.0, 0.0),
            fails(ValueError, r"\(2,\).*\(3,\)", mask(2), uniform(3), 0.0),
        ],
    ),
    Op(
        "where_method",
        ops.where_method,
        [
            call(uniform(3, 4), mask(3, 1), uniform(4)),
            call(uniform(3), mask(2, 3), 1.5),
            call(uniform(), mask(), uniform(2)),
            call(uniform(0, 3), mask(3), 0.5),
        ],
        [fails(TypeError, "bool condition, got", uniform(2), np.array([1, 0]), 0.0)],
        torch=lambda x, condition, other: torch.where(condition, x, other),
    ),
    Op(
        "masked_fill",
        ops.masked_fill,
        [
            call(uniform(3, 4), mask(3, 4), -1.5),
            call(uniform(2, 3, 4), mask(3, 1), float("-inf")),
            call(uniform(1, 3), mask(2, 3), 0.5),
            call(uniform(), mask(), 0.5),
            call(uniform(0, 3), mask(3), 0.5),
            call(uniform(2, 3), mask(2, 3), uniform()),
        ],
        [
            fails(
                TypeError,
                "bool tensor as mask, got glassformer.int64",
                uniform(2),
                np.array([1, 0]),
                0.0,
            )
        ],
        dtypes=FLOATS,
    ),
]

LOGIC = [
    *map(comparison, ("eq", "ne", "lt", "le", "gt", "ge")),
    *(
        Op(
            name,
            getattr(ops, name),
            [call(mask(3, 4), mask(4)), call(uniform(0, 2), uniform(2)), call(mask(), mask(2))],
            [fails(ValueError, r"\(2,\).*\(3,\)", mask(2), mask(3))],
            differentiable=False,
        )
        for name in ("logical_and", "logical_or")
    ),
    Op(
        "logical_not",
        ops.logical_not,
        [call(mask(3, 4)), call(np.array([0.0, 1.0, -2.0])), call(mask()), call(mask(0))],
        NO_TENSOR,
        differentiable=False,
    ),
    *(
        Op(
            name,
            getattr(ops, name),
            [call(mask(3, 4), mask(4)), call(mask(2), True), call(mask(), mask(0))],
            [
                fails(
                    TypeError,
                    f"{symbol} takes bool tensors, got .*int64",
                    mask(2),
                    np.array([1, 0]),
                )
            ],
            torch=operation,
            differentiable=False,
        )
        for name, symbol, operation in (
            ("mask_and", "&", operator.and_),
            ("mask_or", r"\|", operator.or_),
        )
    ),
    Op(
        "mask_not",
        ops.mask_not,
        [call(mask(3, 4)), call(mask()), call(mask(0))],
        [fails(TypeError, "~ takes bool tensors, got .*int64", np.array([1, 0]))],
        torch=operator.invert,
        differentiable=False,
    ),
    *(
        Op(
            name,
            getattr(ops, name),
            [call(np.array([[1.0, np.nan], [np.inf, -np.inf]])), *unary()],
            NO_TENSOR,
            differentiable=False,
            dtypes=FLOATS,
        )
        for name in ("isnan", "isinf", "isfinite")
    ),
]

CONVERSION = [
    Op(
        "to",
        ops.to,
        [
            call(uniform(2, 3), dtype="float64"),
            call(uniform(), dtype="float32"),
            call(uniform(0), dtype="float16"),
        ],
        [
            fails(TypeError, "dtype int8 is not supported", uniform(2), dtype="int8"),
            fails(ValueError, "device 'tpu' is not available", uniform(2), "tpu"),
        ],
        torch=lambda x, dtype: x.to(getattr(torch, dtype)),
        gradcheck=False,
    ),
    Op("clone", ops.clone, unary(), NO_TENSOR),
    *(
        Op(
            name,
            getattr(ops, name),
            unary(),
            [fails(AttributeError, "list", [1.0])],
            torch=getattr(torch.Tensor, name),
            differentiable=name in ("half", "float", "double"),
            gradcheck=name == "double",
        )
        for name in ("half", "float", "double", "int", "long", "bool")
    ),
]

OPS = [*ARITHMETIC, *FUNCTIONS, *CHOICE, *LOGIC, *CONVERSION]
