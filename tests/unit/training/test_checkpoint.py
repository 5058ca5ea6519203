import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import glassformer as gf
from glassformer import durable, nn
from glassformer.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    list_checkpoints,
    load_checkpoint,
    load_weights,
    read_json,
    remove_old_checkpoints,
    save_checkpoint,
    save_weights,
)
from tests.unit.training.faulty_os import FaultyOs

SMALL = Checkpoint(
    {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "scalar": np.array(2.5)},
    {"0.exp_avg": np.ones(3)},
    {"step": 7, "rate": 1e-05, "nested": {"list": [1, None, "x"]}},
    {"n_layer": 1},
)


def same(a, b):
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and a[n].tobytes() == b[n].tobytes()
        for n in a
    )


arrays = st.dictionaries(
    st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__"),
    hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    max_size=4,
)


@given(
    arrays,
    arrays,
    st.dictionaries(
        st.text(),
        st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.none(),
    ),
)
def test_bits_come_back(tmp_path_factory, weights, optimizer, state):
    reserved = {"sha256", "format"}
    state = {name: value for name, value in state.items() if name not in reserved}
    path = tmp_path_factory.mktemp("run") / "checkpoint-1"
    save_checkpoint(path, Checkpoint(weights, optimizer, state))
    loaded = load_checkpoint(path)
    assert same(loaded.weights, weights)
    assert same(loaded.optimizer, optimizer)
    assert loaded.state == state
    assert loaded.config is None


def test_arrays_of_any_strides_are_saved_as_they_read(tmp_path):
    base = np.arange(24.0).reshape(4, 6)
    weights = {"t": base.T, "r": base[::-1, ::2], "e": np.broadcast_to(base[:1], (3, 6))}
    save_weights(tmp_path / "w", weights)
    assert same(
        load_weights(tmp_path / "w"), {k: np.ascontiguousarray(v) for k, v in weights.items()}
    )


def test_saving_over_the_file_a_model_was_loaded_from_leaves_the_model_intact(tmp_path):
    path = tmp_path / "w"
    given = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(2, np.float32)}
    save_weights(path, given)
    loaded, model = load_weights(path), nn.Linear(3, 2)
    model.weight, model.bias = (nn.Parameter(gf.from_numpy(loaded[n])) for n in given)  # no copies
    save_weights(path, {n: -array - 1 for n, array in loaded.items()})
    assert same({n: t.numpy() for n, t in model.state_dict().items()}, given)
    assert same(load_weights(path), {n: -array - 1 for n, array in given.items()})


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "trainer_state.json"]
)
def test_file_cut_at_any_byte_is_refused(tmp_path, name):
    path = tmp_path / "checkpoint-1"
    save_checkpoint(path, SMALL)
    whole = (path / name).read_bytes()
    for length in range(len(whole) - 1):  # without the JSON's last newline nothing is lost
        (path / name).write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=f"checkpoint-1/{name}"):
            load_checkpoint(path)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "trainer_state.json"]
)
def test_any_flipped_bit_is_noticed(tmp_path, name):
    path = tmp_path / "checkpoint-1"
    save_checkpoint(path, SMALL)
    whole = (path / name).read_bytes()
    rng = np.random.default_rng(0)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        (path / name).write_bytes(damaged)
        try:
            loaded = load_checkpoint(path)
        except CheckpointError as error:
            assert name in str(error)
        else:  # a change without meaning: 1e-05 as 1E-05, or the mere name of a metadata key
            assert same(loaded.weights, SMALL.weights) and loaded.state == SMALL.state


def header(size, text=b""):
    return struct.pack("<Q", size) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        header(0),
        header(2**62, b"{}"),
        header(101_000_000, b"{}"),
        header(2, b"[]"),
        header(4, b"null"),
        header(6, b'{"a":}'),
        header(3, b"\xef\xbb\xbf"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="model.safetensors: not a whole safetensors file"):
        load_weights(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": 1, "a": 2}', "a key appears twice"),
        (b"\xff{}", "not valid JSON"),
        (b'{"a": ' + b"[" * 100_000, "not valid JSON"),
    ],
)
def test_unsound_json_is_refused(tmp_path, text, message):
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=f"x.json: .*{message}"):
        read_json(tmp_path / "x.json")


