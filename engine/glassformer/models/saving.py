"""Saving a model over another: weights and config.json are two files, and belong together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path

from glassformer.durable import drop_aside, is_aside, new_file, put_back, set_aside
from glassformer.models.config import CONFIG_FILE
from glassformer.models.safetensors_file import write_weights
from glassformer.models.safetensors_writer import Arrays


def save_model(
    folder: Path, arrays: Arrays, files: Mapping[str, bytes | None], max_shard_size: int | str
) -> None:
    """Write a model's weights and what is saved beside them; other files are left alone.

    Who saves to the same folder meanwhile waits, in another process too where the system can lock.

    A full disk leaves the old model. A kill leaves the old model, the new one or, where what stands
    beside the weights differs, possibly a folder without config.json, which nothing loads; never
    new weights with an old config. (With shards see `write_weights`.)

    Args:
        folder: is made if it doesn't exist.
        arrays: the weights, see `write_weights`.
        files: the content of the other files by their names, `CONFIG_FILE` among them; None where
            an earlier model's file must not stay.
        max_shard_size: see `write_weights`.

    Raises:
        ValueError: `max_shard_size` is no size.
        OSError: the disk is full, the folder is a file or read-only, and so on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        _save(folder, arrays, files, max_shard_size)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other savers out of a folder."""
    try:
        fcntl = import_module("fcntl")
        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # not on Windows
        yield
        return
    try:
        with suppress(OSError):  # some network disks can't
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        with suppress(OSError):  # a process forked meanwhile has the descriptor, too
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _save(
    folder: Path, arrays: Arrays, files: Mapping[str, bytes | None], max_shard_size: int | str
) -> None:
    config = folder / CONFIG_FILE
    drop_aside(config)  # of a save that was killed

    def make_way() -> None:
        if config.exists() and any(_differs(folder / name, files[name]) for name in files):
            set_aside(config)

    with ExitStack() as written:
        # They go to their places in the opposite order: the config last, for it makes all valid.
        for name, content in sorted(files.items(), key=lambda item: item[0] != CONFIG_FILE):
            if content is None:
                continue
            file = written.enter_context(new_file(folder / name))
            file.write(content)
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
        for name, content in files.items():
            if content is None:
                (folder / name).unlink(missing_ok=True)


def _differs(path: Path, content: bytes | None) -> bool:
    return (path.read_bytes() if path.is_file() else None) != content


def _weight_files(folder: Path) -> dict[str, int]:
    """Return what tells a file from another that took its place."""
    return {path.name: path.stat().st_ino for path in folder.glob("*.safetensors*")}
