"""Cross-entropy of rows of logits, forward and backward: each logit is read once in either.

With q = 1 - ε + ε/V at the target's class t and ε/V at the others (label smoothing ε),

    loss = -Σ_c q_c log softmax(x)_c = lse - (1 - ε) x_t - ε/V Σ_c x_c,   d_x = g (softmax(x) - q)

Forward goes over the vocabulary in tiles with a running maximum and sum (Milakov and Gimelshein
2018, "Online normalizer calculation for softmax"), one row a program. It keeps them per lane, not
per row: lanes meet only at the end of the row, and a tile of S strips takes 1 + 1/S exponentials a
logit, which at 4 TB/s are what the GPU can do. The log-sum-exp is kept as two float32 numbers, the
maximum and the logarithm of the sum of exp(x - maximum): their sum would lose digits of the second.

Layout: logits (N, V) with any row stride, last stride 1; any N, V < 2³¹. Bytes a logit, s the size
of one: s forward, 2s backward. Backward can write the gradient over the logits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from glassformer_kernels import launch
from glassformer_kernels.elementwise import as_matrix
from glassformer_kernels.launch import LOG2_E, Config, cdiv, next_power_of_2


@triton.jit
def _cross_entropy_forward(
    p_x,
    p_target,
    p_loss,
    p_max,
    p_log_sum,
    stride,
    num_classes,
    ignore_index,
    smoothing,
    share,
    SMOOTHED: tl.constexpr,
    LOG2_E: tl.constexpr,
    STRIPS: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Write the loss, maximum and log of the sum of one row; 0 where the target is ignored.

    `share` is ε/V. The loss is NaN where the target is no class; nothing is read then at its place.
    """
    row = tl.program_id(0).to(tl.int64)
    p_x += row * stride
    target = tl.load(p_target + row).to(tl.int64)
    counts = target != ignore_index
    is_class = counts & (target >= 0) & (target < num_classes)
    x_target = tl.load(p_x + target, mask=is_class, other=float("nan")).to(tl.float32)
    # Σ x_c is summed as differences from a logit: what all have in common would cost digits.
    pivot = tl.where(tl.abs(x_target) < float("inf"), x_target, 0.0)

    strip = tl.arange(0, STRIPS)[:, None] * BLOCK_V + tl.arange(0, BLOCK_V)[None, :]
    b_max = tl.full((BLOCK_V,), float("-inf"), tl.float32)  # (BLOCK_V,)
    b_sum = tl.zeros((BLOCK_V,), tl.float32)  # (BLOCK_V,)
    b_rest = tl.zeros((BLOCK_V,), tl.float32)  # (BLOCK_V,)
    for start in tl.range(0, tl.where(counts, num_classes, 0), STRIPS * BLOCK_V):
        o_v = start + strip  # (STRIPS, BLOCK_V)
        mask = o_v < num_classes
        b_x = tl.load(p_x + o_v, mask=mask, other=float("-inf")).to(tl.float32)
        b_new = tl.maximum(b_max, tl.max(b_x, 0))  # (BLOCK_V,)
        b_shift = tl.where(b_new == float("-inf"), 0.0, b_new)  # -inf - -inf is NaN
        b_exp = tl.exp2((b_x - b_shift[None, :]) * LOG2_E)  # (STRIPS, BLOCK_V)
        b_sum = b_sum * tl.exp2((b_max - b_shift) * LOG2_E) + tl.sum(b_exp, 0)
        b_max = b_new
        if SMOOTHED:
            b_rest += tl.sum(tl.where(mask, b_x - pivot, 0.0), 0)

    maximum = tl.max(b_max, 0)
    maximum = tl.where(maximum == float("-inf"), 0.0, maximum)
    log_sum = tl.log(tl.sum(b_sum * tl.exp2((b_max - maximum) * LOG2_E), 0))
    loss = (maximum - x_target) + log_sum
    if SMOOTHED:
        smooth = smoothing * ((maximum - pivot) + log_sum) - share * tl.sum(b_rest, 0)
        loss = (1 - smoothing) * loss + smooth
    tl.store(p_loss + row, tl.where(counts, loss, 0.0))
    tl.store(p_max + row, tl.where(counts, maximum, 0.0))
    tl.store(p_log_sum + row, tl.where(counts, log_sum, 0.0))


