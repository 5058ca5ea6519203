"""Saving a model over another: weights and config.json are two files, and belong together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from glassformer.durable import drop_aside, is_aside, new_file, put_back, set_aside
from glassformer.models.config import CONFIG_FILE
from glassformer.models.safetensors_file import write_weights
from glassformer.models.safetensors_writer import Arrays


def save_model(
    folder: Path, arrays: Arrays, files: Mapping[str, bytes], max_shard_size: int | str
) -> None:
    """Write a model's weights and what is saved beside them; other files are left alone.

    A full disk leaves the old model. A kill leaves the old model, the new one or, where what stands
    beside the weights differs, possibly a folder without config.json, which nothing loads; never
    new weights with an old config. (With shards see `write_weights`.)

    Args:
        folder: is made if it doesn't exist.
        arrays: the weights, see `write_weights`.
        files: the content of the other files by their names, `CONFIG_FILE` among them.
        max_shard_size: see `write_weights`.

    Raises:
        ValueError: `max_shard_size` is no size.
        OSError: the disk is full, the folder is a file or read-only, and so on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / CONFIG_FILE
    drop_aside(config)  # of a save that was killed

    def make_way() -> None:
        if config.exists() and any(_differs(folder / name, files[name]) for name in files):
            set_aside(config)

    with ExitStack() as written:
        # They go to their places in the opposite order: the config last, for it makes all valid.
        for name in sorted(files, key=lambda name: name != CONFIG_FILE):
            file = written.enter_context(new_file(folder / name))
            file.write(files[name])
            file.flush()
            os.fsync(file.fileno())  # a full disk is told before the weights are replaced
        before = _weight_files(folder)
        try:
            write_weights(folder, arrays, {"format": "pt"}, max_shard_size, make_way)
        except BaseException:
            if is_aside(config) and _weight_files(folder) == before:
                put_back(config)
            raise
        finally:
            drop_aside(config)


def _differs(path: Path, content: bytes) -> bool:
    return not path.is_file() or path.read_bytes() != content


def _weight_files(folder: Path) -> dict[str, int]:
    """Return what tells a file from another that took its place."""
    return {path.name: path.stat().st_ino for path in folder.glob("*.safetensors*")}
