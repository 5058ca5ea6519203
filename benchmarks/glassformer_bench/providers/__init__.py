"""Everyone's kernels, by name."""

from __future__ import annotations

from collections.abc import Sequence

from glassformer_bench.providers.base import Bound, Provider, TorchProvider
from glassformer_bench.providers.engine import EngineFused, EngineReference
from glassformer_bench.providers.packages import FlashAttn, Flex, Xformers
from glassformer_bench.providers.plugged import entry_point_providers, plugged
from glassformer_bench.providers.sdpa import Sdpa, SdpaCudnn, SdpaFlash, SdpaMath
from glassformer_bench.providers.torch_eager import Compile, Eager
from glassformer_bench.providers.triton_kernels import TritonKernels

_CLASSES: tuple[type[Provider], ...] = (
    EngineReference,
    EngineFused,
    TritonKernels,
    Sdpa,
    SdpaFlash,
    SdpaCudnn,
    SdpaMath,
    Flex,
    FlashAttn,
    Xformers,
    Compile,
    Eager,
)


def known() -> dict[str, Provider]:
    """Return the providers by name: ours first, then those of installed packages."""
    found = {provider.name: provider() for provider in _CLASSES}
    return {**entry_point_providers(), **found}


def resolve(names: Sequence[str], kernels: Sequence[str]) -> list[Provider]:
    """Return the providers named, then those plugged in.

    Raises:
        ValueError: there is no provider of a name, or two of one.
    """
    table = known()
    for name in names:
        if name not in table:
            raise ValueError(f"there is no provider {name!r}; there are {', '.join(table)}")
    found = [table[name] for name in dict.fromkeys(names)]
    for spec in kernels:
        provider = plugged(spec)
        if provider.name in table or any(provider.name == other.name for other in found):
            raise ValueError(f"--kernel {spec}: there is a provider {provider.name!r} already")
        found.append(provider)
    return found


__all__ = ["Bound", "Provider", "TorchProvider", "known", "plugged", "resolve"]
