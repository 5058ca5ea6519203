"""Moving tiles between memory and registers: rows of a (length, head_dim) slice."""

import triton
import triton.language as tl


@triton.jit
def slice_pointer(p_x, o_b, o_h, start, stride_b, stride_h, stride_t):
    """Return where row `start` of batch o_b and head o_h begins."""
    return p_x + (o_b.to(tl.int64) * stride_b + o_h.to(tl.int64) * stride_h + start * stride_t)


@triton.jit
def row_number(o_b, o_h, start, heads, rows, PACKED: tl.constexpr):
    """Return the number of query 0 where each query of each head has one: LSE and dropout rows.

    (B, H, Tq) in row-major order, or (H, total) of packed sequences.
    """
    row = o_h.to(tl.int64) * rows + start
    if not PACKED:
        row += o_b.to(tl.int64) * heads * rows
    return row


@triton.jit
def row_offsets(o_row, stride, BLOCK_D: tl.constexpr):
    """Return where the elements of rows lie, (rows, BLOCK_D), in 64 bits: a cache may be long."""
    return (o_row.to(tl.int64) * stride)[:, None] + tl.arange(0, BLOCK_D)[None, :]


@triton.jit
def load_rows(
    p_x,
    o_row,
    stride,
    m_row,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Load rows of D elements as (rows, BLOCK_D), 0 beyond D and, if MASKED, where m_row is false.

    What isn't selected isn't read: NaN there can't get into a product as 0 · NaN.
    """
    p_rows = p_x + row_offsets(o_row, stride, BLOCK_D)
    m_d = tl.arange(0, BLOCK_D)[None, :] < D
    if MASKED and D == BLOCK_D:
        b_x = tl.load(p_rows, mask=m_row[:, None], other=0)
    elif MASKED:
        b_x = tl.load(p_rows, mask=m_row[:, None] & m_d, other=0)
    elif D == BLOCK_D:
        b_x = tl.load(p_rows)
    else:
        b_x = tl.load(p_rows, mask=m_d, other=0)
    return b_x  # (rows, BLOCK_D)


@triton.jit
def load_full_tile(
    p_x,
    d_x,
    o_b,
    o_h,
    first,
    stride,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Load BLOCK rows from `first`, all of them inside: by the descriptor d_x where there is one.

    A descriptor (B, H, T, D) has the copy engine fetch the tile, zeros beyond D included.
    """
    if d_x is not None:
        b_x = d_x.load([o_b, o_h, first, 0]).reshape(BLOCK, BLOCK_D)
    else:
        o_row = first + tl.arange(0, BLOCK)
        b_x = load_rows(p_x, o_row, stride, o_row >= 0, D, BLOCK_D, False)
    return b_x  # (BLOCK, BLOCK_D)


@triton.jit
def store_rows(p_x, b_x, o_row, stride, m_row, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Store (rows, BLOCK_D) where m_row is true, the first D elements of each."""
    mask = m_row[:, None] & (tl.arange(0, BLOCK_D)[None, :] < D)
    tl.store(p_x + row_offsets(o_row, stride, BLOCK_D), b_x.to(p_x.dtype.element_ty), mask=mask)
