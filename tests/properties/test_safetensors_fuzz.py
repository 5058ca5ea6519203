"""Damaged and forged safetensors files: refused in one way, or read as the library reads them.

HYPOTHESIS_PROFILE=nightly tries 100,000 files, with a new seed each time; any other 2,000 or more.
"""

import json
import random
import struct
import time
import tracemalloc
from contextlib import suppress
from copy import deepcopy

import numpy as np
import safetensors
import safetensors.numpy
from hypothesis import settings
from safetensors import TensorSpec, serialize

from glassformer.models.safetensors_file import SafetensorsFile, WeightsError
from glassformer.models.safetensors_header import DTYPES

FILES = max(2_000, 20 * settings.default.max_examples)
FIXED = settings.default.derandomize
MEMORY = 4 << 20  # bytes, and
SECONDS = 1.0  # of the processor, at most, for a file of under 40,000 bytes

# What is refused here and read by the library: a header with two meanings, more than a header
# holds, and what NumPy has no array for. (It skips unknown fields, and takes null for no metadata.)
STRICTER = (
    "appears twice",
    "expected an object of dtype, shape and data_offsets",
    "known are F64",
    "too large",
    "NumPy has at most 64",
    "__metadata__ must be an object of strings",
    "header starts with",
)

NUMBERS = (0, 1, 2, 3, 7, 8, 64, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64)
ODD = (-1, -0.0, 0.5, 1e300, True, False, None, "", "1", [], {}, [[]], float("nan"), 10**40)
NAMES = ("x", "", "../../x", "/etc/passwd", "\0", "__metadata__", "ü", "\ud800", "a.b.weight")
RAW = (b'"', b"{", b"}", b"[", b"]", b",", b":", b"-", b"0", b"1", b"9", b"e", b".", b"\\", b" ")
RAW += (b"\\ud800", b"NaN", b"Infinity", b"-0", b"1e0", b"[" * 3_000, b'{"":' * 3_000, b"\xff")
RAW += (b"\xef\xbb\xbf", b"\0", b"true", b"null", b"9" * 5_000, b"/*", b"\xed\xa0\x80")


