"""Checkpoints: weights and optimizer state as safetensors, the rest as JSON, never half-written.

A folder `checkpoint-N` holds `model.safetensors`, `optimizer.safetensors`, `config.json` (when the
model has a config) and `trainer_state.json`, each of them but the config with a checksum of its
content. Whatever is wrong with one, reading it raises `CheckpointError`. Beside them may be what
resuming doesn't need but `from_pretrained` does, such as the tokenizer's files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glassformer.durable import new_folder, remove_folder, write_file, write_new_file
from glassformer.models.safetensors_file import SafetensorsFile
from glassformer.models.safetensors_header import DTYPES, WeightsError, parse_json
from glassformer.models.safetensors_writer import safetensors_bytes

Arrays = Mapping[str, npt.NDArray[Any]]

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "trainer_state.json"
CONFIG_FILE = "config.json"
FORMAT = 1

_NAME = re.compile(r"checkpoint-(\d+)")


class CheckpointError(Exception):
    """A checkpoint cannot be read, written or used; the message says which, why, and what to do."""

    def __init__(self, path: str | os.PathLike[str], problem: str, remedy: str) -> None:
        super().__init__(f"{path}: {problem}; {remedy}")
        self.path = Path(path)


@dataclass
class Checkpoint:
    """What a checkpoint holds, as arrays and JSON's types.

    Attributes:
        weights: the model's state, by name.
        optimizer: the optimizer's arrays, named "index of the parameter.name".
        state: everything else that resuming needs.
        config: the model's config, for whoever reads the weights.
        more: other files for them, by name; not read again.
    """

    weights: Arrays
    optimizer: Arrays = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    more: Mapping[str, bytes] = field(default_factory=dict)


def save_checkpoint(
    path: str | os.PathLike[str], checkpoint: Checkpoint, processing_class: Any = None
) -> None:
    """Write a checkpoint folder: at any instant `path` is what it was before, or all new.

    Args:
        path: the folder.
        checkpoint: what it holds.
        processing_class: a tokenizer or image processor, whose files go there as well.

    Raises:
        CheckpointError: the folder cannot be written (disk full, no permission, ...).
    """
    path = Path(path)
    try:
        with new_folder(path) as folder:
            write_new_file(folder / MODEL_FILE, weights_bytes(checkpoint.weights))
            write_new_file(folder / OPTIMIZER_FILE, weights_bytes(checkpoint.optimizer))
            write_new_file(folder / STATE_FILE, _sealed(checkpoint.state))
            if checkpoint.config is not None:
                write_new_file(folder / CONFIG_FILE, json_bytes(checkpoint.config))
            for name, content in checkpoint.more.items():
                write_new_file(folder / name, content)
            if processing_class is not None:
                processing_class.save_pretrained(folder)
    except OSError as error:
        raise CheckpointError(
            path,
            f"cannot save the checkpoint: {error.strerror or error}",
            "free space or choose another output folder, and resume from the previous checkpoint",
        ) from error


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint folder and check all of it.

    Raises:
        CheckpointError: a file is missing, cut off, altered or not what it should be.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(path, "no such checkpoint folder", "check the path")
    config = path / CONFIG_FILE
    return Checkpoint(
        weights=load_weights(path / MODEL_FILE),
        optimizer=load_weights(path / OPTIMIZER_FILE),
        state=_unsealed(path / STATE_FILE),
        config=read_json(config) if config.exists() else None,
    )


def list_checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the checkpoint folders in `folder`, in the order of their steps."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    found = [(int(m[1]), p) for p in folder.iterdir() if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found) if path.is_dir()]


def remove_old_checkpoints(
    folder: str | os.PathLike[str], limit: int | None, keep: set[Path]
) -> None:
    """Delete the oldest checkpoints until `limit` are left, sparing those in `keep`."""
    if limit is None:
        return
    checkpoints = list_checkpoints(folder)
    surplus = len(checkpoints) - limit
    for path in [path for path in checkpoints if path not in keep][: max(0, surplus)]:
        remove_folder(path)


def save_weights(path: str | os.PathLike[str], weights: Arrays) -> None:
    """Write one safetensors file, old or new content whole at any instant.

    Raises:
        CheckpointError: the file cannot be written.
    """
    try:
        write_file(Path(path), weights_bytes(weights))
    except OSError as error:
        raise CheckpointError(
            path, f"cannot write the file: {error.strerror or error}", "free space or change folder"
        ) from error


def load_weights(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[Any]]:
    """Read one safetensors file, and check its content against its checksum if it has one.

    Raises:
        CheckpointError: the file is missing, cut off, altered or no safetensors file.
    """
    if not Path(path).exists():
        raise CheckpointError(path, "the file is missing", _REMEDY)
    weights: dict[str, npt.NDArray[Any]] = {}
    try:
        with SafetensorsFile(path) as file:
            expected = file.metadata.get("sha256")
            for name in file:
                weights[name] = np.empty(file.shape(name), DTYPES[file.dtype(name)])
                file.read_into(name, weights[name])
    except WeightsError as error:
        problem = f"not a whole safetensors file ({error.problem})"
        raise CheckpointError(path, problem, _REMEDY) from error
    if expected is not None and expected != _digest(weights):
        raise CheckpointError(path, "the content does not match its checksum", _REMEDY)
    return weights


_REMEDY = "restore it from a copy, or delete its checkpoint folder to go on from an earlier one"


def weights_bytes(weights: Arrays) -> bytes:
    """Return arrays in the safetensors format, with a checksum of names, types and values."""
    arrays = {name: np.asarray(array, order="C") for name, array in weights.items()}
    # One key only: the library writes several in random order, and equal weights are equal files.
    return safetensors_bytes(arrays, {"sha256": _digest(arrays)})


def _digest(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def json_bytes(value: Any) -> bytes:
    """Return JSON that any reader takes: ASCII, no NaN."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is missing or anything but one JSON object without repeated keys.
    """
    try:
        value = parse_json(Path(path).read_bytes().decode())
    except FileNotFoundError as error:
        raise CheckpointError(path, "the file is missing", _REMEDY) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(path, f"not valid JSON ({error})", _REMEDY) from error
    if not isinstance(value, dict):
        raise CheckpointError(path, "not a JSON object", _REMEDY)
    return value


def _sealed(state: dict[str, Any]) -> bytes:
    content = {"format": FORMAT, **state}
    return json_bytes({**content, "sha256": _json_digest(content)})


def _unsealed(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if content.pop("sha256", None) != _json_digest(content):
        raise CheckpointError(path, "the content does not match its checksum", _REMEDY)
    if content.pop("format", None) != FORMAT:
        raise CheckpointError(
            path, f"written in another format than {FORMAT}", "use the version that wrote it"
        )
    return content


def _json_digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
