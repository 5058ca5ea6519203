r"""The error function erf(x) = 2/√π ∫₀ˣ exp(-t²) dt, which NumPy lacks.

NumPy's tanh is vectorised and fast, and erf is a tanh of a slightly bent argument:

    erf(x) = tanh(x · R(x²)),    R(x²) = atanh(erf(x)) / x.

R is smooth and slow, so a short polynomial (float32) or rational function (float64) holds it.
What tanh flattens it also forgives: the error that counts is that of R weighted by
x (1 - erf²) / erf, the sensitivity of erf to it. The coefficients are least-squares fits with
that weight, reweighted after Lawson (Contributions to the Theory of Linear Least Maximum
Approximation, UCLA 1961) until the largest error stopped falling, computed here with 50 digits:
9.5e-8 on [0, 4.2] for float32 and 1.0e-15 on [0, 6] for float64, before rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from glassformer.backends import memory
from glassformer.backends.threads import grain_for, parallel_for

# Ascending powers of x². The leading ones are positive, so that beyond the fit tanh gives ±1.
POLYNOMIAL32 = (
    1.12837927,
    1.02769056e-1,
    -1.91831098e-4,
    -6.19784414e-4,
    8.76372381e-5,
    -5.66846147e-6,
    1.41851436e-7,
)
_NUMERATOR64 = (
    1.128379167095513642,
    0.49607459613619689347,
    0.14401957152770117552,
    0.025673312098958644573,
    0.0032590340039400577677,
    0.00027012440888962097833,
    0.00001400688961064068939,
    3.3594404576622767677e-7,
    9.9445621415017716706e-10,
)
_DENOMINATOR64 = (
    1.0,
    0.34855481588404960058,
    0.096073096265361870561,
    0.014589660317029699886,
    0.0017023412999274249099,
    0.00011427057841393921073,
    4.8667224489551350497e-6,
    5.4337201675739379724e-8,
)


def erf(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """erf of every element, in the dtype of `x`.

    Relative error at most 5e-7 in float32 and 2e-15 in float64; float16 is computed in float32.
    erf(±inf) = ±1, and NaN stays NaN.
    """
    if x.dtype == np.float16:
        return erf(x.astype(np.float32)).astype(np.float16)
    out = memory.empty(x.shape, x.dtype)
    source, target = np.ascontiguousarray(x).reshape(-1), out.reshape(-1)
    tile = _erf64 if x.dtype == np.float64 else _erf32

    def run(start: int, stop: int) -> None:
        tile(source[start:stop], target[start:stop])

    parallel_for(run, source.size, grain_for(source.size, 1))
    return out


def polynomial(
    t: npt.NDArray[Any], coefficients: Sequence[float], out: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Horner's scheme: the sum of coefficients[k] t^k, written into `out`."""
    np.multiply(t, coefficients[-1], out=out)
    for coefficient in coefficients[-2:0:-1]:
        out += coefficient
        out *= t
    out += coefficients[0]
    return out


def _erf32(x: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
    t = np.multiply(x, x, out=memory.empty(x.shape, x.dtype))
    polynomial(t, POLYNOMIAL32, out)
    out *= x
    np.tanh(out, out=out)


def _erf64(x: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
    t = np.multiply(x, x, out=memory.empty(x.shape, x.dtype))
    np.minimum(t, 36.0, out=t)  # erf(6) rounds to 1, and the quotient has no limit at infinity
    polynomial(t, _NUMERATOR64, out)
    out /= polynomial(t, _DENOMINATOR64, memory.empty(x.shape, x.dtype))
    out *= x
    np.tanh(out, out=out)
