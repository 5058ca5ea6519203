"""gelu, silu and swiglu: the definitions, and NumPy kernels that stay in a core's cache.

The kernels compute the nonlinear part again in backward instead of keeping it: NumPy's tanh and
exp cost less than writing and reading an array that no cache holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from glassformer.backends import memory
from glassformer.backends.erf import POLYNOMIAL32, erf, polynomial
from glassformer.backends.threads import grain_for, parallel_for
from glassformer.fused.registry import FusedOp, Kernel
from glassformer.fused.softmax import widened
from glassformer.tensor import Tensor

Array = Any

# gelu(x) = x/2 (1 + tanh(x P(x²))) for both kinds of gelu: the tanh approximation is defined so,
# and erf(x/√2) is computed so (backends/erf.py). Ascending coefficients of P.
_TANH = (math.sqrt(2 / math.pi), math.sqrt(2 / math.pi) * 0.044715)
_ERF32 = tuple(c * 0.5 ** (k + 0.5) for k, c in enumerate(POLYNOMIAL32))


def composite_gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """Return x Φ(x), with Φ the standard normal distribution function, or its approximation.

    "none": Φ(x) = (1 + erf(x/√2)) / 2. "tanh": Φ(x) ≈ (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2.
    Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", section 2.

    Raises:
        ValueError: `approximate` is neither.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
    wide = _floating("gelu", x)
    if approximate == "tanh":
        bend = (_TANH[0] * wide + _TANH[1] * wide * wide * wide).tanh()
    else:
        bend = (wide * math.sqrt(0.5)).erf()
    return (0.5 * wide * (1 + bend)).to(x.dtype)


def composite_silu(x: Tensor) -> Tensor:
    """Return x sigmoid(x) = x / (1 + exp(-x)).

    Elfwing, Uchibe and Doya 2017, "Sigmoid-weighted linear units", section 2.1.
    """
    wide = _floating("silu", x)
    return (wide * wide.sigmoid()).to(x.dtype)


def composite_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) · up. Shazeer 2020, "GLU Variants Improve Transformer", section 2.

    Raises:
        ValueError: the shapes differ.
    """
    if gate.shape != up.shape:
        raise ValueError(f"gate {gate.shape} and up {up.shape} must have the same shape")
    wide = _floating("swiglu", gate)
    return (wide * wide.sigmoid() * widened(up)).to(gate.dtype)


def _floating(name: str, x: Tensor) -> Tensor:
    if not x.dtype.is_floating_point:
        raise TypeError(f"{name} takes floating point tensors, got {x.dtype}")
    return widened(x)


# ---- kernels ------------------------------------------------------------------------------------

# A tile function works on flat pieces of the inputs and writes flat pieces of the outputs.
Tile = Callable[[list[Array], list[Array]], None]


def _elementwise(tile: Tile, inputs: tuple[Array, ...], num_outputs: int) -> list[Array]:
    """Run `tile` over inputs of one shape; return outputs of that shape and the first's dtype."""
    shape, dtype = inputs[0].shape, inputs[0].dtype
    wide = np.float32 if dtype == np.float16 else dtype
    sources = [np.ascontiguousarray(x, wide).reshape(-1) for x in inputs]
    outputs = [memory.empty(shape, wide) for _ in range(num_outputs)]
    targets = [out.reshape(-1) for out in outputs]

    def run(start: int, stop: int) -> None:
        tile([x[start:stop] for x in sources], [out[start:stop] for out in targets])

    size = sources[0].size
    parallel_for(run, size, grain_for(size, 1))
    return [out.astype(dtype, copy=False) for out in outputs]


def _bend(x: Array, square: Array, approximate: str, out: Array) -> Array:
    """Write tanh(√(2/π) (x + 0.044715 x³)), or erf(x/√2), into `out`."""
    if approximate == "none" and x.dtype == np.float64:
        out[...] = erf(x * math.sqrt(0.5))
        return out
    polynomial(square, _TANH if approximate == "tanh" else _ERF32, out)
    out *= x
    return np.tanh(out, out=out)


def _gelu_forward(x: Array, *, approximate: str = "none") -> tuple[Array, tuple[()]]:
    def tile(inputs: list[Array], outputs: list[Array]) -> None:
        (x,), (y,) = inputs, outputs
        half = np.multiply(x, x, out=memory.empty_like(x))
        _bend(x, half, approximate, y)
        np.multiply(x, 0.5, out=half)
        y *= half
        y += half

    return _elementwise(tile, (x,), 1)[0], ()


