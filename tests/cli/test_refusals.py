"""`train`, `generate` and `info` given what they cannot use: one line, and nothing overwritten."""

import json
import shutil

import numpy as np
import pytest

import glassformer
from glassformer.training.checkpoint import load_weights, read_json, save_weights
from tests.cli.commands import SMALL, TEXT, assert_refused, snapshot


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"\x7fELF\0\0\0", "not UTF-8 text"),
        (b"\xff\xd8\xff\xe0", "not UTF-8 text"),
        (b"too short", "too short: its last tenth is 1 tokens"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_unusable_data(run, trained, tmp_path, content, part, overwrite):
    data = tmp_path / "data.txt"
    if content is not None:
        data.write_bytes(content)
    folder = tmp_path / "run"
    if overwrite:
        shutil.copytree(trained, folder)
    before = snapshot(tmp_path)
    more = ["--overwrite"] if overwrite else []
    result = run("train", "--data", data, "--output", folder, *SMALL, *more)
    assert_refused(result, part, "give")
    assert snapshot(tmp_path) == before
    assert folder.exists() == overwrite


def test_existing_run_is_not_overwritten(run, corpus, trained):
    before = snapshot(trained)
    result = run("train", "--data", corpus, "--output", trained, *SMALL)
    assert_refused(result, "already holds a run", "--resume", "--overwrite", str(trained))
    assert snapshot(trained) == before


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_files_that_no_run_wrote_are_not_overwritten(run, corpus, tmp_path, more):
    (tmp_path / "config.json").write_text('{"mine": 1}')
    result = run("train", "--data", corpus, "--output", tmp_path, *SMALL, *more)
    assert_refused(result, "config.json", "choose another --output")
    assert (tmp_path / "config.json").read_text() == '{"mine": 1}'
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("place", ["file/run", "file", "/proc/run"])
def test_unwritable_folder(run, corpus, tmp_path, place):
    (tmp_path / "file").write_text("")
    result = run("train", "--data", corpus, "--output", tmp_path / place, *SMALL)
    assert_refused(result, "cannot write to", "choose another folder")


def test_resume_needs_a_run(run, corpus, tmp_path):
    assert_refused(run("train", "--output", tmp_path / "no", "--resume"), "is not a run")
    assert_refused(run("train", "--output", tmp_path, "--resume"), "it has no run.json")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--batch-size", 3), ("--learning-rate", 0.5), ("--config", "small"), ("--seed", 3)],
)
def test_resume_with_other_settings(run, trained, option, value):
    before = snapshot(trained)
    result = run("train", "--output", trained, "--resume", option, value)
    assert_refused(result, f"was trained with {option}", f"leave {option} out")
    assert snapshot(trained) == before


def test_resume_with_text_that_does_not_fit_the_vocabulary(run, trained, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(TEXT + "Übermut")
    before = snapshot(trained)
    result = run("train", "--output", trained, "--resume", "--data", other)
    assert_refused(result, "vocabulary", "'Ü' (U+00DC)", "--output")
    assert snapshot(trained) == before


def test_resume_with_another_text_of_the_same_letters(run, trained, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(TEXT[::-1])
    result = run("train", "--output", trained, "--resume", "--data", other)
    assert_refused(result, "is not the text that", "--data")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "trainer_state.json"]
)
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_resume_from_a_damaged_checkpoint(run, trained, tmp_path, name, damage):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    damaged(folder / "checkpoint-12" / name, damage)
    before = snapshot(folder)
    result = run("train", "--output", folder, "--resume")
    assert_refused(result, f"checkpoint-12/{name}", "delete its checkpoint folder")
    assert snapshot(folder / "checkpoint-8").items() <= before.items()
    shutil.rmtree(folder / "checkpoint-12")  # what the message says to do
    assert run("train", "--output", folder, "--resume").status == 0


