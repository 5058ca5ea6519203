"""Samples of the operations that read and write by index."""

import numpy as np
import torch
from torch.nn.functional import embedding, one_hot

from glassformer.ops import indexing as ops
from tests.samples import Op, call, distinct, fails, integers, mask, uniform

ROWS = np.array([2, 0, 2])
FLOAT_INDEX = fails(
    TypeError, "integer indices, got .*float64", uniform(3), 0, np.array([0.0, 1.0])
)


def single(*shape):
    return distinct(shape)[0]


def index_getting():
    x, wide = (3, 4), (2, 3, 4)
    return [
        call(uniform(*x), 1),
        call(uniform(*x), -1),
        call(uniform(*x), np.array(1)),
        call(uniform(*x), slice(1, None)),
        call(uniform(*x), (slice(None, None, 2), slice(-3, -1))),
        call(uniform(*x), (..., 0)),
        call(uniform(*x), (None, slice(None), None, 2)),
        call(uniform(*x), ()),
        call(uniform(*x), ...),
        call(uniform(), None),
        call(uniform(), ...),
        call(uniform(0, 3), slice(None)),
        call(uniform(*x), slice(2, 1)),
        call(uniform(*x), ROWS),
        call(uniform(*x), [2, 0, 2]),
        call(uniform(*x), []),
        call(uniform(*x), (slice(None), ROWS)),
        call(uniform(*x), (ROWS, np.array([1, 3, 1]))),
        call(uniform(*x), (ROWS[:, None], np.array([1, -1]))),
        call(uniform(*x), integers(2, 2, limit=3)),
        call(uniform(*x), (None, ROWS, slice(1, 3))),
        call(uniform(*wide), (ROWS % 2, slice(None), ROWS)),
        call(uniform(*wide), (0, slice(None), ROWS)),
        call(uniform(*wide), (ROWS % 2, slice(None), 0)),
        call(uniform(*wide), (ROWS % 2, ..., np.array(1))),
        call(uniform(*wide), (0, ROWS)),
        call(uniform(*wide), (slice(None), 1, ROWS)),
        call(uniform(*wide), (0, None, ROWS)),
        call(uniform(*wide), (..., ROWS, 0)),
        call(uniform(*x), np.array([True, False, True])),
        call(uniform(*x), (slice(None), np.array([True, False, True, True]))),
        call(uniform(*x), mask(*x)),
        call(uniform(*wide), (mask(2, 3), 1)),
        call(uniform(*wide), (1, mask(3, 4))),
        call(uniform(*x), (np.array([True, False, True]), np.array([1, 3]))),
        call(uniform(*x), np.zeros(x, bool)),
        call(uniform(*x), True),
        call(uniform(), np.array(True)),
        call(uniform(0, 3), np.array([], dtype=np.int64)),
    ]


