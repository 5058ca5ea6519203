"""Launching: every kernel goes through `launch`, and what it writes comes from `empty`.

One door has its uses: the tensors' own device is made the current one, a configuration can be
forced or tuned, and a compilation for a GPU that isn't there can ask what would have been launched.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import triton

from glassformer_kernels import tuning
from glassformer_kernels.targets import INTERPRETER, Target, target_of

# Decided when Triton is imported, by TRITON_INTERPRET=1: kernels run in Python, on CPU tensors.
INTERPRETED = bool(triton.knobs.runtime.interpret)


@dataclass(frozen=True)
class Config:
    """How a kernel is compiled: its tile sizes, warps and pipeline stages."""

    blocks: dict[str, int] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 1

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        blocks = " ".join(f"{name}={size}" for name, size in self.blocks.items())
        return f"{blocks} warps={self.num_warps} stages={self.num_stages}".strip()


@dataclass(frozen=True)
class Launch:
    """A launch that was recorded and not made: the kernel, and its arguments per configuration."""

    kernel: Any
    key: tuple[Any, ...]
    calls: tuple[tuple[Config, dict[str, Any]], ...]

    @property
    def configs(self) -> tuple[Config, ...]:
        """The configurations, the one taken first."""
        return tuple(config for config, _ in self.calls)

    def arguments(self, config: Config) -> dict[str, Any]:
        """Return all arguments of the kernel by name, for one configuration."""
        return dict(self.calls[self.configs.index(config)][1])


class _Thread(threading.local):
    def __init__(self) -> None:
        self.recorder: tuple[Target, list[Launch]] | None = None


_thread = _Thread()
_forced: dict[str, Config] = {}  # in all threads: PyTorch runs backward in one of its own


def launch(
    kernel: Any,
    grid: int | Callable[[dict[str, int]], int],
    configs: Sequence[Config],
    key: tuple[Any, ...] = (),
    mutates: bool = False,
    **args: Any,
) -> None:
    """Run a kernel on the device of its tensors, on that device's current stream.

    The grid has one dimension: y and z end at 65,535 blocks, x doesn't.

    Args:
        kernel: a `triton.jit` function.
        grid: the number of programs, or a function of a configuration's `blocks` that gives it.
        configs: what may be taken; the first is taken unless another was forced (`use_config`) or
            found faster on this GPU (`glassformer_kernels.tuning`).
        key: what a tuned choice depends on: dtype, sizes, switches.
        mutates: whether the kernel writes over what it reads, so that a second run would compute
            something else: it is never run to be timed, but takes a choice kept before.
        args: the kernel's arguments by name, without those that `configs` give; a function stands
            for an argument that depends on a configuration's `blocks`.

    Raises:
        ValueError: the tensors are on a device where no kernel runs.
        RuntimeError: Triton's interpreter is asked for, and can't work with this NumPy.
    """
    if _thread.recorder is not None:
        calls = tuple((config, arguments(args, config)) for config in configs)
        _thread.recorder[1].append(Launch(kernel, key, calls))
        return
    device = next(value.device for value in args.values() if isinstance(value, torch.Tensor))
    name = kernel.__name__.lstrip("_")
    check_device(name, device)
    if INTERPRETED:
        check_interpreter(triton.__version__, np.__version__)
    # The interpreter computes with NumPy, which would warn of infinities: here they are values.
    silence = np.errstate(all="ignore") if INTERPRETED else nullcontext()

    def run(config: Config) -> None:
        programs = grid(config.blocks) if callable(grid) else grid
        if programs > 0:
            kernel[(programs,)](**arguments(args, config), **compile_options(config))

    place = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with place, silence:
        config = _forced.get(name)
        run(config or tuning.choose(name, key, configs, None if mutates else run, device))


def check_device(name: str, device: torch.device) -> None:
    """Raise ValueError where no kernel runs; `name` is what was called."""
    if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        raise ValueError(
            f"{name} runs on CUDA tensors, got tensors on {device}; move them there, or set "
            "TRITON_INTERPRET=1 before the first import of triton to run it slowly on CPU tensors"
        )


def check_interpreter(triton_version: str, numpy_version: str) -> None:
    """Raise RuntimeError where the interpreter fails in every loop: Triton 3.6 with NumPy 2.4.

    It makes an index of an array with one element, as NumPy no longer allows (Triton's issue 9171).
    """
    if _release(triton_version) < (3, 7) and _release(numpy_version) >= (2, 4):
        raise RuntimeError(
            f"the interpreter of Triton {triton_version} needs NumPy before 2.4, got "
            f"{numpy_version}; install 'numpy<2.4', or Triton 3.7 or later"
        )


def _release(version: str) -> tuple[int, int]:
    major, minor = re.match(r"(\d+)\.(\d+)", version).groups()  # type: ignore[union-attr]
    return int(major), int(minor)


def arguments(args: dict[str, Any], config: Config) -> dict[str, Any]:
    """Return arguments with those that depend on the configuration, and its blocks, filled in."""
    resolved = {k: v(config.blocks) if callable(v) else v for k, v in args.items()}
    return {**resolved, **config.blocks}


def compile_options(config: Config) -> dict[str, Any]:
    """Return what the compiler is told besides a kernel's arguments."""
    return {
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        # Multiply-adds round once. Said because the default changes after Triton 3.9.
        "enable_fp_fusion": True,
    }


def target_for(tensor: torch.Tensor) -> Target:
    """Return the target that a kernel over this tensor is launched on."""
    return _thread.recorder[0] if _thread.recorder is not None else target_of(tensor.device)


def dot_precision(x: torch.Tensor) -> str:
    """Return how `tl.dot` multiplies float32: exactly, unless PyTorch was told that TF32 will do.

    That is `torch.set_float32_matmul_precision("high")`; TF32 keeps 10 bits of 23.
    """
    asked = torch.get_float32_matmul_precision() != "highest"
    return "tf32" if asked and target_for(x).backend == "cuda" else "ieee"


def empty(shape: Sequence[int], like: torch.Tensor, dtype: torch.dtype | None = None) -> Any:
    """Return memory for a result, contiguous, on the device of `like` and by default of its dtype.

    All that a kernel writes comes from here, so that a test can put walls around it.
    """
    return torch.empty(tuple(shape), dtype=dtype or like.dtype, device=like.device)


def share_memory(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Tell whether two tensors are views of the same memory, be it of different parts of it."""
    return x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()


@contextmanager
def use_config(**configs: Config) -> Iterator[None]:
    """Force configurations by the kernels' names, without leading underscores, in all threads."""
    global _forced
    before = _forced
    _forced = {**before, **configs}
    try:
        yield
    finally:
        _forced = before


@contextmanager
def recording(target: Target = INTERPRETER) -> Iterator[list[Launch]]:
    """Collect launches on this thread as if on `target`, and make none: tensors may be "meta"."""
    before = _thread.recorder
    launches: list[Launch] = []
    _thread.recorder = (target, launches)
    try:
        yield launches
    finally:
        _thread.recorder = before


def next_power_of_2(n: int) -> int:
    """Return the smallest power of two that is at least n, and at least 1."""
    return 1 << max(n - 1, 0).bit_length()


def cdiv(n: int, size: int) -> int:
    """Return how many tiles of `size` cover n elements."""
    return -(-n // size)


LOG2_E = math.log2(math.e)  # kernels compute exp(x) as exp2(x · log2 e), the GPU's own instruction
