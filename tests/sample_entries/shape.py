"""Samples of the operations that rearrange elements."""

import torch

from glassformer.ops import shape as ops
from tests.samples import Op, call, fails, uniform

OUT_OF_RANGE = [fails(IndexError, r"dim 3 is out of range .*\(2, 3\)", uniform(2, 3), 3)]
WRONG_COUNT = [
    fails(ValueError, r"\(2, 3\) \(6 elements\) can't have shape \(4, 2\)", uniform(2, 3), 4, 2),
    fails(ValueError, r"\(2, 3\) .*\(-1, 4\)", uniform(2, 3), (-1, 4)),
    fails(ValueError, r"\(0, 3\) .*\(0, -1\)", uniform(0, 3), (0, -1)),
]
NOT_A_MATRIX = [fails(ValueError, r"two dimensions, got shape \(3,\)", uniform(3))]
ZERO_D = [fails(ValueError, "0-d tensor", uniform())]


def reshapes():
    return [
        call(uniform(2, 3), 3, 2),
        call(uniform(2, 3), (6,)),
        call(uniform(2, 3, 4), -1, 4),
        call(uniform(), 1, 1),
        call(uniform(1), ()),
        call(uniform(0, 3), 3, 0),
        call(uniform(2, 0), -1, 2),
    ]


def triangles():
    return [
        call(uniform(3, 3)),
        call(uniform(2, 3, 4), 1),
        call(uniform(4, 2), diagonal=-1),
        call(uniform(0, 3)),
        call(uniform(2, 2), -5),
    ]


