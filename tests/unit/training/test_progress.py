import io
import sys

import pytest

from glassformer.training import ProgressCallback, TrainerState


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
