"""Samples of the convolutions."""

import numpy as np

from glassformer.ops import convolution as ops
from tests.samples import Op, call, fails, uniform

FLOATS = ("float64", "float32", "float16")
SINGLE = uniform(1, 1, 1, 1).astype(np.float32)

OPS = [
    Op(
        "conv2d",
        ops.conv2d,
        [
            call(uniform(2, 2, 4, 4), uniform(3, 2, 2, 3), uniform(3)),
            call(uniform(1, 2, 4, 5), uniform(2, 2, 3, 3), None, 2, 1),
            call(uniform(1, 2, 5, 4), uniform(2, 2, 2, 2), uniform(2), (2, 1), (0, 1), (2, 1)),
            call(uniform(1, 4, 3, 3), uniform(4, 2, 2, 2), groups=2),
            call(uniform(1, 3, 3, 3), uniform(3, 1, 2, 2), uniform(3), groups=3, padding="same"),
            call(uniform(1, 1, 4, 4), uniform(1, 1, 2, 2), stride=2, padding="valid"),
            call(uniform(2, 3, 3), uniform(2, 2, 1, 1)),
            call(uniform(1, 1, 6, 6), uniform(1, 1, 2, 2), stride=3),
            call(uniform(0, 2, 3, 3), uniform(1, 2, 2, 2)),
        ],
        [
            fails(
                ValueError, r"got \(2, 3\) and \(1, 1, 2, 2\)", uniform(2, 3), uniform(1, 1, 2, 2)
            ),
            fails(
                ValueError, r"3 channels.*\(2, 2, 1, 1\)", uniform(1, 3, 4, 4), uniform(2, 2, 1, 1)
            ),
            fails(
                ValueError,
                r"kernel \(3, 3\) is larger .*\(1, 1, 2, 2\)",
                uniform(1, 1, 2, 2),
                uniform(1, 1, 3, 3),
            ),
            fails(
                ValueError,
                "'same' needs stride 1, got 2",
                uniform(1, 1, 2, 2),
                uniform(1, 1, 1, 1),
                stride=2,
                padding="same",
            ),
            fails(TypeError, "float64 but weight is .*float32", uniform(1, 1, 2, 2), SINGLE),
            fails(ValueError, "'full'", uniform(1, 1, 2, 2), uniform(1, 1, 1, 1), padding="full"),
            fails(
                ValueError,
                r"bias \(1,\) .*\(2,\)",
                uniform(1, 1, 2, 2),
                uniform(2, 1, 1, 1),
                uniform(1),
            ),
        ],
        dtypes=FLOATS,
        torch="nn.functional.conv2d",
    ),
    Op(
        "conv1d",
        ops.conv1d,
        [
            call(uniform(2, 2, 5), uniform(3, 2, 2), uniform(3)),
            call(uniform(1, 2, 6), uniform(2, 2, 3), None, 2, 1),
            call(uniform(1, 2, 6), uniform(2, 2, 2), uniform(2), 1, 2, 3),
            call(uniform(1, 4, 5), uniform(4, 1, 3), groups=4, padding="same"),
            call(uniform(1, 2, 5), uniform(1, 2, 4), padding="same"),
            call(uniform(2, 4), uniform(1, 2, 2)),
            call(uniform(0, 2, 4), uniform(1, 2, 2)),
            call(uniform(1, 1, 6), uniform(1, 1, 2), stride=(2,), padding=(1,), dilation=(2,)),
        ],
        [
            fails(ValueError, r"got \(3,\) and \(1, 1, 2\)", uniform(3), uniform(1, 1, 2)),
            fails(ValueError, r"3 channels", uniform(1, 3, 4), uniform(2, 2, 1)),
        ],
        dtypes=FLOATS,
        torch="nn.functional.conv1d",
    ),
]
