"""LoRA on a pre-trained model: attach, train, save apart from the model, merge.

    add_lora(model, LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"]))
    ...                        # train: nothing but the updates, and `modules_to_save`, changes
    save_lora(model, folder)   # some hundred kilobytes
    merge_lora(model)          # the updates become part of the weights

Modules are called by the hub's names, and files are those of the PEFT library
(`adapter_config.json`, `adapter_model.safetensors`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glassformer.durable import write_file
from glassformer.grad_mode import no_grad
from glassformer.models.config import ConfigError, read_json_object
from glassformer.models.names import Place
from glassformer.models.pretrained import PretrainedModel
from glassformer.models.safetensors_file import SafetensorsFile, WeightsError, write_safetensors
from glassformer.models.safetensors_header import shown
from glassformer.models.settings import check_setting
from glassformer.nn import Linear, MultiheadAttention
from glassformer.nn.lora import LoraAdapter, LoraLayer
from glassformer.random import Generator
from glassformer.tensor import Parameter, Tensor, from_numpy

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of every key in PEFT's files


@dataclass(frozen=True)
class LoraConfig:
    """How to adapt a model, with PEFT's names.

    Attributes:
        r: rank of the updates.
        lora_alpha: updates are scaled by lora_alpha / r.
        target_modules: linear layers by the hub's names, or the ends of them: "query" means
            "bert.encoder.layer.0.attention.self.query" and its like in every layer. "all-linear"
            is all of the bare model's.
        lora_dropout: on the input of the updates, while training.
        modules_to_save: parts that are trained as a whole and saved along, such as a new head.

    Raises:
        TypeError: a setting is of the wrong type.
        ValueError: a setting is out of range.
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: tuple[str, ...] | str = "all-linear"
    lora_dropout: float = 0.0
    modules_to_save: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_setting("lora_alpha", self.lora_alpha, float)
        check_setting("lora_dropout", self.lora_dropout, float)
        if type(self.r) is not int or self.r < 1:
            raise ValueError(f"the rank r must be 1 or more, got {shown(self.r)}")
        for name in ("target_modules", "modules_to_save"):
            value = getattr(self, name)
            if isinstance(value, str):
                if name == "target_modules" and value == "all-linear":
                    continue
                value = (value,)
            if not isinstance(value, list | tuple) or not all(isinstance(n, str) for n in value):
                raise TypeError(f"{name} must be names of modules, got {shown(value)}")
            object.__setattr__(self, name, tuple(value))

    def wants(self, module: str, model: PretrainedModel) -> bool:
        """Whether a linear layer, by the hub's name, is to be adapted."""
        if self.target_modules == "all-linear":
            prefix = model.base_model_prefix
            return model.base_model is model or not prefix or module.startswith(f"{prefix}.")
        return _ends_with(module, self.target_modules)