def packed(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def unpacked(content):
    (length,) = struct.unpack_from("<Q", content)
    return content[8 : 8 + length], content[8 + length :]


def odd(rng):
    return deepcopy(rng.choice(ODD))  # which a later mutation may change


def sound_file(rng):
    """Return a file as the library writes it, of a few tensors of any type."""
    specs, buffers = {}, []
    for _ in range(rng.randrange(5)):
        dtype = DTYPES[rng.choice(list(DTYPES))]
        shape = tuple(rng.choice((0, 1, 2, 3)) for _ in range(rng.randrange(4)))
        size = int(np.prod(shape)) * dtype.itemsize
        buffers.append(np.frombuffer(rng.randbytes(size), np.uint8))
        name = rng.choice(("x", "y", "a.b.weight", "ü", "../z", ""))
        specs[name] = TensorSpec(
            dtype=(dtype.names or (dtype.name,))[0],
            shape=shape,
            data_ptr=buffers[-1].ctypes.data,
            data_len=size,
        )
    return bytes(serialize(specs, rng.choice((None, {"format": "pt"}, {"a": "b", "": "ü"}))))


def flip(rng, content):
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(min(len(content), rng.choice((8, 40, len(content)))))
        changed[at] = rng.choice((changed[at] ^ 1 << rng.randrange(8), rng.randrange(256)))
    return bytes(changed)


def cut(rng, content):
    return content[: rng.randrange(len(content))]


def insert_or_remove(rng, content):
    at = rng.randrange(len(content) + 1)
    if rng.random() < 0.5:
        return content[:at] + rng.randbytes(rng.choice((1, 1, 2, 8))) + content[at:]
    return content[:at] + content[at + rng.choice((1, 1, 2, 8)) :]


def change_length(rng, content):
    (length,) = struct.unpack_from("<Q", content)
    nearby = length + rng.choice((-8, -1, 1, 8))
    claimed = rng.choice((nearby, rng.choice(NUMBERS), 100_000_000, 100_000_001, len(content)))
    return struct.pack("<Q", claimed % 2**64) + content[8:]


def change_text(rng, content):
    """Splice a token into the header, whose length stays right."""
    text, data = unpacked(content)
    at = rng.randrange(len(text) + 1)
    return packed(text[:at] + rng.choice(RAW) + text[at + rng.choice((0, 0, 1, 2)) :], data)


def repeat_key(rng, content):
    text, data = unpacked(content)
    key, value = rng.choice(list((json.loads(text) or {"x": {}}).items()))
    twin = json.dumps({key: value}).encode()[1:-1]
    return packed(b"{" + twin + b"," + text.strip()[1:], data)


def change_header(rng, content):
    """Change values of the header: offsets, shapes, types, names, fields."""
    text, data = unpacked(content)
    header = json.loads(text)
    for _ in range(rng.choice((1, 1, 2))):
        names = [name for name in header if isinstance(header[name], dict)]
        if not names or rng.random() < 0.1:
            header[rng.choice(NAMES)] = rng.choice((odd(rng), {"dtype": "U8"}, {"a": "b"}))
            continue
        name = rng.choice(names)
        entry = header[name]
        field = rng.choice(("dtype", "shape", "shape", "data_offsets", "data_offsets", "extra", ""))
        if field == "dtype":
            entry[field] = rng.choice((*DTYPES, "F8_E4M3", "C64", "f32", odd(rng)))
        elif field == "extra":
            entry[rng.choice(("dtype", "shape", "strides"))] = odd(rng)
        elif field == "":
            header[rng.choice(NAMES)] = header.pop(name)
        elif isinstance(entry.get(field), list) and entry[field] and rng.random() < 0.8:
            at = rng.randrange(len(entry[field]))
            entry[field][at] = rng.choice((rng.choice(NUMBERS), odd(rng)))
        else:
            values = [rng.choice(NUMBERS) for _ in range(rng.choice((0, 1, 2, 3, 70)))]
            entry[field] = rng.choice((values, odd(rng)))
    return packed(header, data)


def lay_out_anew(rng, content):
    """Forge a header of the same data: often sound, with odd alignment, order, zeros and spaces."""
    _, data = unpacked(content)
    header, start = {}, 0
    while start < len(data) and len(header) < 6:
        dtype = rng.choice(list(DTYPES))
        itemsize = DTYPES[dtype].itemsize
        count = rng.randrange((len(data) - start) // itemsize + 1)
        if len(header) == 5:
            dtype, itemsize, count = "U8", 1, len(data) - start
        end = start + count * itemsize
        shape = rng.choice(([count], [1, count], [count, 1, 1]))
        if count == 0:
            shape = rng.choice(([0], [0, 2**40], [2**31, 0, 2**31], [2**62, 0, 4]))
        header[f"t{len(header)}"] = {"data_offsets": [start, end], "shape": shape, "dtype": dtype}
        start = end
    items = list(header.items())
    rng.shuffle(items)
    text = json.dumps(dict(items), indent=rng.choice((None, 1))).encode()
    return packed(text + rng.choice((b"", b" ", b"\n\t ", b"\0")), data)


MUTATIONS = (
    flip,
    cut,
    insert_or_remove,
    change_length,
    change_text,
    repeat_key,
    change_header,
    change_header,
    lay_out_anew,
)

# What a first mutation leaves can be too broken for a second.
TOO_BROKEN = (ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error)


def by_library(content):
    """Return the library's tensors as comparable values, or None where it refuses."""
    try:
        tensors = safetensors.deserialize(content)
    except safetensors.SafetensorError:
        return None
    return {n: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for n, t in tensors}


def check(path, content):
    """Return whether the file is accepted, once both readers are seen to agree on it."""
    path.unlink(missing_ok=True)  # ext4 waits for the disk where a file is cut and written anew
    path.write_bytes(content)
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    began = time.thread_time()
    found, refusal = {}, None
    try:
        with SafetensorsFile(path) as file:
            for name in file:
                array = file.array(name)
                out = np.empty(file.shape(name), array.dtype)
                file.read_into(name, out)
                assert out.tobytes() == array.tobytes() and array.flags.aligned
                found[name] = file.dtype(name), array.shape, array.tobytes()
    except WeightsError as error:
        refusal = str(error)
    _, peak = tracemalloc.get_traced_memory()
    assert peak - before < MEMORY and time.thread_time() - began < SECONDS
    expected = by_library(content)
    if refusal is None:
        assert found == expected
    else:
        assert str(path) in refusal and len(refusal) < 1_000
        assert expected is None or any(reason in refusal for reason in STRICTER), refusal
    return refusal is None


def test_mutated_files_are_refused_or_read_as_the_library_reads_them(tmp_path):
    seed = 0 if FIXED else random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    path = tmp_path / "model.safetensors"
    accepted = 0
    tracemalloc.start()
    try:
        for number in range(FILES):
            content = sound_file(rng)
            for turn in range(rng.choice((1, 1, 1, 2))):
                with suppress(*(TOO_BROKEN if turn else ())):
                    content = rng.choice(MUTATIONS)(rng, content)
            try:
                accepted += check(path, content)
            except BaseException as error:
                raise AssertionError(f"file {number} of seed {seed}: {content!r}") from error
    finally:
        tracemalloc.stop()
    # Neither side of the property may be empty.
    assert 0.05 * FILES < accepted < 0.5 * FILES


def test_a_file_cut_at_every_byte_or_with_any_byte_changed(tmp_path):
    arrays = {"x": np.arange(3, dtype=np.int16), "b": np.ones((2, 1)), "none": np.ones((0, 4))}
    content = safetensors.numpy.save(arrays, {"format": "pt"})
    tracemalloc.start()
    try:
        for at in range(len(content)):
            assert not check(tmp_path / "w", content[:at])
            for byte in (0xFF, content[at] ^ 1, content[at] ^ 0x80):
                check(tmp_path / "w", content[:at] + bytes([byte]) + content[at + 1 :])
    finally:
        tracemalloc.stop()
