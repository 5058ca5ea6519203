"""Reused memory for large arrays.

A fresh large array costs more than the work done on it: the operating system maps it, clears it
page by page as it is first touched, and unmaps it when it dies. Here the block behind a dead
array goes to a free list and serves the next array of its size class.

How a block finds its way back: an array from `empty` lies over a `_Lease`, which NumPy keeps as
its base, and every view of that array keeps the array. When the last one dies the lease dies,
and its `__del__` puts the block in a queue that the next call of `empty` empties. It takes no
lock, because a garbage collection may run it in the middle of any function, this module's too.

The bound: blocks in use and blocks kept never add up to more than the recent peak of use plus
a quarter and `_SLACK`; blocks of the size class that was asked for longest ago go first.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict, deque
from threading import RLock
from typing import Any

import numpy as np
import numpy.typing as npt

_POOLED_FROM = 64 * 1024  # bytes; below this malloc serves from its own lists
_ALIGNMENT = 64  # one cache line, and the widest vector register
_SLACK = 32 * 1024 * 1024  # bytes that may be kept whatever the peak of use
_WINDOW = 4096  # arrays per window; the peak of use covers this window and the last


class _Block:
    """Owner of raw memory: `size` bytes from the aligned `address`."""

    __slots__ = ("address", "owner", "size")

    def __init__(self, size: int) -> None:
        self.owner = np.empty(size + _ALIGNMENT, np.uint8)
        start: int = self.owner.__array_interface__["data"][0]
        self.address = start + -start % _ALIGNMENT
        self.size = size


class _Lease:
    """What an array over a block keeps alive, and what gives the block back."""

    __slots__ = ("__array_interface__", "block")

    def __init__(self, block: _Block, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.block = block
        self.__array_interface__ = {
            "version": 3,
            "data": (block.address, False),
            "shape": shape,
            "typestr": dtype.str,
        }

    def __del__(self) -> None:
        if _pool is not None:  # it is None when the interpreter shuts down
            _pool.returned.append(self.block)


class _Pool:
    def __init__(self) -> None:
        self.lock = RLock()  # a finalizer that runs inside may allocate
        self.returned: deque[_Block] = deque()
        self.free: OrderedDict[int, list[_Block]] = OrderedDict()  # by size, last used at the end
        self.in_use = self.kept = 0  # bytes
        self.peak = self.last_peak = self.leases = 0
        self.bound = _SLACK  # the most that blocks in use and kept may add up to

    def take(self, size: int) -> _Block:
        """Return a block of this size, kept or new."""
        with self.lock:
            if self.returned:
                self.collect()
            self.in_use += size
            self.leases += 1
            if self.in_use > self.peak or self.leases == _WINDOW:
                self.note_peak()
            blocks = self.free.get(size)
            if blocks:
                block = blocks.pop()
                self.kept -= size
                self.free.move_to_end(size)
                return block
            self.release_excess()
        try:
            return _Block(size)
        except MemoryError:
            with self.lock:
                self.in_use -= size
            raise

    def collect(self) -> None:
        """File the returned blocks. Needs the lock, as all below."""
        while self.returned:
            block = self.returned.popleft()
            self.in_use -= block.size
            self.kept += block.size
            self.free.setdefault(block.size, []).append(block)

    def note_peak(self) -> None:
        """Set the bound after a new peak of use or at the end of a window."""
        if self.leases >= _WINDOW:
            self.leases, self.last_peak, self.peak = 0, self.peak, 0
        self.peak = max(self.peak, self.in_use)
        peak = max(self.peak, self.last_peak)
        self.bound = peak + peak // 4 + _SLACK
        self.release_excess()

    def release_excess(self) -> None:
        """Release kept blocks beyond the bound."""
        while self.kept > 0 and self.in_use + self.kept > self.bound:
            size, blocks = next(iter(self.free.items()))
            if blocks:
                blocks.pop(0)
                self.kept -= size
            else:
                del self.free[size]


_pool = _Pool()


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return an uninitialised C-contiguous array, as `np.empty`.

    Large arrays lie in the memory of dead ones where that fits, aligned to 64 bytes. Memory
    returns by itself when the array and every view of it are gone.
    """
    dtype = np.dtype(dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < _POOLED_FROM:
        return np.empty(shape, dtype)
    shift = nbytes.bit_length() - 4  # eight size classes for each doubling
    size = -(-nbytes >> shift) << shift
    return np.asarray(_Lease(_pool.take(size), shape, dtype))


def empty_like(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return `empty` with the shape and dtype of `array`, whatever its strides."""
    return empty(array.shape, array.dtype)


def clear() -> None:
    """Give every kept block back to the operating system; arrays in use are untouched."""
    with _pool.lock:
        _pool.collect()
        _pool.free.clear()
        _pool.kept = 0
        _pool.last_peak = _pool.peak = 0
        _pool.note_peak()


def statistics() -> dict[str, int]:
    """Return the bytes in use by live arrays, those kept for reuse, and the bound on their sum."""
    with _pool.lock:
        _pool.collect()
        return {"in_use": _pool.in_use, "kept": _pool.kept, "bound": _pool.bound}


# A child must not inherit a lock that another thread of its parent was holding.
os.register_at_fork(
    before=_pool.lock.acquire, after_in_parent=_pool.lock.release, after_in_child=_pool.lock.release
)
