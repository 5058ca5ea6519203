"""What a newcomer runs into: each message says what to type, and each answer what was asked."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("tokenizers")

from glassformer.cli import stream_texts
from glassformer.cli.pretrain import _split
from glassformer.training.checkpoint import list_checkpoints
from tests.cli.commands import assert_refused, interrupt_after_evaluation
from tests.cli.test_finetune import QUICK, models, tables  # noqa: F401  (fixtures)
from tests.cli.test_model_commands import folder, give_stdin  # noqa: F401  (one is a fixture)
from tests.cli.test_pretrain import SMALL, TEXT

# ruff: noqa: F811  (as arguments, fixtures have the names they were imported by)


@pytest.fixture
def begin(models, tables):
    return ["finetune", "--model", models / "bert", "--data", tables / "train.csv", *QUICK]


def test_the_package_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "glassformer", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "glassformer")


@pytest.mark.parametrize(
    ("name", "said"),
    [("genrate", "; did you mean generate? "), ("fly", "; there are train, finetune, pretrain, ")],
)
def test_an_unknown_command_is_told_with_the_nearest(run, name, said):
    result = run(name, "--stream")
    assert_refused(result, f"glassformer: error: there is no command {name}{said}")


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        ("finetune", "--model FOLDER --data FILE "),
        ("pretrain", "--objective clm --data FILE "),
        ("train", ""),
    ],
)
def test_the_line_that_starts_a_run_is_whole(run, tmp_path, command, needed):
    place = tmp_path / "nonesuch"
    result = run(command, "--resume", "--output", place)
    assert_refused(result, f"start one: glassformer {command} {needed}--output {place}")


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_a_text_on_one_line_is_learnt_from(run, tmp_path, objective):
    data = tmp_path / "one.txt"
    data.write_text(TEXT.replace("\n", " "))
    argv = ["--objective", objective, "--data", data, *SMALL, "--output", tmp_path / "run"]
    result = run("pretrain", *argv)
    assert result.status == 0, result.err
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["tokens"] > 100


@pytest.mark.parametrize(
    ("text", "second"),
    [
        ("ab " * 100 + "\n", " ab"),  # at a space
        ("abc" * 100, "abc"),  # anywhere
        ("ab\n" * 100, "ab\n"),  # at a line, as ever
        ("a b\n" + "ab " * 500 + "\nlast", " ab"),  # the last line is no tenth
    ],
)
def test_a_tenth_is_held_out_whatever_the_lines(text, second):
    learnt, held_out = ("".join(part) for part in _split(text))
    assert learnt + held_out == text and held_out.startswith(second)
    assert 0.05 * len(text) <= len(held_out) <= 0.1 * len(text) + 1


@pytest.mark.parametrize("option", [[], ["--freeze", "all"]], ids=str)
def test_an_unfinished_run_says_what_to_use(run, begin, tmp_path, monkeypatch, option):
    output = tmp_path / "run"
    with monkeypatch.context() as patched:
        interrupt_after_evaluation(patched, step=14)
        assert run(*begin, *option, "--output", output).status == 130
    (checkpoint,) = list_checkpoints(output)
    finish = f"finish it with glassformer finetune --output {output} --resume"
    use = "" if option else f"use {checkpoint}, or "
    for argv in (["info", output], ["classify", "--model", output, "a"], ["generate", output]):
        assert_refused(run(*argv), f"{output} is unfinished: {use}{finish}")
    if use:
        assert run("info", checkpoint).status == 0
    assert run("finetune", "--output", output, "--resume").status == 0
    assert run("info", output).status == 0


def test_a_diverged_run_says_what_there_is_to_change(run, begin, tmp_path):
    result = run(*begin, "--output", tmp_path / "run", "--learning-rate", "5e30")
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert "steps in a row were skipped" in result.err and "max_skipped" not in result.err
    assert "--overwrite and a lower --learning-rate" in result.err
    again = run(*begin, "--output", tmp_path / "run", "--overwrite")
    assert again.status == 0, again.err


def test_settings_are_told_as_they_are_typed(run, begin, tmp_path):
    assert run(*begin, "--output", tmp_path / "run").status == 0
    result = run("finetune", "--output", tmp_path / "run", "--resume", "--epochs", "9")
    assert_refused(result, "was begun with --epochs 4, not 9; leave --epochs out")


def test_a_regression_answers_with_numbers(run, models, tables, tmp_path):
    data, output = tables / "scores.jsonl", tmp_path / "run"
    argv = ["--model", models / "bert", "--data", data, "--task", "regression", "--epochs", "1"]
    assert run("finetune", *argv, "--output", output).status == 0
    answer = json.loads(run("classify", "--model", output, "I like iron").out)
    assert answer.keys() == {"text", "value"} and isinstance(answer["value"], float)
    refused = run("classify", "--model", output, "--top-k", "2", "I like iron")
    assert_refused(refused, "--top-k is for classes", "leave it out")


@pytest.mark.parametrize("epochs", [3, 10, 40])
def test_fast_epochs_take_ten_lines_at_most(run, begin, tmp_path, epochs):
    result = run(*begin, "--freeze", "all", "--epochs", epochs, "--output", tmp_path / "run")
    shown = [line for line in result.out.splitlines() if line.startswith("step ")]
    assert len(shown) == min(epochs, 10)
    steps, total = shown[-1].split()[1].split("/")
    assert steps == total and "about 0 s left" not in result.out


def test_warnings_of_cut_texts_are_for_the_command_line(run, folder, tmp_path):
    from glassformer.models.bert import BertModel

    result = run("embed", "--model", folder(BertModel), "the cat " * 40)
    lines = [line for line in result.err.splitlines() if "longer" in line]
    assert lines == [
        "glassformer embed: warning: the text is longer than the 32 tokens that are read of it; "
        "its rest is left out"
    ]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_gets_no_control_characters(monkeypatch, is_terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
    text = "\x1b[2J\0a\tb\r\n\x7f\x9bé"
    shown = "\ufffd[2J\ufffda\tb\ufffd\n\ufffd\ufffdé" if is_terminal else text
    assert stream_texts.showable(text) == shown


@pytest.mark.skipif(os.name == "nt", reason="a terminal of POSIX")
def test_streamed_answers_are_fit_to_be_shown_and_apart(run, folder, monkeypatch, capsys):
    from glassformer.models.gpt2 import GPT2LMHeadModel

    argv = ["generate", "--model", folder(GPT2LMHeadModel), "--stream", "--max-new-tokens", "3"]
    give_stdin(monkeypatch, b"one \x1b[2J\ntwo")
    monkeypatch.setattr(stream_texts, "showable", lambda text: text.replace("\x1b", "?"))
    first, empty, second, end = run(*argv).out.split("\n")
    assert first.startswith("one ?[2J") and second.startswith("two") and empty == end == ""
