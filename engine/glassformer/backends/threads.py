"""A few worker threads for kernels, and the reins of NumPy's own BLAS threads.

NumPy lets go of the interpreter lock inside a large call, so Python threads that work on tiles
of tens of thousands of elements run side by side; on smaller ones handing the lock around costs
more than the work.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from queue import SimpleQueue

import numpy as np

from glassformer.backends.blas import numpy_blas

_TILE = 1 << 17  # elements: enough work for a NumPy call to outweigh handing over the lock


class _Job:
    """Chunks of [0, total) that the caller and the workers take one after another."""

    def __init__(self, function: Callable[[int, int], None], total: int, grain: int) -> None:
        self.function, self.total, self.grain = function, total, grain
        self.starts = deque(range(0, total, grain))
        self.unfinished = len(self.starts)
        self.error: BaseException | None = None
        self.lock = threading.Lock()
        self.done = threading.Event()

    def work(self) -> None:
        """Take chunks until none is left."""
        while True:
            try:
                start = self.starts.popleft()
            except IndexError:
                return
            try:
                self.function(start, min(start + self.grain, self.total))
            except BaseException as error:
                self.finish(error)
            else:
                self.finish(None)

    def finish(self, error: BaseException | None) -> None:
        """Count a chunk as finished; drop, after an error, those that nobody took yet."""
        with self.lock:
            self.unfinished -= 1
            if error is not None:
                self.error = self.error or error
                with suppress(IndexError):
                    while True:
                        self.starts.pop()
                        self.unfinished -= 1
            if self.unfinished == 0:
                self.done.set()


class _Workers:
    """Daemon threads that are started when first needed and then wait for jobs."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[_Job] = SimpleQueue()
        self.threads: list[threading.Thread] = []
        self.lock = threading.Lock()
        self.avoided: int | None = None  # the core that the threads keep off
        self.limit: int | None = None  # set by set_num_threads
        self.blas_users = 0
        self.blas_threads = 0  # what BLAS goes back to when the last user of one thread leaves

    def submit(self, job: _Job, count: int) -> None:
        """Offer a job to `count` workers."""
        core = _current_core()
        if len(self.threads) < count or core != self.avoided:
            with self.lock:
                while len(self.threads) < count:
                    thread = threading.Thread(target=_serve, args=(self.jobs,), daemon=True)
                    thread.start()
                    self.threads.append(thread)
                self.keep_off(core)
        for _ in range(count):
            self.jobs.put(job)

    def keep_off(self, core: int | None) -> None:
        """Keep the workers off the caller's core.

        A scheduler that wakes a thread on the core of its waker, or packs short work onto few
        cores to let others sleep, would run both in turn there: two threads as slow as one.
        """
        self.avoided = core
        if core is not None and (others := os.sched_getaffinity(0) - {core}):
            for thread in self.threads:
                with suppress(OSError):  # a sandbox may forbid it
                    os.sched_setaffinity(thread.native_id or 0, others)


class _Here(threading.local):
    busy = False  # this thread is inside parallel_for


def _serve(jobs: SimpleQueue[_Job]) -> None:
    _here.busy = True
    with np.errstate(all="ignore"):  # NumPy's error state is a context variable of each thread
        while True:
            jobs.get().work()


_workers = _Workers()
_here = _Here()


def parallel_for(function: Callable[[int, int], None], total: int, grain: int) -> None:
    """Call `function(start, stop)` for consecutive chunks of `grain` that cover [0, total).

    The chunks are the same whatever the number of threads, so results don't depend on it. Two
    chunks or more go to several threads: let `grain_for` say what is worth it. Calls from inside
    a chunk run on the thread they are on. NumPy's floating-point warnings are off inside. An
    exception of a chunk is raised here once the chunks under way have ended.
    """
    with np.errstate(all="ignore"):
        if total > grain and not _here.busy and get_num_threads() > 1:
            _share(function, total, grain)
        else:
            for start in range(0, total, grain):
                function(start, min(start + grain, total))


def grain_for(rows: int, row_size: int) -> int:
    """Return the rows per chunk for elementwise work on `rows` times `row_size` elements.

    All rows where two threads wouldn't pay, else an even number of equal chunks, so that two
    threads end together.
    """
    elements = rows * row_size
    if elements < 1.5 * _TILE:
        return max(rows, 1)
    return -(-rows // (2 * max(1, elements // (2 * _TILE))))


def _share(function: Callable[[int, int], None], total: int, grain: int) -> None:
    job = _Job(function, total, grain)
    _here.busy = True
    try:
        _workers.submit(job, min(get_num_threads(), len(job.starts)) - 1)
        job.work()
        job.done.wait()
    finally:
        _here.busy = False
    if job.error is not None:
        raise job.error


def get_num_threads() -> int:
    """Return how many threads kernels may use, the calling one included."""
    return _workers.limit or _default_num_threads()


def set_num_threads(count: int) -> None:
    """Set the threads that kernels use, and those of NumPy's BLAS where it can be told.

    Raises:
        ValueError: `count` is less than 1.
    """
    if count < 1:
        raise ValueError(f"the number of threads must be at least 1, not {count}")
    with _workers.lock:
        _workers.limit = count
        if _workers.blas_users:
            _workers.blas_threads = count
        elif (blas := numpy_blas()) is not None:
            blas.set_num_threads(count)


@cache
def _core_getter() -> Callable[[], int] | None:
    if not hasattr(os, "sched_setaffinity"):  # Linux has it
        return None
    return getattr(ctypes.PyDLL(None), "sched_getcpu", None)


def _current_core() -> int | None:
    getter = _core_getter()
    return None if getter is None else getter()


@cache
def _default_num_threads() -> int:
    """The cores this process may use, or what OMP_NUM_THREADS or OPENBLAS_NUM_THREADS ask for."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > 0:
            return int(value)
    if hasattr(os, "sched_getaffinity"):  # not on macOS or Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Run matrix products on one thread each inside, for code that shares them out itself.

    It holds for the whole process while any thread is inside. It does nothing where NumPy was built
    with another BLAS than the OpenBLAS of its wheels.
    """
    blas = numpy_blas()
    if blas is None:
        yield
        return
    with _workers.lock:
        if _workers.blas_users == 0:
            _workers.blas_threads = blas.get_num_threads()
            blas.set_num_threads(1)
        _workers.blas_users += 1
    try:
        yield
    finally:
        with _workers.lock:
            _workers.blas_users -= 1
            if _workers.blas_users == 0:
                blas.set_num_threads(_workers.blas_threads)


def _after_fork() -> None:
    """Threads don't survive in a child; whatever they held there is started anew."""
    limit = _workers.limit
    _workers.__init__()  # type: ignore[misc]
    _workers.limit = limit
    _here.busy = False


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
