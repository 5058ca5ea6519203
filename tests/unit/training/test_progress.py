import io
import sys

import pytest

from glassformer.training import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerState,
    TrainingArguments,
)
from tests.unit.training.models import Bigram, windows


def run(monkeypatch, with_tqdm):
    if not with_tqdm:
        monkeypatch.setitem(sys.modules, "tqdm", None)  # importing it now fails
    stream = io.StringIO()
    callback = ProgressCallback(stream)
    state = TrainerState(max_steps=200)
    callback.on_train_begin(None, state, None)
    for step in range(1, 201):
        state.global_step = step
        callback.on_step_end(None, state, None)
        if step % 50 == 0:
            callback.on_log(None, state, None, logs={"loss": 2.5, "learning_rate": 1e-3})
    callback.on_log(None, state, None, logs={"eval_loss": 2.25})
    callback.on_train_end(None, state, None)
    callback.close()
    return stream.getvalue()


def test_plain_line(monkeypatch):
    shown = run(monkeypatch, with_tqdm=False)
    assert shown.endswith("\n") and shown.count("\n") == 1
    lines = shown.replace("\x1b[K", "").rstrip("\n").split("\r")
    assert lines[-1] == "step 200/200 (100%)  loss 2.5  lr 0.001  eval 2.25"
    assert "step 100/200 (50%)  loss 2.5  lr 0.001" in lines
    assert len(lines) < 120  # about one write a percent


def test_tqdm_bar(monkeypatch):
    pytest.importorskip("tqdm")
    shown = run(monkeypatch, with_tqdm=True)
    assert "200/200" in shown and "eval=2.25" in shown and "loss=2.5" in shown


def test_without_a_terminal_every_row_of_the_log_is_a_line(tmp_path, capsys):
    args = TrainingArguments(
        str(tmp_path), max_steps=6, logging_steps=2, eval_strategy="steps", eval_steps=3
    )
    Trainer(Bigram(), args, train_dataset=windows(), eval_dataset=windows(20)).train()
    captured = capsys.readouterr()
    lines = [line.split("  ") for line in captured.err.splitlines()]
    assert [line[0] for line in lines] == [f"step {n}/6" for n in (2, 3, 4, 6, 6)]
    assert [line[1].split()[0] for line in lines] == ["loss", "eval", "loss", "loss", "eval"]
    assert captured.out == "", "what a program prints stays its own"


def test_a_quiet_training_is_one_without_the_printer(tmp_path, capsys):
    args = TrainingArguments(str(tmp_path), max_steps=2, logging_steps=1)
    trainer = Trainer(Bigram(), args, train_dataset=windows())
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    assert capsys.readouterr().err == ""
