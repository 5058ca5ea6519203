"""`train`, `generate` and `info`, as typed: what they do."""

import re
import shutil

import numpy as np
import pytest

from glassformer.training.checkpoint import load_weights, read_json
from glassformer.training.metrics import read_log
from tests.cli.commands import SMALL, TEXT, assert_refused, snapshot


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
