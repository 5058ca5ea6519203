import json
import re
import shutil

import numpy as np
import pytest

import glassformer
from glassformer.cli import main
from glassformer.training.checkpoint import load_weights, read_json, save_weights
from glassformer.training.metrics import read_log

TEXT = "".join(f"{i} times {j} is {i * j}.\n" for i in range(1, 16) for j in range(1, 16))
SMALL = ["--config", "tiny", "--block-size", "16", "--steps", "12", "--save-steps", "4"]


class Result:
    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def run(capsys):
    """Run the command line in this process; what it prints is kept."""

    def call(*argv):
        capsys.readouterr()
        try:
            status = main([str(a) for a in argv])
        except SystemExit as stop:  # argparse's way to end
            status = stop.code
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "corpus.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A finished run; tests that change it must copy it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "--data", str(corpus), "--output", str(folder), *SMALL]) == 0
    return folder


def snapshot(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_refused(result, *parts):
    """One line on stderr that says what is wrong and what to do, and exit status 2."""
    assert result.status == 2
    assert result.err.count("\n") == 1 and result.err.endswith("\n"), result.err
    assert re.match(r"glassformer( train| generate| info)?: error: ", result.err)
    for part in parts:
        assert part in result.err, result.err
    assert "Traceback" not in result.err


def test_run_folder_and_report(run, corpus, tmp_path):
    folder = tmp_path / "deep" / "run"
    result = run("train", "--data", corpus, "--output", folder, *SMALL)
    assert result.status == 0
    names = sorted(p.name for p in folder.iterdir())
    assert names == [
        "checkpoint-12",
        "checkpoint-8",
        "config.json",
        "log.jsonl",
        "loss.svg",
        "model.safetensors",
        "run.json",
        "vocabulary.json",
    ]
    found = re.search(r"validation loss (\d\.\d{3}) nats a character after 12 steps", result.out)
    recorded = read_json(folder / "run.json")["result"]
    assert float(found[1]) == pytest.approx(recorded["validation_loss"], abs=5e-4)
    assert recorded["step"] == 12
    for path in (folder, folder / "log.jsonl", folder / "loss.svg"):
        assert str(path) in result.out
    sample = result.out.split("------\n")[1]
    assert len(sample) > 300 and set(sample) <= set(TEXT)
    steps = [row["step"] for row in read_log(folder / "log.jsonl")]
    assert steps == sorted(steps) and steps[-1] == 12


def test_validation_loss_is_that_of_the_held_out_tenth(trained):
    """Computed here once more from the weights on disk, window by window."""
    import glassformer as gf
    from glassformer.cli.run_folder import load_model

    loaded = load_model(trained)
    ids = loaded.vocabulary.encode(TEXT)
    held_out = ids[len(ids) * 9 // 10 :]
    total, count = 0.0, 0
    with gf.no_grad():
        for start in range(0, len(held_out) - 1, 16):
            window = held_out[start : start + 17]
            logits = loaded.model(gf.from_numpy(window[None, :-1].copy())).logits.numpy()[0]
            logits = logits.astype(np.float64)
            top = logits.max(-1, keepdims=True)
            log_sum = np.log(np.exp(logits - top).sum(-1)) + top[:, 0]
            total += (log_sum - logits[np.arange(len(window) - 1), window[1:]]).sum()
            count += len(window) - 1
    assert count == len(held_out) - 1
    recorded = read_json(trained / "run.json")["result"]["validation_loss"]
    assert recorded == pytest.approx(total / count, rel=2e-3)  # the last window's context differs


def test_resumed_run_has_the_weights_of_one_that_never_stopped(run, corpus, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / "model.safetensors").unlink()
    shutil.rmtree(folder / "checkpoint-12")
    result = run("train", "--output", folder, "--resume")
    assert result.status == 0
    whole = load_weights(trained / "model.safetensors")
    resumed = load_weights(folder / "model.safetensors")
    assert {n: a.tobytes() for n, a in whole.items()} == {
        n: a.tobytes() for n, a in resumed.items()
    }


def test_resuming_a_finished_run_says_so_and_changes_no_weight(run, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    result = run("train", "--output", folder, "--resume")
    assert result.status == 0
    words = "has done its 12 steps: nothing is left to train; ask for more with --steps\n"
    assert result.err == f"glassformer train: {folder} {words}"
    weights = [path / "model.safetensors" for path in (trained, folder)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_help_names_every_default(run):
    shown = " ".join(run("train", "--help").out.split())
    for option in ("steps", "batch-size", "block-size", "learning-rate", "dropout"):
        assert re.search(rf"--{option} [NX] [^()-]* \(default: by --config\)", shown), option
    settings = shown.partition("options:")[2].count("default")
    assert settings >= 12, "all but --help, --resume and --overwrite"


def test_resuming_can_go_further(run, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    result = run("train", "--output", folder, "--resume", "--steps", "16")
    assert result.status == 0
    assert "after 16 steps" in result.out
    assert (folder / "checkpoint-16").is_dir()
    assert read_json(folder / "run.json")["settings"]["steps"] == 16


def test_resuming_cannot_go_back(run, trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    before = snapshot(folder)
    result = run("train", "--output", folder, "--resume", "--steps", "8")
    assert_refused(result, "is at step 12 already", "--steps")
    assert snapshot(folder) == before


def test_the_last_step_is_judged_and_saved_too(run, corpus, tmp_path):
    folder = tmp_path / "run"
    sizes = ["--config", "tiny", "--block-size", "16", "--steps", "10", "--save-steps", "4"]
    assert run("train", "--data", corpus, "--output", folder, *sizes).status == 0
    rows = read_log(folder / "log.jsonl")
    assert [row["step"] for row in rows if "eval_loss" in row] == [4, 8, 10]
    assert (folder / "checkpoint-10").is_dir()


def test_resume_before_the_first_checkpoint_starts_over(run, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)
    assert run("train", "--output", folder, "--resume").status == 0
    assert read_json(folder / "run.json") == read_json(trained / "run.json")


def test_seed_repeats_the_run(run, corpus, trained, tmp_path):
    for seed, same in ((1337, True), (5, False)):
        folder = tmp_path / str(seed)
        run("train", "--data", corpus, "--output", folder, *SMALL, "--seed", seed)
        equal = (folder / "model.safetensors").read_bytes() == (
            trained / "model.safetensors"
        ).read_bytes()
        assert equal == same


def test_byte_vocabulary_and_folder_as_data(run, corpus, tmp_path):
    folder = tmp_path / "run"
    result = run(
        "train", "--data", corpus.parent, "--output", folder, "--vocabulary", "byte", *SMALL
    )
    assert result.status == 0 and "nats a byte" in result.out
    assert read_json(folder / "config.json")["vocab_size"] == 256
    assert run("generate", folder, "--prompt", "é", "--max-new-tokens", 5).out.startswith("é")


def test_overwrite_replaces_the_run_and_nothing_else(run, corpus, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / "notes.md").write_text("mine")
    settings = ["--config", "tiny", "--block-size", "16", "--steps", "3", "--save-steps", "2"]
    result = run("train", "--data", corpus, "--output", folder, "--overwrite", *settings)
    assert result.status == 0
    assert (folder / "notes.md").read_text() == "mine"
    assert sorted(p.name for p in folder.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]


@pytest.mark.parametrize("what", ["model", "checkpoint"])
def test_generate_writes_from_a_run_or_a_checkpoint(run, trained, what):
    source = trained if what == "model" else trained / "checkpoint-8"
    result = run("generate", source, "--prompt", "3 times", "--max-new-tokens", 40, "--seed", 1)
    assert result.status == 0 and result.err == ""
    assert result.out.startswith("3 times") and len(result.out) == len("3 times") + 40 + 1


def test_generate_is_repeatable_and_streams_the_same(run, trained):
    def out(*more):
        return run("generate", trained, "--prompt", "3", "--max-new-tokens", 60, *more).out

    assert out("--seed", 1) == out("--seed", 1) == out("--seed", 1, "--stream")
    assert out("--seed", 1) != out("--seed", 2)
    assert out("--temperature", 0) == out("--temperature", 0, "--top-k", 3)
    assert out("--temperature", 0) == out("--top-k", 1)
    assert out("--top-p", 0.5, "--min-p", 0.1, "--repetition-penalty", 1.2).startswith("3")
    assert out("--max-new-tokens", 0) == "3\n"
    assert out("--temperature", 0) == out("--no-do-sample") == out("--no-do-sample", "--stream")
    assert out("--num-beams", 3) == out("--num-beams", 3) != out("--no-do-sample")
    assert len(out("--num-beams", 3)) == len("3") + 60 + 1  # more than the model's positions


def test_generate_without_prompt_starts_on_a_new_line(run, trained):
    assert run("generate", trained, "--max-new-tokens", 3).out.startswith("\n")


def test_info_counts_what_is_there(run, trained):
    result = run("info", trained)
    assert result.status == 0
    config = read_json(trained / "config.json")
    weights = load_weights(trained / "model.safetensors")
    total = sum(array.size for array in weights.values())
    assert f"{total:,} parameters" in result.out
    assert "checkpoint-8, checkpoint-12" in result.out
    assert f"vocabulary      {config['vocab_size']} tokens" in result.out
    # 12 C² a layer and V C for the logits, 2 operations each; attention 4 T C a layer
    layers, channels, length = config["n_layer"], config["n_embd"], config["n_positions"]
    flops = 2 * (12 * channels**2 * layers + config["vocab_size"] * channels)
    flops += 4 * length * channels * layers
    assert f"{flops / 1000:.3g} k forward, {3 * flops / 1000:.3g} k to train" in result.out
    assert f"{total * 4 / 1024:.4g} KiB weights; {total * 16 / 1024:.4g} KiB to train" in result.out
    for name in weights:
        assert name.rpartition(".")[2] in result.out


def test_info_of_a_single_checkpoint(run, trained):
    assert "parameters" in run("info", trained / "checkpoint-8").out


def test_info_without_run_lists_the_models(run):
    result = run("info")
    assert result.status == 0
    for name in ("tiny", "small", "medium"):
        assert re.search(rf"^{name} .*[\d,]+ ", result.out, re.M)


# Bad input: one line, exit status 2, nothing overwritten.


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


# another device


ON_TORCH = [*SMALL, "--device", "torch-cpu"]


@pytest.fixture
def references():
    """Triton's interpreter, where the suite runs, is slow; the references serve in its place."""
    pytest.importorskip("torch")
    from tests.device_calls import references

    with references():
        yield


def test_training_in_bfloat16_writes_a_run_like_any_other(run, references, corpus, tmp_path):
    folder = tmp_path / "run"
    result = run("train", "--data", corpus, "--output", folder, *ON_TORCH, "--bf16")
    assert (result.status, result.err) == (0, "")
    assert "\ndevice torch-cpu, bfloat16\n" in result.out
    settings = read_json(folder / "run.json")["settings"]
    assert (settings["device"], settings["bf16"]) == ("torch-cpu", True)
    losses = [row["loss"] for row in read_log(folder / "log.jsonl") if "loss" in row]
    assert losses[-1] < losses[0] - 0.1
    assert {a.dtype for a in load_weights(folder / "model.safetensors").values()} == {
        np.dtype("float32")
    }
    prompt = ["--prompt", "1 times", "--max-new-tokens", "12", "--seed", "1"]
    written = [run("generate", folder, *prompt, *more) for more in ([], ["--device", "torch-cpu"])]
    assert [w.status for w in written] == [0, 0]
    assert written[0].out == written[1].out
    assert run("info", folder).status == 0

    whole = load_weights(folder / "model.safetensors")
    shutil.rmtree(folder / "checkpoint-12")
    (folder / "model.safetensors").unlink()
    assert run("train", "--output", folder, "--resume").status == 0
    resumed = load_weights(folder / "model.safetensors")
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)


def test_a_run_of_before_there_were_devices_can_be_resumed_and_moved(
    run, references, trained, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    description = read_json(folder / "run.json")
    del description["settings"]["device"], description["settings"]["bf16"]
    (folder / "run.json").write_text(json.dumps(description))
    assert run("train", "--output", folder, "--resume", "--steps", "14").status == 0
    assert read_json(folder / "run.json")["settings"]["device"] == "cpu"
    more = ["--steps", "16", "--device", "torch-cpu"]
    assert run("train", "--output", folder, "--resume", *more).status == 0
    assert read_json(folder / "run.json")["settings"]["device"] == "torch-cpu"


def test_a_run_begun_in_bfloat16_goes_on_in_float32_where_that_is_missing(
    run, references, corpus, tmp_path
):
    folder = tmp_path / "run"
    assert run("train", "--data", corpus, "--output", folder, *ON_TORCH, "--bf16").status == 0
    resume = ["train", "--output", folder, "--resume", "--steps", "14", "--device", "cpu"]
    assert_refused(run(*resume), "needs a device that has bfloat16", "--no-bf16")
    result = run(*resume, "--no-bf16")
    assert (result.status, result.err) == (0, "")
    settings = read_json(folder / "run.json")["settings"]
    assert (settings["device"], settings["bf16"], settings["steps"]) == ("cpu", False, 14)


def test_devices_that_cannot_be_used(run, corpus, trained, tmp_path):
    torch = pytest.importorskip("torch")
    train = ["train", "--data", corpus, "--output", tmp_path / "run", *SMALL]
    refused = [
        ([*train, "--device", "tpu"], "'tpu' is not available; the devices are cpu, cuda"),
        ([*train, "--bf16"], "--device cuda or --device torch-cpu"),
        ([*train, "--bf16", "--device", "cpu"], "--device cuda or --device torch-cpu"),
        (["generate", trained, "--device", "tpu"], "the devices are cpu, cuda, torch-cpu"),
    ]
    if not torch.cuda.is_available():
        refused += [
            ([*train, "--device", "cuda"], "torch sees no CUDA device"),
            ([*train, "--device", "cuda", "--bf16"], "torch sees no CUDA device"),
            (["generate", trained, "--device", "cuda"], "torch sees no CUDA device"),
        ]
    for command, words in refused:
        assert_refused(run(*command), words)
    assert not (tmp_path / "run").exists()
