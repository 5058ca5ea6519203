"""Kernels that aren't ours: named on the command line, or by an installed package.

A function gets the operands as torch tensors, in order, and of the keywords below those that its
signature names. What it doesn't name it can't be asked for: the row is unsupported, and says so.

    is_causal   bool: query i sees keys 0 … i
    causal      the same as a bool if its default is one, else None, "top_left" or "bottom_right"
    window      (left, right), -1 for no limit
    scale       of the scores, 1/√D (left out, the kernel must do that itself)
    enable_gqa  bool: groups of query heads share a key head
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

import torch

from glassformer_bench.problem import OPS, Problem
from glassformer_bench.providers.base import Call, Provider, TorchProvider

ENTRY_POINTS = "glassformer_bench.kernels"


class Plugged(TorchProvider):
    """A function of torch tensors under a name."""

    ops = OPS

    def __init__(self, name: str, function: Call, source: str) -> None:
        self.name = name
        self.function = function
        self.about = f"plugged in: {source}"
        try:
            self.parameters = dict(inspect.signature(function).parameters)
        except (TypeError, ValueError):  # functions written in C have none
            self.parameters = _documented_parameters(function)

    def unsupported(self, problem: Problem) -> list[str]:
        """Refuse what the function's signature doesn't name."""
        return self._keywords(problem)[1]

    def prepare(self, problem: Problem, device: torch.device) -> Call:
        """Return the function with its keywords filled in."""
        keywords = self._keywords(problem)[0]
        return lambda *operands: self.function(*operands, **keywords)

    def _keywords(self, problem: Problem) -> tuple[dict[str, Any], list[str]]:
        if not problem.is_attention:
            return {}, []
        keywords: dict[str, Any] = {}
        reasons = []
        causal = self.parameters.get("causal")
        if "is_causal" in self.parameters or (
            causal is not None and isinstance(causal.default, bool)
        ):
            name = "is_causal" if "is_causal" in self.parameters else "causal"
            keywords[name] = problem.causal is not None
            if problem.causal == "bottom_right" and problem.seqlen != problem.seqlen_k:
                reasons.append(f"{name}=True means the top left; bottom_right can't be asked for")
        elif causal is not None:
            keywords["causal"] = problem.causal
        elif problem.causal is not None:
            reasons.append(f"{self.name} takes no argument is_causal or causal")
        if "window" in self.parameters:
            keywords["window"] = problem.window
        elif problem.window is not None:
            reasons.append(f"{self.name} takes no argument window")
        if "scale" in self.parameters:
            keywords["scale"] = problem.scale
        if "enable_gqa" in self.parameters:
            keywords["enable_gqa"] = problem.heads != problem.kv_heads
        return keywords, reasons


def plugged(spec: str) -> Provider:
    """Return the provider of NAME=package.module:function or NAME=path/to/file.py:function.

    What is named may also be a `Provider`, or a class of them.

    Raises:
        ValueError: it isn't of that form, or there is no such thing.
    """
    name, equals, target = spec.partition("=")
    where, colon, attribute = target.rpartition(":")
    if not (name and equals and where and colon and attribute):
        raise ValueError(
            f"--kernel takes NAME=package.module:function or NAME=path/to/file.py:function, "
            f"got {spec!r}"
        )
    found: Any = _module(where)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"--kernel {spec}: {where} has no {part!r}")
        found = getattr(found, part)
    return as_provider(name, found, target)


def as_provider(name: str, found: Any, source: str) -> Provider:
    """Return a function, a Provider or a class of them as a provider of that name."""
    if isinstance(found, type) and issubclass(found, Provider):
        found = found()
    if isinstance(found, Provider):
        found.name = name
        return found
    if not callable(found):
        raise ValueError(f"kernel {name}: {source} is a {type(found).__name__}, not a function")
    return Plugged(name, found, source)


def entry_point_providers() -> dict[str, Provider]:
    """Return what installed packages offer in the entry-point group `glassformer_bench.kernels`.

    One that can't be loaded is there with its reason.
    """
    from importlib.metadata import entry_points

    found: dict[str, Provider] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            found[entry.name] = as_provider(entry.name, entry.load(), entry.value)
        except Exception as error:
            found[entry.name] = Broken(entry.name, entry.value, error)
    return found


class Broken(Provider):
    """A kernel of an installed package that can't be loaded."""

    ops = OPS

    def __init__(self, name: str, source: str, error: Exception) -> None:
        self.name = name
        self.about = f"plugged in: {source}"
        self.reason = f"{source} can't be loaded: {type(error).__name__}: {error}"

    def missing(self, device: str) -> str | None:
        """Say why."""
        return self.reason


def _module(where: str) -> Any:
    if not where.endswith(".py"):
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            raise ValueError(f"--kernel: there is no module {error.name!r} to import") from None
    path = Path(where).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"--kernel: there is no file {where}")
    name = f"_plugged_{path.stem}_{abs(hash(str(path))):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Triton looks its functions' sources up there
    spec.loader.exec_module(module)
    return module


def _documented_parameters(function: Call) -> dict[str, inspect.Parameter]:
    """Find keywords in a C function's docstring, as PyTorch writes it: `name(a, b=None) -> …`."""
    text = (function.__doc__ or "").strip().partition("->")[0]
    keyword = inspect.Parameter.KEYWORD_ONLY
    wanted = ("is_causal", "window", "scale", "enable_gqa")
    return {n: inspect.Parameter(n, keyword) for n in wanted if n in text}
