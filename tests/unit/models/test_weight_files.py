"""A folder's weights: which files hold them, and that they are never read from anywhere else."""

import json
import re

import numpy as np
import pytest
import safetensors.numpy

from glassformer import durable
from glassformer.dtypes import BFLOAT16_STORAGE
from glassformer.models.safetensors_file import WeightsError, open_weights, write_weights
from tests.unit.training.faulty_os import FaultyOs

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
ARRAYS = {
    "a": np.arange(6.0).reshape(2, 3),
    "b": np.arange(5, dtype=np.int8),
    "c": np.arange(4, dtype="<u2").view(BFLOAT16_STORAGE),
}


def contents(path):
    with open_weights(path) as weights:
        return {name: weights.array(name) for name in weights}


def same(found, expected):
    return found.keys() == expected.keys() and all(
        array.dtype == expected[name].dtype and np.array_equal(array, expected[name])
        for name, array in found.items()
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write_index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture
def sharded(tmp_path):
    safetensors.numpy.save_file({"a": np.ones(2)}, tmp_path / FIRST)
    safetensors.numpy.save_file({"b": np.zeros(3), "extra": np.ones(1)}, tmp_path / SECOND)
    write_index(tmp_path, {"a": FIRST, "b": SECOND})
    return tmp_path


@pytest.mark.parametrize("size", [1, 6, 40, 48, 55, 56, 61, 10**9, "1KB", "0.05KB"])
def test_what_is_written_comes_back(tmp_path, size):
    write_weights(tmp_path, ARRAYS, {"format": "pt"}, size)
    assert same(contents(tmp_path), ARRAYS)
    with open_weights(tmp_path) as weights:
        assert sorted(weights.keys()) == ["a", "b", "c"] and len(weights) == 3 and "a" in weights
        assert weights.shape("a") == (2, 3) and weights.dtype("c") == "BF16"
        out = np.empty((2, 3))
        weights.read_into("a", out)
        assert np.array_equal(out, ARRAYS["a"])
        with pytest.raises(WeightsError, match=f"{tmp_path.name}: there is no tensor 'd'"):
            weights.array("d")


@pytest.mark.parametrize("size", [1, 13, 20, 64, 100, "0.2KB", "1KB"])
def test_shards_are_those_of_hugging_face(tmp_path, size):
    hub = pytest.importorskip("huggingface_hub.serialization._base")
    rng = np.random.default_rng(0)
    arrays = {f"w{i}": np.zeros(rng.integers(0, 20)) for i in range(12)}
    write_weights(tmp_path, arrays, None, size)
    expected = hub.split_state_dict_into_shards_factory(
        arrays,
        get_storage_size=lambda array: array.nbytes,
        get_storage_id=lambda array: None,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=size,
    )
    if expected.is_sharded:
        index = json.loads((tmp_path / INDEX).read_text())
        assert index["weight_map"] == expected.tensor_to_filename
        assert index["metadata"]["total_size"] == expected.metadata["total_size"]
        assert index["metadata"]["total_parameters"] == sum(a.size for a in arrays.values())
    for file, keys in expected.filename_to_tensors.items():
        assert sorted(safetensors.numpy.load_file(tmp_path / file)) == sorted(keys)
    assert names(tmp_path) == sorted(
        [*expected.filename_to_tensors, *[INDEX] * expected.is_sharded]
    )


def test_transformers_reads_the_shards(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=5)
    model = transformers.GPT2Model(config)
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    config.save_pretrained(tmp_path)
    write_weights(tmp_path, arrays, {"format": "pt"}, "1KB")
    assert (tmp_path / INDEX).exists()
    read = transformers.GPT2Model.from_pretrained(tmp_path).state_dict()
    assert same({name: value.numpy() for name, value in read.items()}, arrays)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="1KB")
    assert same(contents(tmp_path / "theirs"), arrays)


