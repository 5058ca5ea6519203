"""Cross-entropy of logits = x weightᵀ + bias, which never exist all at once.

Forward is a matrix product whose tiles of logits are reduced where they are computed: per row a
running maximum, sum of exponentials, logit of the target and, for label smoothing, Σ (x_c - max),
each over one part of the vocabulary; a second kernel merges the parts.

Backward computes the logits again for one chunk of the vocabulary, turns them in registers into
their gradient D = g (softmax - q), writes it, and multiplies: d_x += D weight, d_weight = Dᵀ x. So
d_weight, the largest array there is, is written once. There are no atomics: results are bit-equal.
D is divided by the largest |g|, which multiplies the products again: with the mean over many rows
g is small, and in float16 D would vanish.

Memory beside arguments and results, for N rows, V classes, C channels: forward 4 N float32 for
every 1,024 classes; backward a chunk of D, N · min(V/8, 2²⁶/N) numbers (whole tiles of 128
classes), and a float32 d_x (N, C) if x is of half precision. The logits would be N · V numbers.

Arithmetic: N V C multiply-adds forward, three times that backward, on tensor cores for float16 and
bfloat16; float32 in full precision ("ieee"). Layout: x (N, C), weight (V, C), last stride 1.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from glassformer_kernels import launch
from glassformer_kernels.elementwise import as_matrix
from glassformer_kernels.launch import LOG2_E, Config, cdiv
from glassformer_kernels.product import grouped, product_configs

_PART = 1024  # classes that one program of forward goes over


@triton.jit
def logits_tile(
    p_x,
    p_weight,
    p_bias,
    o_m,
    o_v,
    num_rows,
    num_classes,
    num_channels,
    stride_x,
    stride_weight,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Return the tile (BLOCK_M, BLOCK_V) of logits at rows o_m and classes o_v.

    Beyond the last row and class it repeats the last: nothing is read outside.
    """
    o_x = tl.minimum(o_m, num_rows - 1).to(tl.int64)[:, None] * stride_x  # (BLOCK_M, 1)
    o_v = tl.minimum(o_v, num_classes - 1).to(tl.int64)  # (BLOCK_V,)
    o_w = o_v[None, :] * stride_weight  # (1, BLOCK_V)
    b_logits = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    for start in tl.range(0, num_channels, BLOCK_C):
        o_c = start + tl.arange(0, BLOCK_C)  # (BLOCK_C,)
        m_c = o_c < num_channels
        b_x = tl.load(p_x + o_x + o_c[None, :], mask=m_c[None, :], other=0.0)  # (BLOCK_M, BLOCK_C)
        b_w = tl.load(p_weight + o_w + o_c[:, None], mask=m_c[:, None], other=0.0)
        b_logits = tl.dot(b_x, b_w, b_logits, input_precision="ieee")
    if HAS_BIAS:
        b_logits += tl.load(p_bias + o_v).to(tl.float32)[None, :]
    return b_logits


