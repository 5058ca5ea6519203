"""Devices: a name and the backend whose array functions run there.

`cpu` is NumPy. `cuda`, `cuda:1` … are NVIDIA GPUs (or AMD's, by the same names), whose arrays are
PyTorch's. `torch-cpu` runs PyTorch's arrays on the CPU: what works there works on `cuda`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from glassformer.backends.base import Backend

TYPES = ("cpu", "cuda", "torch-cpu")
_devices: dict[str, Device] = {}


class Device:
    """Where an array lives. `backend` holds the array functions for it.

    Attributes:
        type: "cpu", "cuda" or "torch-cpu".
        index: the number of a `cuda` device; None elsewhere.
    """

    __slots__ = ("backend", "index", "type")

    def __init__(self, type: str, backend: Backend, index: int | None = None) -> None:
        self.type = type
        self.backend = backend
        self.index = index

    def __repr__(self) -> str:
        return f"device({str(self)!r})"

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __reduce__(self) -> tuple[Any, ...]:
        return as_device, (str(self),)  # a copy is the same device


def as_device(spec: Any = None) -> Device:
    """Return the device that `spec` (None for the CPU, a name or a Device) stands for.

    "cuda" is the first one, "cuda:0".

    Raises:
        ValueError: there is no device of that name, or it can't be used here.
    """
    if isinstance(spec, Device):
        return spec
    name = "cpu" if spec is None else str(spec)
    device = _devices.get(name)
    if device is None:
        made = _made(name)
        # "cuda" and "cuda:0" are one object: devices are compared by identity
        device = _devices[name] = _devices.setdefault(str(made), made)
    return device


def _made(name: str) -> Device:
    kind, colon, index = name.partition(":")
    if kind not in TYPES or (colon and (kind != "cuda" or not index.isdecimal())):
        raise ValueError(
            f"device {name!r} is not available; the devices are {', '.join(TYPES)} (and cuda:1 …)"
        )
    if kind == "cpu":
        return Device(kind, cast("Backend", import_module("glassformer.backends.numpy_backend")))
    try:
        torch_backend = import_module("glassformer.backends.torch_backend")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ValueError(
            f"device {name!r} needs PyTorch; install it: pip install 'glassformer[gpu]'"
        ) from None
    number = int(index or 0) if kind == "cuda" else None
    return Device(kind, cast("Backend", torch_backend.connect(kind, number)), number)