@pytest.mark.parametrize("size", [0, -1, "", "5", "5GiB", "-5GB", "fiveGB", "0GB", "5 G"])
def test_sizes_that_are_none(tmp_path, size):
    with pytest.raises(ValueError, match=f"max_shard_size is {re.escape(repr(size))}; expected"):
        write_weights(tmp_path, ARRAYS, None, size)
    assert not names(tmp_path)


def test_no_tensors_at_all(tmp_path):
    write_weights(tmp_path, {})
    assert contents(tmp_path) == {}


def test_old_weights_are_replaced_and_other_files_left(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "my-00001-of-00002.safetensors").write_text("mine")
    other = sorted(["config.json", "my-00001-of-00002.safetensors"])
    for size in (1, 10**6, 60, 1, 10**6):
        arrays = {name: array[:1] for name, array in ARRAYS.items()} if size == 60 else ARRAYS
        write_weights(tmp_path, arrays, None, size)
        assert same(contents(tmp_path), arrays)
        weights = [name for name in names(tmp_path) if name not in other]
        assert len(weights) == {1: 4, 60: 1, 10**6: 1}[size] and set(other) < set(names(tmp_path))


@pytest.mark.parametrize(("before", "after"), [(10**6, 10**6), (10**6, 50), (50, 10**6), (50, 50)])
def test_failure_at_any_call_leaves_old_or_new_or_nothing_to_read(
    tmp_path, monkeypatch, before, after
):
    new = {name: array[::-1].copy() for name, array in ARRAYS.items()}
    for index in range(100):
        folder = tmp_path / str(index)
        folder.mkdir()
        write_weights(folder, ARRAYS, None, before)
        faulty = FaultyOs(index)
        with monkeypatch.context() as patch:
            patch.setattr(durable, "os", faulty)
            try:
                write_weights(folder, new, None, after)
            except OSError:
                pass
            else:
                break
        try:
            found = contents(folder)
        except WeightsError:
            assert before == after == 50
        else:
            assert same(found, ARRAYS) or same(found, new)
    assert index == len(faulty.calls) > 0 and same(contents(folder), new)


def test_one_file_comes_before_an_index(sharded):
    safetensors.numpy.save_file({"one": np.ones(1)}, sharded / "model.safetensors")
    assert list(contents(sharded)) == ["one"]


def test_file_and_index_can_be_given_themselves(sharded):
    assert sorted(contents(sharded / SECOND)) == ["b", "extra"]
    assert sorted(contents(sharded / INDEX)) == ["a", "b", "extra"]


def test_tensors_beyond_the_index_are_given_as_transformers_gives_them(sharded):
    assert sorted(contents(sharded)) == ["a", "b", "extra"]


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/model.safetensors",
        "sub/model.safetensors",
        "..\\model.safetensors",
        "C:model.safetensors",
        "..",
        ".",
        "",
        "a\0.safetensors",
        "pytorch_model-00001-of-00002.bin",
        "x" * 1_000_000,
    ],
)
def test_case_49_shard_names_are_plain(sharded, name):
    safetensors.numpy.save_file({"a": np.ones(2)}, sharded.parent / "model.safetensors")
    write_index(sharded, {"a": name, "b": SECOND})
    with pytest.raises(WeightsError, match="expected the plain name of a .safetensors file") as e:
        open_weights(sharded)
    assert len(str(e.value)) < len(str(sharded)) + 500


@pytest.mark.parametrize("name", [None, 1, True, ["a"], {}])
def test_case_49_shard_names_are_strings(sharded, name):
    write_index(sharded, {"a": name, "b": SECOND})
    with pytest.raises(WeightsError, match="which is not a string"):
        open_weights(sharded)