@triton.jit
def _linear_cross_entropy_forward(
    p_x,
    p_weight,
    p_bias,
    p_target,
    p_max,
    p_sum,
    p_picked,
    p_rest,
    num_rows,
    num_classes,
    num_channels,
    stride_x,
    stride_weight,
    part_size,
    HAS_BIAS: tl.constexpr,
    SMOOTHED: tl.constexpr,
    LOG2_E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Reduce the logits of BLOCK_M rows over one part of the classes; write (parts, N) each.

    They are the maximum, Σ exp(x_c - max), the target's logit (0 if it isn't in this part) and, if
    SMOOTHED, Σ (x_c - max).
    """
    parts = tl.cdiv(num_classes, part_size)
    tile_m, part = grouped(tl.program_id(0), tl.cdiv(num_rows, BLOCK_M), parts, GROUP)
    o_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    m_m = o_m < num_rows
    b_target = tl.load(p_target + o_m, mask=m_m, other=-1).to(tl.int64)  # (BLOCK_M,)
    b_max = tl.full((BLOCK_M,), float("-inf"), tl.float32)  # (BLOCK_M,)
    b_sum = tl.zeros((BLOCK_M,), tl.float32)  # (BLOCK_M,)
    b_picked = tl.zeros((BLOCK_M,), tl.float32)  # (BLOCK_M,)
    b_rest = tl.zeros((BLOCK_M,), tl.float32)  # (BLOCK_M,)
    b_old = tl.zeros((BLOCK_M,), tl.float32)  # (BLOCK_M,)
    first = part * part_size
    last = tl.minimum(first + part_size, num_classes)
    for start in tl.range(first, last, BLOCK_V):
        o_v = start + tl.arange(0, BLOCK_V)  # (BLOCK_V,)
        m_v = (o_v < last)[None, :]
        b_x = logits_tile(
            p_x,
            p_weight,
            p_bias,
            o_m,
            o_v,
            num_rows,
            num_classes,
            num_channels,
            stride_x,
            stride_weight,
            HAS_BIAS,
            BLOCK_M,
            BLOCK_V,
            BLOCK_C,
        )  # (BLOCK_M, BLOCK_V)
        is_target = m_v & (o_v[None, :] == b_target[:, None])
        b_picked += tl.sum(tl.where(is_target, b_x, 0.0), 1)
        b_new = tl.maximum(b_max, tl.max(tl.where(m_v, b_x, float("-inf")), 1))  # (BLOCK_M,)
        b_shift = tl.where(b_new == float("-inf"), 0.0, b_new)  # -inf - -inf is NaN
        b_x = b_x - b_shift[:, None]
        b_exp = tl.where(m_v, tl.exp2(b_x * LOG2_E), 0.0)  # (BLOCK_M, BLOCK_V)
        b_sum = b_sum * tl.exp2((b_max - b_shift) * LOG2_E) + tl.sum(b_exp, 1)
        if SMOOTHED:
            b_rest += (start - first) * (b_old - b_shift) + tl.sum(tl.where(m_v, b_x, 0.0), 1)
            b_old = b_shift
        b_max = b_new
    o_out = part.to(tl.int64) * num_rows + o_m  # (BLOCK_M,)
    tl.store(p_max + o_out, b_max, mask=m_m)
    tl.store(p_sum + o_out, b_sum, mask=m_m)
    tl.store(p_picked + o_out, b_picked, mask=m_m)
    if SMOOTHED:
        tl.store(p_rest + o_out, b_rest, mask=m_m)


@triton.jit
def _merge_parts(
    p_max,
    p_sum,
    p_picked,
    p_rest,
    p_target,
    p_loss,
    p_lse_max,
    p_log_sum,
    num_rows,
    num_classes,
    part_size,
    ignore_index,
    smoothing,
    share,
    SMOOTHED: tl.constexpr,
    LOG2_E: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Write loss, maximum and log of the sum of BLOCK_M rows from those of the parts (parts, N).

    0 where the target is ignored; a loss of NaN where it is no class. `share` is ε/V.
    """
    o_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    mask = o_m < num_rows
    b_target = tl.load(p_target + o_m, mask=mask, other=0).to(tl.int64)  # (BLOCK_M,)
    b_max = tl.full((BLOCK_M,), float("-inf"), tl.float32)  # (BLOCK_M,)
    o_part = o_m  # (BLOCK_M,), as below
    for _ in tl.range(0, num_classes, part_size):
        b_max = tl.maximum(b_max, tl.load(p_max + o_part, mask=mask, other=0.0))
        o_part += num_rows
    b_max = tl.where(b_max == float("-inf"), 0.0, b_max)
    b_sum = tl.zeros((BLOCK_M,), tl.float32)  # (BLOCK_M,)
    b_picked = tl.zeros((BLOCK_M,), tl.float32)  # (BLOCK_M,)
    b_rest = tl.zeros((BLOCK_M,), tl.float32)  # (BLOCK_M,)
    o_part = o_m
    for start in tl.range(0, num_classes, part_size):
        b_less = tl.load(p_max + o_part, mask=mask, other=0.0) - b_max  # (BLOCK_M,)
        b_sum += tl.load(p_sum + o_part, mask=mask, other=0.0) * tl.exp2(b_less * LOG2_E)
        b_picked += tl.load(p_picked + o_part, mask=mask, other=0.0)
        if SMOOTHED:
            size = tl.minimum(part_size, num_classes - start)
            b_rest += tl.load(p_rest + o_part, mask=mask, other=0.0) + size * b_less
        o_part += num_rows
    b_log = tl.log(b_sum)  # (BLOCK_M,)
    b_loss = (b_max - b_picked) + b_log  # (BLOCK_M,)
    if SMOOTHED:
        b_loss = (1 - smoothing) * b_loss + smoothing * b_log - share * b_rest
    is_class = (b_target >= 0) & (b_target < num_classes)
    b_loss = tl.where(is_class, b_loss, float("nan"))
    counts = b_target != ignore_index
    tl.store(p_loss + o_m, tl.where(counts, b_loss, 0.0), mask=mask)
    tl.store(p_lse_max + o_m, tl.where(counts, b_max, 0.0), mask=mask)
    tl.store(p_log_sum + o_m, tl.where(counts, b_log, 0.0), mask=mask)


