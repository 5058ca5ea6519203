"""The dense layers that some sentence-transformers put behind the pooling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glassformer.backends.numpy_backend import astype
from glassformer.dtypes import float32
from glassformer.models.config import ConfigError, read_json_object
from glassformer.models.safetensors_file import Weights, WeightsError, open_weights
from glassformer.models.safetensors_header import shown
from glassformer.models.settings import check_type
from glassformer.models.weight_files import SINGLE
from glassformer.nn import functional as F
from glassformer.ops.elementwise import sigmoid, tanh
from glassformer.pipelines.base import Array
from glassformer.tensor import Tensor, tensor

# A file names a class of PyTorch's. It is looked up here, never imported.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.nn.modules.activation.GELU": F.gelu,
    "torch.nn.modules.activation.ReLU": F.relu,
    "torch.nn.modules.activation.SiLU": F.silu,
    "torch.nn.modules.activation.Sigmoid": sigmoid,
    "torch.nn.modules.activation.Tanh": tanh,
    "torch.nn.modules.linear.Identity": lambda x: x,
}
_TYPES = {"in_features": int, "out_features": int, "bias": bool, "activation_function": str}
_USUAL = {"bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
_ONLY: dict[str, tuple[Any, ...]] = {  # what a config may say of other things
    "module_input_name": ("sentence_embedding",),
    "module_output_name": ("sentence_embedding", None),
    "use_residual": (False,),
}


@dataclass(frozen=True)
class Dense:
    """activation(x Wᵀ + b), of vectors (N, in) -> (N, out).

    Args:
        weight: (out, in).
        bias: (out,), if there is one.
        activation: a name in `ACTIVATIONS`.
    """

    weight: Tensor
    bias: Tensor | None
    activation: str

    @property
    def out_features(self) -> int:
        """The width of what comes out."""
        return self.weight.shape[0]

    def __call__(self, vectors: Array) -> Array:
        """Transform vectors (N, in).

        Raises:
            ValueError: they have another width.
        """
        if vectors.shape[1] != self.weight.shape[1]:
            raise ValueError(
                f"a dense layer takes vectors of {self.weight.shape[1]} channels, but pooling (or "
                f"the layer before) makes {vectors.shape[1]}"
            )
        x = F.linear(tensor(vectors, dtype=self.weight.dtype), self.weight, self.bias)
        found: Array = ACTIVATIONS[self.activation](x).numpy()
        return found


def read_dense(folder: Path) -> Dense:
    """Read a layer from the folder of a sentence-transformers module: config.json and weights.

    Raises:
        ConfigError: the config lacks a setting, or one is wrong or not supported.
        WeightsError: a file is missing or damaged, or the weights aren't those of the config.
    """
    path = folder / "config.json"
    settings = {**_USUAL, **read_json_object(path)}
    try:
        _check(settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not (folder / SINGLE).exists():
        raise WeightsError(
            f"{folder} has no {SINGLE}, and pickles are never read; where you trust the folder, "
            "SentenceTransformer(folder).save_pretrained(folder) of sentence-transformers writes it"
        )
    out_features = settings["out_features"]
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (out_features, settings["in_features"])}
    if settings["bias"]:
        shapes["linear.bias"] = (out_features,)
    with open_weights(folder / SINGLE) as weights:
        _check_shapes(weights, shapes)
        weight, *bias = (
            tensor(np.array(astype(weights.array(name), float32)), dtype=float32) for name in shapes
        )
    return Dense(weight, bias[0] if bias else None, settings["activation_function"])


def _check(settings: Mapping[str, Any]) -> None:
    for name, kind in _TYPES.items():
        if name not in settings:
            raise ValueError(f"it says no {name}")
        check_type(name, settings[name], kind)
    for name, supported in _ONLY.items():
        if settings.get(name, supported[0]) not in supported:
            raise ValueError(
                f"{name}={shown(settings[name])} is not supported, only {supported[0]!r} is"
            )
    if settings["activation_function"] not in ACTIVATIONS:
        raise ValueError(
            f"activation_function {shown(settings['activation_function'])} is none of "
            f"{', '.join(ACTIVATIONS)}"
        )


def _check_shapes(weights: Weights, expected: Mapping[str, tuple[int, ...]]) -> None:
    found = {name: weights.shape(name) for name in weights}
    if found != expected:
        raise WeightsError(
            f"{weights.path} holds {_listed(found)}, but its config.json asks for "
            f"{_listed(expected)}; get both again"
        )


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    few = [f"{shown(name)} {shape}" for name, shape in sorted(shapes.items())[:4]]
    return ", ".join(few) or "nothing"
