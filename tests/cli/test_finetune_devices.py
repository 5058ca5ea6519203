"""`finetune` on PyTorch's arrays: what `--device cuda` does without a GPU."""

import json

import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("torch")

from tests.cli.commands import interrupt_after_evaluation, runner
from tests.cli.test_finetune import QUICK, models, tables  # noqa: F401  (fixtures)
from tests.device_calls import references

ON_TORCH = ["--device", "torch-cpu"]


@pytest.fixture
def run(capsys):
    """Triton's interpreter, where the suite runs, is slow; the references serve in its place."""
    with references():
        yield runner(capsys)


def loss(folder):
    return json.loads((folder / "metrics.json").read_text())["loss"]


def settings(folder):
    found = json.loads((folder / "run.json").read_text())["settings"]
    return found["device"], found["bf16"]


@pytest.fixture
def begin(models, tables):  # noqa: F811  (imported fixtures)
    data = ["--data", tables / "train.csv", *QUICK, "--learning-rate", "0.001"]
    return ["finetune", "--model", models / "gpt2", *data]


@pytest.mark.parametrize("option", [["--freeze", "all"], ["--lora", "2"], []], ids=str)
def test_another_device_gives_the_same_result(run, begin, tmp_path, option):
    losses = []
    for name, more in {"cpu": [], "torch": ON_TORCH, "half": [*ON_TORCH, "--bf16"]}.items():
        result = run(*begin, "--epochs", "1", *option, *more, "--output", tmp_path / name)
        assert (result.status, result.err) == (0, "")
        losses.append(loss(tmp_path / name))
        assert ("\ndevice torch-cpu, " in result.out) == (name != "cpu")
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=0.05)
    assert settings(tmp_path / "half") == ("torch-cpu", True)
    found = [
        json.loads(run("classify", "--model", tmp_path / "torch", "I like iron", *more).out)
        for more in ([], ON_TORCH)
    ]
    assert found[0]["score"] == pytest.approx(found[1]["score"], abs=1e-5)


def test_a_run_of_before_there_were_devices_goes_on_and_moves(run, begin, tmp_path, monkeypatch):
    output = tmp_path / "run"
    with monkeypatch.context() as patched:
        interrupt_after_evaluation(patched, step=7)
        assert run(*begin, "--output", output).status == 130
    description = json.loads((output / "run.json").read_text())
    del description["settings"]["device"], description["settings"]["bf16"]
    (output / "run.json").write_text(json.dumps(description))
    result = run("finetune", "--output", output, "--resume", *ON_TORCH)
    assert (result.status, result.err) == (0, "")
    assert settings(output) == ("torch-cpu", False)
