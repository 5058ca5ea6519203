"""Writing safetensors: one file, or a folder's weights in shards as Hugging Face's are.

A file is replaced only once its successor is whole on the disk.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import TensorSpec, serialize

from glassformer.durable import new_file, write_file
from glassformer.models.safetensors_header import DTYPES, METADATA, WeightsError, check_text, shown
from glassformer.models.weight_files import INDEX, SINGLE

Arrays = Mapping[str, npt.NDArray[Any]]

# The library's own names of element types are NumPy's, and "bfloat16".
_NAMES = {dtype: (dtype.names or (dtype.name,))[0] for dtype in DTYPES.values()}
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def write_safetensors(
    path: str | os.PathLike[str], arrays: Arrays, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file; at any instant the path holds the old content or the new.

    Args:
        path: the file.
        arrays: the tensors by name, of any strides; bfloat16 as `BFLOAT16_STORAGE`.
        metadata: strings to keep beside them. With two or more, equal content need not give equal
            files: the library writes them in a random order.

    Raises:
        WeightsError: a name or type that the format doesn't have.
        OSError: the disk is full, the folder missing, and so on.
    """
    write_file(Path(path), _content(path, arrays, metadata))


def _content(
    path: str | os.PathLike[str], arrays: Arrays, metadata: Mapping[str, str] | None
) -> bytes:
    try:
        return safetensors_bytes(arrays, metadata)
    except ValueError as error:
        raise WeightsError.about(path, str(error), "nothing was written") from error


def safetensors_bytes(arrays: Arrays, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the content of a safetensors file; for the arguments see `write_safetensors`.

    Raises:
        ValueError: a name or type that the format doesn't have.
    """
    for name in arrays:
        if name == METADATA:
            raise ValueError(f"no tensor can have the name {METADATA}: the format uses it")
        check_text(name, "the tensor name")
    for text in (*(metadata or {}).keys(), *(metadata or {}).values()):
        check_text(text, "the metadata")
    stored = {name: _as_stored(name, array) for name, array in arrays.items()}
    specs = {
        name: TensorSpec(
            dtype=_NAMES[array.dtype],
            shape=array.shape,
            data_ptr=array.ctypes.data,
            data_len=array.nbytes,
        )
        for name, array in stored.items()
    }
    return bytes(serialize(specs, dict(metadata) if metadata else None))


def write_weights(
    folder: str | os.PathLike[str],
    arrays: Arrays,
    metadata: Mapping[str, str] | None = None,
    max_shard_size: int | str = "5GB",
    before_replacing: Callable[[], None] = lambda: None,
) -> None:
    """Write a folder's weights: `model.safetensors`, or shards and their index where it is too big.

    Weights that the folder had before are replaced or removed, and other files left alone. A full
    disk leaves the old ones. A kill leaves the old weights, the new, or, where shards take the
    place of shards, possibly a folder that `open_weights` refuses; never a mixture. (To have the
    old or the new always, write into `durable.new_folder`.)

    Args:
        folder: must exist.
        arrays: see `write_safetensors`.
        metadata: see `write_safetensors`; transformers expects {"format": "pt"}.
        max_shard_size: in bytes, or such as "500MB" or "5GB" (powers of 1000). A tensor that is
            larger has a shard of its own.
        before_replacing: called when the new files are on the disk, whole, and the old ones still
            in their places.

    Raises:
        WeightsError: a name or type that the format doesn't have.
        ValueError: max_shard_size is no size.
        OSError: the disk is full, the folder missing, and so on.
    """
    folder = Path(folder)
    shards = _split(arrays, _parse_size(max_shard_size))
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [SINGLE]  # is read before any index
    with ExitStack() as written:
        for name, shard in zip(names, shards, strict=True):
            file = written.enter_context(new_file(folder / name))
            file.write(_content(folder / name, shard, metadata))
            file.flush()
            os.fsync(file.fileno())  # a full disk is told here: all the old ones are still in place
        before_replacing()
        if len(shards) > 1:
            (folder / INDEX).unlink(missing_ok=True)  # it must not name files of which some are new
    if len(shards) == 1:
        (folder / INDEX).unlink(missing_ok=True)
        _remove_shards(folder, keep=set())
        return
    index = {
        "metadata": {
            "total_parameters": sum(array.size for array in arrays.values()),
            "total_size": sum(array.nbytes for array in arrays.values()),
        },
        "weight_map": {
            key: name for name, shard in zip(names, shards, strict=True) for key in shard
        },
    }
    write_file(folder / INDEX, (json.dumps(index, indent=2, sort_keys=True) + "\n").encode())
    (folder / SINGLE).unlink(missing_ok=True)
    _remove_shards(folder, keep=set(names))


def _as_stored(name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    dtype = array.dtype.newbyteorder("<")
    if dtype not in _NAMES:
        raise ValueError(
            f"tensor {shown(name)} has dtype {array.dtype}; "
            f"expected one of {', '.join(_NAMES.values())}"
        )
    return np.asarray(array, dtype, order="C")


def _parse_size(size: int | str) -> int:
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]B)\s*", size, re.ASCII | re.IGNORECASE)
        value = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    else:
        value = size
    if value < 1:
        raise ValueError(
            f'max_shard_size is {size!r}; expected a number of bytes above 0, or such as "500MB" '
            'or "5GB"'
        )
    return value


def _split(arrays: Arrays, limit: int) -> list[dict[str, npt.NDArray[Any]]]:
    """Fill shard after shard up to the limit, in the order of the tensors, as transformers does."""
    shards: list[dict[str, npt.NDArray[Any]]] = []
    current: dict[str, npt.NDArray[Any]] = {}
    size = 0
    for name, array in arrays.items():
        if array.nbytes > limit:
            shards.append({name: array})
            continue
        if size + array.nbytes > limit:
            shards.append(current)
            current, size = {}, 0
        current[name] = array
        size += array.nbytes
    return [*shards, current] if current or not shards else shards


def _remove_shards(folder: Path, keep: set[str]) -> None:
    for path in folder.iterdir():
        if path.name not in keep and _SHARD.fullmatch(path.name):
            path.unlink()