def linear_cross_entropy_forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the losses, float32 in the target's shape, and the log-sum-exps in two parts, (2, N).

    Args:
        x: (..., C).
        weight: (V, C).
        bias: (V,) or None.
        target: (...), integers.
        ignore_index: targets of this value don't count: their loss is 0.
        label_smoothing: ε.
    """
    shared = shared_arguments(x, weight, bias, target, ignore_index, label_smoothing)
    n, v = shared["num_rows"], len(weight)
    parts = cdiv(v, _PART)
    names = ("p_max", "p_sum", "p_picked", "p_rest")
    partial = {name: launch.empty((parts, n), x, torch.float32) for name in names}
    losses = launch.empty(target.shape, x, torch.float32)
    lse = launch.empty((2, n), x, torch.float32)
    smoothed = label_smoothing > 0
    merging = ("p_target", "num_rows", "ignore_index", "smoothing", "share", "LOG2_E")
    products = {k: shared[k] for k in shared if k not in ("ignore_index", "smoothing", "share")}
    launch.launch(
        _linear_cross_entropy_forward,
        lambda blocks: cdiv(n, blocks["BLOCK_M"]) * parts,
        product_configs(x, "BLOCK_M", "BLOCK_V", "BLOCK_C"),
        key=(x.dtype, n, *weight.shape, smoothed),
        **products,
        **partial,
        num_classes=v,
        part_size=_PART,
        SMOOTHED=smoothed,
    )
    launch.launch(
        _merge_parts,
        lambda blocks: cdiv(n, blocks["BLOCK_M"]),
        [Config({"BLOCK_M": 128})],
        **partial,
        **{name: shared[name] for name in merging},
        p_loss=losses,
        p_lse_max=lse[0],
        p_log_sum=lse[1],
        num_classes=v,
        part_size=_PART,
        SMOOTHED=smoothed,
    )
    return losses, lse


def shared_arguments(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> dict[str, Any]:
    """Return the arguments that forward and backward have in common."""
    v, c = weight.shape
    rows, weight = as_matrix(x, target.numel(), c), as_matrix(weight, v, c)
    return {
        "p_x": rows,
        "p_weight": weight,
        "p_bias": weight if bias is None else bias.contiguous(),
        "p_target": target.reshape(-1).contiguous(),
        "num_rows": len(rows),
        "num_channels": c,
        "stride_x": rows.stride(0),
        "stride_weight": weight.stride(0),
        "ignore_index": ignore_index,
        "smoothing": float(label_smoothing),
        "share": label_smoothing / max(v, 1),
        "HAS_BIAS": bias is not None,
        "LOG2_E": LOG2_E,
    }
