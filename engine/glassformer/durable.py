"""Files and folders that appear whole or not at all, whatever stops the process or fills the disk.

New content is written beside its place under a hidden name, flushed to the disk, and renamed into
place; what was there before stays until then. Whoever starts next calls `clean_leftovers`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_SAVING = ".gf-saving"  # being written
_REPLACED = ".gf-replaced"  # the predecessor of a folder that is just being renamed into place
_DELETING = ".gf-deleting"  # no longer wanted
_CHUNK = 16 << 20


def write_new_file(path: Path, data: bytes | memoryview) -> None:
    """Write a file that does not exist yet, and wait until the disk has it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest[:_CHUNK]) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes) -> None:
    """Write a file, or replace it: at any instant the path holds the old content or the new."""
    temporary = _hidden(path, _SAVING)
    _discard(temporary)
    try:
        write_new_file(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        _discard(temporary)
        raise
    _sync_folder(path.parent)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write; afterwards it is at `path`, whole. If the body raises, nothing changed.

    For what is too large to be held in memory for `write_file`.
    """
    temporary = _hidden(path, _SAVING)
    _discard(temporary)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        _discard(temporary)
        raise
    _sync_folder(path.parent)


def was_cut_short(path: Path) -> bool:
    """Whether a process was killed while it wrote the file `path`."""
    return _hidden(path, _SAVING).exists()


def set_aside(path: Path) -> None:
    """Take a file from its place, until `put_back` or `drop_aside`."""
    os.replace(path, _hidden(path, _DELETING))
    _sync_folder(path.parent)


def is_aside(path: Path) -> bool:
    """Whether `set_aside` took this file away."""
    return _hidden(path, _DELETING).exists()


def put_back(path: Path) -> None:
    """Undo `set_aside`."""
    os.replace(_hidden(path, _DELETING), path)
    _sync_folder(path.parent)


def drop_aside(path: Path) -> None:
    """Delete what `set_aside` took away, if anything."""
    _discard(_hidden(path, _DELETING))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder to fill with `write_new_file`; afterwards it is at `path`, whole.

    A folder that was at `path` stays until the new one is complete. If the body raises, nothing
    has changed.
    """
    temporary = _hidden(path, _SAVING)
    _discard(temporary)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkdir(temporary)
    try:
        yield temporary
        _sync_folder(temporary)
        _put_in_place(temporary, path)
    except BaseException:
        _discard(temporary)
        raise


def _put_in_place(temporary: Path, path: Path) -> None:
    replaced = _hidden(path, _REPLACED)
    if path.exists():  # a folder cannot be renamed over another: between the two renames,
        _discard(replaced)  # a kill leaves the old one whole for clean_leftovers to bring back
        os.rename(path, replaced)
    try:
        os.rename(temporary, path)
    except OSError:
        if replaced.exists():
            os.rename(replaced, path)
        raise
    _sync_folder(path.parent)
    _discard(replaced)


def remove_folder(path: Path) -> None:
    """Delete a folder so that a half-deleted one is never seen under its name."""
    doomed = _hidden(path, _DELETING)
    _discard(doomed)
    os.rename(path, doomed)
    _discard(doomed)


def clean_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written in `folder`, restore what it moved away."""
    if not folder.is_dir():
        return
    for entry in list(folder.iterdir()):
        if not entry.name.startswith("."):
            continue
        if entry.name.endswith(_REPLACED):
            original = entry.with_name(entry.name[1 : -len(_REPLACED)])
            if not original.exists():
                os.rename(entry, original)
                continue
        if entry.name.endswith((_SAVING, _DELETING, _REPLACED)):
            _discard(entry)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, to tell whether it is what it was."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def _hidden(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}{suffix}")


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync_folder(path: Path) -> None:
    """Wait until the disk has the folder's names (Windows has no such call and needs none)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
