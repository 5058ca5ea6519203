"""What the folder of a sentence-transformers model says: which modules, and how they are set."""

from __future__ import annotations

from json import loads
from pathlib import Path
from typing import Any

from glassformer.models.config import ConfigError, read_json_object
from glassformer.models.safetensors_file import WeightsError
from glassformer.models.safetensors_header import shown
from glassformer.models.settings import check_type
from glassformer.pipelines.sentence_dense import Dense, read_dense
from glassformer.pipelines.sentence_embedding import POOLINGS

_FLAGS = {  # of older files
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def folder_settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return where the model of a sentence-transformers folder is, and its settings.

    A folder without `modules.json` is the model itself, with mean pooling.

    Raises:
        WeightsError: a file is damaged, or asks for what isn't supported.
    """
    found: dict[str, Any] = {}
    dense: list[Dense] = []
    model = folder
    for kind, path in _modules(folder):
        if kind == "Transformer":
            model = path
        elif kind == "Pooling":
            found["pooling"] = _pooling_of(path / "config.json")
        elif kind == "Dense":
            if "pooling" not in found or "normalize" in found:
                raise WeightsError(
                    f"{folder / 'modules.json'} has a Dense that is not between Pooling and "
                    "Normalize; that is not supported"
                )
            dense.append(read_dense(path))
            found["dense"] = tuple(dense)
        elif kind == "Normalize":
            found["normalize"] = True
        else:
            raise WeightsError(
                f"{folder / 'modules.json'} has a module {kind!r}; supported are Transformer, "
                "Pooling, Dense and Normalize"
            )
    limits = model / "sentence_bert_config.json"
    if limits.is_file():
        said = read_json_object(limits)
        found["max_length"] = said.get("max_seq_length")
        found["do_lower_case"] = bool(said.get("do_lower_case"))
    return model, found


def _pooling_of(path: Path) -> tuple[str, ...]:
    """Return the ways of pooling, from `pooling_mode` or the older flags, in the files' order."""
    said = read_json_object(path)
    asked = said.get("pooling_mode")
    if asked is None:
        flags = {name: value for name, value in said.items() if name.startswith("pooling_mode_")}
        try:
            for name, value in flags.items():
                check_type(name, value, bool)
        except TypeError as error:
            raise ConfigError(f"{path}: {error}") from error
        unknown = [name for name, value in flags.items() if value and name not in _FLAGS]
        if unknown:
            raise WeightsError(
                f"{path} asks for {', '.join(sorted(unknown))}; supported are {', '.join(_FLAGS)}"
            )
        return tuple(way for name, way in _FLAGS.items() if flags.get(name)) or ("mean",)
    ways = asked if isinstance(asked, list) else [asked]
    if not ways or any(way not in POOLINGS for way in ways):
        raise WeightsError(
            f"{path} has pooling_mode {shown(asked)}; supported are {', '.join(POOLINGS)}, or a "
            "list of these"
        )
    return tuple(ways)


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Return the kind and folder of each step in `modules.json`, in order; none without it."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    try:
        listed = loads(path.read_bytes())
        return [(one["type"].rpartition(".")[2], folder / one["path"]) for one in listed]
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path}: not a list of modules ({type(error).__name__}: {error}); get the file again"
        ) from error
