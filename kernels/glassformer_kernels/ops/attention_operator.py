"""Attention as a custom operator of PyTorch: the kernels' view of a call, fakes, autograd."""

from __future__ import annotations

from typing import Any

import torch

from glassformer_kernels.attention.backward import backward
from glassformer_kernels.attention.decode import decode, prefers_split
from glassformer_kernels.attention.forward import forward
from glassformer_kernels.attention.problem import Problem, row_major
from glassformer_kernels.launch import LOG2_E


def problem(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    bias: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    cu_seqlens_q: torch.Tensor | None,
    cu_seqlens_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    left: int | None,
    right: int | None,
    bottom_right: bool,
    scale: float,
    softcap: float | None,
    dropout_p: float,
    seed: int,
) -> Problem:
    """Return the kernels' view of a call: expanded, with a last stride of 1."""
    heads = query.shape[1]
    batch = query.shape[0] if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1
    full = (batch, heads, max_q, max_k)
    value = row_major(value)
    if dropout_p == 1:  # no value counts, not even an infinite one: 0 · inf would be NaN
        value = torch.zeros_like(value)
    return Problem(
        query=row_major(query),
        key=row_major(key),
        value=value,
        mask=None if mask is None else mask.expand(full),
        bias=None if bias is None else bias.expand(full),
        alibi_slopes=None if alibi_slopes is None else alibi_slopes.float().expand(batch, heads),
        sinks=None if sinks is None else sinks.float().contiguous(),
        cu_seqlens_q=None if cu_seqlens_q is None else cu_seqlens_q.contiguous(),
        cu_seqlens_k=None if cu_seqlens_k is None else cu_seqlens_k.contiguous(),
        max_q=max_q,
        max_k=max_k,
        left=left,
        right=right,
        bottom_right=bottom_right,
        scale=scale,
        softcap=softcap,
        dropout_p=dropout_p,
        seed=seed,
    )


@torch.library.custom_op("glassformer::attention", mutates_args=())
def attention_op(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    bias: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    cu_seqlens_q: torch.Tensor | None,
    cu_seqlens_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    left: int | None,
    right: int | None,
    bottom_right: bool,
    scale: float,
    softcap: float | None,
    dropout_p: float,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output and the softmax's statistics; the arguments are checked already."""
    x = problem(
        query,
        key,
        value,
        mask,
        bias,
        alibi_slopes,
        sinks,
        cu_seqlens_q,
        cu_seqlens_k,
        max_q,
        max_k,
        left,
        right,
        bottom_right,
        scale,
        softcap,
        dropout_p,
        seed,
    )
    return decode(x) if prefers_split(x) else forward(x)


@attention_op.register_fake
def _(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    packed = options[4] is not None
    rows = (query.shape[1], query.shape[0]) if packed else query.shape[:3]
    out = query.new_empty((*query.shape[:-1], value.shape[-1]))
    return out, query.new_empty((2, *rows), dtype=torch.float32)


@torch.library.custom_op("glassformer::attention_backward", mutates_args=())
def attention_backward_op(
    out: torch.Tensor,
    stats: torch.Tensor,
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    needs_query: bool,
    needs_key_value: bool,
    needs_bias: bool,
    needs_sinks: bool,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    bias: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    cu_seqlens_q: torch.Tensor | None,
    cu_seqlens_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    left: int | None,
    right: int | None,
    bottom_right: bool,
    scale: float,
    softcap: float | None,
    dropout_p: float,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """An operator returns tensors only: one that isn't wanted is empty."""
    x = problem(
        query,
        key,
        value,
        mask,
        bias,
        alibi_slopes,
        sinks,
        cu_seqlens_q,
        cu_seqlens_k,
        max_q,
        max_k,
        left,
        right,
        bottom_right,
        scale,
        softcap,
        dropout_p,
        seed,
    )
    found = backward(
        x,
        out,
        stats,
        d_out,
        d_lse,
        query=needs_query,
        key_value=needs_key_value,
        bias_shape=(bias.shape[0], bias.shape[1], bias.shape[2]) if needs_bias else None,  # type: ignore[union-attr]
        sinks=needs_sinks,
    )
    d_sinks = None if found.sinks is None else found.sinks.to(sinks.dtype)  # type: ignore[union-attr]
    everything = (found.query, found.key, found.value, found.bias, d_sinks)
    return tuple(query.new_empty(0) if g is None else g for g in everything)  # type: ignore[return-value]


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
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    bias: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    *options: Any,
) -> tuple[torch.Tensor, ...]:
    needs = (needs_query, needs_key_value, needs_key_value, needs_bias, needs_sinks)
    return tuple(
        x.new_empty(x.shape) if need and x is not None else query.new_empty(0)
        for need, x in zip(needs, (query, key, value, bias, sinks), strict=True)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    ctx.save_for_backward(*output, *inputs[:9])
    ctx.options = inputs[9:]
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
