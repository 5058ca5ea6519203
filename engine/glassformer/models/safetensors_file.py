"""Weights on disk: safetensors files, alone or as the shards of a Hugging Face folder.

Whatever is wrong with a file, reading it raises `WeightsError` before a tensor is given out.
"""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Iterator, KeysView, Mapping
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from glassformer.models.safetensors_header import (
    DTYPES,
    Entry,
    GitLFSPointerError,
    Header,
    UnknownDTypeError,
    WeightsError,
    no_tensor,
    read_header,
    shown,
)
from glassformer.models.safetensors_writer import write_safetensors, write_weights
from glassformer.models.weight_files import GET_AGAIN, find_weight_files

__all__ = [
    "SafetensorsFile",
    "Weights",
    "WeightsError",
    "open_weights",
    "write_safetensors",
    "write_weights",
]

Array = npt.NDArray[Any]


class SafetensorsFile:
    """A safetensors file, open for reading, its whole header checked.

    Tensors' names are keys and never paths. `with` or `close` closes the file; arrays that it gave
    out stay valid.

    Args:
        path: the file.

    Attributes:
        path: the file.
        metadata: the strings that its writer put beside the tensors.

    Raises:
        WeightsError: the file cannot be read, or breaks any rule of the format.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = Lock()  # of the file's position and of the mapping
        self._map: mmap.mmap | None = None
        try:
            if self.path.exists() and not self.path.is_file():  # a pipe would block for ever
                raise ValueError("it is not a file")
            self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115 (closed by `close`)
        except FileNotFoundError as error:
            raise WeightsError.about(path, "the file is missing", "check the path") from error
        except (OSError, ValueError) as error:
            raise WeightsError.about(path, f"cannot be read ({error})", "check the path") from error
        try:
            self._header = self._checked_header()
        except BaseException:
            self._file.close()
            raise
        self.metadata = self._header.metadata

    def keys(self) -> KeysView[str]:
        """Return the tensors' names, in the order of their bytes."""
        return self._header.entries.keys()

    def __contains__(self, name: object) -> bool:
        return name in self._header.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._header.entries)

    def __len__(self) -> int:
        return len(self._header.entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        """Return the format's name of a tensor's element type, such as "F32" or "BF16"."""
        return self._entry(name).dtype

    def array(self, name: str) -> Array:
        """Return a tensor, mapped from the file: a page is read when it is first touched.

        The array may be written to; the file doesn't change. BF16 comes as `BFLOAT16_STORAGE`. A
        tensor that isn't aligned for its type is copied.
        """
        entry = self._entry(name)
        dtype = DTYPES[entry.dtype]
        if entry.start == entry.stop:
            return np.empty(entry.shape, dtype)
        count = (entry.stop - entry.start) // dtype.itemsize
        try:
            flat = np.frombuffer(self._mapped(), dtype, count, entry.start)
        except WeightsError:
            raise
        except (OSError, ValueError) as error:
            raise WeightsError.about(
                self.path, f"cannot be mapped ({error})", "has it been cut since it was opened?"
            ) from error
        aligned = entry.start % dtype.itemsize == 0
        return (flat if aligned else flat.copy()).reshape(entry.shape)

    def read_into(self, name: str, out: Array) -> None:
        """Read a tensor's bytes into an array of its type and size, with no second copy in memory.

        Args:
            name: the tensor.
            out: writable, C-contiguous, of as many elements; its shape may differ.
        """
        entry = self._entry(name)
        dtype = DTYPES[entry.dtype]
        if out.dtype != dtype or out.nbytes != entry.stop - entry.start:
            raise WeightsError.about(
                self.path,
                f"tensor {shown(name)} is {entry.dtype} of shape {entry.shape}, but the array to "
                f"read it into is {out.dtype} of shape {out.shape}",
                f"give an array of dtype {dtype} and as many elements",
            )
        if not (out.flags.c_contiguous and out.flags.writeable):
            raise WeightsError.about(
                self.path,
                f"the array to read tensor {shown(name)} into is read-only or not C-contiguous",
                "give one that np.empty made",
            )
        rest = out.reshape(-1).view(np.uint8).data
        with self._lock:
            file = self._open_file()
            try:
                file.seek(entry.start)
                while rest:
                    count = file.readinto(rest)
                    if not count:
                        raise OSError("the file was cut after it was opened")
                    rest = rest[count:]
            except OSError as error:
                problem = f"tensor {shown(name)} cannot be read ({error})"
                raise WeightsError.about(self.path, problem, GET_AGAIN) from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()
            self._map = None  # unmapped together with the last array that lies in it

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _checked_header(self) -> Header:
        try:
            return read_header(self._file, os.fstat(self._file.fileno()).st_size)
        except UnknownDTypeError as error:
            remedy = "convert the weights to one of these, or get the file again"
            raise WeightsError.about(self.path, str(error), remedy) from error
        except GitLFSPointerError as error:
            remedy = "git lfs pull, in the clone, fetches them"
            raise WeightsError.about(self.path, str(error), remedy) from error
        except (OSError, ValueError) as error:
            raise WeightsError.about(self.path, str(error), GET_AGAIN) from error

    def _entry(self, name: str) -> Entry:
        try:
            return self._header.entries[name]
        except KeyError:
            raise no_tensor(self.path, name, self._header.entries) from None

    def _open_file(self) -> io.FileIO:
        if self._file.closed:
            raise WeightsError.about(self.path, "the file is closed", "read before closing it")
        return self._file

    def _mapped(self) -> mmap.mmap:
        with self._lock:
            file = self._open_file()
            if self._map is None:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            return self._map


class Weights:
    """The tensors of a checkpoint of one file or several, read as those of a `SafetensorsFile`.

    Args:
        path: what was opened, for messages.
        files: the file of each tensor.
        opened: closes the files.
    """

    def __init__(self, path: Path, files: Mapping[str, SafetensorsFile], opened: ExitStack) -> None:
        self.path = path
        self._files = files
        self._opened = opened

    def keys(self) -> KeysView[str]:
        """Return the tensors' names, file by file, in the order of their bytes."""
        return self._files.keys()

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._file(name).shape(name)

    def dtype(self, name: str) -> str:
        """Return the format's name of a tensor's element type, such as "F32" or "BF16"."""
        return self._file(name).dtype(name)

    def array(self, name: str) -> Array:
        """Return a tensor, mapped from its file; see `SafetensorsFile.array`."""
        return self._file(name).array(name)

    def read_into(self, name: str, out: Array) -> None:
        """Read a tensor's bytes into an array; see `SafetensorsFile.read_into`."""
        self._file(name).read_into(name, out)

    def close(self) -> None:
        """Close the files; arrays that they gave out stay valid."""
        self._opened.close()

    def __enter__(self) -> Weights:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _file(self, name: str) -> SafetensorsFile:
        try:
            return self._files[name]
        except KeyError:
            raise no_tensor(self.path, name, self._files) from None


def open_weights(path: str | os.PathLike[str]) -> Weights:
    """Open the weights of a checkpoint and check the headers of all its files.

    A folder holds `model.safetensors`, or `model.safetensors.index.json` and the shards that it
    names. What a shard holds beyond the index is given too, as transformers does: whoever loads
    the weights knows which names are unexpected.

    Args:
        path: the folder, one safetensors file, or an index.

    Raises:
        WeightsError: no weights are there, they are of a format that can run code or isn't read,
            a file is damaged, or index and shards don't agree.
    """
    path = Path(path)
    found = find_weight_files(path)
    files: dict[str, SafetensorsFile] = {}
    with ExitStack() as opened:
        for part in found.paths:
            file = opened.enter_context(SafetensorsFile(part))
            for name in file:
                if name in files:
                    both = f"{files[name].path.name} and in {part.name}"
                    raise WeightsError.about(path, f"tensor {shown(name)} is in {both}", GET_AGAIN)
                files[name] = file
        lacking = [n for n, part in found.named.items() if n not in files or files[n].path != part]
        if lacking:
            first = f"{shown(lacking[0])} from {found.named[lacking[0]].name}"
            raise WeightsError.about(
                path, f"{len(lacking)} tensors are not where the index says: {first}", GET_AGAIN
            )
        return Weights(path, files, opened.pop_all())
