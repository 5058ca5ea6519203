"""Everything that resuming needs, taken from a training under way and put back into another."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from glassformer.data import DataLoader
from glassformer.devices import as_device
from glassformer.dtypes import FROM_NUMPY
from glassformer.models.loading import hub_arrays
from glassformer.models.pretrained import PretrainedModel
from glassformer.nn import Module
from glassformer.optim import LambdaLR, Optimizer
from glassformer.random import Generator, default_generator, manual_seed
from glassformer.tensor import Tensor, from_numpy
from glassformer.training.checkpoint import CONFIG_FILE, Checkpoint, CheckpointError
from glassformer.training.frozen_features import FrozenFeatures

_REMEDY = "resume with the model and settings it was saved with, or start anew in another folder"


def set_seed(seed: int) -> None:
    """Seed the engine's default generator, and Python's and NumPy's global ones."""
    manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def model_arrays(model: Module) -> dict[str, npt.NDArray[Any]]:
    """Return the model's state by name, a tied parameter once, under the first of its names."""
    return {name: tensor.cpu().numpy() for name, tensor in _state(model).items()}


def _state(model: Module) -> dict[str, Tensor]:
    """The model's state by name, a tied parameter under the first of its names."""
    state = model.state_dict()
    first = {id(tensor): name for name, tensor in reversed(state.items())}
    return {name: tensor for name, tensor in state.items() if first[id(tensor)] == name}


def is_of_the_hub(model: Module) -> TypeGuard[PretrainedModel]:
    """Whether a model's state is what a folder of the hub's holds: no updates of LoRA beside it."""
    return isinstance(model, PretrainedModel) and not any(
        ".adapter." in name for name, _ in model.named_parameters()
    )


def _described(model: Module) -> tuple[dict[str, Any] | None, dict[str, bytes]]:
    """Return a checkpoint's config.json, and the files beside it that make a folder of the hub's.

    Where the weights are not all that such a folder has, the config names no architecture.
    """
    if is_of_the_hub(model) and not isinstance(model.base_model, FrozenFeatures):
        files = {name: file for name, file in model.small_files().items() if file is not None}
        return json.loads(files.pop(CONFIG_FILE)), files
    config = getattr(model, "config", None)
    if isinstance(model, PretrainedModel):
        return {**model.config.to_dict(), "architectures": None}, {}
    if is_dataclass(config) and not isinstance(config, type):
        return asdict(config), {}
    return None, {}


def _own_names(
    weights: Mapping[str, npt.NDArray[Any]], model: Module
) -> Mapping[str, npt.NDArray[Any]]:
    """Return a checkpoint's weights as `_state` has them; as they are if not under hub's names."""
    if not is_of_the_hub(model):
        return weights
    state = _state(model)
    places = {name: place for name, _, place in model.hub_tensors() if name in state}
    if weights.keys() != {one for place in places.values() for one in place.names}:
        return weights
    own = {}
    for name, place in places.items():
        parts = [weights[one] for one in place.names]
        array = parts[0] if len(parts) == 1 else np.concatenate(parts)
        own[name] = array.T if place.transposed and array.ndim == 2 else array
    return own


def take(
    model: Module,
    optimizer: Optimizer,
    scheduler: LambdaLR,
    loader: DataLoader,
    more: Mapping[str, Any],
) -> Checkpoint:
    """Return a checkpoint of a training under way; `more` is added to its state."""
    saved = optimizer.state_dict()
    arrays, scalars = {}, {}
    for index, values in saved["state"].items():
        scalars[str(index)] = {n: v for n, v in values.items() if not isinstance(v, Tensor)}
        for name, value in values.items():
            if isinstance(value, Tensor):
                arrays[f"{index}.{name}"] = value.cpu().numpy()
    state = {
        **more,
        "optimizer": {"state": scalars, "param_groups": saved["param_groups"]},
        "scheduler": scheduler.state_dict(),
        "data": loader.state_dict(),
        "random": random_state(),
    }
    config, files = _described(model)
    return Checkpoint(
        weights=hub_arrays(model) if is_of_the_hub(model) else model_arrays(model),
        optimizer=arrays,
        state=state,
        config=config,
        more=files,
    )


