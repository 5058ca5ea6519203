"""Attention over a cache, and the joining of partial results, as operators without a gradient."""

from __future__ import annotations

from typing import Any

import torch

from glassformer_kernels.attention.decode import decode
from glassformer_kernels.attention.merge import merge
from glassformer_kernels.attention.problem import make_problem, row_major
from glassformer_kernels.checks import check_devices, check_floats
from glassformer_kernels.launch import LOG2_E


@torch.library.custom_op("glassformer::attention_cache", mutates_args=())
def attention_cache_op(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    key_lengths: torch.Tensor | None,
    block_table: torch.Tensor | None,
    max_k: int,
    left: int | None,
    right: int | None,
    scale: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output and the softmax's statistics; the arguments are checked already."""
    x = make_problem(
        query,
        key,
        value,
        None,
        None,
        alibi_slopes,
        sinks,
        None,
        None,
        query.shape[2],
        max_k,
        left,
        right,
        True,
        scale,
        softcap,
        0.0,
        0,
    )
    lengths = None if key_lengths is None else key_lengths.contiguous()
    return decode(x, lengths, None if block_table is None else row_major(block_table))


@attention_cache_op.register_fake
def _(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    out = query.new_empty((*query.shape[:-1], value.shape[-1]))
    return out, query.new_empty((2, *query.shape[:3]), dtype=torch.float32)


def merge_attention(outputs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return attention over all keys, from attention over disjoint sets of them.

    lse = log Σ exp(lseᵢ) and O = Σ exp(lseᵢ - lse) Oᵢ, over the first dimension. Merging is
    associative: parts may be merged in any grouping. No gradient.

    Args:
        outputs: (parts, ..., Dv), what attention returned for each set.
        lses: float32 (parts, ...).

    Returns:
        The output (..., Dv) and the lse (...).

    Raises:
        ValueError: the shapes don't fit together, or a gradient is wanted.
        TypeError: the lses aren't float32, the outputs not of a floating point type of ours.
    """
    check_floats("merge_attention", outputs=outputs)
    check_devices("merge_attention", outputs=outputs, lses=lses)
    if lses.dtype is not torch.float32:
        raise TypeError(f"merge_attention: lses must be float32, got {lses.dtype}")
    if outputs.ndim < 2 or outputs.shape[:-1] != lses.shape or 0 in outputs.shape[:1]:
        raise ValueError(
            f"merge_attention: outputs {tuple(outputs.shape)} must be (parts, ..., Dv) and lses "
            f"{tuple(lses.shape)} the same without Dv"
        )
    if torch.is_grad_enabled() and (outputs.requires_grad or lses.requires_grad):
        raise ValueError("merge_attention has no gradient; call it under torch.no_grad()")
    merged: tuple[torch.Tensor, torch.Tensor] = _attention_merge(outputs, lses)
    return merged


@torch.library.custom_op("glassformer::attention_merge", mutates_args=())
def _attention_merge(
    outputs: torch.Tensor, lses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    out, stats = merge(outputs.contiguous(), lses.contiguous() * LOG2_E, outputs.dtype)
    return out, stats.sum(0) / LOG2_E


@_attention_merge.register_fake
def _(outputs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return outputs.new_empty(outputs.shape[1:]), lses.new_empty(lses.shape[1:])
