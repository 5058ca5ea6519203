"""gelu, silu, swiglu, rotary_embedding and adamw_step for the engine."""

from __future__ import annotations

from typing import Any

from glassformer_kernels import activation, optimizer_step, rotary
from glassformer_kernels.serving.reasons import (
    Array,
    Gradients,
    Served,
    dtype_reasons,
    empty_reasons,
)

_GELU = {"none": "gelu", "tanh": "gelu_tanh"}


def _gelu_forward(x: Array, *, approximate: str = "none") -> tuple[Array, tuple[()]]:
    return activation.activation_forward(x, _GELU[approximate]), ()


def _gelu_backward(
    grads: Any, arrays: Any, outs: Any, residuals: Any, needs: Any, *, approximate: str = "none"
) -> Gradients:
    return (activation.activation_backward(grads[0], arrays[0], _GELU[approximate]),)


def _gelu_unsupported(x: Any, *, approximate: str = "none") -> list[str]:
    if approximate not in _GELU:
        return [f"approximate={approximate!r} is unknown"]
    return dtype_reasons(x=x)


def _silu_forward(x: Array) -> tuple[Array, tuple[()]]:
    return activation.activation_forward(x, "silu"), ()


def _silu_backward(grads: Any, arrays: Any, outs: Any, residuals: Any, needs: Any) -> Gradients:
    return (activation.activation_backward(grads[0], arrays[0], "silu"),)


def _swiglu_forward(gate: Array, up: Array) -> tuple[Array, tuple[()]]:
    return activation.swiglu_forward(gate, up), ()


def _swiglu_backward(grads: Any, arrays: Any, outs: Any, residuals: Any, needs: Any) -> Gradients:
    return activation.swiglu_backward(grads[0], *arrays)


def _swiglu_unsupported(gate: Any, up: Any) -> list[str]:
    wrong = [] if gate.shape == up.shape else [f"gate is {gate.shape}, up {up.shape}"]
    return wrong + dtype_reasons(gate=gate, up=up)


def _rotary_forward(x: Array, cos: Array, sin: Array) -> tuple[Array, tuple[()]]:
    return rotary.rotate(x, cos, sin), ()


def _rotary_backward(grads: Any, arrays: Any, outs: Any, residuals: Any, needs: Any) -> Gradients:
    x, cos, sin = arrays
    d_x = rotary.rotate(grads[0], cos, sin, inverse=True) if needs[0] else None
    tables = rotary.table_gradients(grads[0], x, cos, sin) if any(needs[1:]) else (None, None)
    return d_x, *(d if need else None for d, need in zip(tables, needs[1:], strict=True))


def _rotary_unsupported(x: Any, cos: Any, sin: Any) -> list[str]:
    wrong = empty_reasons(x=x) or dtype_reasons(x=x)
    if wrong or x.shape[-1] % 2:
        return wrong or [f"x is {x.shape}, with an odd last dimension"]
    full = (*x.shape[:-1], x.shape[-1] // 2)
    for part in (cos, sin):
        if len(part.shape) > len(full) or not all(
            n in (1, m) for n, m in zip(part.shape[::-1], full[::-1], strict=False)
        ):
            wrong.append(f"a table is {part.shape}, which can't be broadcast to {full}")
        wrong += dtype_reasons(table=part)
    return wrong


def _adamw_forward(*arrays: Array, **settings: Any) -> tuple[None, tuple[()]]:
    optimizer_step.adamw_step(*arrays, **settings)
    return None, ()


def _adamw_unsupported(param: Any, grad: Any, mean: Any, square: Any, **_: Any) -> list[str]:
    tensors = {"param": param, "grad": grad, "exp_avg": mean, "exp_avg_sq": square}
    shapes = {x.shape for x in tensors.values()}
    return dtype_reasons(**tensors) + ([] if len(shapes) == 1 else [f"the shapes are {shapes}"])


GELU = Served(_gelu_forward, _gelu_backward, _gelu_unsupported)
SILU = Served(_silu_forward, _silu_backward, lambda x: dtype_reasons(x=x))
SWIGLU = Served(_swiglu_forward, _swiglu_backward, _swiglu_unsupported)
ROTARY_EMBEDDING = Served(_rotary_forward, _rotary_backward, _rotary_unsupported)
ADAMW_STEP = Served(_adamw_forward, None, _adamw_unsupported)