class _Site(NamedTuple):
    """A layer whose weight may take updates, and the hub's names of the matrices in it."""

    owner: Any  # a Linear or a MultiheadAttention
    weight: Tensor
    place: Place

    @property
    def modules(self) -> list[str]:
        return [name.removesuffix(".weight") for name in self.place.names]

    @property
    def rows(self) -> tuple[int, ...]:
        count = len(self.place.names)
        return self.place.rows or (self.weight.shape[0] // count,) * count


def add_lora(
    model: PretrainedModel, config: LoraConfig, generator: Generator | None = None
) -> PretrainedModel:
    """Freeze a model but for fresh low-rank updates, and `modules_to_save`; return it.

    Raises:
        ValueError: there are updates already, or a name fits no linear layer or no module.
    """
    if any(_adapters(model)):
        raise ValueError("the model has updates already; merge_lora(model) first")
    sites = [s for s in _sites(model) if any(config.wants(m, model) for m in s.modules)]
    _check_found(model, config, sites)
    model.requires_grad_(False)
    for site in sites:
        columns = site.weight.shape[1]
        parts = [
            LoraLayer(
                columns,
                rows,
                config.r,
                config.lora_alpha / config.r,
                config.lora_dropout,
                generator,
            )
            if config.wants(module, model)
            else None
            for module, rows in zip(site.modules, site.rows, strict=True)
        ]
        site.owner.adapter = LoraAdapter(parts, site.rows)
        site.owner.adapter.to(site.weight.dtype.wide).to(site.weight.device)
        site.owner.adapter.train(model.training)
    for _, parameter, _ in _saved_whole(model, config):
        parameter.requires_grad_()
    return model


def merge_lora(model: PretrainedModel) -> PretrainedModel:
    """Add the updates to the weights and take them off; every parameter is trainable again."""
    with no_grad():
        for site in list(_sites(model)):
            adapter = site.owner.adapter
            if adapter is None:
                continue
            start = 0
            for layer, rows in zip(adapter.parts, adapter.rows, strict=True):
                if layer is not None:
                    part = site.weight[start : start + rows]
                    site.weight[start : start + rows] = part + layer.delta()
                start += rows
            site.owner.adapter = None
    model.requires_grad_()
    return model


def save_lora(model: PretrainedModel, folder: str | Path, config: LoraConfig) -> None:
    """Write the updates and `modules_to_save`, in PEFT's format.

    Raises:
        ValueError: the model has no updates.
    """
    arrays = {
        f"{_PREFIX}{module}.{kind}.weight": getattr(layer, kind).detach().cpu().numpy()
        for module, layer in _adapters(model)
        for kind in ("lora_A", "lora_B")
    }
    if not arrays:
        raise ValueError("the model has no updates to save; add_lora(model, config) first")
    for name, parameter, place in _saved_whole(model, config):
        del name
        arrays[_PREFIX + place.names[0]] = parameter.detach().cpu().numpy()
    settings = {
        "peft_type": "LORA",
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "target_modules": config.target_modules,
        "modules_to_save": config.modules_to_save or None,
        "bias": "none",
        "fan_in_fan_out": any(site.place.transposed for site in _sites(model)),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / WEIGHTS_FILE, arrays, {"format": "pt"})
    write_file(folder / CONFIG_FILE, (json.dumps(settings, indent=2) + "\n").encode())


def load_lora(model: PretrainedModel, folder: str | Path) -> LoraConfig:
    """Attach the updates in a folder to a model, and return their config.

    Raises:
        WeightsError: files are missing or damaged, or keys are missing, unexpected or of another
            shape; the model is untouched.
        ConfigError: a setting is wrong, or not supported; it is a WeightsError and a TypeError.
    """
    folder = Path(folder)
    config = _read_config(folder)
    with SafetensorsFile(folder / WEIGHTS_FILE) as file:
        stored = {name: np.array(file.array(name)) for name in file.keys()}  # noqa: SIM118
    longest = max((max(array.shape, default=0) for array in stored.values()), default=0)
    if config.r > max(longest, 1024):  # told before updates of that rank take all memory
        raise ConfigError(
            f"{folder / CONFIG_FILE}: r={config.r}, but no tensor of {WEIGHTS_FILE} is that long"
        )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        add_lora(model, config)
    except ValueError as error:
        raise ConfigError(f"{folder / CONFIG_FILE}: {error}") from error
    wanted: dict[str, Tensor] = {
        f"{_PREFIX}{module}.{kind}.weight": getattr(layer, kind)
        for module, layer in _adapters(model)
        for kind in ("lora_A", "lora_B")
    }
    for _, parameter, place in _saved_whole(model, config):
        wanted[_PREFIX + place.names[0]] = parameter
    problems = _misfits(stored, wanted)
    if problems:
        for site in list(_sites(model)):
            site.owner.adapter = None
        for parameter in model.parameters():
            parameter.requires_grad_(any(parameter is one for one in trained))
        listed = "\n  ".join(problems)
        raise WeightsError(f"{folder / WEIGHTS_FILE} does not fit the model:\n  {listed}")
    with no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(from_numpy(stored[name]))
    return config


def _misfits(stored: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> list[str]:
    problems = [f"missing: {name}" for name in wanted.keys() - stored.keys()]
    problems += [f"unexpected: {name}" for name in stored.keys() - wanted.keys()]
    problems += [
        f"shape of {name}: given {stored[name].shape}, the model has {wanted[name].shape}"
        for name in wanted.keys() & stored.keys()
        if stored[name].shape != wanted[name].shape
    ]
    return sorted(problems)


def _read_config(folder: Path) -> LoraConfig:
    settings = read_json_object(folder / CONFIG_FILE)
    unsupported = {
        name: settings[name]
        for name, plain in (
            ("peft_type", "LORA"),
            ("bias", "none"),
            ("use_dora", False),
            ("use_rslora", False),
            ("rank_pattern", {}),
            ("alpha_pattern", {}),
        )
        if settings.get(name, plain) != plain
    }
    if unsupported:
        raise ConfigError(f"{folder / CONFIG_FILE}: not supported: {unsupported}")
    known = {field.name for field in fields(LoraConfig)}
    try:
        return LoraConfig(**{n: v for n, v in settings.items() if n in known and v is not None})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{folder / CONFIG_FILE}: {error}") from error


def _sites(model: PretrainedModel) -> Iterator[_Site]:
    owners = dict(model.named_modules())
    kinds = {"weight": Linear, "in_proj_weight": MultiheadAttention}
    for name, tensor, place in model.hub_tensors():
        path, _, attribute = name.rpartition(".")
        owner = owners.get(path)
        if attribute in kinds and isinstance(owner, kinds[attribute]):
            yield _Site(owner, tensor, place)


def _adapters(model: PretrainedModel) -> Iterator[tuple[str, LoraLayer]]:
    """Yield each update with the hub's name of the layer it belongs to."""
    for site in _sites(model):
        if site.owner.adapter is not None:
            for module, layer in zip(site.modules, site.owner.adapter.parts, strict=True):
                if layer is not None:
                    yield module, layer


def _saved_whole(
    model: PretrainedModel, config: LoraConfig
) -> Iterator[tuple[str, Parameter, Place]]:
    """Yield the parameters of `modules_to_save`."""
    for name, tensor, place in model.hub_tensors():
        module = place.names[0].rpartition(".")[0]
        parts = module.split(".")
        ancestors = [".".join(parts[: i + 1]) for i in range(len(parts))]
        if isinstance(tensor, Parameter) and any(
            _ends_with(ancestor, config.modules_to_save) for ancestor in ancestors
        ):
            yield name, tensor, place


def _ends_with(module: str, names: Iterable[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _check_found(model: PretrainedModel, config: LoraConfig, sites: list[_Site]) -> None:
    adapted = [module for site in sites for module in site.modules]
    if not isinstance(config.target_modules, str):
        for name in config.target_modules:
            if not any(_ends_with(module, (name,)) for module in adapted):
                known = sorted({m.rpartition(".")[2] for s in _sites(model) for m in s.modules})
                raise ValueError(
                    f"target_modules: no linear layer is called {name!r}; there are "
                    f"{', '.join(known)}"
                )
    for name in config.modules_to_save:
        one = LoraConfig(modules_to_save=(name,))
        if not any(True for _ in _saved_whole(model, one)):
            raise ValueError(f"modules_to_save: no part of the model is called {name!r}")
