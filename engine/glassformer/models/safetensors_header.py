"""The header of a safetensors file: JSON from a stranger, of which nothing is believed unchecked.

The format (https://github.com/huggingface/safetensors): eight bytes that hold the header's length,
the header, then the tensors' bytes, one after the other, to the end of the file.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from glassformer.dtypes import BFLOAT16_STORAGE

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16_STORAGE,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}

METADATA = "__metadata__"
FIELDS = {"dtype", "shape", "data_offsets"}
MAX_HEADER = 100_000_000  # the format's bound
MAX_DIMS = 64  # NumPy's
MAX_BYTES = 2**63 - 1  # NumPy's too, and it holds for an empty array with its zeros left out
MAX_DIGITS = 20  # 2⁶⁴ has 20; Python's int would take thousands, in quadratic time


class WeightsError(ValueError):
    """Weights cannot be read or written; the message says which file, why, and what to do.

    Attributes:
        problem: the message's middle part, for whoever knows a better remedy.
    """

    def __init__(self, message: str, problem: str | None = None) -> None:
        super().__init__(message)
        self.problem = message if problem is None else problem

    @classmethod
    def about(cls, path: str | os.PathLike[str], problem: str, remedy: str) -> WeightsError:
        """Return the error with its message put together."""
        return cls(f"{os.fspath(path)}: {problem}; {remedy}", problem)


class UnknownDTypeError(ValueError):
    """The file may be sound, but NumPy has no such element type (or no format has)."""


class GitLFSPointerError(ValueError):
    """The file stands for another one: a clone without Git LFS leaves a few lines of text."""


class Entry(NamedTuple):
    """A tensor of a file: its type, its shape, and where in the file its bytes start and stop."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Header(NamedTuple):
    """What a file says of itself: its tensors in the order of their bytes."""

    metadata: dict[str, str]
    entries: dict[str, Entry]


def read_header(file: BinaryIO, size: int) -> Header:
    """Read and check the header of a file of `size` bytes.

    Raises:
        ValueError: the file breaks a rule of the format; the message names the rule alone.
    """
    if size < 8:
        raise ValueError(f"it has {size} bytes, too few for a safetensors file")
    start = file.read(8)
    if start == b"version ":  # as a length it would be far beyond what the format allows
        raise GitLFSPointerError("a Git LFS pointer, not the weights")
    length = int.from_bytes(start, "little")
    if length > MAX_HEADER:
        raise ValueError(f"its header claims {length} bytes; the format allows {MAX_HEADER}")
    if length > size - 8:
        raise ValueError(f"its header claims {length} bytes, but only {size - 8} follow: it is cut")
    text = file.read(length).decode()
    if not text.startswith("{"):  # neither a BOM nor white space may come first
        raise ValueError(f"its header starts with {text[:1]!r} in place of '{{'")
    try:
        content = parse_json(text, _integer)
    except ValueError as error:
        raise ValueError(f"its header is not valid JSON ({error})") from None
    metadata = _metadata(content.pop(METADATA, {}))
    data = 8 + length
    entries = {name: _entry(name, described, data) for name, described in content.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    _check_cover(ordered, data, size)
    return Header(metadata, ordered)


def parse_json(text: str, parse_int: Callable[[str], float] = int) -> Any:
    """Return the value of JSON in which no key appears twice and every number is one.

    Args:
        text: the JSON.
        parse_int: makes a number of digits.

    Raises:
        ValueError: the text is no such JSON, or nested more deeply than Python's stack.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=parse_int,
            parse_float=_finite,
            parse_constant=_no_constant,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check_text(text: str, what: str) -> None:
    """Raise ValueError for a string that no file can hold: half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} {shown(text)} is not valid Unicode") from None


def shown(value: object) -> str:
    """Return a value as an error message shows it: whatever its size, in a line."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 100
    return short.repr(value)


def no_tensor(path: str | os.PathLike[str], name: str, names: Iterable[str]) -> WeightsError:
    """Return the error for a name that isn't among `names`; it shows those that come closest."""
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    remedy = (
        f"did you mean {' or '.join(map(shown, near))}?" if near else "see keys() for its names"
    )
    return WeightsError.about(path, f"there is no tensor {shown(name)}", remedy)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # Python would keep the last of them, another reader the first
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"a key appears twice: {shown(twice)}")
    return found


def _integer(digits: str) -> int | float:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"the number {digits[:MAX_DIGITS]}... is too large")
    return -0.0 if digits == "-0" else int(digits)  # other readers take -0 for a float


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {digits[:MAX_DIGITS]} is too large")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError(f"{METADATA} must be an object of strings, not {shown(value)}")
    for key, text in value.items():
        check_text(key, "the metadata key")
        check_text(text, "the metadata value")
    return value


def _entry(name: str, value: Any, data: int) -> Entry:
    check_text(name, "the tensor name")
    if not isinstance(value, dict) or value.keys() != FIELDS:
        raise ValueError(
            f"tensor {shown(name)} is described by {shown(value)}; expected an object of "
            "dtype, shape and data_offsets"
        )
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UnknownDTypeError(
            f"tensor {shown(name)} has dtype {shown(dtype)}; known are {', '.join(DTYPES)}"
        )
    if not _is_sizes(shape):
        raise ValueError(
            f"tensor {shown(name)} has shape {shown(shape)}; expected a list of sizes, 0 or more"
        )
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(
            f"tensor {shown(name)} has data_offsets {shown(offsets)}; expected [start, end]"
        )
    start, end = offsets
    expected = _count_bytes(name, shape, DTYPES[dtype].itemsize)
    if end - start != expected:
        raise ValueError(
            f"tensor {shown(name)} has {end - start} bytes at data_offsets {offsets}; "
            f"{dtype} of shape {shown(shape)} takes {expected}"
        )
    return Entry(dtype, tuple(shape), data + start, data + end)


def _is_sizes(value: Any) -> bool:
    # `type`, for True is an int to isinstance
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _count_bytes(name: str, shape: list[int], itemsize: int) -> int:
    if len(shape) > MAX_DIMS:
        raise ValueError(
            f"tensor {shown(name)} has {len(shape)} dimensions; NumPy has at most {MAX_DIMS}"
        )
    extent = itemsize
    for size in shape:  # at each step, so that a list of huge sizes is not multiplied out
        extent *= max(size, 1)
        if extent > MAX_BYTES:
            raise ValueError(
                f"tensor {shown(name)} of shape {shown(shape)} is too large for any file"
            )
    return 0 if 0 in shape else extent


def _check_cover(entries: Mapping[str, Entry], data: int, size: int) -> None:
    end = data
    for name, entry in entries.items():
        if entry.start != end:
            gap = entry.start - end
            fault = "overlaps another" if gap < 0 else f"leaves {gap} bytes unused"
            raise ValueError(
                f"tensor {shown(name)} starts at byte {entry.start - data} of the data, "
                f"expected {end - data}: it {fault}"
            )
        end = entry.stop
    if end != size:
        raise ValueError(
            f"its tensors take {end - data} bytes, but {size - data} follow the header: "
            f"{'it is cut' if end > size else 'the rest belongs to none'}"
        )
