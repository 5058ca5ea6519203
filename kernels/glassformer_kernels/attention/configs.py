"""Tile sizes, warps and stages of the attention kernels: the first is the one shipped.

Each kernel has a table of (fixed tile, moving tile, warps, stages), by what it is compiled for and
by how wide a row is. What comes first spilled no registers when it was compiled ahead of time
(`glassformer_kernels.aot`; float32 of width 256 spills in any tile); the others are for `tuning` to
try. Tiles are smaller where a mask, a bias or dropout takes registers for each pair, where a group
of heads shares its keys, where float32 is multiplied without the matrix units, and before Hopper,
whose accumulators share the registers with both operands. Speeds are not measured yet.
"""

from __future__ import annotations

from glassformer_kernels import launch
from glassformer_kernels.attention.problem import Problem
from glassformer_kernels.launch import Config, next_power_of_2

Size = tuple[int, int, int, int]
Table = dict[str, dict[int, list[Size]]]


def _width(x: Problem) -> int:
    return max(16, next_power_of_2(x.head_dim), next_power_of_2(x.value_dim))


def _per_pair(x: Problem, mask: bool = True) -> bool:
    """Whether each pair has an operand or arithmetic of its own, `mask` included or not."""
    return (
        (mask and x.mask is not None)
        or x.bias is not None
        or x.alibi_slopes is not None
        or x.softcap is not None
        or x.dropout_p > 0
    )


def _configs(
    x: Problem,
    names: tuple[str, str],
    sizes: list[Size],
    rows: int,
    tiles: int,
) -> list[Config]:
    """Make configurations of (fixed tile, moving tile, warps, stages), without what won't fit.

    `rows` and `tiles` say how many operands of width D the fixed and the moving tile hold in
    shared memory.
    """
    target = launch.target_for(x.query)
    size, width = x.query.element_size(), _width(x)

    def shared_memory(fixed: int, moving: int, stages: int) -> int:
        return (rows * fixed + stages * tiles * moving) * width * size

    fitting = [
        Config(dict(zip(names, (fixed, moving), strict=True)), warps, stages)
        for fixed, moving, warps, stages in sizes
        if shared_memory(fixed, moving, stages) <= target.shared_memory
    ]
    return fitting or [Config(dict(zip(names, (16, 16), strict=True)), 4, 1)]


def forward_configs(x: Problem) -> list[Config]:
    """Return configurations of the forward kernel: BLOCK_M queries against BLOCK_N keys."""
    return _configs(x, ("BLOCK_M", "BLOCK_N"), _sizes(x, _FORWARD), rows=1, tiles=2)


def key_gradient_configs(x: Problem) -> list[Config]:
    """Return configurations of the kernel for dK and dV: BLOCK_N keys against BLOCK_M queries."""
    small = x.packed or x.heads != x.kv_heads or x.mask is not None and _per_pair(x, mask=False)
    table = _KEYS_SMALL if small else _KEYS
    return _configs(x, ("BLOCK_N", "BLOCK_M"), _sizes(x, table), rows=2, tiles=2)


def query_gradient_configs(x: Problem) -> list[Config]:
    """Return configurations of the kernel for dQ: BLOCK_M queries against BLOCK_N keys."""
    return _configs(x, ("BLOCK_M", "BLOCK_N"), _sizes(x, _QUERIES), rows=2, tiles=2)


def bias_gradient_configs(x: Problem) -> list[Config]:
    """Return configurations of the kernel for dbias: tiles of BLOCK_M queries by BLOCK_N keys."""
    return _configs(x, ("BLOCK_M", "BLOCK_N"), _sizes(x, _BIAS), rows=2, tiles=2)


