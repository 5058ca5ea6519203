"""Edge cases 44 to 49 and 51: what is no safetensors file, and what is read as others read it."""

import json
import os
import struct
import tracemalloc

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import save

from glassformer.dtypes import BFLOAT16_STORAGE
from glassformer.models.safetensors_file import SafetensorsFile, WeightsError, write_safetensors
from glassformer.models.safetensors_header import DTYPES

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
PAIR = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


def packed(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def one(data=b"12", **changes):
    return packed({"x": {**PAIR, **changes}}, data)


@pytest.fixture
def refused(tmp_path):
    def check(content, message):
        path = tmp_path / "model.safetensors"
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=message) as caught:
            SafetensorsFile(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert len(str(caught.value)) < len(str(path)) + 500

    return check


def read(path):
    with SafetensorsFile(path) as file:
        return {name: file.array(name) for name in file}


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (3, 5)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_what_the_library_writes(tmp_path, dtype, shape):
    rng = np.random.default_rng(0)
    values = torch.from_numpy(np.asarray(rng.integers(0, 2, shape))).to(TORCH_DTYPES[dtype])
    others = {"a": torch.ones(3, dtype=torch.int8), "z": torch.ones(1, dtype=torch.float64)}
    (tmp_path / "w").write_bytes(save({"x": values, **others}, {"format": "pt", "ü": "\n"}))
    expected = bytes(values.untyped_storage())
    with SafetensorsFile(tmp_path / "w") as file:
        assert sorted(file.keys()) == sorted(file) == ["a", "x", "z"] and len(file) == 3
        assert (file.dtype("x"), file.shape("x")) == (dtype, shape)
        assert file.metadata == {"format": "pt", "ü": "\n"}
        out = np.empty(shape, DTYPES[dtype])
        file.read_into("x", out)
        array = file.array("x")
    for found in (array, out):
        assert found.dtype == DTYPES[dtype] and found.shape == shape
        assert found.tobytes() == expected


def test_bfloat16_has_its_own_type(tmp_path):
    values = torch.tensor([1.0, -2.5, 3e38], dtype=torch.bfloat16)
    (tmp_path / "w").write_bytes(save({"x": values}))
    array = read(tmp_path / "w")["x"]
    assert array.dtype == BFLOAT16_STORAGE
    assert array["bfloat16"].tolist() == values.view(torch.uint16).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_library_reads_what_is_written(tmp_path, dtype):
    array = np.arange(48, dtype=np.uint8).view(DTYPES[dtype])
    if dtype == "BOOL":
        array = np.arange(48) % 3 == 0
    arrays = {"../../x": array, "strided": array[::-2], "scalar": array[1], "none": array[:0]}
    write_safetensors(tmp_path / "w", {n: np.asarray(a) for n, a in arrays.items()}, {"a": "b"})
    found = dict(safetensors.deserialize((tmp_path / "w").read_bytes()))
    assert found.keys() == arrays.keys()
    for name, given in arrays.items():
        assert found[name]["dtype"] == dtype and tuple(found[name]["shape"]) == np.shape(given)
        assert bytes(found[name]["data"]) == given.tobytes()
    assert [p.name for p in tmp_path.iterdir()] == ["w"]  # case 49: names are never paths
    assert {n: a.tobytes() for n, a in read(tmp_path / "w").items()} == {
        n: a.tobytes() for n, a in arrays.items()
    }


def test_big_endian_arrays_are_written_as_their_values(tmp_path):
    write_safetensors(tmp_path / "w", {"x": np.arange(3, dtype=">i4")})
    assert read(tmp_path / "w")["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("arrays", "metadata", "message"),
    [
        (
            {"x": np.zeros(1, np.complex64)},
            None,
            "'x' has dtype complex64; expected one of",
        ),
        ({"x": np.array([None])}, None, "'x' has dtype object"),
        ({"__metadata__": np.zeros(1)}, None, "no tensor can have the name __metadata__"),
        ({"\ud800": np.zeros(1)}, None, "not valid Unicode"),
        ({}, {"a": "\ud800"}, "not valid Unicode"),
    ],
)
def test_what_the_format_lacks_is_not_written(tmp_path, arrays, metadata, message):
    with pytest.raises(WeightsError, match=message):
        write_safetensors(tmp_path / "w", arrays, metadata)
    assert not list(tmp_path.iterdir())


def test_case_44_cut_at_every_byte(refused):
    whole = save({"a": torch.arange(5), "b": torch.ones(3, dtype=torch.bfloat16)}, {"k": "v"})
    for length in range(len(whole)):
        refused(whole[:length], "too few|it is cut|cut")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (packed(b""), "header starts with ''"),
        (b"1234567", "7 bytes, too few"),
        (struct.pack("<Q", 3) + b"{}", "claims 3 bytes, but only 2 follow"),
        (struct.pack("<Q", 2**62) + b"{}", "claims 4611686018427387904 bytes; the format allows"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "the format allows 100000000"),
        (struct.pack("<Q", 100_000_001) + b"{}", "the format allows 100000000"),
    ],
)
def test_case_45_header_length(refused, content, message):
    refused(content, message)


