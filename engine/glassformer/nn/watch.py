"""Seeing what attends to what: the weights of attention layers while they compute."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glassformer.nn.attention import MultiheadAttention
    from glassformer.tensor import Tensor


class _Watching(threading.local):
    """Where this thread's layers note their weights: a list for each that watches."""

    seen: tuple[list[tuple[MultiheadAttention, Tensor]], ...] = ()


watching = _Watching()


@contextmanager
def watch_attention() -> Iterator[list[tuple[MultiheadAttention, Tensor]]]:
    """Collect the attention weights of every `MultiheadAttention` this thread calls inside.

        with gf.nn.watch_attention() as seen:
            model(input_ids)
        layer, weights = seen[0]  # weights (B, H, Tq, Tk), rows sum to 1

    They come in the order of the calls, and before dropout. They are computed besides the output,
    by the definition of attention, and take the memory that its kernels avoid: B·H·Tq·Tk numbers
    for each call. Where gradients are recorded, they have theirs.
    """
    before = watching.seen
    seen: list[tuple[MultiheadAttention, Tensor]] = []
    watching.seen = (*before, seen)
    try:
        yield seen
    finally:
        watching.seen = before