def _sizes(x: Problem, table: Table) -> list[Size]:
    """Return the sizes in a table for a problem on its target."""
    target = launch.target_for(x.query)
    if x.query.element_size() == 4 and target.backend == "interpreter":
        return [(32, 32, 4, 1), (16, 16, 4, 1)]  # it knows no registers, only the number of tiles
    if x.query.element_size() == 4:
        kind = "fp32"
    elif target.backend == "hip":
        kind = "hip"
    else:
        kind = "sm_80" if target.backend == "cuda" and not target.has_tma else "sm_90"
        if x.mask is not None and _per_pair(x, mask=False) and f"{kind} mask pairs" in table:
            kind += " mask pairs"
        elif x.mask is not None and f"{kind} mask" in table:
            kind += " mask"
        elif _per_pair(x) and f"{kind} pairs" in table:
            kind += " pairs"
    widths = table[kind]
    return next((widths[width] for width in sorted(widths) if _width(x) <= width), widths[256])


# By target and, if it has a table of its own, what each pair has; then by the widest row served.
# A mask is loaded without fetching ahead: what is in flight would keep wgmma from overlapping.
_FORWARD: Table = {
    "sm_90": {
        64: [(128, 64, 4, 3), (128, 128, 8, 3), (64, 64, 4, 3)],
        128: [(128, 128, 8, 3), (128, 64, 8, 3), (128, 128, 8, 2), (64, 64, 4, 3)],
        256: [(128, 64, 8, 2), (64, 32, 4, 3), (128, 32, 8, 2), (64, 32, 4, 2)],
    },
    "sm_90 pairs": {
        128: [(128, 64, 8, 3), (64, 64, 4, 2), (128, 64, 8, 2)],
        256: [(64, 32, 4, 2), (128, 32, 8, 2)],
    },
    "sm_90 mask": {
        128: [(64, 64, 4, 1), (128, 64, 8, 1), (64, 32, 4, 2)],
        256: [(64, 32, 4, 1), (128, 32, 8, 1)],
    },
    "sm_80": {
        64: [(128, 64, 8, 2), (64, 64, 4, 2), (128, 64, 4, 3)],
        128: [(128, 64, 8, 2), (128, 32, 8, 2), (64, 64, 4, 2), (64, 32, 4, 2)],
        256: [(64, 32, 8, 2), (64, 64, 8, 1)],
    },
    "sm_80 pairs": {
        64: [(64, 64, 4, 2), (128, 64, 8, 2), (128, 32, 4, 2)],
        128: [(128, 32, 8, 2), (64, 32, 4, 2)],
        256: [(64, 32, 8, 2), (32, 32, 4, 2)],
    },
    "hip": {
        128: [(128, 64, 4, 1), (128, 32, 4, 1), (64, 64, 4, 1), (64, 32, 4, 1)],
        256: [(64, 32, 4, 1), (32, 32, 4, 1)],
    },
    "fp32": {
        64: [(32, 32, 8, 1), (16, 32, 4, 1), (16, 16, 4, 1)],
        128: [(16, 16, 8, 1), (32, 16, 16, 1)],
        256: [(16, 16, 8, 1), (16, 16, 16, 1)],
    },
}

_KEYS: Table = {
    "sm_90": {
        64: [(128, 64, 8, 2), (128, 64, 8, 3), (64, 64, 4, 3), (64, 64, 8, 2)],
        128: [(128, 64, 8, 2), (128, 64, 8, 3), (128, 32, 8, 3), (64, 64, 8, 2)],
        # Two accumulators of 64 rows leave no registers: 32 rows, by mma.
        256: [(32, 64, 8, 2), (64, 16, 8, 2), (64, 32, 8, 2)],
    },
    "sm_90 pairs": {
        64: [(128, 64, 8, 2), (64, 64, 8, 2), (64, 32, 4, 2)],
        128: [(128, 32, 8, 3), (64, 32, 4, 2)],
        256: [(32, 64, 8, 1), (32, 32, 8, 2)],
    },
    "sm_90 mask": {
        64: [(64, 64, 8, 1), (128, 64, 8, 1), (64, 32, 4, 1)],
        128: [(64, 32, 4, 1), (64, 32, 8, 1), (128, 32, 8, 1), (128, 16, 8, 1)],
        256: [(32, 64, 8, 1), (32, 32, 8, 1)],
    },
    "sm_80": {
        64: [(128, 64, 8, 2), (64, 32, 4, 2), (64, 64, 8, 2)],
        128: [(64, 64, 8, 2), (64, 32, 8, 2), (32, 64, 4, 2)],
        256: [(32, 64, 8, 2), (32, 32, 8, 2)],
    },
    "sm_80 pairs": {
        64: [(64, 32, 8, 2), (64, 32, 4, 2)],
        128: [(64, 64, 8, 2), (64, 32, 8, 2), (64, 32, 8, 1)],
        256: [(32, 32, 8, 2), (32, 32, 8, 1)],
    },
    "hip": {
        128: [(64, 32, 4, 1), (32, 32, 4, 1)],
        256: [(32, 16, 4, 1)],
    },
    "fp32": {
        64: [(32, 16, 8, 1), (16, 16, 8, 1), (16, 16, 4, 1)],
        256: [(16, 16, 8, 1)],
    },
}

