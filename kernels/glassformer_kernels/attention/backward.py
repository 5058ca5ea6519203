"""Attention backward: each gradient by a kernel of its own, none with atomics."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from glassformer_kernels.attention.backward_bias import bias_gradient
from glassformer_kernels.attention.backward_keys import key_gradients
from glassformer_kernels.attention.backward_query import query_gradients
from glassformer_kernels.attention.backward_tile import row_deltas
from glassformer_kernels.attention.problem import Problem, row_major, row_strides, shared_args
from glassformer_kernels.launch import LOG2_E


@dataclass(frozen=True)
class Gradients:
    """Gradients of attention's operands; None for one that wasn't asked for."""

    query: torch.Tensor | None
    key: torch.Tensor | None
    value: torch.Tensor | None
    bias: torch.Tensor | None
    sinks: torch.Tensor | None


def backward(
    x: Problem,
    out: torch.Tensor,
    stats: torch.Tensor,
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    *,
    query: bool = True,
    key_value: bool = True,
    bias_shape: tuple[int, int, int] | None = None,
    sinks: bool = False,
) -> Gradients:
    """Return the gradients asked for.

    Args:
        x: as forward got it.
        out, stats: what forward returned.
        d_out: the output's gradient.
        d_lse: the gradient of the lse in base e, or None.
        query, key_value, sinks: whether these are wanted.
        bias_shape: the bias' own batch, heads and rows, if its gradient is wanted.
    """
    if x.is_empty:
        return _zeros(x, query, key_value, bias_shape, sinks)
    d_out = row_major(d_out)
    delta = row_deltas(x, out, d_out, d_lse)
    args = {
        **shared_args(x),
        "p_do": d_out,
        "p_max": stats[0],
        "p_log": stats[1],
        "EXACT": x.query.dtype is torch.float32,
        "p_delta": delta,
        **row_strides("do", d_out, x.packed),
    }
    d_key, d_value = key_gradients(x, args, d_out) if key_value else (None, None)
    return Gradients(
        query_gradients(x, args) if query else None,
        d_key,
        d_value,
        None if bias_shape is None else bias_gradient(x, args, bias_shape),
        _sink_gradients(x, stats, delta) if sinks else None,
    )


def _sink_gradients(x: Problem, stats: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Sum -weight · Δ over rows: a sink's weight is exp(sink - lse), and it has no value."""
    assert x.sinks is not None
    sinks = x.sinks[:, None] if x.packed else x.sinks[None, :, None]
    rows = (1,) if x.packed else (0, 2)
    # A row that sees nothing, not even a sink above -inf, has no weights: -inf - -inf would be NaN.
    highest = stats[0].masked_fill(stats[0] == -float("inf"), float("inf"))
    return -(torch.exp2(sinks * LOG2_E - highest - stats[1]) * delta).sum(rows)


def _zeros(
    x: Problem,
    query: bool,
    key_value: bool,
    bias_shape: tuple[int, int, int] | None,
    sinks: bool,
) -> Gradients:
    return Gradients(
        torch.zeros_like(x.query) if query else None,
        torch.zeros_like(x.key) if key_value else None,
        torch.zeros_like(x.value) if key_value else None,
        None if x.bias is None or bias_shape is None else x.bias.new_zeros((*bias_shape, x.max_k)),
        torch.zeros_like(x.sinks) if sinks and x.sinks is not None else None,
    )