def test_state_of_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("glassformer.training.checkpoint.FORMAT", 2)
    save_checkpoint(tmp_path / "checkpoint-1", SMALL)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="another format than 1"):
        load_checkpoint(tmp_path / "checkpoint-1")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "trainer_state.json"]
)
def test_missing_file_is_named(tmp_path, name):
    save_checkpoint(tmp_path / "checkpoint-1", SMALL)
    (tmp_path / "checkpoint-1" / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: the file is missing"):
        load_checkpoint(tmp_path / "checkpoint-1")


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="checkpoint-9: no such checkpoint folder") as caught:
        load_checkpoint(tmp_path / "checkpoint-9")
    assert caught.value.path == tmp_path / "checkpoint-9"


class Processor:
    """Saves itself as tokenizers and image processors do."""

    def save_pretrained(self, folder):
        durable.write_file(folder / "tokenizer.json", b"{}")


def test_full_disk_at_any_call_gives_one_error_and_keeps_the_old(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint-1"
    save_checkpoint(path, SMALL)
    counter = FaultyOs()
    new = Checkpoint({"w": np.zeros(1)}, {}, {"step": 8}, more={"generation_config.json": b"{}"})
    with monkeypatch.context() as patch:
        patch.setattr(durable, "os", counter)
        save_checkpoint(path, new, Processor())
    beside = {"generation_config.json", "tokenizer.json"}
    assert beside <= {file.name for file in path.iterdir()}
    for index in range(len(counter.calls)):
        faulty = FaultyOs(index)
        with monkeypatch.context() as patch:
            patch.setattr(durable, "os", faulty)
            try:
                save_checkpoint(path, new, Processor())
                assert index >= len(faulty.calls)
            except CheckpointError as error:
                assert "cannot save the checkpoint: No space left" in str(error)
                assert "free space" in str(error)
        step = load_checkpoint(path).state["step"]
        assert step in (7, 8)
        assert (beside <= {file.name for file in path.iterdir()}) == (step == 8)
        assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-1"]
        save_checkpoint(path, SMALL)


def test_path_below_a_file_gives_the_same_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot save the checkpoint"):
        save_checkpoint(tmp_path / "file" / "checkpoint-1", SMALL)


def test_checkpoints_are_listed_by_number_and_hidden_or_foreign_names_are_not(tmp_path):
    for name in ("checkpoint-10", "checkpoint-9", ".checkpoint-11.gf-saving", "checkpoint-x"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-12").write_text("a file")
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]
    assert list_checkpoints(tmp_path / "missing") == []


@pytest.mark.parametrize(
    ("limit", "keep", "left"),
    [
        (None, {5}, [1, 2, 3, 4, 5]),
        (2, {5}, [4, 5]),
        (2, {5, 1}, [1, 5]),
        (1, {5, 1}, [1, 5]),
        (3, {5, 1}, [1, 4, 5]),
        (9, {5}, [1, 2, 3, 4, 5]),
    ],
)
def test_rotation_keeps_the_newest_and_the_best(tmp_path, limit, keep, left):
    for step in range(1, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
    remove_old_checkpoints(tmp_path, limit, {tmp_path / f"checkpoint-{step}" for step in keep})
    assert [p.name for p in list_checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in left]
    assert len(list(tmp_path.iterdir())) == len(left)


def test_names_are_never_paths(tmp_path):
    save_weights(tmp_path / "w", {"../../x": np.ones(1), "/etc/y": np.ones(1)})
    assert sorted(load_weights(tmp_path / "w")) == ["../../x", "/etc/y"]
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


def test_files_are_what_others_read(tmp_path):
    from safetensors.numpy import load_file

    save_checkpoint(tmp_path / "c", SMALL)
    assert same(load_file(tmp_path / "c" / "model.safetensors"), SMALL.weights)
    assert json.loads((tmp_path / "c" / "trainer_state.json").read_text())["step"] == 7
    assert not any(p.suffix in (".pt", ".pth", ".bin", ".pkl") for p in (tmp_path / "c").iterdir())
