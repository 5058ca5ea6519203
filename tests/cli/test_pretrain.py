import json
import math
import shutil

import numpy as np
import pytest

pytest.importorskip("tokenizers")

import glassformer as gf
from glassformer.data import AutoTokenizer
from glassformer.models.auto import AutoModelForCausalLM, AutoModelForMaskedLM
from glassformer.training.checkpoint import list_checkpoints
from glassformer.training.metrics import read_log
from tests.cli.commands import assert_refused, interrupt_after_evaluation, snapshot
from tests.device_calls import references

TEXT = "".join(f"{i} times {j} is {i * j}.\n" for i in range(1, 21) for j in range(1, 21))
SMALL = ["--vocab-size", "300", "--hidden-size", "16", "--layers", "1", "--heads", "2"]
SMALL += ["--max-length", "16", "--steps", "12", "--save-steps", "4", "--batch-size", "4"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "corpus.txt"
    path.write_text(TEXT)
    return path


def held_out(tokenizer):
    """The tokens of the last tenth, which begins with a line."""
    lines = TEXT.splitlines(keepends=True)
    ends = np.cumsum([len(line) for line in lines])
    first = int(np.searchsorted(ends, len(TEXT) * 9 // 10)) + 1
    return [i for line in lines[first:] for i in tokenizer.encode(line, add_special_tokens=False)]


def test_a_gpt2_and_its_perplexity(run, corpus, tmp_path):
    """The perplexity is computed here once more, from the folder."""
    result = run("pretrain", "--objective", "clm", "--data", corpus, "--output", tmp_path, *SMALL)
    assert (result.status, result.err) == (0, "")
    names = {p.name for p in tmp_path.iterdir()}
    files = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    files |= {"special_tokens_map.json", "metrics.json", "run.json", "log.jsonl", "loss.svg"}
    assert names == files
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    model, tokenizer = (
        auto.from_pretrained(tmp_path) for auto in (AutoModelForCausalLM, AutoTokenizer)
    )
    ids = held_out(tokenizer)
    assert metrics["tokens"] == len(ids) and metrics["steps"] == 12
    total = 0.0
    with gf.no_grad():
        for start in range(0, len(ids) - 1, 16):
            first = min(start, len(ids) - 17)  # the last window ends with the text
            window = np.array(ids[first : first + 17])
            logits = model(gf.tensor(window[None, :-1])).logits.numpy()[0].astype(np.float64)
            log_sums = np.log(np.exp(logits).sum(-1))
            total += (log_sums - logits[np.arange(16), window[1:]])[start - first :].sum()
    assert metrics["perplexity"] == pytest.approx(math.exp(total / (len(ids) - 1)), rel=1e-4)
    assert f"perplexity {metrics['perplexity']:.2f}" in result.out
    assert tokenizer.decode(tokenizer.encode("3 times 4 is 12.")) == "3 times 4 is 12."
    rows = read_log(tmp_path / "log.jsonl")
    assert [row["step"] for row in rows if "eval_loss" in row] == [4, 8, 12]


@pytest.mark.parametrize("option", [[], ["--whole-word"]])
def test_a_bert_that_transformers_reads(run, corpus, tmp_path, option):
    result = run(
        "pretrain", "--objective", "mlm", "--data", corpus, "--output", tmp_path, *SMALL, *option
    )
    assert result.status == 0, result.err
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    assert metrics["perplexity"] < 320
    ours = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert ours.config.max_position_embeddings == 16 and ours.config.architectures == [
        "BertForMaskedLM"
    ]
    ids = AutoTokenizer.from_pretrained(tmp_path)("3 times [MASK] is 12.")["input_ids"]
    torch, transformers = (pytest.importorskip(name) for name in ("torch", "transformers"))
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("3 times [MASK] is 12.")[
        "input_ids"
    ] == list(ids)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)
    with torch.no_grad():
        wanted = theirs(torch.tensor([ids])).logits.numpy()
    with gf.no_grad():
        found = ours(gf.tensor([ids])).logits.numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_interrupted_and_resumed_it_ends_in_the_same_bits(
    run, corpus, tmp_path, monkeypatch, objective
):
    begin = ["--objective", objective, "--data", corpus, *SMALL]
    assert run("pretrain", *begin, "--output", tmp_path / "whole").status == 0
    with monkeypatch.context() as patched:
        interrupt_after_evaluation(patched, step=4)
        result = run("pretrain", *begin, "--output", tmp_path / "cut")
    assert result.status == 130
    assert f"glassformer pretrain --output {tmp_path / 'cut'} --resume" in result.err
    (checkpoint,) = list_checkpoints(tmp_path / "cut")
    assert checkpoint.name == "checkpoint-5"
    uses = {
        "mlm": ("fill-mask", "3 times [MASK] is 9."),
        "clm": ("generate", "--prompt", "3 times", "--max-new-tokens", "2"),
    }
    command, *argv = uses[objective]
    assert run(command, "--model", checkpoint, *argv).status == 0
    assert_refused(
        run("pretrain", "--output", tmp_path / "cut", "--resume", "--steps", "20"),
        "was begun with --steps 12, not 20",
    )
    result = run("pretrain", "--output", tmp_path / "cut", "--resume")
    assert result.status == 0, result.err
    for name in ("model.safetensors", "metrics.json", "config.json", "tokenizer.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    again = run("pretrain", "--output", tmp_path / "cut", "--resume")
    assert again.status == 0 and "is finished: nothing is left to train" in again.err


def test_a_finished_run_is_kept_unless_told(run, corpus, tmp_path):
    command = ["pretrain", "--objective", "clm", "--data", corpus, "--output", tmp_path, *SMALL]
    assert run(*command).status == 0
    before = snapshot(tmp_path)
    assert_refused(run(*command), "--overwrite")
    assert_refused(run(*command, "--overwrite", "--heads", "3"), "--heads=3", "--hidden-size=16")
    assert snapshot(tmp_path) == before
    command[2] = "mlm"
    assert run(*command, "--overwrite").status == 0
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "bert"


def test_a_changed_text_is_not_gone_on_with(run, corpus, tmp_path, monkeypatch):
    data = shutil.copy(corpus, tmp_path / "text.txt")
    output = tmp_path / "run"
    with monkeypatch.context() as patched:
        interrupt_after_evaluation(patched, step=4)
        run("pretrain", "--objective", "clm", "--data", data, "--output", output, *SMALL)
    data.write_text(TEXT + "more")
    assert_refused(run("pretrain", "--output", output, "--resume"), "the text changed")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"--objective": None}, ["--objective is missing"]),
        ({"--objective": "nsp"}, ["--objective", "'nsp'"]),
        ({"--data": "nowhere.txt"}, ["nowhere.txt does not exist"]),
        ({"--vocab-size": "20"}, ["--vocab-size 20", "too small"]),
        ({"--heads": "3"}, ["--heads=3 must divide --hidden-size=16"]),
        ({"--objective": "clm", "--heads": "3"}, ["--heads=3 must divide --hidden-size=16"]),
        ({"--layers": "10001"}, ["--layers must be", "10001"]),
        ({"--bf16": ""}, ["--bf16", "--device cuda"]),
        ({"--device": "abacus"}, ["'abacus' is not available"]),
        ({"--max-length": "2"}, ["--max-length must be at least 3"]),
        ({"--max-length": "4000"}, ["too short", "4000"]),
        ({"--objective": "clm", "--whole-word": ""}, ["--whole-word", "clm"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_arguments_that_cannot_be_met(run, corpus, tmp_path, change, parts):
    options = {"--objective": "mlm", "--data": corpus}
    options |= dict(zip(SMALL[::2], SMALL[1::2], strict=True)) | change
    argv = [item for pair in options.items() if pair[1] is not None for item in pair]
    output = tmp_path / "run"
    result = run("pretrain", *(item for item in argv if item != ""), "--output", output)
    assert_refused(result, *parts)
    assert not output.exists()


def test_without_data_it_reads_pythons_documentation(run, tmp_path):
    result = run("pretrain", "--objective", "clm", "--output", tmp_path, *SMALL, "--steps", "1")
    assert result.status == 0
    assert "text   Python's documentation" in result.out


@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_on_another_device(run, corpus, tmp_path, objective):
    """float32 there gives the same losses; a run may move, and go on in bfloat16."""
    pytest.importorskip("torch")
    begin = ["pretrain", "--objective", objective, "--data", corpus, *SMALL, "--dropout", "0"]
    metrics = {}
    with references():
        for device in ("cpu", "torch-cpu"):
            result = run(*begin, "--output", tmp_path / device, "--device", device)
            assert (result.status, result.err) == (0, "")
            assert (f"\ndevice {device}, float32\n" in result.out) == (device != "cpu")
            metrics[device] = json.loads((tmp_path / device / "metrics.json").read_text())
        assert metrics["torch-cpu"]["loss"] == pytest.approx(metrics["cpu"]["loss"], rel=1e-4)
        half = ["--device", "torch-cpu", "--bf16"]
        assert run(*begin, "--output", tmp_path / "half", *half).status == 0
    settings = json.loads((tmp_path / "half" / "run.json").read_text())["settings"]
    assert (settings["device"], settings["bf16"]) == ("torch-cpu", True)
    loss = json.loads((tmp_path / "half" / "metrics.json").read_text())["loss"]
    assert loss != metrics["cpu"]["loss"] == pytest.approx(loss, rel=0.02)


def test_help_names_every_default(run):
    shown = " ".join(run("pretrain", "--help").out.split()).partition("options:")[2]
    assert shown.count("default") >= 16
