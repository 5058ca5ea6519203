"""Compiling launches that weren't made: `Launch` → Triton's source → machine code and its figures.

Each compilation runs in a worker process, so that a compiler that aborts is one line of the report.
"""

from __future__ import annotations

import importlib
import io
import multiprocessing
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from triton.runtime.cache import triton_key
from triton.runtime.jit import create_function_from_signature

from glassformer_kernels import launch
from glassformer_kernels.launch import Launch
from glassformer_kernels.resources import Resources, read_amdgcn, read_ptxas
from glassformer_kernels.targets import TARGETS

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Sample:
    """A call whose kernels are compiled ahead of time.

    Attributes:
        name: what is called and how: "softmax forward, rows of 1024".
        call: calls the launching functions on "meta" tensors of a dtype.
        dtypes: the names of the dtypes that it is compiled for.
        guarded: whether on sm_90, in half precision, its kernels must not spill and must multiply
            matrices with wgmma.
    """

    name: str
    call: Callable[[torch.dtype], None]
    dtypes: tuple[str, ...] = tuple(DTYPES)
    guarded: bool = False


@dataclass(frozen=True)
class Task:
    """One compilation: the sample's `launch`-th launch in its `config`-th configuration."""

    sample: int
    dtype: str
    target: str
    launch: int
    config: int


@dataclass(frozen=True)
class Outcome:
    """What came of a compilation; `error` alone is set when it failed."""

    seconds: float = 0.0
    resources: Resources | None = None
    shared_memory: int = 0
    tensor_memory: int = 0
    has_dot: bool = False
    error: str = ""


def load_samples(module: str) -> tuple[Sample, ...]:
    """Import a module and return its SAMPLES."""
    return tuple(importlib.import_module(module).SAMPLES)


def record(sample: Sample, dtype: str, target: str) -> list[Launch]:
    """Return the launches that a sample would make on a target."""
    with launch.recording(TARGETS[target]) as launches:
        sample.call(DTYPES[dtype])
    return launches


def source_of(made: Launch, choice: int, target: str) -> tuple[ASTSource, dict[str, Any]]:
    """Return what Triton's JIT would compile for a launch, and the options it would use.

    The JIT's own binder spells the types and decides the specialisation, as it does at a launch:
    what is divisible by 16, which integers are 1, which arguments are None or a tensor descriptor.
    """
    backend = make_backend(_gpu(target))
    kernel = made.kernel
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    config, arguments = made.calls[choice]
    arguments = arguments | launch.compile_options(config)
    bound, specialization, options = bind(**arguments)
    options, signature, constexprs, attrs = kernel._pack_args(
        backend, arguments, bound, specialization, options
    )
    return ASTSource(kernel, signature, constexprs, attrs), vars(options)


def compile_launch(made: Launch, choice: int, target: str) -> Outcome:
    """Compile a launch in one of its configurations for a target, and measure the result."""
    source, options = source_of(made, choice, target)
    log = io.StringIO()  # ptxas' log, which Triton prints when asked to
    triton_key()  # a hash of Triton itself, made once a process: no part of a kernel's time
    start = time.perf_counter()
    with redirect_stdout(log):
        compiled = triton.compile(source, target=_gpu(target), options=options)
    seconds = time.perf_counter() - start
    asm = compiled.asm
    return Outcome(
        seconds=seconds,
        resources=(
            read_ptxas(log.getvalue(), asm["ptx"]) if "ptx" in asm else read_amdgcn(asm["amdgcn"])
        ),
        shared_memory=compiled.metadata.shared,
        tensor_memory=getattr(compiled.metadata, "tmem_size", None) or 0,
        has_dot="tt.dot" in asm["ttir"],
    )


def compile_all(
    tasks: Iterable[Task], samples_module: str, jobs: int, patience: float
) -> Iterator[tuple[Task, Outcome]]:
    """Compile tasks in `jobs` processes and yield each with its outcome as it ends.

    The processes import `samples_module` themselves and never take anything from a cache, so that
    the times are those of a first compilation. One of more than `patience` seconds is given up.
    """
    queue = deque(tasks)
    with tempfile.TemporaryDirectory(prefix="glassformer-aot-") as folder:
        workers: list[_Worker] = []
        try:
            while queue or any(worker.task for worker in workers):
                workers = [w for w in workers if w.task or w.process.is_alive()]
                while queue and len(workers) < jobs:
                    workers.append(_Worker(folder, samples_module))
                for worker in workers:
                    if queue and worker.task is None:
                        worker.send(queue.popleft(), patience)
                wait([worker.connection for worker in workers if worker.task], timeout=1)
                for worker in workers:
                    if worker.task and (outcome := worker.poll()):
                        task, worker.task = worker.task, None
                        yield task, outcome
        finally:
            for worker in workers:
                worker.end()


class _Worker:
    def __init__(self, folder: str, samples_module: str) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        # Spawned, not forked: a fork copies the locks of the threads that torch has started.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, samples_module, self.folder), daemon=True
        )
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        self.task: Task | None = None

    def send(self, task: Task, patience: float) -> None:
        self.task, self.patience = task, patience
        self.deadline = time.monotonic() + patience
        self.connection.send(task)

    def poll(self) -> Outcome | None:
        """Return what came of the task, or None while it is still at work."""
        if self.connection.poll():
            try:
                return self.connection.recv()
            except EOFError:
                self.process.join()
                said = _tail(self.folder / "stderr")
                return Outcome(error=f"the compiler ended with {self.process.exitcode}\n{said}")
        if time.monotonic() < self.deadline:
            return None
        self.end()
        return Outcome(seconds=self.patience, error=f"not done after {self.patience:g} seconds")

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def _serve(connection: Connection, samples_module: str, folder: Path) -> None:
    """Compile tasks until there are no more. What compilers say goes to the folder's `stderr`."""
    with open(folder / "stderr", "ab") as file:
        os.dup2(file.fileno(), 2)
    triton.knobs.cache.dir = str(folder / "cache")
    triton.knobs.compilation.always_compile = True
    triton.knobs.nvidia.dump_ptxas_log = True
    samples = load_samples(samples_module)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        os.ftruncate(2, 0)
        try:
            made = record(samples[task.sample], task.dtype, task.target)[task.launch]
            outcome = compile_launch(made, task.config, task.target)
        except Exception as error:  # whatever a compiler raises is what we are to report
            said = _tail(folder / "stderr")
            outcome = Outcome(error=f"{type(error).__name__}: {error}\n{said}".strip())
        connection.send(outcome)


def _tail(path: Path, count: int = 20) -> str:
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return "\n".join(line for line in lines[-count:] if line.strip())


def _gpu(target: str) -> GPUTarget:
    gpu = TARGETS[target]
    return GPUTarget(gpu.backend, gpu.arch, gpu.warp_size)
