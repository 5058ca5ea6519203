"""The machine, the versions and the settings that a time depends on."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Environment variables that choose kernels or threads: a record without them can't be repeated.
_TUNING = (
    *("OPENBLAS_", "OMP_", "GOMP_", "MKL_", "KMP_", "NPY_", "ATEN_", "ONEDNN_", "VECLIB_", "BLIS_"),
    *(
        "CUDA_",
        "CUBLAS_",
        "CUDNN_",
        "NVIDIA_TF32",
        "TRITON_",
        "TORCH_",
        "PYTORCH_",
        "TORCHINDUCTOR_",
    ),
)
_PACKAGES = ("glassformer", "numpy", "torch", "triton", "flash-attn", "xformers")
_GPU_STATE = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "utilization.gpu")
# Two runs with other values of these are not of one machine.
_MACHINE = ("system", "cpu", "cores", "gpu")


def environment(device: str, threads: int) -> dict[str, Any]:
    """Describe everything; what can't be told is None."""
    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "os_release": platform.release(),
        "cpu": cpu_name(),
        "cores": available_cores(),
        "threads": threads,
        "device": device,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "blas": _numpy_blas(),
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_TUNING)},
        "git_commit": git_commit(),
        **dict.fromkeys(("torch_build", "gpu", "driver", "cuda")),
    }
    if find_spec("torch"):
        import torch

        found["torch_build"] = _torch_build(torch.__config__.show())
        if torch.cuda.is_available():
            properties = torch.cuda.get_device_properties(0)
            found["gpu"] = properties.name
            found["gpu_memory"] = properties.total_memory
            found["cuda"] = torch.version.cuda or torch.version.hip
            found["driver"] = (nvidia_smi("driver_version") or {}).get("driver_version")
    return found


def same_machine(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return how two environments' machines differ, in words; nothing if they don't."""
    return [
        f"{name}: {one.get(name)} and {other.get(name)}"
        for name in _MACHINE
        if one.get(name) != other.get(name)
    ]


def gpu_state() -> dict[str, str] | None:
    """Return clocks, temperature, power and load of the GPU as nvidia-smi tells; None without."""
    return nvidia_smi(*_GPU_STATE)


def nvidia_smi(*fields: str) -> dict[str, str] | None:
    """Ask nvidia-smi about the first GPU."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "-i", "0"]
    answer = _output(query)
    return None if answer is None else dict(zip(fields, answer.split(", "), strict=False))


def cpu_name() -> str:
    """Return the CPU's model."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.processor() or platform.machine()


def available_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def git_commit() -> str | None:
    """Return the commit of the package's checkout, with `-dirty` where files differ from it.

    None where it is installed without one.
    """
    folder = Path(__file__).resolve().parent
    # only a repository that holds this package: an installed copy may lie inside someone else's
    if _output(["git", "-C", str(folder), "ls-files", "--error-unmatch", "__init__.py"]) is None:
        return None
    commit = _output(["git", "-C", str(folder), "rev-parse", "HEAD"])
    if commit and _output(["git", "-C", str(folder), "status", "--porcelain", "-uno"]):
        commit += "-dirty"
    return commit


def command_line(arguments: list[str]) -> str:
    """Return what to type to run this with these arguments."""
    return shlex.join(["attnbench", *arguments])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _numpy_blas() -> str | None:
    import numpy as np

    try:
        blas: Any = np.show_config(mode="dicts")
        found = blas["Build Dependencies"]["blas"]
    except (KeyError, TypeError):
        return None
    return f"{found.get('name')} {found.get('version')}"


def _torch_build(text: str) -> str:
    wanted = ("BLAS_INFO", "LAPACK_INFO")
    settings = [part.strip() for part in text.replace("\n", ",").split(",")]
    mkl = [part.lstrip("- ") for part in settings if part.startswith(("- Intel", "- OpenMP"))]
    return "; ".join(mkl + [part for part in settings if part.startswith(wanted)])


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