def _gelu_backward(
    grads: Any, arrays: Any, outs: Any, residuals: Any, needs: Any, *, approximate: str = "none"
) -> tuple[Array]:
    """d_x = g (Φ + x Φ') with Φ = (1 + b) / 2.

    Φ' = (1 - b²) / 2 · (c₀ + 3 c₁ x²) of the approximation by tanh, exp(-x²/2) / √(2π) of Φ itself.
    """

    def tile(inputs: list[Array], outputs: list[Array]) -> None:
        (g, x), (d_x,) = inputs, outputs
        square = np.multiply(x, x, out=memory.empty_like(x))
        b = _bend(x, square, approximate, d_x)
        if approximate == "tanh":  # x Φ' into `square`
            square *= 1.5 * _TANH[1]
            square += 0.5 * _TANH[0]
            square *= x
            slope = np.multiply(b, b, out=memory.empty_like(x))
            np.subtract(1, slope, out=slope)
            square *= slope
        else:
            square *= -0.5
            np.exp(square, out=square)
            square *= x
            square *= 1 / math.sqrt(2 * math.pi)
        b *= 0.5
        b += 0.5
        b += square
        b *= g

    return (_elementwise(tile, (grads[0], arrays[0]), 1)[0],)


def _one_plus_exp(x: Array, out: Array) -> Array:
    """Write 1 + exp(-x), the inverse of the sigmoid, into `out`."""
    np.negative(x, out=out)
    np.exp(out, out=out)  # infinite below -88, where the sigmoid is 0
    out += 1
    return out


def _silu_forward(x: Array) -> tuple[Array, tuple[()]]:
    def tile(inputs: list[Array], outputs: list[Array]) -> None:
        (x,), (y,) = inputs, outputs
        np.divide(x, _one_plus_exp(x, y), out=y)

    return _elementwise(tile, (x,), 1)[0], ()


def _silu_slope(x: Array, s: Array, out: Array) -> None:
    """Write silu'(x) = s (1 + x (1 - s)) into `out`, s the sigmoid of x."""
    np.subtract(1, s, out=out)
    out *= x
    out += 1
    out *= s


def _silu_backward(grads: Any, arrays: Any, outs: Any, residuals: Any, needs: Any) -> tuple[Array]:
    def tile(inputs: list[Array], outputs: list[Array]) -> None:
        (g, x), (d_x,) = inputs, outputs
        s = _one_plus_exp(x, memory.empty_like(x))
        _silu_slope(x, np.divide(1, s, out=s), d_x)
        d_x *= g

    return (_elementwise(tile, (grads[0], arrays[0]), 1)[0],)


def _swiglu_forward(gate: Array, up: Array) -> tuple[Array, tuple[()]]:
    def tile(inputs: list[Array], outputs: list[Array]) -> None:
        (gate, up), (y,) = inputs, outputs
        np.divide(gate, _one_plus_exp(gate, y), out=y)
        y *= up

    return _elementwise(tile, (gate, up), 1)[0], ()


def _swiglu_backward(
    grads: Any, arrays: Any, outs: Any, residuals: Any, needs: Any
) -> tuple[Array, Array]:
    """d_gate = g up silu'(gate), d_up = g silu(gate)."""

    def tile(inputs: list[Array], outputs: list[Array]) -> None:
        (g, gate, up), (d_gate, d_up) = inputs, outputs
        s = _one_plus_exp(gate, memory.empty_like(gate))
        _silu_slope(gate, np.divide(1, s, out=s), d_gate)
        d_gate *= up
        d_gate *= g
        np.multiply(gate, s, out=d_up)
        d_up *= g

    d_gate, d_up = _elementwise(tile, (grads[0], *arrays), 2)
    return d_gate, d_up


def _unsupported(x: Any, *others: Any, approximate: str = "none") -> list[str]:
    if not x.dtype.is_floating_point:
        return [f"x is {x.dtype}, not floating point"]
    if approximate not in ("none", "tanh"):
        return [f"approximate={approximate!r} is unknown"]
    return [
        f"gate is {x.dtype} {x.shape}, up {y.dtype} {y.shape}"
        for y in others
        if y.dtype != x.dtype or y.shape != x.shape
    ]


gelu = FusedOp("gelu", composite_gelu)
silu = FusedOp("silu", composite_silu)
swiglu = FusedOp("swiglu", composite_swiglu)
for _op, _forward, _rule in (
    (gelu, _gelu_forward, _gelu_backward),
    (silu, _silu_forward, _silu_backward),
    (swiglu, _swiglu_forward, _swiglu_backward),
):
    _op.register(
        Kernel(
            name="numpy-tiled",
            device="cpu",
            priority=10,
            forward=_forward,
            backward=_rule,
            unsupported=_unsupported,
        )
    )
