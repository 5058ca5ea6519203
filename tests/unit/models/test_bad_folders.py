"""Folders that are wrong in any way: one clear error, at once, and nothing is lost."""

import json
import math
import os
import resource
import shutil
import signal
import socket
import tempfile
import threading
import time
import tracemalloc
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import glassformer as gf
from glassformer import durable
from glassformer.cli.errors import describe
from glassformer.data.image_input import ImageError
from glassformer.data.tokenizer_files import TokenizerError
from glassformer.models import auto
from glassformer.models.auto import AutoConfig, AutoModel, AutoModelForCausalLM
from glassformer.models.config import ConfigError
from glassformer.models.lora import LoraConfig, add_lora, load_lora, save_lora
from glassformer.models.safetensors_file import WeightsError
from tests.unit.models.families import SHAPES, config_of
from tests.unit.training.faulty_os import FaultyOs

KINDS = sorted(SHAPES)
CHOOSERS = [getattr(auto, name) for name in dir(auto) if name.startswith("AutoModel")]
LAYERS = ["num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"]
WIDTHS = ["hidden_size", "d_model", "n_embd", "dim", "d_ff", "vocab_size", "head_dim"]


@contextmanager
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of heads that start fresh
        yield


def save(kind, folder, chooser=AutoModel):
    chooser.from_config(config_of(kind)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each family."""
    return {kind: save(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture
def folder(folders, tmp_path):
    """A copy of a good folder, to be spoilt."""
    shutil.copytree(folders["gpt2"], tmp_path / "model")
    return tmp_path / "model"


def with_config(source, target, changes):
    """Link a folder's weights into another, with a config.json that has `changes`."""
    target.mkdir(exist_ok=True)
    if not (target / "model.safetensors").exists():
        os.link(source / "model.safetensors", target / "model.safetensors")
    told = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**told, **changes}))
    return target


@contextmanager
def one_clear_error(*kinds):
    """Expect an error of a caller's, its first line short, at once and without much memory."""
    tracemalloc.start()
    start = time.monotonic()
    try:
        with pytest.raises(kinds or WeightsError) as caught:
            yield caught
        assert time.monotonic() - start < 5  # a tenth of a second, on a machine that is not busy
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    first, *listed = str(caught.value).splitlines()
    assert 10 < len(first) < 700
    assert len(listed) < 400
    assert "\n" not in (describe(caught.value) or "\n")


def setting_names():
    for kind in KINDS:
        told = json.loads(config_of(kind).to_json())
        yield from ((kind, name) for name in [*told, "num_labels", "torch_dtype"])


numbers = st.one_of(
    st.integers(-3, 70),
    st.sampled_from([10**4, 10**6, 2**31, 10**9, 10**12, 10**400, -(10**12), -1, 0]),
    st.floats(allow_nan=False, allow_infinity=False),
)
leaves = st.one_of(numbers, st.none(), st.booleans(), st.text(max_size=3), st.just("relu"))
ROPE = ["rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor"]
ropes = st.dictionaries(
    st.sampled_from([*ROPE, "original_max_position_embeddings", "partial_rotary_factor"]),
    st.one_of(leaves, st.sampled_from(["default", "linear", "llama3"])),
)
values = st.one_of(
    leaves,
    ropes,
    st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(st.sampled_from(["0", "1", "00", "-1", "x"]), inner, max_size=3),
        ),
        max_leaves=6,
    ),
)


@given(st.sampled_from(sorted(setting_names())), values)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_one_setting_is_the_folder_loads_and_runs_or_says_why(
    folders, tmp_path, setting, value
):
    kind, name = setting
    spoilt = with_config(folders[kind], tmp_path / kind, {name: value})
    start = time.monotonic()
    with quiet():
        try:
            model = AutoModel.from_pretrained(spoilt)
        except WeightsError as error:
            assert len(str(error).splitlines()[0]) < 700
            assert "\n" not in (describe(error) or "\n")
        else:
            runs_or_says_why(kind, model)
            model.config.to_json()
    assert time.monotonic() - start < 5


