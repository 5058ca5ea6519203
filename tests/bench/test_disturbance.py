"""Whether other processes are noticed."""

import subprocess
import sys

import pytest

from glassformer_bench import disturbance
from glassformer_bench.disturbance import Neighbours


def measured(monkeypatch, busy, own, elapsed, cores=2):
    """Return what is found if all cores were busy, and this process computed, for so long."""
    for name, values in (
        ("busy_seconds", (100.0, None if busy is None else 100.0 + busy)),
        ("own_seconds", (7.0, 7.0 + own)),
        ("_clock", (5.0, 5.0 + elapsed)),
    ):
        monkeypatch.setattr(disturbance, name, iter(values).__next__)
    monkeypatch.setattr(disturbance.os, "cpu_count", lambda: cores)
    with Neighbours() as found:
        pass
    return found


def test_others_that_leave_no_core_idle_are_told(monkeypatch):
    found = measured(monkeypatch, busy=20.0, own=12.0, elapsed=10.0)
    assert found.cores == pytest.approx(0.8)
    assert "other processes used 0.8 cores" in found.faults[0]


@pytest.mark.parametrize(
    ("busy", "own", "elapsed", "cores"),
    [
        (19.9, 19.5, 10.0, 2),  # this process alone fills the machine
        (20.0, 10.0, 10.0, 64),  # others run, but elsewhere
        (0.2, 0.1, 0.1, 2),  # too short to be told
        (None, 0.1, 10.0, 2),  # the system doesn't tell
    ],
)
def test_nobody_is_accused_otherwise(monkeypatch, busy, own, elapsed, cores):
    assert measured(monkeypatch, busy, own, elapsed, cores).faults == []


def test_the_system_tells():
    before, own = disturbance.busy_seconds(), disturbance.own_seconds()
    if before is None:
        pytest.skip("no /proc/stat here")
    sum(range(3_000_000))
    assert disturbance.busy_seconds() >= before
    assert disturbance.own_seconds() > own


def test_a_child_is_no_neighbour():
    before = disturbance.own_seconds()
    subprocess.run([sys.executable, "-c", "sum(range(10_000_000))"], check=True)
    assert disturbance.own_seconds() - before > 0.05
