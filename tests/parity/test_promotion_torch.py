"""Which dtype a mix of dtypes gives: every pair, in every form, as in PyTorch (edge case 31)."""

import itertools
import operator

import numpy as np
import pytest
import torch

import glassformer as gf
from tests.samples import assert_agree

DTYPES = ("bool", "int32", "int64", "float16", "float32", "float64")
NUMBERS = (True, 2, 1.5)
SHAPES = ((2,), ())

# Every operand: a tensor of each dtype, with a dimension and without, and each kind of number.
TENSORS = [(dtype, shape) for dtype in DTYPES for shape in SHAPES]
PAIRS = [
    *itertools.product(TENSORS, TENSORS),
    *itertools.product(TENSORS, NUMBERS),
    *itertools.product(NUMBERS, TENSORS),
]

OPERATIONS = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "floor_divide": operator.floordiv,
    "remainder": operator.mod,
    "eq": operator.eq,
    "lt": operator.lt,
    "ge": operator.ge,
}


def operand(framework, spec):
    if not isinstance(spec, tuple):
        return spec
    dtype, shape = spec
    return framework.tensor(np.full(shape, 3).astype(dtype))


def name(pair):
    return "-".join(
        str(spec) if not isinstance(spec, tuple) else spec[0] + str(len(spec[1])) for spec in pair
    )


over_pairs = pytest.mark.parametrize("pair", PAIRS, ids=name)


def assert_same_result(function, pair):
    """Compare value and dtype of `function(framework, x, y)`; both may refuse."""
    try:
        expected = function(torch, *(operand(torch, spec) for spec in pair))
    except (RuntimeError, TypeError):
        return False
    assert_agree(function(gf, *(operand(gf, spec) for spec in pair)).numpy(), expected.numpy())
    return True


@over_pairs
def test_result_type(pair):
    mine = gf.result_type([operand(gf, spec) for spec in pair])
    theirs = torch.result_type(*(operand(torch, spec) for spec in pair))
    assert f"torch.{mine.name}" == str(theirs)


@pytest.mark.parametrize(("first", "second"), list(itertools.product(DTYPES, DTYPES)))
def test_promote_types(first, second):
    theirs = torch.promote_types(getattr(torch, first), getattr(torch, second))
    assert f"torch.{gf.promote_types(getattr(gf, first), getattr(gf, second)).name}" == str(theirs)


@over_pairs
def test_edge_31_mixed_dtypes_promote_as_in_pytorch(pair):
    compared = [assert_same_result(lambda _, x, y, f=f: f(x, y), pair) for f in OPERATIONS.values()]
    assert sum(compared) >= 6  # PyTorch refuses some of them for bools


@over_pairs
def test_pow(pair):
    if set(pair) <= {("bool", (2,)), ("bool", ()), True}:
        with pytest.raises(TypeError, match="pow takes numbers, not bools"):
            operand(gf, pair[0]) ** operand(gf, pair[1])
    else:
        assert assert_same_result(lambda _, x, y: x**y, pair)


@over_pairs
def test_where(pair):
    mask = np.array([True, False])
    assert assert_same_result(lambda fw, x, y: fw.where(fw.tensor(mask), x, y), pair)


@pytest.mark.parametrize("pair", list(itertools.product(TENSORS, TENSORS)), ids=name)
def test_functions_of_two_tensors(pair):
    for function in (torch.maximum, torch.minimum, torch.logical_and):
        name = function.__name__
        assert assert_same_result(lambda fw, x, y, name=name: getattr(fw, name)(x, y), pair)


@pytest.mark.parametrize("pair", list(itertools.product(DTYPES, DTYPES)), ids="-".join)
def test_cat_and_stack(pair):
    specs = [(dtype, (2,)) for dtype in pair]
    assert assert_same_result(lambda fw, x, y: fw.cat([x, y]), specs)
    if pair[0] == pair[1]:  # PyTorch's stack takes one dtype
        assert assert_same_result(lambda fw, x, y: fw.stack([x, y]), specs)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("spec", TENSORS, ids=lambda spec: name([spec]))
def test_limits_of_clamp(spec, number):
    if spec[0] != "bool":
        assert assert_same_result(lambda fw, x, n: x.clamp(min=n), [spec, number])


@pytest.mark.parametrize("spec", TENSORS, ids=lambda spec: name([spec]))
def test_functions_of_one_tensor(spec):
    for function in ("exp", "sqrt", "sigmoid", "sum", "isnan", "any", "cumsum", "argmax", "mean"):
        dims = (0,) if function == "cumsum" else ()
        assert_same_result(lambda _, x, f=function, d=dims: getattr(x, f)(*d), [spec])


@pytest.mark.parametrize("pair", list(itertools.product(TENSORS, NUMBERS)), ids=name)
def test_numbers_in_place_keep_the_dtype_or_are_refused(pair):
    """`x += 1.5` of integers is an error, as in PyTorch: the result would not fit."""
    mine = operand(gf, pair[0])
    try:
        expected = operand(torch, pair[0]).add_(pair[1])
    except RuntimeError:
        with pytest.raises(TypeError):
            mine.add_(pair[1])
        return
    assert_agree(mine.add_(pair[1]).numpy(), expected.numpy())


def test_gradients_come_in_the_dtype_of_their_tensor():
    half = gf.ones(3, dtype="float16", requires_grad=True)
    single = gf.ones(3, requires_grad=True)
    double = gf.tensor(2.0, dtype="float64", requires_grad=True)
    ((half * single).double() * double).sum().backward()
    assert (half.grad.dtype, single.grad.dtype) == (gf.float16, gf.float32)
    assert (double.grad.dtype, double.grad.item()) == (gf.float64, 3)


def test_products_promote_where_pytorch_refuses():
    for x, y in itertools.permutations([gf.ones(2, 2), gf.ones(2, 2, dtype="float64")]):
        assert (x @ y).dtype == gf.einsum("ij,jk->ik", x, y).dtype == gf.float64


def test_numpy_numbers_count_as_python_ones():
    x = gf.ones(2, dtype="float16")
    for number in (np.float64(1.5), np.float32(1.5), np.int64(2), np.True_):
        assert (x * number).dtype == gf.float16
        assert (number * x).dtype == gf.float16
    assert (gf.tensor([1, 2]) + np.float32(0.5)).dtype == gf.float32


def test_a_large_number_does_not_widen_the_dtype():
    assert (gf.ones(2, dtype="float16") * 1e6).tolist() == [float("inf")] * 2
    assert (gf.ones(2) * 1e300).tolist() == [float("inf")] * 2
