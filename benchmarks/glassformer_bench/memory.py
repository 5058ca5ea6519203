"""Peak memory of one call, beyond what was there before it."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(device: str, call: Callable[[], Any]) -> int | None:
    """Return the most memory that `call` holds at a time; None where it can't be told.

    On a GPU it is what PyTorch's allocator hands out. On Linux's CPU it is the growth of resident
    memory, in whole pages: memory the process already held and reused isn't seen.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated()) - int(before)
    if not sys.platform.startswith("linux"):
        return None
    _give_back_free_memory()
    try:
        _CLEAR.write_text("5")  # forget the highest mark
    except OSError:
        return None
    before = _kilobytes("VmRSS")
    call()
    return max(0, _kilobytes("VmHWM") - before) * 1024


def _kilobytes(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    return 0


def _give_back_free_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc's; others have none
        trim(0)
