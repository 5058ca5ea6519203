"""Who sees whom, and what scores become: one definition for every attention kernel.

Query m stands at position m + shift among the keys (shift is 0 for "top_left", len_k - len_q
otherwise) and sees the keys from `left` before it to `right` after it: causal is right = 0, a
sliding window is both, neither is everything. A boolean mask takes away further pairs. Kernels
walk over tiles; `tile_range` says which ones have a visible pair at all, and which are visible
throughout and need no predicate. It serves the queries that a tile of keys is seen by as well:
that is the same band with the roles exchanged.
"""

import triton
import triton.language as tl


@triton.jit
def sequence(p_cu, o_b, length):
    """Return where sequence o_b begins in packed storage, and its length; (0, length) if unpacked.

    `p_cu` (B + 1,) holds the cumulative lengths, or is None.
    """
    start = tl.zeros((), tl.int64)
    if p_cu is not None:
        start = tl.load(p_cu + o_b).to(tl.int64)
        length = (tl.load(p_cu + o_b + 1) - start).to(tl.int32)
    return start, length


@triton.jit
def query_shift(len_q, len_k, BOTTOM_RIGHT: tl.constexpr):
    """Return the position of query 0 among the keys."""
    shift = 0
    if BOTTOM_RIGHT:
        shift = len_k - len_q
    return shift


@triton.jit
def tile_range(
    first,
    last,
    shift,
    before,
    after,
    length,
    HAS_BEFORE: tl.constexpr,
    HAS_AFTER: tl.constexpr,
    ANY_FULL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return (seen, begin, full_begin, full_end, end): what rows first … last see, in tiles.

    Row i sees columns i + shift - before … i + shift + after of `length`. From `seen` to `end`
    lies all that any of the rows sees, `begin` is where the tile of `seen` begins, and from
    `full_begin` to `full_end` are whole tiles that every one of the rows sees throughout (none
    unless ANY_FULL: a mask may take away a pair anywhere). The middle three are multiples of BLOCK.
    """
    seen = 0
    full_begin = 0
    end = length
    full_end = length
    if HAS_BEFORE:
        seen = tl.maximum(first + shift - before, 0)
        full_begin = tl.maximum(last + shift - before, 0)
    if HAS_AFTER:
        end = tl.minimum(tl.maximum(last + shift + after + 1, 0), length)
        full_end = tl.minimum(tl.maximum(first + shift + after + 1, 0), length)
    begin = seen // BLOCK * BLOCK
    full_begin = tl.cdiv(full_begin, BLOCK) * BLOCK
    full_end = tl.maximum(full_end // BLOCK * BLOCK, full_begin)
    # Nothing full: everything is in the last of the three stretches.
    if ANY_FULL:
        nothing = full_end <= full_begin
        full_begin = tl.where(nothing, begin, full_begin)
        full_end = tl.where(nothing, begin, full_end)
    else:
        full_begin = begin
        full_end = begin
    return seen, begin, full_begin, full_end, end


@triton.jit
def visible_pairs(
    o_m,
    o_n,
    len_q,
    len_k,
    shift,
    left,
    right,
    p_mask,
    stride_mask_m,
    stride_mask_n,
    HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr,
):
    """Return which pairs are visible. o_m and o_n broadcast to the tile, in either orientation."""
    # Sums are over one index each, so that only the comparisons are as large as the tile.
    visible = (o_m < len_q) & (o_n < len_k)
    if HAS_LEFT:
        visible = visible & (o_n >= o_m + (shift - left))
    if HAS_RIGHT:
        visible = visible & (o_n <= o_m + (shift + right))
    if p_mask is not None:
        offsets = o_m.to(tl.int64) * stride_mask_m + o_n.to(tl.int64) * stride_mask_n
        visible = visible & (tl.load(p_mask + offsets, mask=visible, other=0) != 0)
    return visible


@triton.jit
def tanh(x):
    """tanh to a rounding or two: a Padé fraction near 0, where 1 - 2/(1 + e^2x) would cancel."""
    xx = x * x
    near = x * (945 + xx * (105 + xx)) / (945 + xx * (420 + xx * 15))
    far = 1 - 2 / (1 + tl.exp2(x * 2.8853900817779268))  # 2 log2(e)
    return tl.where(tl.abs(x) < 0.6, near, far)


@triton.jit
def score_tile(
    b_dot,
    o_m,
    o_n,
    len_q,
    len_k,
    shift,
    scale,
    softcap,
    slope,
    p_bias,
    stride_bias_m,
    stride_bias_n,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    PLAIN: tl.constexpr,
):
    """Return the scores times log2(e), and the derivative of the cap.

    score = softcap · tanh(scale · dot / softcap) + bias - slope · |m + shift - n|. The derivative
    is of the cap alone, 1 - tanh²; without a cap it is the number 1. PLAIN says that nothing but
    the scale is to be done: b_dot is returned as it is, for `score_factor` to join a multiply-add.
    """
    if PLAIN:
        return b_dot, 1.0
    b_score = b_dot * scale
    b_cap_rate = 1.0
    if HAS_SOFTCAP:
        b_tanh = tanh(b_score / softcap)
        b_score = b_tanh * softcap
        b_cap_rate = 1 - b_tanh * b_tanh
    if p_bias is not None:
        offsets = o_m.to(tl.int64) * stride_bias_m + o_n.to(tl.int64) * stride_bias_n
        inside = (o_m < len_q) & (o_n < len_k)
        b_score += tl.load(p_bias + offsets, mask=inside, other=0).to(tl.float32)
    if HAS_ALIBI:
        b_score -= slope * tl.abs(o_m + shift - o_n).to(tl.float32)
    return b_score * 1.4426950408889634, b_cap_rate  # log2(e)


@triton.jit
def score_factor(scale, PLAIN: tl.constexpr):
    """Return what `score_tile`'s result is still to be multiplied by."""
    factor = 1.0
    if PLAIN:
        factor = scale * 1.4426950408889634  # log2(e)
    return factor


@triton.jit
def mix32(x):
    """Scramble 32-bit numbers: the rounds of `glassformer.fused.dropout_mask`."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    x ^= x >> 16
    return x


@triton.jit
def kept(seed_1, seed_2, drop_below, row, column):
    """Return what dropout keeps: the hash of (seed, row, column) that the engine computes too.

    row and column (int64, int32) broadcast to the tile; `drop_below` is p · 2³² - 1.
    """
    high = (row >> 32).to(tl.uint32)
    b_row = mix32(mix32(row.to(tl.uint32) ^ seed_1.to(tl.uint32)) ^ high ^ seed_2.to(tl.uint32))
    bits = mix32(b_row ^ (column.to(tl.uint32) * 0x9E3779B9))
    return bits > drop_below.to(tl.uint32)
