"""Devices: a name and the backend whose array functions run there."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from glassformer.backends.base import Backend

# Backends are modules, imported when their device is first asked for.
_BACKEND_MODULES = {"cpu": "glassformer.backends.numpy_backend"}
_devices: dict[str, Device] = {}


class Device:
    """Where an array lives. `backend` is the module of array functions for it."""

    __slots__ = ("backend", "type")

    def __init__(self, type: str, backend: Backend) -> None:
        self.type = type
        self.backend = backend

    def __repr__(self) -> str:
        return f"device({self.type!r})"

    def __str__(self) -> str:
        return self.type

    def __reduce__(self) -> tuple[Any, ...]:
        return as_device, (self.type,)  # a copy is the same device


def as_device(spec: Any = None) -> Device:
    """Return the device that `spec` (None for the CPU, a name or a Device) stands for.

    Raises:
        ValueError: no backend serves a device of that name.
    """
    if isinstance(spec, Device):
        return spec
    name = "cpu" if spec is None else str(spec)
    device = _devices.get(name)
    if device is None:
        module = _BACKEND_MODULES.get(name)
        if module is None:
            raise ValueError(
                f"device {name!r} is not available; the devices are {', '.join(_BACKEND_MODULES)}"
            )
        device = _devices[name] = Device(name, cast("Backend", import_module(module)))
    return device
