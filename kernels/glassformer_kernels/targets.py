"""The GPUs kernels are compiled for, and what of them decides a kernel's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch


@dataclass(frozen=True)
class Target:
    """A kind of GPU.

    Attributes:
        name: "sm_90", "gfx942", … or "interpreter".
        backend: Triton's name of the compiler: "cuda", "hip" or "interpreter".
        arch: the compute capability as a number (90), or AMD's name.
        warp_size: threads in a warp.
        shared_memory: bytes that one block can have.
    """

    name: str
    backend: str
    arch: int | str
    warp_size: int
    shared_memory: int

    @property
    def has_tma(self) -> bool:
        """Whether tiles can be copied by the tensor memory accelerator (Hopper and later)."""
        return self.backend == "cuda" and int(self.arch) >= 90


_KB = 1024
# Shared memory: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"
# (the most that one block can ask for); AMD CDNA3 ISA, "Local Data Share".
TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", "cuda", 80, 32, 163 * _KB),
        Target("sm_86", "cuda", 86, 32, 99 * _KB),
        Target("sm_89", "cuda", 89, 32, 99 * _KB),
        Target("sm_90", "cuda", 90, 32, 227 * _KB),
        Target("sm_100", "cuda", 100, 32, 227 * _KB),
        Target("sm_120", "cuda", 120, 32, 99 * _KB),
        Target("gfx942", "hip", "gfx942", 64, 64 * _KB),
    )
}
INTERPRETER = Target("interpreter", "interpreter", 0, 32, 227 * _KB)


@lru_cache
def target_of(device: torch.device) -> Target:
    """Return the target that a CUDA (or ROCm) device is; the interpreter for any other."""
    if device.type != "cuda":
        return INTERPRETER
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        name = properties.gcnArchName.partition(":")[0]
        return TARGETS.get(name) or Target(name, "hip", name, 64, 64 * _KB)
    arch = properties.major * 10 + properties.minor
    shared = getattr(properties, "shared_memory_per_block_optin", 99 * _KB)
    return TARGETS.get(f"sm_{arch}") or Target(f"sm_{arch}", "cuda", arch, 32, shared)