OPS = [
    Op(
        "getitem",
        ops.getitem,
        index_getting(),
        [
            fails(IndexError, r"5 is out of bounds .*\(3, 4\)", uniform(3, 4), 5),
            fails(IndexError, r"-4 is out of bounds .*\(3, 4\)", uniform(3, 4), np.array([0, -4])),
            fails(IndexError, r"too many indices.*\(3,\)", uniform(3), (0, 0)),
            fails(IndexError, r"too many indices.*\(3, 4\)", uniform(3, 4), (0, ROWS, 0)),
            fails(IndexError, r"\(3, 4\)", uniform(3, 4), np.array([True, False])),
            fails(TypeError, "int or bool, not .*float64", uniform(3), np.array([0.0])),
            fails(TypeError, "'a'", uniform(3), "a"),
            fails(TypeError, "1.5", uniform(3), 1.5),
        ],
        torch=lambda x, index: x[index],
    ),
    Op(
        "gather",
        ops.gather,
        [
            call(uniform(3, 4), 1, integers(3, 2, limit=4)),
            call(uniform(3, 4), 0, integers(5, 4, limit=3)),
            call(uniform(3, 4), -1, integers(2, 3, limit=4)),
            call(uniform(2, 3, 2), 1, integers(2, 1, 2, limit=3)),
            call(uniform(3), 0, np.array([1, 1, 1, 0])),
            call(uniform(), 0, np.array(0)),
            call(uniform(3), 0, np.array(2)),
            call(uniform(3, 4), 1, integers(0, 4, limit=4)),
            call(uniform(0, 3), 1, integers(0, 2, limit=3)),
        ],
        [
            fails(
                IndexError,
                "gather: index 4 is out of range, the limit is 4",
                uniform(4),
                0,
                np.array([4]),
            ),
            fails(IndexError, "index -1 is out of range", uniform(4), 0, np.array([0, -1])),
            fails(
                ValueError,
                r"index of shape \(2,\) doesn't fit \(3, 4\)",
                uniform(3, 4),
                0,
                np.array([0, 1]),
            ),
            fails(
                ValueError,
                r"index of shape \(4, 1\) doesn't fit \(3, 4\)",
                uniform(3, 4),
                1,
                integers(4, 1, limit=3),
            ),
            FLOAT_INDEX,
        ],
    ),
    Op(
        "scatter_add",
        ops.scatter_add,
        [
            call(uniform(3, 4), 1, integers(3, 2, limit=4), uniform(3, 2)),
            call(uniform(3, 4), 0, integers(5, 4, limit=3), uniform(5, 4)),
            call(uniform(3, 4), -1, integers(2, 3, limit=4), uniform(3, 4)),
            call(uniform(3), 0, np.array([1, 1, 1, 0]), uniform(4)),
            call(uniform(), 0, np.array(0), uniform()),
            call(uniform(3, 4), 1, integers(0, 4, limit=4), uniform(0, 4)),
        ],
        [
            fails(IndexError, "limit is 3", uniform(3), 0, np.array([3]), uniform(1)),
            fails(
                ValueError,
                r"index \(3,\) is larger than src \(2,\)",
                uniform(3),
                0,
                ROWS,
                uniform(2),
            ),
            fails(TypeError, "float64 into .*int64", np.array([1, 2, 3]), 0, ROWS, uniform(3)),
        ],
    ),
    Op(
        "index_select",
        ops.index_select,
        [
            call(uniform(3, 4), 0, ROWS),
            call(uniform(2, 3), -1, ROWS),
            call(uniform(2, 3, 2), 1, np.array([1])),
            call(uniform(3), 0, np.array(1)),
            call(uniform(), 0, np.array([0])),
            call(uniform(3, 2), 0, np.array([], dtype=np.int64)),
            call(uniform(3, 0), 0, ROWS),
        ],
        [
            fails(
                IndexError, "index 3 is out of range, the limit is 3", uniform(3), 0, np.array([3])
            ),
            fails(ValueError, r"1-d index, got shape \(1, 2\)", uniform(3), 0, np.array([[0, 1]])),
            FLOAT_INDEX,
        ],
    ),
    Op(
        "take_along_dim",
        ops.take_along_dim,
        [
            call(uniform(3, 4), integers(3, 2, limit=4), 1),
            call(uniform(3, 4), integers(1, 2, limit=4), -1),
            call(uniform(1, 4), integers(3, 2, limit=4), 1),
            call(uniform(2, 3), integers(4, limit=6)),
            call(uniform(2, 3), integers(0, limit=6)),
        ],
        [
            fails(ValueError, r"\(3, 4\), \(2,\)", uniform(3, 4), np.array([0, 1]), 1),
            fails(IndexError, "limit is 4", uniform(3, 4), integers(3, 1, limit=1) + 4, 1),
        ],
    ),
    Op(
        "embedding",
        ops.embedding,
        [
            call(integers(2, 5, limit=4), uniform(4, 3)),
            call(np.array([1, 1, 1]), uniform(4, 3)),
            call(np.array(2), uniform(4, 3)),
            call(integers(0, 2, limit=1), uniform(4, 3)),
        ],
        [
            fails(
                IndexError,
                "index 4 is out of range, the limit is 4",
                np.array([1, 4]),
                uniform(4, 3),
            ),
            fails(IndexError, "index -1 is out of range", np.array([-1]), uniform(4, 3)),
            fails(TypeError, "integer indices, got .*float64", np.array([1.0]), uniform(4, 3)),
            fails(ValueError, r"\(V, C\), got shape \(4,\)", np.array([1]), uniform(4)),
        ],
        torch=embedding,
    ),
    Op(
        "embedding with padding",
        ops.embedding,
        [
            call(np.array([0, 3, 3, 1]), uniform(4, 2), padding_idx=3),
            call(np.array([0, 3, 3, 1]), uniform(4, 2), padding_idx=-1),
            call(integers(0, 2, limit=1), uniform(4, 2), padding_idx=0),
        ],
        [fails(IndexError, "limit is 4", np.array([4]), uniform(4, 3), padding_idx=0)],
        torch=embedding,
        gradcheck=False,  # the padding row is read, but gets no gradient by design
    ),
    Op(
        "one_hot",
        ops.one_hot,
        [
            call(np.array([1, 0, 2])),
            call(integers(2, 3, limit=4), 5),
            call(np.array(1), 3),
            call(integers(0, 2, limit=1), num_classes=3),
        ],
        [
            fails(IndexError, "index 3 is out of range, the limit is 3", np.array([3]), 3),
            fails(ValueError, "needs num_classes", np.array([], dtype=np.int64)),
            fails(TypeError, "integer indices", np.array([1.0])),
        ],
        torch=one_hot,
        differentiable=False,
    ),
    Op(
        "argsort",
        ops.argsort,
        [
            call(single(3, 4)),
            call(single(3, 4), 0),
            call(single(3, 4), -1, True),
            call(single()),
            call(single(0, 3), 0),
            call(np.array([2.0, np.nan, 1.0, 2.0, 1.0])),
            call(np.array([2.0, np.nan, 1.0, 2.0, 1.0]), descending=True),
        ],
        [fails(IndexError, r"dim 2 is out of range .*\(2, 3\)", uniform(2, 3), 2)],
        torch=lambda x, dim=-1, descending=False: torch.argsort(
            x, dim=dim, descending=descending, stable=True
        ),
        differentiable=False,
    ),
    Op(
        "sort",
        ops.sort,
        [
            call(single(3, 4)),
            call(single(3, 4), 0, True),
            call(single(2, 2, 3), dim=1),
            call(single()),
            call(single(0)),
            call(single(2, 0), 1),
        ],
        [fails(IndexError, r"dim 2 is out of range .*\(2, 3\)", uniform(2, 3), 2)],
        torch=lambda x, dim=-1, descending=False: torch.sort(
            x, dim=dim, descending=descending, stable=True
        ),
    ),
    Op(
        "topk",
        ops.topk,
        [
            call(single(3, 4), 2),
            call(single(3, 4), 3, 0),
            call(single(2, 3), 1, largest=False),
            call(single(2, 3), 0),
            call(single(0, 3), 2),
            call(single(), 1),
        ],
        [
            fails(
                ValueError, r"k = 5 is out of range for dim -1 of shape \(3, 4\)", uniform(3, 4), 5
            ),
            fails(ValueError, "k = -1 is out of range", uniform(3), -1),
        ],
        dtypes=("float64", "float32", "float16"),
    ),
]
