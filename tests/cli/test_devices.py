"""`train` and `generate` on another device than the CPU, and in bfloat16."""

import json
import shutil

import numpy as np
import pytest

from glassformer.training.checkpoint import load_weights, read_json
from glassformer.training.metrics import read_log
from tests.cli.commands import SMALL, assert_refused

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