def test_case_49_links_do_not_lead_out_of_the_folder(sharded, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / FIRST
    (sharded / FIRST).rename(outside)
    (sharded / FIRST).symlink_to(outside)
    with pytest.raises(WeightsError, match=f"the shard '{FIRST}' is a link out of the folder"):
        open_weights(sharded)
    (sharded / FIRST).unlink()
    outside.rename(sharded / "elsewhere")
    (sharded / FIRST).symlink_to("elsewhere")
    assert sorted(contents(sharded)) == ["a", "b", "extra"]


def test_links_of_the_hub_cache_are_followed(sharded):
    snapshot, blobs = sharded / "snapshots" / "0123abc", sharded / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in (FIRST, SECOND, INDEX):
        (sharded / name).rename(blobs / f"hash-{name}")
        (snapshot / name).symlink_to(f"../../blobs/hash-{name}")
    assert sorted(contents(snapshot)) == ["a", "b", "extra"]
    (blobs / "deep").mkdir()
    (snapshot / FIRST).unlink()
    (snapshot / FIRST).symlink_to("../../secret")
    with pytest.raises(WeightsError, match="link out of the folder"):
        open_weights(snapshot)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[]", "it has no weight_map"),
        ("{}", "it has no weight_map"),
        ('{"weight_map": {}}', "it has no weight_map"),
        ('{"weight_map": []}', "it has no weight_map"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "a key appears twice: 'a'"),
        ('{"metadata": NaN}', "NaN is no JSON number"),
        ("[" * 100_000, "nested too deeply"),
        ("\ufeff{}", "BOM"),
    ],
)
def test_damaged_index(sharded, text, message):
    (sharded / INDEX).write_text(text, encoding="utf-8")
    with pytest.raises(WeightsError, match=f"{re.escape(INDEX)}: .*{message}.*; .*get it again"):
        open_weights(sharded)


def test_real_indexes_may_say_more(sharded):
    text = {"metadata": {"total_size": 40.0, "x": [1]}, "weight_map": {"a": FIRST}, "more": None}
    (sharded / INDEX).write_text(json.dumps(text))
    assert list(contents(sharded)) == ["a"]


def test_index_and_shards_that_disagree(sharded):
    write_index(sharded, {"a": FIRST, "b": FIRST, "c": SECOND})
    with pytest.raises(WeightsError, match=f"2 tensors are not where .* says: 'b' .*{FIRST}"):
        open_weights(sharded)
    safetensors.numpy.save_file({"a": np.ones(1)}, sharded / SECOND)
    write_index(sharded, {"a": FIRST, "b": SECOND})
    with pytest.raises(WeightsError, match=f"tensor 'a' is in {FIRST} and in {SECOND}"):
        open_weights(sharded)
    (sharded / FIRST).unlink()
    with pytest.raises(WeightsError, match=f"of its 2 shards these are missing: {FIRST}; .*again"):
        open_weights(sharded)


def test_every_shard_is_checked_at_once(sharded):
    content = (sharded / SECOND).read_bytes()
    (sharded / SECOND).write_bytes(content[:-1])
    with pytest.raises(WeightsError, match=f"{SECOND}: its tensors take 32 bytes, but 31 follow"):
        open_weights(sharded)


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "x.pth", "a.ckpt", "b.pkl"],
)
def test_pickles_are_refused_with_the_way_out(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"\x80\x04.")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(WeightsError, match=f"{name} is a pickle, which can run any") as caught:
            open_weights(path)
        assert "from_pretrained(folder).save_pretrained(folder, safe_ser" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "flag"), [("tf_model.h5", "from_tf=True"), ("flax_model.msgpack", "from_flax=True")]
)
def test_other_frameworks_are_named(tmp_path, name, flag):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(WeightsError, match=f"it holds {name}; {name} holds .*{flag}"):
        open_weights(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(WeightsError, match="missing: no such file or folder; check the path"):
        open_weights(tmp_path / "missing")
    with pytest.raises(WeightsError, match=f"neither model.safetensors nor {INDEX}; it holds noth"):
        open_weights(tmp_path)
    for i in range(12):
        (tmp_path / f"{i:02}.txt").write_text("")
    with pytest.raises(WeightsError, match="it holds 00.txt, 01.txt, .*, 09.txt and 2 more; check"):
        open_weights(tmp_path)