def test_case_45_nothing_is_allocated_for_a_claim(tmp_path, refused):
    path = tmp_path / "model.safetensors"
    for claim in (99_999_999, 2**40, 2**63):
        tracemalloc.start()
        refused(struct.pack("<Q", claim) + b"{}", "claims")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1 << 20
    with open(path, "wb") as file:  # sparse: 200 MB that take no disk
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(200_000_000)
    with pytest.raises(WeightsError, match="the format allows 100000000"):
        SafetensorsFile(path)


@pytest.mark.parametrize(
    ("offsets", "data", "message"),
    [
        ([0, 2], b"123", "take 2 bytes, but 3 follow the header: the rest belongs to none"),
        ([0, 2], b"1", "take 2 bytes, but 1 follow the header: it is cut"),
        ([1, 3], b"123", "'x' starts at byte 1 of the data, expected 0: it leaves 1 bytes unused"),
        ([2, 0], b"12", "data_offsets .2, 0.; expected .start, end."),
        ([-2, 0], b"12", "data_offsets .-2, 0."),
        ([0, 1], b"12", "has 1 bytes at data_offsets .0, 1.; U8 of shape .2. takes 2"),
        ([0], b"12", "data_offsets .0.; expected"),
        ([0, 1, 2], b"12", "data_offsets"),
        ([0.0, 2.0], b"12", "data_offsets"),
        ([False, True], b"1", "data_offsets"),
        (["0", "2"], b"12", "data_offsets"),
        (None, b"12", "data_offsets None"),
        ([0, 2**64 + 1], b"12", "bytes at data_offsets"),
        ([0, 10**30], b"12", "the number 10000000000000000000... is too large"),
    ],
)
def test_case_46_offsets(refused, offsets, data, message):
    refused(one(data, data_offsets=offsets), message)


def test_case_46_overlaps_and_holes_between_tensors(refused):
    second = {**PAIR, "data_offsets": [1, 3]}
    refused(packed({"x": PAIR, "y": second}, b"123"), "'y' starts at byte 1.*overlaps another")
    refused(packed({"x": PAIR, "y": PAIR}, b"12"), "'y' starts at byte 0.*overlaps another")
    apart = {**PAIR, "data_offsets": [3, 5]}
    refused(packed({"x": PAIR, "y": apart}, b"12345"), "'y' starts at byte 3.*leaves 1 bytes")
    inside = {"dtype": "U8", "shape": [0], "data_offsets": [1, 1]}
    refused(packed({"x": PAIR, "y": inside}, b"12"), "'y' starts at byte 1.*overlaps another")