# Pointers into packed sequences, a loop over the heads of a group, and a mask with more for each
# pair beside it take registers too.
_KEYS_SMALL: Table = {
    **_KEYS,
    "sm_90": {**_KEYS["sm_90"], 128: [(128, 32, 8, 3), (128, 32, 8, 2), (128, 64, 8, 3)]},
    "sm_90 mask": {
        64: [(64, 32, 4, 1), (64, 32, 8, 1)],
        128: [(128, 16, 8, 1), (64, 16, 4, 1), (64, 32, 4, 1)],
        256: [(32, 32, 8, 1), (32, 16, 8, 1)],
    },
}

_QUERIES: Table = {
    "sm_90": {
        128: [(128, 64, 8, 2), (128, 64, 8, 3), (128, 32, 8, 3), (64, 64, 4, 3), (64, 64, 8, 2)],
        256: [(128, 32, 8, 2), (64, 32, 4, 1), (64, 32, 8, 2)],
    },
    "sm_90 pairs": {
        128: [(128, 64, 8, 2), (64, 64, 4, 2), (128, 32, 8, 2)],
        256: [(128, 32, 8, 1), (64, 32, 8, 1), (64, 32, 4, 1)],
    },
    "sm_90 mask": {
        64: [(128, 64, 8, 2), (64, 64, 4, 2), (128, 64, 8, 1)],
        128: [(128, 64, 8, 1), (64, 32, 4, 2), (64, 64, 4, 1)],
        256: [(128, 32, 8, 1), (64, 32, 8, 1)],
    },
    "sm_90 mask pairs": {  # spills in wider tiles, if a little, with Triton 3.6
        64: [(128, 64, 8, 2), (64, 64, 4, 2), (128, 64, 8, 1)],
        128: [(64, 32, 4, 2), (128, 64, 8, 1), (64, 64, 4, 1)],
        256: [(128, 32, 8, 1), (64, 32, 8, 1)],
    },
    "sm_80": {
        128: [(64, 64, 8, 2), (64, 32, 4, 2), (128, 32, 8, 2)],
        256: [(64, 32, 8, 2), (32, 64, 8, 1)],
    },
    "hip": {
        128: [(64, 32, 4, 1), (32, 32, 4, 1)],
        256: [(32, 16, 4, 1)],
    },
    "fp32": {
        64: [(32, 16, 8, 1), (16, 16, 8, 1), (16, 16, 4, 1)],
        256: [(16, 16, 8, 1)],
    },
}

_BIAS: Table = {
    "sm_90": {128: [(64, 64, 4, 1), (64, 32, 4, 1)], 256: [(32, 32, 4, 1), (16, 16, 4, 1)]},
    "sm_90 mask": {128: [(64, 32, 4, 1), (64, 64, 4, 1)], 256: [(32, 32, 4, 1)]},
    "sm_80": {128: [(64, 64, 8, 1), (64, 32, 4, 1)], 256: [(32, 32, 4, 1), (16, 16, 4, 1)]},
    "hip": {128: [(64, 32, 4, 1), (32, 32, 4, 1)], 256: [(32, 32, 4, 1), (16, 16, 4, 1)]},
    "fp32": {256: [(16, 16, 8, 1), (32, 16, 16, 1)]},
}
