"""How many floating point operations and bytes a problem takes, by conventions that are printed.

Attention: forward 4·B·H·D FLOPs a visible pair of query and key (two products, a multiplication and
an addition each); backward 2.5 times that, forward and backward 3.5 times. Backward needs only four
products (2 times) if the weights were kept: the physical floor counts those. The softmax inside is
not counted. Bytes are those that must move at least: every operand and result once in each pass,
keys and values that no query sees never; statistics of rows are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from glassformer_bench.problem import Problem, Window

CONVENTION = (
    "FLOPs: attention forward 4*B*H*D a visible pair, backward x2.5, both x3.5; softmax 5 and 4 an "
    "element forward and backward, layer_norm 7 and 13, cross_entropy 4 and 3. Bytes: operands and "
    "results once a pass."
)
# Additions, multiplications, exponentials and comparisons an element: forward, backward.
_ELEMENTWISE = {"softmax": (5, 4), "layer_norm": (7, 13), "cross_entropy": (4, 3)}
_TARGET_BYTES = 8


@dataclass(frozen=True)
class Work:
    """FLOPs by the convention, the fewest one could do, bytes moved, and of these those read."""

    flops: float
    least_flops: float
    bytes: float
    bytes_read: float

    @property
    def intensity(self) -> float:
        """FLOPs a byte."""
        return self.flops / self.bytes


@lru_cache(maxsize=1024)
def _spans(
    query_length: int, key_length: int, causal: str | None, window: Window | None
) -> tuple[tuple[int, int], ...]:
    """Return the first and one past the last key that each query sees (equal if it sees none)."""
    offset = 0 if causal == "top_left" else key_length - query_length
    left, right = window or (-1, -1)
    spans = []
    for i in range(query_length):
        position = i + offset
        first = 0 if left < 0 else max(0, position - left)
        end = key_length if right < 0 else min(key_length, position + right + 1)
        if causal is not None:
            end = min(end, position + 1)
        spans.append((first, max(first, end)))
    return tuple(spans)


def visible_pairs(
    query_length: int, key_length: int, causal: str | None = None, window: Window | None = None
) -> int:
    """Return how many pairs of a query and a key that it may see there are."""
    if causal is None and window is None:
        return query_length * key_length
    return sum(end - first for first, end in _spans(query_length, key_length, causal, window))


def visible_keys(
    query_length: int, key_length: int, causal: str | None = None, window: Window | None = None
) -> int:
    """Return how many keys some query may see. They are neighbours: spans move by one."""
    if causal is None and window is None:
        return key_length
    seen = [s for s in _spans(query_length, key_length, causal, window) if s[1] > s[0]]
    return max(end for _, end in seen) - min(first for first, _ in seen) if seen else 0


def count(problem: Problem) -> Work:
    """Return the work of a problem in its mode."""
    if problem.is_attention:
        return _attention(problem)
    elements, others_forward, others_backward = _operands(problem)
    forward, backward = (float(n * elements) for n in _ELEMENTWISE[problem.op])
    size = problem.itemsize
    # Forward reads x and writes a result of its size (but for the loss); backward reads two arrays
    # of the size (x or y, and the gradient; the loss's is small) and writes one.
    small = problem.op == "cross_entropy"
    read = {"fwd": elements * size, "bwd": (1 if small else 2) * elements * size}
    written = {"fwd": 0 if small else elements * size, "bwd": elements * size}
    read = {"fwd": read["fwd"] + others_forward[0], "bwd": read["bwd"] + others_backward[0]}
    written = {
        "fwd": written["fwd"] + others_forward[1],
        "bwd": written["bwd"] + others_backward[1],
    }
    flops = {"fwd": forward, "bwd": backward}
    passes = ("fwd", "bwd") if problem.mode == "fwd_bwd" else (problem.mode,)
    total = sum(flops[p] for p in passes)
    bytes_read = float(sum(read[p] for p in passes))
    return Work(total, 0.0, bytes_read + sum(written[p] for p in passes), bytes_read)


def _operands(problem: Problem) -> tuple[int, tuple[int, int], tuple[int, int]]:
    """Return elements of x, and bytes read and written besides, forward and backward."""
    size = problem.itemsize
    if problem.op == "softmax":
        elements = problem.batch * problem.heads * problem.seqlen * problem.seqlen_k
        return elements, (0, 0), (0, 0)
    rows = problem.batch * problem.seqlen
    if problem.op == "layer_norm":
        channels = problem.heads * problem.head_dim
        return rows * channels, (2 * channels * size, 0), (channels * size, 2 * channels * size)
    beside = rows * _TARGET_BYTES
    return rows * problem.vocab, (beside, rows * size), (beside + rows * size, 0)


def _attention(problem: Problem) -> Work:
    b, h, d = problem.batch, problem.heads, problem.head_dim
    shape = (problem.seqlen, problem.seqlen_k, problem.causal, problem.window)
    forward = 4.0 * b * h * d * visible_pairs(*shape)
    factor = {"fwd": 1.0, "bwd": 2.5, "fwd_bwd": 3.5}[problem.mode]
    least = {"fwd": 1.0, "bwd": 2.0, "fwd_bwd": 3.0}[problem.mode]
    size = problem.itemsize
    queries = b * h * problem.seqlen * d * size  # bytes of query, output and their gradients each
    keys = b * problem.kv_heads * visible_keys(*shape) * d * size  # of key and of value each
    all_keys = b * problem.kv_heads * problem.seqlen_k * d * size
    read = {"fwd": queries + 2 * keys, "bwd": 3 * queries + 2 * keys}
    written = {"fwd": queries, "bwd": queries + 2 * all_keys}
    passes = ("fwd", "bwd") if problem.mode == "fwd_bwd" else (problem.mode,)
    bytes_read = float(sum(read[p] for p in passes))
    return Work(
        flops=factor * forward,
        least_flops=least * forward,
        bytes=bytes_read + sum(written[p] for p in passes),
        bytes_read=bytes_read,
    )