@triton.jit
def _cross_entropy_backward(
    p_g,
    p_x,
    p_target,
    p_max,
    p_log_sum,
    p_dx,
    stride_g,
    stride_x,
    stride_dx,
    num_classes,
    ignore_index,
    smoothing,
    share,
    LOG2_E: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Write d_x for a tile of one row; 0, and nothing read, where the target is ignored.

    p_dx may be p_x: a program reads its tile before it writes it.
    """
    tiles = tl.cdiv(num_classes, BLOCK_V)
    pid = tl.program_id(0).to(tl.int64)
    row = pid // tiles
    o_v = (pid - row * tiles) * BLOCK_V + tl.arange(0, BLOCK_V)  # (BLOCK_V,)
    mask = o_v < num_classes
    target = tl.load(p_target + row).to(tl.int64)
    counts = target != ignore_index
    g = tl.load(p_g + row * stride_g).to(tl.float32)
    maximum = tl.load(p_max + row)
    log_sum = tl.load(p_log_sum + row)
    is_read = o_v < tl.where(counts, num_classes, 0)  # (BLOCK_V,)
    b_x = tl.load(p_x + row * stride_x + o_v, mask=is_read, other=0.0)  # (BLOCK_V,)
    b_dx = tl.exp2(((b_x.to(tl.float32) - maximum) - log_sum) * LOG2_E)  # (BLOCK_V,)
    b_dx = g * (b_dx - share - tl.where(o_v == target, 1 - smoothing, 0.0))
    b_dx = tl.where(counts, b_dx, 0.0)  # 0 · NaN is NaN
    tl.store(p_dx + row * stride_dx + o_v, b_dx.to(p_dx.dtype.element_ty), mask=mask)


def cross_entropy_forward(
    logits: torch.Tensor,
    target: torch.Tensor,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the losses, float32 in the target's shape, and the log-sum-exps in two parts, (2, N).

    Args:
        logits: (..., V).
        target: (...), integers.
        ignore_index: targets of this value don't count: their loss is 0.
        label_smoothing: ε.
    """
    v = logits.shape[-1]
    rows = as_matrix(logits, target.numel(), v)  # (N, V)
    losses = launch.empty(target.shape, logits, torch.float32)
    lse = launch.empty((2, len(rows)), logits, torch.float32)
    launch.launch(
        _cross_entropy_forward,
        len(rows),
        _forward_configs(v, logits.element_size()),
        key=(logits.dtype, v, label_smoothing > 0),
        p_x=rows,
        p_target=target.reshape(-1).contiguous(),
        p_loss=losses,
        p_max=lse[0],
        p_log_sum=lse[1],
        stride=rows.stride(0),
        num_classes=v,
        ignore_index=ignore_index,
        smoothing=float(label_smoothing),
        share=label_smoothing / max(v, 1),
        SMOOTHED=label_smoothing > 0,
        LOG2_E=LOG2_E,
    )
    return losses, lse


def cross_entropy_backward(
    g: torch.Tensor,
    logits: torch.Tensor,
    target: torch.Tensor,
    lse: torch.Tensor,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    in_place: bool = False,
) -> torch.Tensor:
    """Return the gradient of the logits from that of the losses, contiguous or over the logits.

    Args:
        g: in the shape of target; stride 0, one number for all rows, is read as such.
        logits: as in forward, as are the target and the options.
        target: as in forward.
        lse: from forward.
        ignore_index: as in forward.
        label_smoothing: as in forward.
        in_place: write the gradient over the logits, and return them.
    """
    v = logits.shape[-1]
    rows = as_matrix(logits, target.numel(), v)  # (N, V)
    out = rows if in_place else launch.empty(rows.shape, rows)
    g_rows = g.reshape(-1)
    launch.launch(
        _cross_entropy_backward,
        lambda blocks: len(rows) * cdiv(v, blocks["BLOCK_V"]),
        _backward_configs(v),
        key=(logits.dtype, v),
        mutates=in_place,
        p_g=g_rows,
        p_x=rows,
        p_target=target.reshape(-1).contiguous(),
        p_max=lse[0],
        p_log_sum=lse[1],
        p_dx=out,
        stride_g=g_rows.stride(0),
        stride_x=rows.stride(0),
        stride_dx=out.stride(0),
        num_classes=v,
        ignore_index=ignore_index,
        smoothing=float(label_smoothing),
        share=label_smoothing / max(v, 1),
        LOG2_E=LOG2_E,
    )
    if not in_place:
        return out.reshape(logits.shape)
    if out.untyped_storage().data_ptr() != logits.untyped_storage().data_ptr():
        logits.copy_(out.reshape(logits.shape))  # no rows with a stride: a copy was worked on
    return logits


def reduced(
    losses: torch.Tensor,
    target: torch.Tensor,
    ignore_index: int,
    reduction: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return losses, their sum, or their mean over the targets that count: NaN if none does."""
    if reduction != "none":
        losses = losses.sum()
    if reduction == "mean":
        losses = losses / counted(target, ignore_index).sum()
    return losses.to(dtype)


def spread(
    g: torch.Tensor, target: torch.Tensor, ignore_index: int, reduction: str
) -> torch.Tensor:
    """Return the gradient of the losses, in the target's shape, from that of what `reduced` gave.

    PyTorch's autograd finds it itself; this is for those who go without.
    """
    g = g.float()
    if reduction == "mean":
        g = g / counted(target, ignore_index).sum()
    return g.expand(target.shape)


def counted(target: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """Return which targets count.

    Compared in 64 bits: PyTorch brings a number to the tensor's dtype, where -100 is a uint8's 156.
    """
    return target.long() != ignore_index


def _forward_configs(num_classes: int, size: int) -> list[Config]:
    """Return configurations; the first reads 16 KB at a time, 64 bytes a thread."""
    found = []
    for strips, block_v, num_warps in ((4, 2048, 8), (8, 1024, 4), (4, 4096, 16), (8, 2048, 8)):
        block_v = min(block_v, next_power_of_2(num_classes))
        strips = min(strips * 2 // size, next_power_of_2(cdiv(num_classes, block_v)))
        config = Config({"STRIPS": strips, "BLOCK_V": block_v}, num_warps=num_warps)
        if config not in found:
            found.append(config)
    return found


def _backward_configs(num_classes: int) -> list[Config]:
    """Return configurations; the first takes 4,096 logits a program, 16 a thread."""
    most = next_power_of_2(num_classes)
    sizes = ((4096, 8), (8192, 8), (2048, 4), (16384, 16))
    kept = dict.fromkeys((min(size, most), num_warps) for size, num_warps in sizes)
    return [Config({"BLOCK_V": size}, num_warps=num_warps) for size, num_warps in kept]