def runs_or_says_why(kind, model):
    ids = gf.tensor([[3, 4, 2]])
    inputs = {"decoder_input_ids": ids} if kind in ("bart", "marian", "t5") else {}
    first = gf.zeros(1, 3, 8, 8) if kind == "vit" else ids
    try:
        with gf.no_grad():
            found = model(first, **inputs).last_hidden_state
    except (IndexError, ValueError) as error:
        assert "tokens exceed" in str(error)  # so few positions
    else:
        assert found.ndim == 3


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_held_against_the_checkpoint_before_they_are_built(kind, folders, tmp_path):
    told = json.loads((folders[kind] / "config.json").read_text())
    assert any(name in told for name in WIDTHS) and any(name in told for name in LAYERS)
    for name in (name for name in WIDTHS + LAYERS if name in told):
        for size in (300, 9_000, 10**6, 10**9, 10**12, -1):
            if (kind, name) == ("albert", "num_hidden_layers") and size == 300:
                continue  # whose layers are few, used many times
            spoilt = with_config(folders[kind], tmp_path / "spoilt", {name: size})
            with quiet(), one_clear_error():
                AutoModel.from_pretrained(spoilt)


def test_a_model_too_large_for_any_memory_is_refused():
    config = config_of("bert", hidden_size=2**20, num_attention_heads=1)
    with pytest.raises(ValueError, match="takes more memory than there is"):
        AutoModel.from_config(config)


