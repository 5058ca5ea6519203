"""Attention as a custom operator of PyTorch: its schema, fakes, autograd."""

from __future__ import annotations

from typing import Any

import torch

from glassformer_kernels.attention.backward import backward
from glassformer_kernels.attention.decode import attend
from glassformer_kernels.attention.problem import make_problem
from glassformer_kernels.checks import only_once_differentiable
from glassformer_kernels.launch import LOG2_E

# What a call consists of, in the order of `make_problem`.
_CALL = (
    "Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? bias, Tensor? alibi_slopes, "
    "Tensor? sinks, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, SymInt max_q, SymInt max_k, "
    "SymInt? left, SymInt? right, bool bottom_right, float scale, float? softcap, "
    "float dropout_p, SymInt seed"
)
_TENSORS = _CALL.count("Tensor")


@torch.library.custom_op(
    "glassformer::attention", mutates_args=(), schema=f"({_CALL}) -> (Tensor, Tensor)"
)
def attention_op(*call: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output and the softmax's statistics; the arguments are checked already."""
    return attend(make_problem(*call))


@attention_op.register_fake
def _(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    packed = options[4] is not None
    rows = (query.shape[1], query.shape[0]) if packed else query.shape[:3]
    out = query.new_empty((*query.shape[:-1], value.shape[-1]))
    return out, query.new_empty((2, *rows), dtype=torch.float32)


@torch.library.custom_op(
    "glassformer::attention_backward",
    mutates_args=(),
    schema=(
        "(Tensor out, Tensor stats, Tensor d_out, Tensor? d_lse, bool needs_query, "
        f"bool needs_key_value, bool needs_bias, bool needs_sinks, {_CALL}) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
)
def attention_backward_op(
    out: torch.Tensor,
    stats: torch.Tensor,
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    needs_query: bool,
    needs_key_value: bool,
    needs_bias: bool,
    needs_sinks: bool,
    *call: Any,
) -> tuple[torch.Tensor, ...]:
    """Return the gradients of query, key, value, bias and sinks.

    An operator returns tensors only: one that isn't wanted is empty.
    """
    query, bias, sinks = call[0], call[4], call[6]
    found = backward(
        make_problem(*call),
        out,
        stats,
        d_out,
        d_lse,
        query=needs_query,
        key_value=needs_key_value,
        bias_shape=tuple(bias.shape[:3]) if needs_bias else None,
        sinks=needs_sinks,
    )
    d_sinks = None if found.sinks is None else found.sinks.to(sinks.dtype)
    everything = (found.query, found.key, found.value, found.bias, d_sinks)
    return tuple(query.new_empty(0) if g is None else g for g in everything)


@attention_backward_op.register_fake
def _(
    out: torch.Tensor,
    stats: torch.Tensor,
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    needs_query: bool,
    needs_key_value: bool,
    needs_bias: bool,
    needs_sinks: bool,
    *call: Any,
) -> tuple[torch.Tensor, ...]:
    query, key, value, _, bias, _, sinks = call[:7]
    needs = (needs_query, needs_key_value, needs_key_value, needs_bias, needs_sinks)
    return tuple(
        x.new_empty(x.shape) if need and x is not None else query.new_empty(0)
        for need, x in zip(needs, (query, key, value, bias, sinks), strict=True)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    ctx.save_for_backward(*output, *inputs[:_TENSORS])
    ctx.options = inputs[_TENSORS:]
    ctx.set_materialize_grads(False)


def _rule(ctx: Any, d_out: torch.Tensor | None, d_stats: torch.Tensor | None) -> tuple[Any, ...]:
    out, stats, *tensors = ctx.saved_tensors
    needs = ctx.needs_input_grad
    if d_out is None and d_stats is None:
        return (None,) * len(needs)
    d_query, d_key, d_value, d_bias, d_sinks = attention_backward_op(
        out,
        stats,
        torch.zeros_like(out) if d_out is None else d_out,
        # The public call adds the two up: both have the gradient of the lse in base 2.
        None if d_stats is None else d_stats[0] * LOG2_E,
        needs[0],
        needs[1] or needs[2],
        needs[4],
        needs[6],
        *tensors,
        *ctx.options,
    )
    found = (d_query, d_key, d_value, None, d_bias, None, d_sinks)
    rest = (None,) * (len(needs) - len(found))
    return (*(g if need else None for g, need in zip(found, needs, strict=False)), *rest)


attention_op.register_autograd(_rule, setup_context=_setup_context)
only_once_differentiable("attention", attention_backward_op)
