"""Attention of few queries over a long cache: the keys are split among programs, then merged.

When a token is generated there is one query a head and all the time goes into reading K and V
once: 2·Tk·(D + Dv)/2 bytes per key head in half precision, against which the arithmetic is
nothing. To read them with the whole GPU, each program takes a chunk of the keys of one key head,
for all query heads that share it (packed as rows of one tile, so that the chunk is read once), and
leaves its own output and lse, which `merge` joins (Dao et al. 2023, "Flash-Decoding"). The cache is
(B, Hkv, T, D), or pages (P, Hkv, page_size, D) with a table (B, pages) of which page holds keys
page_size·i … of a sequence. Limits: head dims up to 256; any page size; no mask, bias or dropout.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from glassformer_kernels import launch
from glassformer_kernels.attention.forward import forward
from glassformer_kernels.attention.masks import (
    query_shift,
    score_factor,
    score_tile,
    tile_range,
    visible_pairs,
)
from glassformer_kernels.attention.merge import merge
from glassformer_kernels.attention.problem import Problem, shared_args
from glassformer_kernels.attention.tiles import load_rows
from glassformer_kernels.launch import LOG2_E, Config, cdiv, next_power_of_2


@triton.jit(do_not_specialize=["chunk", "left", "right", "max_k", "len_q", "splits"])
def _attention_decode(
    p_q,
    p_k,
    p_v,
    p_out,
    p_lse,
    p_slopes,
    p_lengths,
    p_table,
    stride_q_b,
    stride_q_h,
    stride_q_t,
    stride_k_b,
    stride_k_h,
    stride_k_t,
    stride_v_b,
    stride_v_h,
    stride_v_t,
    stride_slopes_b,
    stride_slopes_h,
    stride_table_b,
    batch,
    heads,
    groups,
    len_q,
    max_k,
    page_size,
    chunk,
    splits,
    left,
    right,
    scale,
    softcap,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr,
    BOTTOM_RIGHT: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    PLAIN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One chunk of keys for BLOCK_M of the rows (head of the group, query) of one key head."""
    kv_heads = heads // groups
    o_split = tl.program_id(0) % splits
    o_kv = tl.program_id(0) // splits % kv_heads
    o_b = tl.program_id(0) // splits // kv_heads % batch
    o_row = tl.program_id(0) // splits // kv_heads // batch * BLOCK_M + tl.arange(0, BLOCK_M)
    m_row = o_row < groups * len_q
    o_h = o_kv * groups + o_row // len_q  # (BLOCK_M,)
    o_m = o_row % len_q  # (BLOCK_M,)
    len_k = max_k
    if p_lengths is not None:
        len_k = tl.load(p_lengths + o_b).to(tl.int32)

    b_64 = o_b.to(tl.int64)
    o_d = tl.arange(0, BLOCK_D)[None, :]
    row_q = b_64 * stride_q_b + o_h.to(tl.int64) * stride_q_h + o_m.to(tl.int64) * stride_q_t
    m_q = m_row[:, None] & (o_d < D)
    b_q = tl.load(p_q + row_q[:, None] + o_d, mask=m_q, other=0)  # (BLOCK_M, BLOCK_D)
    slope = 0.0
    if p_slopes is not None:
        p_slope = p_slopes + o_b * stride_slopes_b + o_h * stride_slopes_h
        slope = tl.load(p_slope, mask=m_row, other=0.0)[:, None]  # (BLOCK_M, 1)
    b_max = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    b_sum = tl.zeros((BLOCK_M,), tl.float32)
    b_out = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
    factor = score_factor(scale, PLAIN)

    shift = query_shift(len_q, len_k, BOTTOM_RIGHT)
    seen, _begin, _full_begin, _full_end, end = tile_range(
        0, len_q - 1, shift, left, right, len_k, HAS_LEFT, HAS_RIGHT, False, BLOCK_N
    )
    begin = tl.maximum(seen // BLOCK_N * BLOCK_N, o_split * chunk)
    for tile in tl.range(begin, tl.minimum(end, (o_split + 1) * chunk), BLOCK_N):
        o_n = tile + tl.arange(0, BLOCK_N)
        m_n = (o_n >= seen) & (o_n < end)  # what nobody sees isn't read: it may be anything
        if p_table is None:
            p_kb = p_k + b_64 * stride_k_b + o_kv.to(tl.int64) * stride_k_h
            p_vb = p_v + b_64 * stride_v_b + o_kv.to(tl.int64) * stride_v_h
            b_k = load_rows(p_kb, o_n, stride_k_t, m_n, D, BLOCK_D, True)  # (BLOCK_N, BLOCK_D)
            b_v = load_rows(p_vb, o_n, stride_v_t, m_n, DV, BLOCK_DV, True)  # (BLOCK_N, BLOCK_DV)
        else:
            p_page = p_table + b_64 * stride_table_b + o_n // page_size
            o_page = tl.load(p_page, mask=m_n, other=0).to(tl.int64)  # (BLOCK_N,)
            in_page = (o_n % page_size).to(tl.int64)
            row_k = o_page * stride_k_b + o_kv.to(tl.int64) * stride_k_h + in_page * stride_k_t
            row_v = o_page * stride_v_b + o_kv.to(tl.int64) * stride_v_h + in_page * stride_v_t
            b_k = load_rows(p_k, row_k, 1, m_n, D, BLOCK_D, True)  # (BLOCK_N, BLOCK_D)
            b_v = load_rows(p_v, row_v, 1, m_n, DV, BLOCK_DV, True)  # (BLOCK_N, BLOCK_DV)
        b_dot = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # (BLOCK_M, BLOCK_N)
        b_s, _cap_rate = score_tile(
            b_dot,
            o_m[:, None],
            o_n[None, :],
            len_q,
            len_k,
            shift,
            scale,
            softcap,
            slope,
            None,
            0,
            0,
            HAS_SOFTCAP,
            p_slopes is not None,
            PLAIN,
        )
        b_visible = visible_pairs(
            o_m[:, None],
            o_n[None, :],
            len_q,
            len_k,
            shift,
            left,
            right,
            None,
            0,
            0,
            HAS_LEFT,
            HAS_RIGHT,
        )
        b_s = tl.where(b_visible, b_s, -float("inf"))
        b_top = tl.maximum(b_max, tl.max(b_s, 1) * factor)  # (BLOCK_M,)
        b_base = tl.where(b_top == -float("inf"), 0.0, b_top)  # -inf - -inf would be NaN
        b_p = tl.exp2(b_s * factor - b_base[:, None])  # (BLOCK_M, BLOCK_N)
        b_shrink = tl.exp2(b_max - b_base)
        b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
        b_max = b_top
        b_out = b_out * b_shrink[:, None]
        b_out = tl.dot(b_p.to(b_v.dtype), b_v, b_out, input_precision=PRECISION)

    b_total = tl.where(b_sum == 0.0, 1.0, b_sum)
    row = ((o_split * batch + b_64) * heads + o_h) * len_q + o_m  # of (splits, B, H, Tq), 64 bits
    o_v = tl.arange(0, BLOCK_DV)[None, :]
    m_out = m_row[:, None] & (o_v < DV)
    tl.store(p_out + row[:, None] * DV + o_v, b_out / b_total[:, None], mask=m_out)
    tl.store(p_lse + row, b_max + tl.log2(b_total), mask=m_row)


def decode(
    x: Problem,
    key_lengths: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    splits: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output (B, H, Tq, Dv) and the statistics of `forward` (2, B, H, Tq) over a cache.

    Args:
        x: without mask, bias or dropout; key and value may be pages (P, Hkv, page_size, D).
        key_lengths: int32 (B,), how many keys each sequence has; all of them if None.
        block_table: int32 (B, pages), which page holds the i-th page_size keys of a sequence.
        splits: into how many chunks the keys go; by default enough to fill the GPU twice.
    """
    rows = (x.batch, x.heads, x.max_q)
    if 0 in rows or x.max_k == 0:
        stats = torch.zeros((2, *rows), device=x.query.device)
        stats[0] = -float("inf") if x.sinks is None else x.sinks[:, None] * LOG2_E
        return torch.zeros((*rows, x.value_dim), dtype=x.query.dtype, device=x.query.device), stats
    packed_rows = x.heads // x.kv_heads * x.max_q
    block_m = min(max(16, next_power_of_2(packed_rows)), 64)
    slices = x.kv_heads * x.batch
    if splits is None:
        programs = slices * cdiv(packed_rows, block_m)
        splits = min(cdiv(2 * _processors(x.query), programs), cdiv(x.max_k, _SHORTEST_CHUNK))
    parts = launch.empty((splits, *rows, x.value_dim), x.query, torch.float32)
    lses = launch.empty((splits, *rows), x.query, torch.float32)
    launch.launch(
        _attention_decode,
        lambda blocks: splits * slices * cdiv(packed_rows, blocks["BLOCK_M"]),
        _configs(x, block_m),
        key=(*x.key_for_tuning, x.heads // x.kv_heads, block_table is not None),
        **{name: value for name, value in shared_args(x).items() if name in _SHARED},
        p_out=parts,
        p_lse=lses,
        p_lengths=key_lengths,
        p_table=block_table,
        stride_table_b=0 if block_table is None else block_table.stride(0),
        len_q=x.max_q,
        page_size=x.key.shape[2],
        chunk=lambda blocks: cdiv(cdiv(x.max_k, splits), blocks["BLOCK_N"]) * blocks["BLOCK_N"],
        splits=splits,
    )
    return merge(parts, lses, x.query.dtype, x.sinks, rows_per_head=x.max_q)


_SHARED = frozenset(
    [f"{kind}_{name}" for kind in ("p",) for name in ("q", "k", "v", "slopes")]
    + [f"stride_{name}_{dim}" for name in "qkv" for dim in "bht"]
    + ["stride_slopes_b", "stride_slopes_h", "batch", "heads", "groups", "max_k", "left", "right"]
    + ["scale", "softcap", "D", "DV", "BLOCK_D", "BLOCK_DV", "HAS_LEFT", "HAS_RIGHT"]
    + ["BOTTOM_RIGHT", "HAS_SOFTCAP", "PLAIN", "PRECISION"]
)
_SHORTEST_CHUNK = 256  # keys; below that a program's start outweighs what it reads
_MOST_ROWS = 64  # of a group's queries, where splitting the keys is still the better plan


def attend(x: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output and the statistics, by splitting the keys where that is the better plan."""
    return decode(x) if prefers_split(x) else forward(x)


def prefers_split(x: Problem) -> bool:
    """Whether few queries over many keys leave most of the GPU idle unless the keys are split."""
    few = x.heads // x.kv_heads * x.max_q <= _MOST_ROWS and x.max_k >= 4 * _SHORTEST_CHUNK
    per_pair = x.mask is not None or x.bias is not None or x.dropout_p > 0
    return few and not per_pair and not x.packed


def _configs(x: Problem, block_m: int) -> list[Config]:
    wide = max(x.head_dim, x.value_dim) > 128 or x.query.element_size() == 4
    if launch.target_for(x.query).backend == "hip":
        sizes = [(32, 4, 1), (64, 4, 1)] if wide else [(64, 4, 1), (128, 4, 1)]
    elif wide:
        # float32 is multiplied without the matrix units: both operands are in registers.
        exact = x.query.element_size() == 4 and max(x.head_dim, x.value_dim) > 64
        sizes = [(16, 4, 2), (16, 8, 2)] if exact else [(32, 4, 2), (64, 4, 2), (32, 4, 3)]
    else:
        sizes = [(64, 4, 3), (128, 4, 2), (64, 4, 4), (128, 8, 3)]
    return [Config({"BLOCK_M": block_m, "BLOCK_N": n}, w, s) for n, w, s in sizes]


def _processors(x: torch.Tensor) -> int:
    if x.device.type != "cuda":
        return 4
    count: Any = torch.cuda.get_device_properties(x.device).multi_processor_count
    return int(count)
