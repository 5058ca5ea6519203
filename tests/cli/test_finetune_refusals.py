"""`finetune` where arguments, tables or models are of no use: one line, and nothing written."""

import shutil

import pytest

pytest.importorskip("tokenizers")

from tests.cli.commands import assert_refused
from tests.cli.test_finetune import ROWS, models, tables, write  # noqa: F401  (two are fixtures)

# ruff: noqa: F811  (as arguments, fixtures have the names they were imported by)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"--data": None}, ["--data is missing"]),
        ({"--model": None}, ["--model is missing"]),
        ({"--model": "nowhere"}, ["nowhere is not a folder"]),
        ({"--text-column": "words"}, ["no column 'words'", "text, label"]),
        ({"--label-column": "class"}, ["no column 'class'", "text, label"]),
        ({"--text-pair-column": "two"}, ["no column 'two'", "text, label"]),
        ({"--task": "regression"}, ["line 2", "'fruit' is no finite number"]),
        ({"--freeze": "3"}, ["--freeze 3", "only 2 blocks"]),
        ({"--freeze": "some"}, ["--freeze", "'some'"]),
        ({"--max-length": "33"}, ["--max-length 33", "32 tokens"]),
        ({"--max-length": "1"}, ["max_length=1", "special tokens"]),
        ({"--epochs": "0"}, ["--epochs", "above 0"]),
        ({"--device": "abacus"}, ["'abacus' is not available; the devices are cpu, cuda"]),
        ({"--device": "cpu", "--bf16": None}, ["--bf16", "--device cuda or --device torch-cpu"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_arguments_that_cannot_be_met(run, models, tables, tmp_path, change, parts):
    options = {"--model": models / "bert", "--data": tables / "train.csv"} | change
    argv = [item for pair in options.items() if pair[1] is not None for item in pair]
    argv += ["--bf16"] if "--bf16" in change else []
    output = tmp_path / "run"
    assert_refused(run("finetune", *argv, "--output", output), *parts)
    assert not output.exists()


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["is empty"]),
        (b"text,label\n", ["has a header but no rows"]),
        (b"text,label\na,x\nb,x\n", ["every text has the label 'x'"]),
        (b"text,label\na,x\nb,\n", ["line 3", "label is empty"]),
        (b"text, label\na,x\n", ["columns are text, ' label'; name those", "--label-column"]),
        (b"text,label\na,x\nb,c,y\n", ["line 3", "3 fields"]),
        (b"text;label\na;x\nb, c;y\n", ["'text;label'", "semicolons", "with commas"]),
        (b"text\tlabel\na\tx\n", ["'text\\tlabel'", "tabs", "end in .tsv"]),
        (b'text,label\na,x\n"b,y\n', ["line 3", "quote"]),
        (b"text,label\na,x\n\xe4,y\n", ["line 3", "0xe4", "UTF-8"]),
    ],
)
@pytest.mark.parametrize("role", ["--data", "--eval"])
def test_tables_that_cannot_be_used(run, models, tables, tmp_path, role, content, parts):
    table = tmp_path / "table.csv"
    table.write_bytes(content)
    files = {"--data": tables / "train.csv"} | {role: table}
    if role == "--eval" and "every text" in parts[0]:
        parts = ["'x'", "'fruit', 'metal', 'sport'", "line 2"]
    argv = [item for pair in files.items() for item in pair]
    output = tmp_path / "run"
    result = run("finetune", "--model", models / "bert", *argv, "--output", output)
    assert_refused(result, str(table), *parts)
    assert not output.exists()


def test_a_label_for_each_text_is_told_as_such(run, models, tmp_path):
    table = write(tmp_path / "table.csv", [(text, f"{i / 2}") for i, (text, _) in enumerate(ROWS)])
    argv = ["--model", models / "bert", "--data", table, "--output", tmp_path / "run"]
    result = run("finetune", *argv)
    assert_refused(result, "each of the 60 texts has a label of its own", "--task regression")


@pytest.mark.parametrize(
    ("labels", "option"),
    [
        ([f"{i}e36" for i in range(60)], ["--task", "regression"]),
        ([label for _, label in ROWS], ["--learning-rate", "1e37"]),
    ],
)
def test_a_model_that_diverged_is_no_result(run, models, tmp_path, labels, option):
    rows = [(text, label) for (text, _), label in zip(ROWS, labels, strict=True)]
    table, output = write(tmp_path / "table.csv", rows), tmp_path / "run"
    argv = ["--model", models / "bert", "--data", table, "--epochs", "1", "--freeze", "all"]
    result = run("finetune", *argv, *option, "--output", output)
    assert result.status == 1 and result.err.count("\n") == 1
    assert "is not finite" in result.err and "--learning-rate" in result.err
    assert not (output / "metrics.json").exists() and not (output / "model.safetensors").exists()


def test_a_damaged_model_is_one_line(run, models, tables, tmp_path):
    model = shutil.copytree(models / "bert", tmp_path / "bert")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    argv = ["--model", model, "--data", tables / "train.csv", "--output", tmp_path / "run"]
    assert_refused(run("finetune", *argv), "model.safetensors")
    assert not (tmp_path / "run").exists()
