"""What an adapter consists of, and the reasons why one can't serve a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from glassformer.fused.registry import Kernel

Array = Any
Gradients = tuple[Array | None, ...]

PRIORITY = 20
FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Served:
    """How one fused operation is served; the fields are those of `Kernel`."""

    forward: Callable[..., Any]
    backward: Callable[..., Any] | None
    unsupported: Callable[..., list[str]]
    saves_output: bool = False

    def kernel(self, name: str, device: str) -> Kernel:
        """Return the engine's kernel for a device type."""
        return Kernel(
            name,
            device,
            PRIORITY,
            self.forward,
            self.backward,
            self.unsupported,
            self.saves_output,
        )


def dtype_reasons(**tensors: Any) -> list[str]:
    """Reasons against tensors that are not floats of up to 32 bits, all of one dtype."""
    given = {name: x for name, x in tensors.items() if x is not None}
    wrong = [
        f"{name} is {x.dtype.name}; the kernels take {', '.join(FLOATS)}"
        for name, x in given.items()
        if x.dtype.name not in FLOATS
    ]
    if not wrong and len({x.dtype for x in given.values()}) > 1:
        wrong = ["; ".join(f"{name} is {x.dtype.name}" for name, x in given.items())]
    return wrong


def product_reasons(x: Any) -> list[str]:
    """Reasons against a matrix product."""
    if x.device.type == "torch-cpu" and x.dtype.name == "bfloat16":
        return ["Triton's interpreter multiplies bfloat16 matrices wrongly"]
    return []


def empty_reasons(**tensors: Any) -> list[str]:
    """Reasons against tensors without dimensions or elements."""
    return [f"{name} is {x.shape}" for name, x in tensors.items() if not x.shape or 0 in x.shape]
