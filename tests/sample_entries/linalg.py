"""Samples of the matrix products."""

import numpy as np

from glassformer.ops import linalg as ops
from tests.samples import Op, call, fails, uniform

PRODUCTS = [
    ((3, 4), (4, 2)),
    ((4,), (4,)),
    ((3, 4), (4,)),
    ((4,), (4, 2)),
    ((2, 3, 4), (4, 2)),
    ((2, 3, 4), (4,)),
    ((4,), (2, 4, 3)),
    ((2, 1, 3, 4), (3, 4, 2)),
    ((3, 4), (2, 4, 2)),
    ((1, 1), (1, 1)),
    ((2, 0), (0, 3)),
    ((0, 3), (3, 2)),
    ((2, 3, 0), (0, 4)),
    ((0, 2, 3), (0, 3, 2)),
    ((0, 2, 3), (3, 2)),
]


SINGLE = uniform(2, 4).astype(np.float32)


def product(equation, *shapes):
    return call(equation, *(uniform(*shape) for shape in shapes))


OPS = [
    Op(
        "matmul",
        ops.matmul,
        [call(uniform(*x), uniform(*y)) for x, y in PRODUCTS],
        [
            fails(
                ValueError,
                r"inner dimensions differ, \(2, 3\) @ \(4, 2\)",
                uniform(2, 3),
                uniform(4, 2),
            ),
            fails(ValueError, r"one dimension, got \(\) and \(3,\)", uniform(), uniform(3)),
            fails(ValueError, r"\(2,.*\(3,", uniform(2, 3, 4), uniform(3, 4, 2)),
        ],
        dtypes=("float64", "float32", "float16", "int64", "int32"),
    ),
    Op(
        "bmm",
        ops.bmm,
        [call(uniform(2, 3, 4), uniform(2, 4, 2)), call(uniform(0, 3, 4), uniform(0, 4, 2))],
        [fails(ValueError, r"got \(2, 3, 4\) and \(4, 2\)", uniform(2, 3, 4), uniform(4, 2))],
        dtypes=("float64", "float32", "float16", "int64", "int32"),
    ),
    Op(
        "outer",
        ops.outer,
        [call(uniform(3), uniform(2)), call(uniform(0), uniform(2))],
        [fails(ValueError, r"two vectors, got \(2, 3\) and \(3,\)", uniform(2, 3), uniform(3))],
    ),
    Op(
        "linear",
        ops.linear,
        [
            call(uniform(3, 4), uniform(2, 4), uniform(2)),
            call(uniform(3, 4), uniform(2, 4)),
            call(uniform(2, 3, 4), uniform(2, 4), uniform(2)),
            call(uniform(4), uniform(2, 4), uniform(2)),
            call(uniform(0, 4), uniform(2, 4), uniform(2)),
            call(uniform(2, 0), uniform(3, 0), uniform(3)),
        ],
        [
            fails(ValueError, r"input \(3, 4\) .*weight \(2, 3\)", uniform(3, 4), uniform(2, 3)),
            fails(
                ValueError, r"bias \(3,\) must be \(2,\)", uniform(3, 4), uniform(2, 4), uniform(3)
            ),
            fails(TypeError, "float64 but a parameter is .*float32", uniform(3, 4), SINGLE),
        ],
        torch="nn.functional.linear",
        dtypes=("float64", "float32", "float16"),
    ),
    Op(
        "einsum",
        ops.einsum,
        [
            product("ij,jk->ik", (3, 4), (4, 2)),
            product("bhqd,bhkd->bhqk", (2, 2, 3, 2), (2, 2, 2, 2)),
            product("ij->ji", (2, 3)),
            product("ij->", (2, 3)),
            product("ij->j", (2, 3)),
            product("ij->ij", (2, 3)),
            product("i,j->ij", (2,), (3,)),
            product("ij,ij->", (2, 3), (2, 3)),
            product("ij,jk", (2, 3), (3, 2)),
            product("ba,a", (2, 3), (3,)),
            product("...ij,...jk->...ik", (2, 1, 2, 3), (4, 3, 2)),
            product("i...->...", (2, 3)),
            product("ij,jk,kl->il", (2, 3), (3, 2), (2, 2)),
            product("ij,kj->", (2, 3), (2, 3)),
            product("ij,ij->ij", (2, 1), (1, 3)),
            product("ij,jk->ik", (2, 0), (0, 3)),
            product("ij,ij->i", (2, 1), (2, 0)),
            product(",i->i", (), (3,)),
            call("ij,jk->ik", [uniform(2, 3), uniform(3, 2)]),
        ],
        [
            fails(ValueError, "1 terms for 2 operands", "ij->ji", uniform(2, 2), uniform(2, 2)),
            fails(ValueError, r"'ijk' doesn't fit .*\(2, 3\)", "ijk->k", uniform(2, 3)),
            fails(
                ValueError,
                r"'j' is 3 and 4 long .*\(2, 3\), \(4, 2\)",
                "ij,jk->ik",
                uniform(2, 3),
                uniform(4, 2),
            ),
            fails(ValueError, "'ii->i'.*repeated within one term", "ii->i", uniform(2, 2)),
            fails(ValueError, "'ij->k'", "ij->k", uniform(2, 2)),
        ],
        dtypes=("float64", "float32", "float16"),
    ),
]