@pytest.mark.parametrize(
    "header",
    [
        b'{"x":%(pair)s,"x":%(pair)s}',
        b'{"x":%(pair)s,"\\u0078":%(pair)s}',
        b'{"__metadata__":{"a":"1","a":"2"},"x":%(pair)s}',
        b'{"__metadata__":{},"__metadata__":{},"x":%(pair)s}',
        b'{"x":{"dtype":"U8","dtype":"U8","shape":[2],"data_offsets":[0,2]}}',
    ],
)
def test_case_47_duplicate_keys(refused, header):
    pair = json.dumps(PAIR).encode()
    refused(packed(header % {b"pair": pair} if b"%" in header else header, b"12"), "appears twice")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([2.0], "has shape .2.0.; expected a list of sizes"),
        ([True, 2], "has shape .True, 2."),
        (["2"], "has shape .'2'."),
        ([-2], "has shape .-2."),
        ([None], "has shape"),
        (2, "has shape 2"),
        ("2", "has shape '2'"),
        ([[2]], "has shape"),
        ([2**63], "too large for any file"),
        ([0, 2**63], "too large for any file"),
        ([2**32, 2**32, 0], "too large for any file"),
        ([2**32] * 3, "too large for any file"),
        ([1] * 65 + [2], "66 dimensions; NumPy has at most 64"),
        ([3], "has 2 bytes .* takes 3"),
    ],
)
def test_case_48_shapes(refused, shape, message):
    refused(one(shape=shape), message)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"x":{"dtype":"U8","shape":[NaN],"data_offsets":[0,2]}}', "NaN is no JSON number"),
        (b'{"x":{"dtype":"U8","shape":[-Infinity],"data_offsets":[0,2]}}', "-Infinity is no JSON"),
        (b'{"x":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}', "has shape .-0.0."),
        (b'{"x":{"dtype":"U8","shape":[2e0],"data_offsets":[0,2]}}', "has shape .2.0."),
        (
            b'{"x":{"dtype":"U8","shape":[' + b"9" * 10_000 + b'],"data_offsets":[0,2]}}',
            "too large",
        ),
        (b'\xef\xbb\xbf{"x":1}', "header starts with"),
        (b' {"x":1}', "header starts with ' '"),
        (b'{"\xff":1}', "invalid start byte"),
        (b"[]", "header starts with '.'"),
        (b'{"x":1} {}', "not valid JSON .Extra data"),
        (b'{"x":1,}', "not valid JSON"),
        (b'{"\\ud800":' + json.dumps(PAIR).encode() + b"}", "is not valid Unicode"),
        (b'{"__metadata__":{"a":"\\udfff"}}', "is not valid Unicode"),
        (b'{"__metadata__":{"a":1}}', "__metadata__ must be an object of strings"),
        (b'{"__metadata__":null}', "__metadata__ must be an object of strings, not None"),
        (b'{"__metadata__":["a"]}', "__metadata__ must be"),
        (b'{"x":[]}', "'x' is described by ..; expected an object of dtype, shape"),
        (
            b'{"x":{"dtype":"U8","shape":[2]}}',
            "expected an object of dtype, shape and data_offsets",
        ),
        (b'{"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"y":1}}', "expected an object of"),
    ],
)
def test_case_48_json(refused, header, message):
    refused(packed(header, b"12"), message)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"x":[[', b'{"__metadata__":{"a":[{"a":'])
def test_case_48_nesting(refused, opening):
    refused(packed(b'{"x":' + opening * 200_000), "nested too deeply")


@pytest.mark.parametrize("dtype", ["F8_E4M3", "C64", "f32", "", None, 7, ["F32"]])
def test_case_48_unknown_dtype_is_named_with_the_known(refused, dtype):
    refused(one(dtype=dtype), "tensor 'x' has dtype .*; known are F64, F32, F16, BF16, I64")


def test_case_48_messages_of_giant_names_stay_short(refused):
    refused(packed({"x" * 1_000_000: 1}), "'xxx.*xxx' is described by 1")
    refused(packed({"x": list(range(100_000))}), "is described by .0, 1, 2")


def test_case_49_names_are_never_paths(tmp_path):
    for name in ("../../x", "/etc/passwd", "C:\\x", "", "\0", "__class__"):
        (tmp_path / "w").write_bytes(packed({name: PAIR}, b"12"))
        assert read(tmp_path / "w")[name].tobytes() == b"12"
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


def test_case_51_saving_over_the_file_that_arrays_are_mapped_from(tmp_path):
    path = tmp_path / "w"
    write_safetensors(path, {"x": np.arange(5000.0)})
    with SafetensorsFile(path) as file:
        mapped = file.array("x")
        write_safetensors(path, {"x": -mapped})
        assert np.array_equal(file.array("x"), np.arange(5000.0))
    assert np.array_equal(mapped, np.arange(5000.0))
    assert np.array_equal(read(path)["x"], -np.arange(5000.0))


def test_mapped_arrays_can_be_written_to_and_the_file_stays(tmp_path):
    path = tmp_path / "w"
    write_safetensors(path, {"x": np.arange(6.0)})
    before = path.read_bytes()
    array = read(path)["x"]  # outlives its file
    array += 1
    assert array.tolist() == [1, 2, 3, 4, 5, 6] and path.read_bytes() == before


@pytest.mark.parametrize("offset", range(8))
def test_tensors_that_lie_askew_are_given_aligned(tmp_path, offset):
    data = bytes(range(offset)) + np.arange(3.0).tobytes()
    header = {
        "pad": {"dtype": "U8", "shape": [offset], "data_offsets": [0, offset]},
        "x": {"dtype": "F64", "shape": [3], "data_offsets": [offset, offset + 24]},
    }
    (tmp_path / "w").write_bytes(packed(header, data))
    array = read(tmp_path / "w")["x"]
    assert array.flags.aligned and array.flags.writeable and array.tolist() == [0, 1, 2]


def test_reading_into_an_array_takes_no_second_copy(tmp_path):
    values = np.arange(1 << 20, dtype=np.float64)
    write_safetensors(tmp_path / "w", {"x": values})
    out = np.empty((1 << 10, 1 << 10))
    with SafetensorsFile(tmp_path / "w") as file:
        tracemalloc.start()
        file.read_into("x", out)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 1 << 16
    assert np.array_equal(out.reshape(-1), values)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.empty(6, np.float32), "'x' is F64 of shape .6,., but the array .* is float32"),
        (np.empty(6, ">f8"), "but the array .* is >f8"),
        (np.empty(5), "of shape .5,.; give an array of dtype float64"),
        (np.empty(12)[::2], "read-only or not C-contiguous"),
        (np.empty((3, 2)).T, "read-only or not C-contiguous"),
        (np.broadcast_to(np.empty(1), (6,)), "read-only or not C-contiguous"),
    ],
)
def test_arrays_that_cannot_be_read_into(tmp_path, out, message):
    write_safetensors(tmp_path / "w", {"x": np.arange(6.0)})
    with SafetensorsFile(tmp_path / "w") as file, pytest.raises(WeightsError, match=message):
        file.read_into("x", out)


def test_unknown_name_gives_the_nearest(tmp_path):
    write_safetensors(tmp_path / "w", {"layer.0.weight": np.ones(2), "bias": np.ones(1)})
    with SafetensorsFile(tmp_path / "w") as file:
        with pytest.raises(WeightsError, match="no tensor 'weight'; did you mean 'layer.0.weight'"):
            file.array("weight")
        with pytest.raises(WeightsError, match="no tensor 'zzz'; see keys"):
            file.shape("zzz")


def test_closed_file_says_so(tmp_path):
    write_safetensors(tmp_path / "w", {"x": np.arange(2.0)})
    file = SafetensorsFile(tmp_path / "w")
    file.close()
    with pytest.raises(WeightsError, match="the file is closed; read before closing it"):
        file.array("x")
    with pytest.raises(WeightsError, match="the file is closed"):
        file.read_into("x", np.empty(2))


def test_file_that_is_cut_after_it_was_opened(tmp_path):
    write_safetensors(tmp_path / "w", {"x": np.arange(2.0)})
    with SafetensorsFile(tmp_path / "w") as file:
        os.truncate(tmp_path / "w", 40)
        with pytest.raises(WeightsError, match="tensor 'x' cannot be read .the file was cut after"):
            file.read_into("x", np.empty(2))
        with pytest.raises(WeightsError, match="cannot be mapped .*cut since it was opened"):
            file.array("x")


def test_disk_that_fails_while_a_tensor_is_read(tmp_path, monkeypatch):
    class FailingFile:
        closed = False

        def seek(self, position):
            raise OSError(5, "Input/output error")

    write_safetensors(tmp_path / "w", {"x": np.arange(2.0)})
    with SafetensorsFile(tmp_path / "w") as file, monkeypatch.context() as patch:
        patch.setattr(file, "_file", FailingFile())
        with pytest.raises(WeightsError, match="tensor 'x' cannot be read .*Input/output err"):
            file.read_into("x", np.empty(2))


def test_what_is_not_a_file(tmp_path):
    with pytest.raises(WeightsError, match="w: the file is missing; check the path"):
        SafetensorsFile(tmp_path / "w")
    with pytest.raises(WeightsError, match="it is not a file"):
        SafetensorsFile(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(WeightsError, match="it is not a file"):
            SafetensorsFile(tmp_path / "pipe")