OPS = [
    Op("reshape", ops.reshape, reshapes(), WRONG_COUNT, torch=torch.Tensor.reshape),
    Op("view", ops.view, reshapes(), WRONG_COUNT, torch=torch.Tensor.view),
    Op(
        "flatten",
        ops.flatten,
        [
            call(uniform(2, 3)),
            call(uniform(2, 3, 4), 1),
            call(uniform(2, 3, 4), 0, 1),
            call(uniform()),
            call(uniform(2, 0)),
        ],
        OUT_OF_RANGE,
    ),
    Op(
        "unflatten",
        ops.unflatten,
        [
            call(uniform(6, 2), 0, (2, 3)),
            call(uniform(2, 6), -1, [3, -1]),
            call(uniform(0), 0, (0, 2)),
        ],
        [*(fails(e.error, e.match, *e.sample.args, (1, 3)) for e in OUT_OF_RANGE)]
        + [fails(ValueError, r"dim 0 of shape \(6,\) has 6 .*\(4, 2\)", uniform(6), 0, (4, 2))],
    ),
    Op(
        "squeeze",
        ops.squeeze,
        [
            call(uniform(1, 3, 1)),
            call(uniform(1, 3, 1), 0),
            call(uniform(1, 3, 1), (0, -1)),
            call(uniform(2, 3), 0),
            call(uniform()),
            call(uniform(), 0),
            call(uniform(1, 0)),
        ],
        OUT_OF_RANGE,
    ),
    Op(
        "unsqueeze",
        ops.unsqueeze,
        [call(uniform(2, 3), 0), call(uniform(2, 3), -1), call(uniform(), 0), call(uniform(0), 1)],
        OUT_OF_RANGE,
    ),
    Op(
        "contiguous",
        ops.contiguous,
        [call(uniform(2, 3)), call(uniform()), call(uniform(0, 2))],
        torch=torch.Tensor.contiguous,
    ),
    Op(
        "permute",
        ops.permute,
        [
            call(uniform(2, 3, 4), 2, 0, 1),
            call(uniform(2, 3, 4), (0, -1, 1)),
            call(uniform()),
            call(uniform(0, 3), 1, 0),
        ],
        [
            fails(ValueError, r"each of the 2 dimensions of \(2, 3\) once", uniform(2, 3), 0, 0),
            fails(ValueError, r"each of the 2 dimensions of \(2, 3\) once", uniform(2, 3), 0),
            fails(IndexError, r"dim 2 is out of range .*\(2, 3\)", uniform(2, 3), 0, 2),
        ],
        torch=lambda x, *dims: x.permute(dims[0] if dims and isinstance(dims[0], tuple) else dims),
    ),
    Op(
        "transpose",
        ops.transpose,
        [
            call(uniform(2, 3, 4), 0, 2),
            call(uniform(2, 3), -1, -2),
            call(uniform(), 0, -1),
            call(uniform(0, 2), 0, 1),
        ],
        [fails(IndexError, r"dim 2 is out of range .*\(2, 3\)", uniform(2, 3), 0, 2)],
    ),
    Op(
        "transpose_all",
        ops.transpose_all,
        [call(uniform(2, 3, 4)), call(uniform(2)), call(uniform()), call(uniform(0, 2))],
        torch=lambda x: x.permute(tuple(reversed(range(x.ndim)))),
    ),
    Op(
        "transpose_last_two",
        ops.transpose_last_two,
        [call(uniform(2, 3, 4)), call(uniform(2, 3)), call(uniform(0, 2))],
        [fails(IndexError, r"out of range .*\(3,\)", uniform(3))],
        torch=lambda x: x.mT,
    ),
    Op(
        "broadcast_to",
        ops.broadcast_to,
        [
            call(uniform(3), (2, 3)),
            call(uniform(2, 1, 3), (2, 4, 3)),
            call(uniform(), (2, 2)),
            call(uniform(0, 1), (2, 0, 3)),
            call(uniform(1, 3), (0, 3)),
            call(uniform(2, 3), (2, 3)),
            call(uniform(), ()),
        ],
        [
            fails(ValueError, r"\(2, 3\) can't be broadcast to \(2, 4\)", uniform(2, 3), (2, 4)),
            fails(ValueError, r"\(2, 3\) can't be broadcast to \(3,\)", uniform(2, 3), (3,)),
        ],
    ),
    Op(
        "expand",
        ops.expand,
        [
            call(uniform(3), 2, 3),
            call(uniform(2, 1, 3), (-1, 4, -1)),
            call(uniform(), 2),
            call(uniform(1), 0),
            call(uniform(0, 1), -1, 3),
            call(uniform(2, 3), -1, -1),
        ],
        [
            fails(ValueError, r"\(2, 3\) can't be broadcast to \(4, 3\)", uniform(2, 3), 4, -1),
            fails(ValueError, r"negative|-1", uniform(3), -1, 3),
        ],
        torch=torch.Tensor.expand,
    ),
    Op(
        "cat",
        ops.cat,
        [
            call([uniform(2, 3), uniform(1, 3), uniform(3, 3)]),
            call([uniform(2, 3), uniform(2, 2)], 1),
            call([uniform(2, 3, 1), uniform(2, 3, 2)], dim=-1),
            call([uniform(0, 2), uniform(2, 2)]),
            call((uniform(3),)),
        ],
        [
            fails(ValueError, "at least one", []),
            fails(ValueError, r"\(2, 3\), \(2, 2\)", [uniform(2, 3), uniform(2, 2)], 0),
            fails(ValueError, r"\(\), \(\)", [uniform(), uniform()]),
            fails(IndexError, r"dim 2 is out of range .*\(2, 3\)", [uniform(2, 3)], 2),
        ],
    ),
    Op(
        "stack",
        ops.stack,
        [
            call([uniform(2, 3), uniform(2, 3)]),
            call([uniform(2, 3), uniform(2, 3)], 1),
            call([uniform(2), uniform(2), uniform(2)], dim=-1),
            call([uniform(), uniform()]),
            call([uniform(0)]),
        ],
        [
            fails(ValueError, "at least one", []),
            fails(ValueError, r"one shape, got \(2, 3\), \(3,\)", [uniform(2, 3), uniform(3)]),
        ],
    ),
    Op(
        "split",
        ops.split,
        [
            call(uniform(5, 2), 2),
            call(uniform(2, 5), [1, 4], 1),
            call(uniform(2, 4), (4, 0), dim=-1),
            call(uniform(3), 5),
            call(uniform(0, 2), 2),
        ],
        [
            fails(ValueError, r"\[1, 2\] don't add up to 5.*\(5, 2\)", uniform(5, 2), [1, 2]),
            fails(ValueError, "positive size, got 0", uniform(5, 2), 0),
        ],
    ),
    Op(
        "chunk",
        ops.chunk,
        [
            call(uniform(5, 2), 2),
            call(uniform(2, 6), 4, 1),
            call(uniform(2), 5),
            call(uniform(0, 2), 3),
        ],
        [fails(ValueError, "positive number of chunks, got 0", uniform(5), 0)],
    ),
    Op(
        "unbind",
        ops.unbind,
        [call(uniform(3, 2)), call(uniform(2, 3), -1), call(uniform(2)), call(uniform(0, 2))],
        ZERO_D,
    ),
    Op(
        "iterate",
        ops.iterate,
        [call(uniform(3, 2)), call(uniform(2)), call(uniform(0, 2))],
        ZERO_D,
        torch=iter,
    ),
    Op(
        "flip",
        ops.flip,
        [
            call(uniform(2, 3), 0),
            call(uniform(2, 3), (0, -1)),
            call(uniform(3), [0]),
            call(uniform(0, 2), 1),
        ],
        OUT_OF_RANGE,
        torch=torch.Tensor.flip,
    ),
    Op(
        "roll",
        ops.roll,
        [
            call(uniform(2, 3), 1, 0),
            call(uniform(2, 3), (1, -2), (0, 1)),
            call(uniform(2, 3), 4),
            call(uniform(), 1),
            call(uniform(0, 2), 1, 0),
        ],
        [fails(ValueError, r"one shift per dim, got shifts \(1, 2\)", uniform(2, 3), (1, 2), 0)],
    ),
    Op(
        "pad",
        ops.pad,
        [
            call(uniform(2, 3), (1, 2)),
            call(uniform(2, 3), (1, 0, 0, 2), value=1.5),
            call(uniform(2, 3), [-1, 2]),
            call(uniform(2, 4), (-1, -1, 1, -2)),
            call(uniform(0, 3), (1, 1, 2, 0)),
            call(uniform(2), (0, 0)),
        ],
        [
            fails(ValueError, r"pairs for at most 1 .*\(1,\)", uniform(3), (1,)),
            fails(ValueError, r"pairs for at most 1 .*\(1, 1, 1, 1\)", uniform(3), (1, 1, 1, 1)),
            fails(ValueError, r"cuts more than shape \(3,\)", uniform(3), (-2, -2)),
            fails(ValueError, "'constant', not 'reflect'", uniform(3), (1, 1), "reflect"),
        ],
        torch="nn.functional.pad",
    ),
    Op("tril", ops.tril, triangles(), NOT_A_MATRIX),
    Op("triu", ops.triu, triangles(), NOT_A_MATRIX),
]
