"""How near two results must be, per dtype: the one place where tests state it."""

import numpy as np

# Fractions of the largest magnitude expected (at least 1). A rounding is 1e-16, 6e-8 or 5e-4; sums
# of a few hundred terms in two orders differ by some √n of them, bare where the terms cancel. Half
# precision is summed in float32, so that it differs by the rounding of the result alone.
NEAR = {"float64": 1e-12, "float32": 1e-4, "float16": 2e-3}


def assert_close(actual, expected, name="", slack=1):
    """Assert that arrays agree to the coarser of their precisions; infinities and NaNs exactly.

    `slack` multiplies the tolerance.
    """
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, not {expected.shape}"
    tolerance = max(NEAR[actual.dtype.name], NEAR[expected.dtype.name])
    finite = np.abs(expected[np.isfinite(expected)], dtype=np.float64)
    np.testing.assert_allclose(
        actual.astype(np.float64),
        expected.astype(np.float64),
        rtol=0,
        atol=slack * tolerance * max(1.0, finite.max(initial=0)),
        err_msg=name,
    )
