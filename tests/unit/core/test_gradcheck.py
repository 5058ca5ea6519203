"""gradcheck and gradgradcheck find rules that are wrong, and only those."""

import pytest

import glassformer as gf
from glassformer.primitive import Primitive, registry

X = gf.tensor([[0.3, -1.2], [0.7, 2.0]], dtype="float64")


def leaf():
    return X.clone().requires_grad_()


@pytest.fixture
def square():
    """A primitive x² whose rule a test sets."""
    yield Primitive("test square", lambda xp, x: xp.multiply(x, x))
    del registry["test square"]


def test_a_right_rule_passes(square):
    square.defvjp(lambda g, _out, x: g * 2 * x)
    assert gf.gradcheck(square, [leaf()])
    assert gf.gradgradcheck(square, [leaf()])


@pytest.mark.parametrize(
    "rule",
    [
        lambda g, _out, x: g * x,
        lambda g, _out, x: -g * 2 * x,
        lambda g, _out, x: (g * 2 * x).T,
        lambda g, _out, x: g * 2 * x * 1.01,
        lambda g, _out, x: 2 * x,  # forgets what arrived
        lambda g, _out, x: g * float("nan"),
        lambda g, _out, x: None,
    ],
)
def test_a_wrong_rule_is_found(square, rule):
    square.defvjp(rule)
    with pytest.raises(gf.GradcheckError, match=r"inputs\[0\] \(shape \(2, 2\)\) at \(\d, \d\)"):
        gf.gradcheck(square, [leaf()])


@pytest.mark.parametrize(
    "rule",
    [
        lambda g, _out, x: g * 2 * x.detach(),
        lambda g, _out, x: g.detach() * 2 * x,
        lambda g, _out, x: gf.from_numpy(g.array * 2 * x.array),
        lambda g, _out, x: g * (x + x.detach()),
    ],
    ids=["x cut off", "g cut off", "both cut off", "half"],
)
def test_a_wrong_second_derivative_is_found(square, rule):
    square.defvjp(rule)
    assert gf.gradcheck(square, [leaf()])
    with pytest.raises(gf.GradcheckError):
        gf.gradgradcheck(square, [leaf()])


def test_only_what_requires_grad_is_checked():
    wrong_for_y = lambda x, y: x * y.detach() + y  # noqa: E731
    assert gf.gradcheck(wrong_for_y, [leaf(), X])
    with pytest.raises(gf.GradcheckError, match=r"inputs\[1\]"):
        gf.gradcheck(wrong_for_y, [leaf(), leaf()])


def test_every_output_is_checked():
    def function(x):
        return x * 2, x.detach() * x, x > 0

    with pytest.raises(gf.GradcheckError):
        gf.gradcheck(function, [leaf()])


def test_an_infinity_that_stays_is_no_difference():
    assert gf.gradcheck(lambda x: x.masked_fill(X > 0, float("-inf")), [leaf()])


def test_inputs_are_put_back():
    x = leaf()

    def fails_the_second_time(x, calls=[]):  # noqa: B006 - it counts
        calls.append(1)
        if len(calls) == 3:
            raise ArithmeticError
        return x * x

    with pytest.raises(ArithmeticError):
        gf.gradcheck(fails_the_second_time, [x])
    assert x.tolist() == X.tolist()
    gf.gradcheck(lambda x: x * x, [x])
    assert x.tolist() == X.tolist()


def test_it_works_under_no_grad():
    with gf.no_grad():
        assert gf.gradcheck(lambda x: x.exp(), [leaf()])
        assert gf.gradgradcheck(lambda x: x.exp(), [leaf()])


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ([X], "needs an input that requires grad"),
        ([gf.ones(2, requires_grad=True)], r"needs float64, inputs\[0\] is glassformer.float32"),
    ],
)
def test_inputs_it_cannot_check(inputs, problem):
    with pytest.raises(ValueError, match=problem):
        gf.gradcheck(lambda x: x * 2, inputs)


def test_an_output_that_depends_on_nothing():
    with pytest.raises(ValueError, match="no output of the function depends"):
        gf.gradcheck(lambda x: x.detach(), [leaf()])
