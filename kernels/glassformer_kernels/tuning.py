"""Which configuration a kernel takes: the first it lists, or one that was measured to be faster.

Nothing is timed unless asked for, so that a program starts fast and computes the same every day:

    with glassformer_kernels.tuning.autotune():
        train_a_few_steps()

times each kernel it meets in all its configurations, and keeps the fastest in a file per GPU and
Triton version, which later runs read. `GLASSFORMER_CACHE` names the folder; by default it is
`~/.cache/glassformer`.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import triton

_open = 0  # `autotune()` blocks that are open, in any thread: autograd has threads of its own
_lock = threading.Lock()
_FORMAT = 1


@contextmanager
def autotune() -> Iterator[None]:
    """Time the configurations of the kernels launched inside, and keep the fastest of each.

    A configuration is a kernel's tile sizes, warps and pipeline stages. Timed is each kernel that
    has several, once for every dtype, size (by its power of two, mostly) and set of switches that
    it meets on a CUDA device; not one that writes over what it reads, nor one whose choice is kept
    already. So run a few steps with the shapes to come, forward and backward. It holds in all
    threads: PyTorch runs backward in one of its own.

    The choices are kept in `tuning/<GPU>-triton-<version>.json` under `~/.cache/glassformer`, or
    under the folder that the environment variable GLASSFORMER_CACHE names. Later launches take
    them, inside `autotune()` or not. To clear them delete the file, and start the program again.
    """
    global _open
    with _lock:
        _open += 1
    try:
        yield
    finally:
        with _lock:
            _open -= 1


def choose(
    name: str,
    key: tuple[Any, ...],
    configs: Sequence[Any],
    run: Callable[[Any], None] | None,
    device: torch.device,
) -> Any:
    """Return the configuration kept for this kernel and key on this GPU; else the first.

    While `autotune()` is on, one that isn't kept yet is found by timing `run(config)` for each;
    not if run is None: then the kernel can't be run twice.
    """
    if len(configs) == 1 or device.type != "cuda":
        return configs[0]
    path = cache_file(_gpu_name(device))
    entry = " ".join([name, *map(str, key)])
    kept = _read(path).get(entry)
    for config in configs:
        if kept == str(config):
            return config
    if run is None or not _open:
        return configs[0]
    best = fastest(configs, run)
    try:
        keep(path, entry, str(best))
    except OSError as error:
        _read(path)[entry] = str(best)  # for this process at least
        warnings.warn(f"the tuned configurations can't be kept: {error}", stacklevel=2)
    return best


def fastest(
    configs: Sequence[Any],
    run: Callable[[Any], None],
    time: Callable[[Callable[[], None]], float] | None = None,
) -> Any:
    """Return the configuration for which `run` takes least; one that can't be launched is out."""
    time = time or (lambda call: float(triton.testing.do_bench(call, return_mode="median")))
    times = []
    for config in configs:
        try:
            times.append(time(lambda config=config: run(config)))
        except triton.runtime.errors.OutOfResources:
            times.append(float("inf"))
    return configs[times.index(min(times))]


def cache_file(gpu: str) -> Path:
    """Return the file that keeps the choices for a GPU with this Triton."""
    root = os.environ.get("GLASSFORMER_CACHE") or os.path.expanduser("~/.cache/glassformer")
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{gpu} triton {triton.__version__}")
    return Path(root) / "tuning" / f"{name}.json"


def keep(path: Path, entry: str, config: str) -> None:
    """Add a choice to a file; the file is replaced when the new one is whole."""
    with _lock:
        choices = {**_parse(path), entry: config}
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump({"format": _FORMAT, "choices": choices}, file, indent=1, sort_keys=True)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        _read.cache_clear()


@lru_cache
def _read(path: Path) -> dict[str, str]:
    return _parse(path)


def _parse(path: Path) -> dict[str, str]:
    """Read the choices; a file that isn't as we write them counts as none: it is only a cache."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        return {}
    choices = content.get("choices")
    if not isinstance(choices, dict):
        return {}
    return {k: v for k, v in choices.items() if isinstance(k, str) and isinstance(v, str)}


@lru_cache
def _gpu_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)