def restore(
    path: Path,
    checkpoint: Checkpoint,
    model: Module,
    optimizer: Optimizer,
    scheduler: LambdaLR,
    loader: DataLoader,
) -> None:
    """Put a checkpoint's state back, after checking that all of it fits.

    Raises:
        CheckpointError: something does not fit; nothing was changed.
    """
    state = checkpoint.state
    try:
        check_weights(path, checkpoint.weights, model)
        optimizer_state = _optimizer_state(checkpoint, optimizer)
        scheduler_state = like(scheduler.state_dict(), state["scheduler"], "scheduler")
        loader.check_state_dict(state["data"])
        check_random_state(state["random"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        named = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(path, f"does not fit this training: {named}", _REMEDY) from error
    load_weights_into(path, checkpoint.weights, model)
    optimizer.load_state_dict(optimizer_state)
    scheduler.load_state_dict(scheduler_state)
    loader.load_state_dict(state["data"])
    set_random_state(state["random"])


def check_weights(path: Path, weights: Mapping[str, npt.NDArray[Any]], model: Module) -> None:
    """Compare names, shapes and types with the model's.

    Raises:
        CheckpointError: listing every difference.
    """
    weights, expected = _own_names(weights, model), _state(model)
    wrong = [f"missing {name}" for name in expected if name not in weights]
    wrong += [f"unexpected {name}" for name in weights if name not in expected]
    wrong += [
        f"{name} is {weights[name].dtype} {weights[name].shape}, not {own.dtype.name} {own.shape}"
        for name, own in expected.items()
        if name in weights
        and (
            weights[name].shape != own.shape or FROM_NUMPY.get(weights[name].dtype) is not own.dtype
        )
    ]
    if wrong:
        raise CheckpointError(path, f"does not fit the model: {', '.join(wrong)}", _REMEDY)


def load_weights_into(path: Path, weights: Mapping[str, npt.NDArray[Any]], model: Module) -> None:
    """Copy weights into the model.

    Raises:
        CheckpointError: they do not fit; the model is as it was.
    """
    check_weights(path, weights, model)
    own = _own_names(weights, model)
    model.load_state_dict({name: Tensor(array, as_device()) for name, array in own.items()})


def _optimizer_state(checkpoint: Checkpoint, optimizer: Optimizer) -> dict[str, Any]:
    """The argument of `optimizer.load_state_dict`, checked against the optimizer."""
    saved, own = checkpoint.state["optimizer"], optimizer.state_dict()
    params = [param for group in optimizer.param_groups for param in group["params"]]
    state: dict[int, dict[str, Any]] = {
        int(index): dict(values) for index, values in saved["state"].items()
    }
    for key, array in checkpoint.optimizer.items():
        index, _, name = key.partition(".")
        if not index.isdecimal() or int(index) not in state or int(index) >= len(params):
            raise ValueError(f"the optimizer's array {key!r} belongs to no parameter")
        param = params[int(index)]
        if array.shape != param.shape or array.dtype != param.dtype.numpy:
            raise ValueError(
                f"the optimizer's {key} is {array.dtype} {array.shape}, "
                f"its parameter {param.dtype.name} {param.shape}"
            )
        state[int(index)][name] = from_numpy(array)
    names = {frozenset(values) for values in state.values()}
    if len(names) > 1:
        raise ValueError("the optimizer's state lacks arrays for some parameters")
    groups = like(own["param_groups"], saved["param_groups"], "param_groups")
    return {"state": state, "param_groups": groups}


def like(template: Any, value: Any, where: str) -> Any:
    """Return JSON's `value` in the structure of `template` (tuples again), or raise ValueError."""
    if isinstance(template, dict):
        if not isinstance(value, dict) or set(value) != set(template):
            raise ValueError(f"{where} should have {sorted(template)}, not {value!r}")
        return {name: like(template[name], value[name], f"{where}.{name}") for name in template}
    if isinstance(template, (list, tuple)):
        if not isinstance(value, list) or len(value) != len(template):
            raise ValueError(f"{where} should be {len(template)} values, not {value!r}")
        items = [like(t, v, where) for t, v in zip(template, value, strict=True)]
        return tuple(items) if isinstance(template, tuple) else items
    numbers = (int, float)
    alike = (
        isinstance(value, numbers) and not isinstance(value, bool)
        if isinstance(template, numbers) and not isinstance(template, bool)
        else type(value) is type(template)
    )
    if not alike:
        raise ValueError(f"{where} should be like {template!r}, not {value!r}")
    return value


def random_state() -> dict[str, Any]:
    """Return the state of every generator that training may draw from, in JSON's types."""
    version, numbers, gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)
    assert isinstance(legacy, dict)
    key = legacy["state"]["key"].tolist()
    return {
        "glassformer": default_generator.get_state(),
        "python": [version, list(numbers), gauss],
        "numpy": {**legacy, "state": {**legacy["state"], "key": key}},
    }


def check_random_state(state: dict[str, Any]) -> None:
    """Raise ValueError, TypeError or KeyError unless `set_random_state` would take `state`."""
    Generator().set_state(state["glassformer"])
    random.Random().setstate(_python_state(state["python"]))
    np.random.RandomState().set_state(_numpy_state(state["numpy"]))


def set_random_state(state: dict[str, Any]) -> None:
    """Continue every generator from what `random_state` returned."""
    default_generator.set_state(state["glassformer"])
    random.setstate(_python_state(state["python"]))
    np.random.set_state(_numpy_state(state["numpy"]))


def _python_state(saved: Any) -> tuple[Any, ...]:
    version, numbers, gauss = saved
    return version, tuple(numbers), gauss


def _numpy_state(saved: dict[str, Any]) -> dict[str, Any]:
    key = np.array(saved["state"]["key"], dtype=np.uint32)
    return {**saved, "state": {**saved["state"], "key": key}}