def damaged(path, how):
    content = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
        return
    if how == "flip":
        content[-9] ^= 1
    path.write_bytes(content[: len(content) // 2] if how == "cut" else content)


@pytest.mark.parametrize("command", ["generate", "info"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
@pytest.mark.parametrize("name", ["model.safetensors", "vocabulary.json", "config.json"])
def test_damaged_run(run, trained, tmp_path, command, damage, name):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    if damage == "flip" and name == "vocabulary.json":
        save = json.dumps({"type": "char", "characters": "abc"})
        (folder / name).write_text(save)
    elif damage == "flip" and name == "config.json":
        (folder / name).write_text(json.dumps({**read_json(folder / name), "n_layer": 10**9}))
    else:
        damaged(folder / name, damage)
    assert_refused(run(command, folder), str(folder))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_embd", 2**40),
        ("n_embd", "32"),
        ("n_head", 0),
        ("n_head", 3),
        ("dropout", -1.0),
        ("bias", 1),
        ("activation_function", "os.system"),
        ("unknown", 1),
    ],
)
def test_impossible_config(run, trained, tmp_path, name, value):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    config = {**read_json(folder / "config.json"), name: value}
    (folder / "config.json").write_text(json.dumps(config))
    assert_refused(run("info", folder), "config")


def test_weights_of_another_model(run, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    weights = load_weights(folder / "model.safetensors")
    weights.pop("norm.weight")
    weights["extra"] = np.ones(2, np.float32)
    save_weights(folder / "model.safetensors", weights)
    assert_refused(run("generate", folder), "missing norm.weight", "unexpected extra")


@pytest.mark.parametrize(
    ("name", "value"),
    [("config", "huge"), ("steps", -1), ("batch_size", "16"), ("dropout", 3.0), ("block_size", 8)],
)
def test_resume_with_an_impossible_description(run, trained, tmp_path, name, value):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    description = read_json(folder / "run.json")
    description["settings"][name] = value
    (folder / "run.json").write_text(json.dumps(description))
    result = run("train", "--output", folder, "--resume")
    assert_refused(result, "config.json" if name == "block_size" else f"no valid {name}")


def test_version(run):
    result = run("--version")
    assert (result.status, result.out) == (0, f"glassformer {glassformer.__version__}\n")


@pytest.mark.parametrize("command", ["generate", "info"])
def test_no_run(run, corpus, tmp_path, command):
    assert_refused(run(command, tmp_path / "no"), "not a folder")
    assert_refused(run(command, corpus), "not a folder")
    assert_refused(run(command, tmp_path), "is not a run")


def test_run_without_weights(run, trained, tmp_path):
    for name in ("config.json", "vocabulary.json", "run.json"):
        shutil.copy(trained / name, tmp_path)
    assert_refused(run("generate", tmp_path), "no weights yet", "--resume")


@pytest.mark.parametrize(("prompt", "part"), [("", "prompt is empty"), ("3 × 4", "'×' (U+00D7)")])
def test_unusable_prompt(run, trained, prompt, part):
    assert_refused(run("generate", trained, "--prompt", prompt), part)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["fly"],
        ["train", "--steps", "0"],
        ["train", "--steps", "many"],
        ["train", "--config", "huge"],
        ["train", "--learning-rate", "nan"],
        ["train", "--dropout", "2"],
        ["train", "--seed", "-1"],
        ["train", "--seed", str(2**64)],
        ["train", "--resume", "--overwrite"],
        ["generate"],
        ["generate", "x", "--temperature", "-1"],
        ["generate", "x", "--top-k", "0"],
        ["generate", "x", "--top-p", "1.5"],
        ["info", "a", "b"],
    ],
)
def test_wrong_arguments(run, argv):
    assert_refused(run(*argv), "--help")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["train", "--stpes", "3"], "glassformer train: error: there is no --stpes; did you mean "
         "--steps? (see glassformer train --help)\n"),
        (["embed", "--modle=x", "a text"], "glassformer embed: error: there is no --modle; did you "
         "mean --model? (see glassformer embed --help)\n"),
        (["finetune", "--learning", "1"], "glassformer finetune: error: there is no --learning"),
        (["info", "--zzz"], "glassformer info: error: there is no --zzz (see glassformer info "),
        (["info", "a", "b"], "glassformer info: error: unrecognized arguments: b (see "),
        (["--verson"], "glassformer: error: there is no --verson; did you mean --version? "),
    ],
)  # fmt: skip
def test_unknown_options_name_the_command_and_the_nearest_option(run, argv, said):
    result = run(*argv)
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert result.err.startswith(said)


@pytest.mark.parametrize("text", ["--not an option", "-- steps", "-1"])
def test_texts_may_look_like_options(text):
    from glassformer.cli.parser import build_parser

    for argv in (["classify", "--model", "x", "--", text], ["classify", "--model", "x", text]):
        assert build_parser().parse_args(argv).texts == [text]


def test_full_disk_while_training(run, corpus, tmp_path, monkeypatch):
    from glassformer import durable
    from tests.unit.training.faulty_os import FaultyOs

    counter = FaultyOs()
    with monkeypatch.context() as patch:
        patch.setattr(durable, "os", counter)
        run("train", "--data", corpus, "--output", tmp_path / "dry", *SMALL)
    writes = [i for i, name in enumerate(counter.calls) if name == "write"]
    for index in writes[:: max(1, len(writes) // 8)]:
        folder = tmp_path / str(index)
        with monkeypatch.context() as patch:
            patch.setattr(durable, "os", FaultyOs(index))
            result = run("train", "--data", corpus, "--output", folder, *SMALL)
        assert_refused(result, "No space left on device", "free")


def test_diverging_training_says_so(run, corpus, tmp_path, monkeypatch):
    from glassformer.models import GPT

    def poisoned(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        if output.loss is not None:
            object.__setattr__(output, "loss", output.loss * float("nan"))
        return output

    forward = GPT.forward
    poisoned.__wrapped__ = forward
    monkeypatch.setattr(GPT, "forward", poisoned)
    result = run("train", "--data", corpus, "--output", tmp_path / "run", *SMALL)
    assert result.status == 1
    assert result.err.count("\n") == 1 and "the loss is nan" in result.err
    assert "--overwrite and a lower --learning-rate" in result.err
