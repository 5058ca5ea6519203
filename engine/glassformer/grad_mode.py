"""Whether the operations of this thread are recorded for differentiation."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _Recording(threading.local):
    """What this thread's operations leave behind."""

    enabled: bool = True
    frame: Any = None  # the checkpoint() being run on this thread, if any


recording = _Recording()


def is_grad_enabled() -> bool:
    """Tell whether operations on this thread are recorded for differentiation."""
    return recording.enabled


@contextmanager
def set_grad_enabled(enabled: bool) -> Iterator[None]:
    """Record, or don't, on this thread in this context."""
    before = recording.enabled
    recording.enabled = enabled
    try:
        yield
    finally:
        recording.enabled = before


def no_grad() -> Any:
    """Return a context (or decorator) in which this thread records no operations."""
    return set_grad_enabled(False)


def enable_grad() -> Any:
    """Return a context (or decorator) in which this thread records operations."""
    return set_grad_enabled(True)
