"""scaled_dot_product_attention for the engine."""

from __future__ import annotations

from typing import Any

import torch

from glassformer_kernels.attention.backward import backward
from glassformer_kernels.attention.decode import attend
from glassformer_kernels.attention.problem import make_problem
from glassformer_kernels.launch import LOG2_E
from glassformer_kernels.serving.reasons import (
    Array,
    Gradients,
    Served,
    dtype_reasons,
    empty_reasons,
    product_reasons,
)

_LARGEST_HEAD = 256


def _attention_forward(
    query: Array, key: Array, value: Array, mask: Array | None, bias: Array | None, *,
    causal: str | None, window: tuple[int | None, int | None] | None, scale: float,
    softcap: float | None, dropout_p: float, seed: int, return_lse: bool,
) -> Any:  # fmt: skip
    left, right = window or (None, None)
    nothing = (None, None, None, None)  # neither slopes nor sinks, nothing packed
    lengths = (query.shape[2], key.shape[2])
    band = (left, right if causal is None else 0, causal != "top_left")
    problem = make_problem(
        query, key, value, mask, bias, *nothing, *lengths, *band, scale, softcap, dropout_p, seed
    )
    out, stats = attend(problem)
    # Two parts of the lse in base 2, as backward takes them; the engine's is the natural logarithm.
    return ((out, stats.sum(0) / LOG2_E) if return_lse else out), (problem, stats)


def _attention_backward(
    grads: Any, arrays: Any, outs: Any, residuals: Any, needs: Any, **_: Any
) -> Gradients:
    problem, stats = residuals
    bias = arrays[4]
    own = None
    if bias is not None and needs[4]:
        own = tuple((1,) * (4 - bias.ndim) + tuple(bias.shape))[:3]
    found = backward(
        problem,
        outs[0],
        stats,
        torch.zeros_like(outs[0]) if grads[0] is None else grads[0],
        grads[1] if len(grads) > 1 else None,
        query=needs[0],
        key_value=needs[1] or needs[2],
        bias_shape=own,
    )
    return found.query, found.key, found.value, None, found.bias


def _attention_unsupported(
    query: Any, key: Any, value: Any, mask: Any = None, bias: Any = None, **_: Any
) -> list[str]:
    wrong = empty_reasons(query=query, key=key, value=value)
    wrong += dtype_reasons(query=query, key=key, value=value, bias=bias) + product_reasons(query)
    for name, x in (("query", query), ("value", value)):
        if x.shape and x.shape[-1] > _LARGEST_HEAD:
            wrong.append(f"{name} has head_dim {x.shape[-1]}, the largest is {_LARGEST_HEAD}")
    return wrong


ATTENTION = Served(
    _attention_forward, _attention_backward, _attention_unsupported, saves_output=True
)
