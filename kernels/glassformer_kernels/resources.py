"""What a compiled kernel takes of a GPU, read off what the compilers print and write.

NVIDIA's figures come from the log of `ptxas -v`, AMD's from the metadata at the end of the
assembly; the matrix instruction from the PTX or the assembly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# The matrix instructions by the names that reports use, the widest first: a kernel that has
# several is known by its best.
_MATRIX = {
    "tcgen05": r"\btcgen05\.mma\b",
    "wgmma": r"\bwgmma\.mma_async\b",
    "mma": r"\b(?:wmma\.)?mma\.sync\b",
    "mfma": r"\bv_s?mfmac?_",
}


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes.

    Attributes:
        registers: of 32 bits, for each thread.
        spills: bytes that a thread stores to memory or loads again for want of registers, counted
            once wherever it stands in the code.
        matrix: "tcgen05", "wgmma", "mma", "mfma" or "-": how it multiplies matrices.
        serialized: whether ptxas says that it had to run the wgmma instructions one after the
            other, without overlap.
    """

    registers: int
    spills: int
    matrix: str
    serialized: bool = False


def read_ptxas(log: str, ptx: str) -> Resources:
    """Read the log of `ptxas -v` for a file with one kernel, and its PTX.

    Raises:
        ValueError: the log tells nothing of registers or spills.
    """
    # Device functions have their own lines; the kernel has the most of each.
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if not registers or not spills:
        raise ValueError(f"ptxas said nothing of registers or spills: {log.strip()!r}")
    return Resources(
        registers=max(registers),
        spills=sum(int(stores) + int(loads) for stores, loads in spills),
        matrix=matrix_instruction(ptx),
        serialized="wgmma.mma_async instructions are serialized" in log,
    )


def read_amdgcn(assembly: str) -> Resources:
    """Read the assembly of one AMD kernel; its vector registers count, accumulators included.

    Raises:
        ValueError: the assembly has no kernel metadata.
    """
    found = {
        name: re.search(rf"^\s*(?:- )?\.{name}:\s*(\d+)", assembly, re.MULTILINE)
        for name in ("vgpr_count", "vgpr_spill_count")
    }
    for name, match in found.items():
        if match is None:
            raise ValueError(f"the assembly has no .{name}; is its metadata missing?")
    registers, spilled = (int(match[1]) for match in found.values() if match is not None)
    return Resources(registers, 4 * spilled, matrix_instruction(assembly))


def matrix_instruction(text: str) -> str:
    """Return the best matrix instruction in PTX or AMD assembly, or "-"."""
    return next((name for name, pattern in _MATRIX.items() if re.search(pattern, text)), "-")
