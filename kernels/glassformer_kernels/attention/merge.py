"""Joining attention over disjoint sets of keys into attention over all of them.

    lse = log Σ exp(lseᵢ),   O = Σ exp(lseᵢ - lse) Oᵢ

in float32, one pass over the parts with a running maximum. A part that saw nothing has lse -inf and
counts for nothing; if all did, O is 0 and lse -inf. Bytes: every part once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from glassformer_kernels import launch
from glassformer_kernels.launch import LOG2_E, Config, cdiv, next_power_of_2


@triton.jit(do_not_specialize=["rows", "splits", "rows_per_head", "heads"])
def _attention_merge(
    p_parts,
    p_lses,
    p_sinks,
    p_out,
    p_max,
    p_log,
    rows,
    splits,
    rows_per_head,
    heads,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    LOG2_E: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Join the parts (splits, rows, DV) of BLOCK_M rows; `rows_per_head` rows are of one head."""
    o_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < rows
    o_v = tl.arange(0, BLOCK_DV)[None, :]
    m_v = m_m[:, None] & (o_v < DV)
    b_max = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    b_sum = tl.zeros((BLOCK_M,), tl.float32)
    if p_sinks is not None:
        o_h = o_m // rows_per_head % heads
        b_max = tl.load(p_sinks + o_h, mask=m_m, other=0.0).to(tl.float32) * LOG2_E
        b_sum += 1.0
    b_out = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
    row = o_m
    for _ in range(0, splits):
        b_lse = tl.load(p_lses + row, mask=m_m, other=-float("inf"))  # (BLOCK_M,)
        b_part = tl.load(p_parts + row[:, None] * DV + o_v, mask=m_v, other=0)
        b_top = tl.maximum(b_max, b_lse)
        b_base = tl.where(b_top == -float("inf"), 0.0, b_top)
        b_shrink = tl.exp2(b_max - b_base)
        b_weight = tl.exp2(b_lse - b_base)
        b_sum = b_sum * b_shrink + b_weight
        b_out = b_out * b_shrink[:, None] + b_part.to(tl.float32) * b_weight[:, None]
        b_max = b_top
        row += rows
    b_total = tl.where(b_sum == 0.0, 1.0, b_sum)
    b_out = b_out / b_total[:, None]
    tl.store(p_out + o_m[:, None] * DV + o_v, b_out.to(p_out.dtype.element_ty), mask=m_v)
    tl.store(p_max + o_m, b_max, mask=m_m)
    tl.store(p_log + o_m, tl.log2(b_total), mask=m_m)


def merge(
    parts: torch.Tensor,
    lses: torch.Tensor,
    dtype: torch.dtype,
    sinks: torch.Tensor | None = None,
    rows_per_head: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return attention over all keys, from parts of it over disjoint sets of them.

    Args:
        parts: (splits, ..., Dv), contiguous.
        lses: float32 (splits, ...), contiguous, in base 2.
        dtype: of the output.
        sinks: float32 (H,), a further logit of each head without a value.
        rows_per_head: how many rows follow each other for one head.

    Returns:
        The output (..., Dv) and the statistics (2, ...) that forward returns: their sum is the lse
        in base 2.
    """
    out = launch.empty(parts.shape[1:], parts, dtype)
    stats = launch.empty((2, *lses.shape[1:]), parts, torch.float32)
    rows = stats[0].numel()
    if rows == 0:
        return out, stats
    value_dim = parts.shape[-1]
    launch.launch(
        _attention_merge,
        lambda blocks: cdiv(rows, blocks["BLOCK_M"]),
        [Config({"BLOCK_M": 4}, 4), Config({"BLOCK_M": 1}, 2), Config({"BLOCK_M": 16}, 4)],
        key=(next_power_of_2(rows), next_power_of_2(parts.shape[0]), value_dim),
        p_parts=parts,
        p_lses=lses,
        p_sinks=sinks,
        p_out=out,
        p_max=stats[0],
        p_log=stats[1],
        rows=rows,
        splits=parts.shape[0],
        rows_per_head=rows_per_head,
        heads=1 if sinks is None else sinks.shape[0],
        DV=value_dim,
        BLOCK_DV=next_power_of_2(value_dim),
        LOG2_E=LOG2_E,
    )
    return out, stats