SETTINGS = {
    "heads that do not divide": ({"n_head": 5}, "n_head=5 must divide n_embd=12"),
    "no heads": ({"n_head": 0}, "n_head must be a number from 1"),
    "an activation": ({"activation_function": "mish"}, "'mish' is unknown; known are relu, gelu"),
    "a gate": ({"activation_function": "swiglu"}, "'swiglu' is unknown"),
    "an epsilon": ({"layer_norm_epsilon": -1e-5}, "layer_norm_epsilon must be a number from 0"),
    "a probability": ({"resid_pdrop": 1.5}, "resid_pdrop must be a number from 0 to 1, got 1.5"),
    "a deviation": ({"initializer_range": -0.1}, "initializer_range must be a number from 0"),
    "a token": ({"eos_token_id": [1, 2**40]}, "eos_token_id must be a number from -2147483647"),
    "a type": ({"n_embd": [12]}, r"n_embd must be int, got \[12\]"),
    "labels": ({"id2label": {"0": "a", "2": "b"}}, "must number classes from 0, each once"),
    "labels twice": ({"id2label": {"0": "a", "00": "b"}}, "must number classes from 0, each once"),
    "nameless labels": ({"id2label": {"0": 7}}, "id2label must be dict"),
    "lettered labels": ({"id2label": {"a": "b"}}, "id2label must map whole numbers to names"),
    "a count of labels": ({"num_labels": 10**12}, "num_labels must be a whole number from 0 to"),
    "a list": ({"architectures": [1]}, "architectures must be list"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_setting_is_named_with_its_file(case, folder):
    changes, said = SETTINGS[case]
    with_config(folder, folder, changes)
    with pytest.raises(ConfigError, match=f"^{folder / 'config.json'}: .*{said}"):
        AutoModel.from_pretrained(folder)


def test_a_padding_token_beyond_the_table(folders, tmp_path):
    spoilt = with_config(folders["bert"], tmp_path / "bert", {"pad_token_id": 40})
    with pytest.raises(ConfigError, match="config.json: padding_idx is 40, the table has 40 rows"):
        AutoModel.from_pretrained(spoilt)


@pytest.mark.parametrize(
    "rope, said",
    [
        ({"rope_type": "yarn"}, "'yarn'.*not supported"),
        ({"rope_type": ["linear"]}, "not supported"),
        ({"rope_type": "linear", "factor": 10**400}, "factor must be a positive number"),
        ({"rope_theta": 1e-300}, "rope_theta must be a positive number"),
        (
            {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4},
            "low_freq_factor=4 must be below high_freq_factor=4",
        ),
    ],
)
def test_positions_that_turn_in_no_known_way(folders, tmp_path, rope, said):
    changes = {"rope_parameters": rope, "rope_theta": None, "rope_scaling": None}
    spoilt = with_config(folders["llama"], tmp_path / "llama", changes)
    with pytest.raises(ConfigError, match=said):
        AutoModel.from_pretrained(spoilt)


def test_a_setting_that_is_misspelt_is_not_passed_over(folder):
    with pytest.raises(ConfigError, match="there is no setting 'num_label'; did you mean num_labe"):
        AutoModel.from_pretrained(folder, num_label=3)


def spelt(text):
    return lambda folder: (folder / "config.json").write_bytes(text)


def instead(name, make):
    """Return what puts something else in the place of a file."""

    def change(folder):
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return change


def index(text):
    def change(folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(text)

    return change


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


WRONG = {
    "empty": (spelt(b""), "config.json: not valid JSON"),
    "not an object": (spelt(b"[1]"), "not a JSON object but list"),
    "a key twice": (spelt(b'{"n_head": 1, "n_head": 2}'), "a key appears twice: 'n_head'"),
    "NaN": (spelt(b'{"n_head": NaN}'), "NaN is no JSON number"),
    "Infinity": (spelt(b'{"n_head": -Infinity}'), "-Infinity is no JSON number"),
    "infinite": (spelt(b'{"layer_norm_epsilon": 1e400}'), "the number 1e400 is too large"),
    "digits": (spelt(b'{"n_head": ' + b"9" * 9999 + b"}"), "not valid JSON"),
    "deep": (spelt(b"[" * 100_000), "nested too deeply"),
    "not UTF-8": (spelt(b'{"a": "\xff"}'), "can't decode byte 0xff"),
    "UTF-16": (spelt('{"a": 1}'.encode("utf-16")), "can't decode byte 0xff"),
    "config is a folder": (instead("config.json", Path.mkdir), "config.json: not a file"),
    "config is a pipe": (instead("config.json", os.mkfifo), "config.json: not a file"),
    "config leads nowhere": (
        instead("config.json", lambda path: path.symlink_to("none")),
        "the file is missing",
    ),
    "config leads to itself": (
        instead("config.json", lambda path: path.symlink_to(path.name)),
        "the file is missing",
    ),
    "config is endless": (
        instead("config.json", lambda path: path.symlink_to("/dev/zero")),
        "config.json: not a file",
    ),
    "no config": (instead("config.json", lambda path: None), "Nothing is ever downloaded"),
    "weights are a folder": (instead("model.safetensors", Path.mkdir), "it is not a file"),
    "weights are a pipe": (instead("model.safetensors", os.mkfifo), "it is not a file"),
    "weights are empty": (instead("model.safetensors", Path.touch), "0 bytes, too few"),
    "pickles alone": (pickled, "is a pickle.*convert it with transformers"),
    "index is a pipe": (
        lambda folder: (
            (folder / "model.safetensors").unlink(),
            os.mkfifo(folder / "model.safetensors.index.json"),
        ),
        "it is not a file",
    ),
    "index is no map": (index('{"weight_map": []}'), "it has no weight_map"),
    "a shard is missing": (index('{"weight_map": {"a": "b.safetensors"}}'), "missing: b.safet"),
    "a shard elsewhere": (
        index('{"weight_map": {"a": "../b.safetensors"}}'),
        "expected the plain name of a .safetensors file in the same folder",
    ),
    "generation is a list": (
        lambda folder: (folder / "generation_config.json").write_text("[]"),
        "generation_config.json: not a JSON object",
    ),
    "generation is a pipe": (
        lambda folder: os.mkfifo(folder / "generation_config.json"),
        "generation_config.json: not a file",
    ),
}


@contextmanager
def no_longer_than(seconds):
    """Fail rather than wait for a pipe that nobody writes to."""

    def stop(*_):
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("case", WRONG)
def test_files_that_are_not_what_they_should_be(case, folder):
    change, said = WRONG[case]
    change(folder)
    with no_longer_than(20), quiet(), one_clear_error() as caught:
        AutoModelForCausalLM.from_pretrained(folder)
    caught.match(said)


def test_folders_that_are_none(folder, tmp_path):
    for wrong in (folder / "config.json", tmp_path / "none", "a\0b", tmp_path / ("x" * 300)):
        with pytest.raises(WeightsError, match="Nothing is ever downloaded|cannot be read"):
            AutoModel.from_pretrained(wrong)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="config.json: the file is missing"):
        AutoModel.from_pretrained(tmp_path / "empty")


def test_a_config_with_a_byte_order_mark_is_read(folder):
    path = folder / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert AutoConfig.from_pretrained(folder).n_embd == 12


def test_arguments_that_are_none(folder):
    for wrong in (3, {}, "config.json"):
        with pytest.raises(TypeError, match="AutoModel takes a config, got"):
            AutoModel.from_pretrained(folder, config=wrong)
    with pytest.raises(TypeError, match="weights are floats; dtype must be"):
        AutoModel.from_pretrained(folder, dtype="int64")
    with pytest.raises(WeightsError, match="there is none of model_type ''"):
        AutoModel.from_config(gf.models.PretrainedConfig())


@contextmanager
def as_nobody():
    """Root may read everything; be somebody else for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "generation_config.json", ""])
def test_what_may_not_be_read(name, folders):
    AutoModelForCausalLM.from_pretrained(folders["gpt2"])  # whatever this imports
    with tempfile.TemporaryDirectory() as place:  # pytest's own belong to one user alone
        Path(place).chmod(0o755)
        folder = Path(shutil.copytree(folders["gpt2"], Path(place) / "model"))
        (folder / "generation_config.json").write_text("{}")
        (folder / name).chmod(0)
        try:
            with as_nobody(), pytest.raises(WeightsError, match="Permission denied.*; check"):
                AutoModelForCausalLM.from_pretrained(folder)
        finally:
            (folder / name).chmod(0o755)


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_saving_where_one_may_not():
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        AutoModel.from_config(config_of("gpt2")).save_pretrained(place)
        before = contents(Path(place))
        Path(place).chmod(0o555)
        with as_nobody(), pytest.raises(PermissionError) as caught:
            other_model().save_pretrained(place)
        assert "Permission denied; check the path, its permissions" in describe(caught.value)
        assert contents(Path(place)) == before


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def other_model():
    """A model unlike that of `folder`, with settings for generation."""
    model = AutoModelForCausalLM.from_config(config_of("gpt2", n_layer=3))
    model.generation_settings = {"max_new_tokens": 3}
    return model


@pytest.mark.parametrize("shards", ["5GB", "3KB"])
@pytest.mark.parametrize("old_shards", ["5GB", "3KB"])
def test_a_full_disk_leaves_what_there_was(tmp_path, shards, old_shards):
    AutoModel.from_config(config_of("gpt2")).save_pretrained(tmp_path, old_shards)
    before = contents(tmp_path)
    model = other_model()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (10, 500, 2500):  # too little for a config, for the weights, for some shards
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large") as caught:
                model.save_pretrained(tmp_path, shards)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert contents(tmp_path) == before
        assert "check the path, its permissions and the free space" in describe(caught.value)
    model.save_pretrained(tmp_path, shards)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.n_layer == 3 and again.generation_settings == {"max_new_tokens": 3}


def test_a_write_that_fails_at_any_call_leaves_old_weights_or_new(folder, monkeypatch):
    model = other_model()
    with monkeypatch.context() as patch:
        counter = FaultyOs()
        patch.setattr(durable, "os", counter)
        model.save_pretrained(folder.parent / "count")
    assert "replace" in counter.calls
    old = (folder / "model.safetensors").read_bytes()
    new = (folder.parent / "count" / "model.safetensors").read_bytes()
    for call in range(len(counter.calls)):
        with monkeypatch.context() as patch:
            patch.setattr(durable, "os", FaultyOs(call))
            with pytest.raises(OSError, match="No space left"):
                model.save_pretrained(folder)
        assert (folder / "model.safetensors").read_bytes() in (old, new)
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    model.save_pretrained(folder)


def test_a_setting_that_cannot_be_written_is_told_before_anything_is(folder):
    before = contents(folder)
    model = other_model()
    model.config.extra["limit"] = math.inf
    with pytest.raises(ValueError, match="not JSON compliant"):
        model.save_pretrained(folder)
    assert contents(folder) == before


def test_saving_where_a_file_is(folder):
    before = contents(folder)
    with pytest.raises(FileExistsError) as caught:
        other_model().save_pretrained(folder / "config.json")
    assert "config.json: File exists" in describe(caught.value)
    assert contents(folder) == before


def test_a_symlinked_folder_and_symlinked_files(folder):
    link = folder.parent / "link"
    link.symlink_to(folder)
    (folder / "config.json").rename(folder / "told.json")
    (folder / "config.json").symlink_to("told.json")
    model = AutoModel.from_pretrained(link)
    model.save_pretrained(link)
    assert link.is_symlink()
    assert AutoModel.from_pretrained(folder).config == model.config


def test_loading_while_the_folder_is_written_anew(folder):
    """What is loaded is one saved model or the other, for their configs are alike."""
    models = [AutoModel.from_config(config_of("gpt2")).eval() for _ in range(2)]
    ids = gf.tensor([[1, 2, 3]])
    known = [model(ids).last_hidden_state.detach().numpy() for model in models]
    models[0].save_pretrained(folder)
    done = threading.Event()

    def keep_writing():
        while not done.is_set():
            for model in models:
                model.save_pretrained(folder)

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        for _ in range(20):
            found = AutoModel.from_pretrained(folder)(ids).last_hidden_state.detach().numpy()
            assert any(np.array_equal(found, one) for one in known)
    finally:
        done.set()
        writer.join()


@pytest.fixture
def adapted(folder):
    """A folder with updates of LoRA beside the model."""
    config = LoraConfig(r=2)
    model = add_lora(AutoModelForCausalLM.from_pretrained(folder), config)
    save_lora(model, folder / "updates", config)
    return folder


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"r": "x"}, "rank r must be 1 or more, got 'x'"),
        ({"r": 2.5}, "rank r must be 1 or more, got 2.5"),
        ({"r": 10**12}, "r=1000000000000, but no tensor of adapter_model.safetensors is that long"),
        ({"r": 3}, "shape of .*lora_A.weight: given"),
        ({"lora_alpha": "x"}, "lora_alpha must be float, got 'x'"),
        ({"lora_alpha": 10**400}, "lora_alpha must be a number from"),
        ({"lora_dropout": 2}, "lora_dropout must be a number from 0 to 1"),
        ({"target_modules": 3}, "target_modules must be names of modules, got 3"),
        ({"target_modules": ["x"]}, "no linear layer is called 'x'; there are c_attn"),
        ({"modules_to_save": [3]}, "modules_to_save must be names of modules"),
        ({"use_dora": True}, "not supported: {'use_dora': True}"),
    ],
)
def test_updates_whose_settings_are_wrong(adapted, changes, said):
    path = adapted / "updates" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    model = AutoModelForCausalLM.from_pretrained(adapted)
    with one_clear_error() as caught:
        load_lora(model, adapted / "updates")
    caught.match(said)
    assert all(parameter.requires_grad for parameter in model.parameters())
    load_lora(model, rewritten(adapted, {"r": 2, "lora_alpha": 8}))


def rewritten(adapted, changes):
    config = LoraConfig(**changes)
    model = add_lora(AutoModelForCausalLM.from_pretrained(adapted), config)
    save_lora(model, adapted / "again", config)
    return adapted / "again"


@pytest.mark.parametrize(
    "error",
    [
        WeightsError("model: a\n  b"),
        ConfigError("config.json: a\nb"),
        TokenizerError("tokenizer.json: a\nb"),
        ImageError("a.png: a\nb"),
        FileNotFoundError(2, "No such file or directory", "x"),
    ],
)
def test_a_command_tells_of_each_in_one_line(error):
    line = describe(error)
    assert line and "\n" not in line


def test_no_socket_is_ever_made(tmp_path, monkeypatch):
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1}, "[UNK]"))

    def refuse(*args, **kwargs):
        raise AssertionError("a socket was made")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    for kind in KINDS:
        for chooser in CHOOSERS:
            if not chooser._found(kind):
                continue
            folder = save(kind, tmp_path / kind, chooser)
            words.save(str(folder / "tokenizer.json"))
            with quiet():
                chooser.from_pretrained(folder)
            assert gf.data.AutoTokenizer.from_pretrained(folder)("a")["input_ids"] == [1]
    for name in ("bert-base-uncased", "hf-internal-testing/tiny-random-bert"):
        for load in (AutoModel, AutoConfig, gf.data.AutoTokenizer):
            with pytest.raises(ValueError, match="Nothing is ever downloaded"):
                load.from_pretrained(name)
