import json
import math
import time

import numpy as np
import pytest

from glassformer.training.metrics import LogFile, Meter, peak_memory, read_log


def test_rows_are_lines_of_json(tmp_path):
    log = LogFile(tmp_path / "new" / "log.jsonl")
    log.write({"step": 1, "loss": 2.5, "metric": np.float32(0.5)})
    log.write({"step": 2, "loss": math.nan, "grad_norm": math.inf})
    rows = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert rows == [
        {"step": 1, "loss": 2.5, "metric": 0.5},
        {"step": 2, "loss": None, "grad_norm": None},
    ]
    assert read_log(log.path) == rows


def test_continued_log_forgets_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / "log.jsonl"
    log = LogFile(path)
    for step in (1, 2, 3):
        log.write({"step": step})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # cut off by a kill
    assert [row["step"] for row in read_log(path)] == [1, 2, 3]
    LogFile(path, resume_step=2).write({"step": 3, "again": True})
    assert read_log(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]
    LogFile(path)
    assert read_log(path) == []
    assert read_log(tmp_path / "missing") == []


def test_meter_measures_steps_alone(monkeypatch):
    clock = iter([10.0, 10.2, 50.0, 50.4])  # 0.2 s and 0.4 s; between them an evaluation
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    meter = Meter()
    meter.start()
    meter.stop(tokens=300, loss=2.0)
    meter.start()
    meter.stop(tokens=300, loss=4.0)
    row = meter.row(steps_left=10)
    assert row["loss"] == 3.0
    assert row["ms_per_step"] == pytest.approx(300)
    assert row["tokens_per_second"] == pytest.approx(1000)
    assert row["eta_seconds"] == pytest.approx(3.0)
    assert "loss" not in meter.row(10)


def test_skipped_steps_take_time_but_have_no_loss():
    meter = Meter()
    meter.start()
    meter.stop(10, loss=1.0)
    meter.start()
    meter.stop(10, loss=None)
    assert meter.row(0)["loss"] == 1.0


def test_peak_memory_sees_a_large_array():
    before = peak_memory()
    if before is None:
        pytest.skip("not measured on this platform")
    block = np.ones(before // 8 + 4_000_000)  # more than ever before
    after = peak_memory()
    assert after - before >= 8 * 4_000_000 * 0.9
    assert after >= block.nbytes
