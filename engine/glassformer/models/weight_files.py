"""Which files of a folder hold the weights: one file, or shards that an index names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from glassformer.models.safetensors_header import MAX_HEADER, WeightsError, parse_json, shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
GET_AGAIN = "it is damaged or not what its name says: get it again"

_PICKLES = (".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_TENSORFLOW = (".h5", ".ckpt.index", ".ckpt.meta", ".ckpt.data-00000-of-00001")
_FLAX = (".msgpack", ".msgpack.index.json")
_SAVE = "save_pretrained(folder, safe_serialization=True)"


class WeightFiles(NamedTuple):
    """The files to read, and for the tensors that an index names, the file of each."""

    paths: list[Path]
    named: dict[str, Path]


def find_weight_files(path: Path) -> WeightFiles:
    """Find the weights at `path`: a folder as Hugging Face's, a safetensors file, or an index.

    Raises:
        WeightsError: there are none, they are of a format that is not read, or the index is wrong.
    """
    if path.is_dir():
        if (path / SINGLE).exists():  # before an index, as transformers does
            return WeightFiles([path / SINGLE], {})
        if (path / INDEX).exists():
            return _read_index(path / INDEX)
        raise _nothing_readable(path)
    if not path.exists():
        raise WeightsError.about(path, "no such file or folder", "check the path")
    if path.name.endswith(".safetensors.index.json"):
        return _read_index(path)
    if remedy := _conversion([path.name]):
        raise WeightsError.about(path, "not a safetensors file", remedy)
    return WeightFiles([path], {})


def _read_index(path: Path) -> WeightFiles:
    try:
        if not path.is_file():  # a pipe would block for ever
            raise ValueError("it is not a file")
        if path.stat().st_size > MAX_HEADER:
            raise ValueError(f"it is larger than {MAX_HEADER} bytes")
        content = parse_json(path.read_bytes().decode())
        weight_map = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError("it has no weight_map from the tensors' names to their files")
        shards = {name: _shard(path.parent, name) for name in _distinct(weight_map)}
    except OSError as error:
        raise WeightsError.about(path, error.strerror or str(error), "check the file") from error
    except ValueError as error:
        raise WeightsError.about(path, str(error), GET_AGAIN) from error
    missing = sorted(name for name, shard in shards.items() if not shard.is_file())
    if missing:
        raise WeightsError.about(
            path, f"of its {len(shards)} shards these are missing: {', '.join(missing)}", GET_AGAIN
        )
    named = {name: shards[shard] for name, shard in weight_map.items()}
    return WeightFiles([shards[name] for name in sorted(shards)], named)


def _distinct(weight_map: dict[str, object]) -> list[str]:
    wrong = next((name for name in weight_map.values() if not isinstance(name, str)), None)
    if wrong is not None or None in weight_map.values():
        raise ValueError(f"its weight_map names the file {shown(wrong)}, which is not a string")
    return sorted({name for name in weight_map.values() if isinstance(name, str)})


def _shard(folder: Path, name: str) -> Path:
    """Return the path of a shard; its name, a stranger's, must not lead out of the folder."""
    if not name.endswith(".safetensors") or any(mark in name for mark in "/\\:\0"):
        raise ValueError(
            f"its weight_map names the file {shown(name)}; expected the plain name of a "
            ".safetensors file in the same folder"
        )
    target, inside = (folder / name).resolve(), folder.resolve()
    # The hub's cache keeps files as snapshots/<revision>/<name> -> ../../blobs/<hash>.
    in_cache = inside.parent.name == "snapshots" and target.parent == inside.parents[1] / "blobs"
    if target.parent != inside and not in_cache:
        raise ValueError(f"the shard {shown(name)} is a link out of the folder, to {target}")
    return folder / name


def _nothing_readable(folder: Path) -> WeightsError:
    names = sorted(os.listdir(folder))
    few = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return WeightsError.about(
        folder,
        f"has neither {SINGLE} nor {INDEX}; it holds {few or 'nothing'}",
        _conversion(names) or "check the path, or give the .safetensors file itself",
    )


def _conversion(names: list[str]) -> str:
    """Return what to do about weights in formats that are not read; "" if there are none."""
    if pickles := [name for name in names if name.endswith(_PICKLES)]:
        return (
            f"{pickles[0]} is a pickle, which can run any code when it is loaded, and is never "
            "read; where you trust it, convert it with transformers: "
            f"AutoModel.from_pretrained(folder).{_SAVE}"
        )
    for kind, flag, endings in (("TensorFlow", "tf", _TENSORFLOW), ("Flax", "flax", _FLAX)):
        if found := [name for name in names if name.endswith(endings)]:
            return (
                f"{found[0]} holds {kind} weights, which are not read; convert them with "
                f"transformers 4: AutoModel.from_pretrained(folder, from_{flag}=True).{_SAVE}"
            )
    return ""
