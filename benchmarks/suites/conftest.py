"""The engine's own steps against PyTorch's: both in one run, in turns, on as many threads.

    python -m pytest benchmarks/suites [-k NAME] [--threads N] [--benchmark-json FILE]

A benchmark hands both contenders to the fixture `race`, which times one of them: it is called for
each contender in each turn. Nothing is timed before `check` has compared the answers. What the
machine does meanwhile shows in how far the ratios of the turns differ.
"""

import time
from dataclasses import asdict

import pytest

import glassformer as gf
from glassformer_bench.disturbance import Neighbours
from glassformer_bench.environment import environment
from glassformer_bench.ratios import OURS, THEIRS, Timed, ratios, table
from glassformer_bench.runner import set_threads

_TURNS = 3
_CALM = 0.2  # seconds: the other library's threads spin for a while after their last work
_TIMED = pytest.StashKey()
_ERRORS = pytest.StashKey()


def pytest_addoption(parser):
    """Add --threads."""
    parser.addoption("--threads", type=int, default=gf.get_num_threads(), help="of each contender")


def pytest_configure(config):
    """Begin with nothing timed, and fix the threads."""
    config.stash[_TIMED], config.stash[_ERRORS] = [], {}
    set_threads(config.getoption("threads"))


@pytest.hookimpl(trylast=True)  # turns vary fastest: a pair is timed within seconds
def pytest_generate_tests(metafunc):
    """Have every race run by each contender in each turn; the first to go changes."""
    if "race" not in metafunc.fixturenames:
        return
    turns = 1 if metafunc.config.getoption("benchmark_disable") else _TURNS
    both = (OURS, THEIRS)
    order = [(c, turn) for turn in range(turns) for c in (both if turn % 2 == 0 else both[::-1])]
    ids = [f"{contender}-{turn + 1}" for contender, turn in order]
    metafunc.parametrize(("contender", "turn"), order, ids=ids)


@pytest.fixture
def race(request, benchmark, contender, turn):
    """Return race(group, ours, theirs, check, calls=1), which times this turn's contender.

    `check()` compares the answers before the first turn: it raises if they differ, and returns by
    how much they do. `calls` are those of an operation in one call of a contender.
    """
    config = request.config

    def run(group, ours, theirs, check, calls=1):
        errors = config.stash[_ERRORS]
        if group not in errors:
            errors[group] = check()
        step = ours if contender == OURS else theirs
        if benchmark.enabled:
            time.sleep(_CALM)
            step()
        benchmark.group = group
        with Neighbours() as neighbours:
            benchmark(step)
        if benchmark.stats is not None:  # None where benchmarks are disabled
            seconds = benchmark.stats["median"] / calls
            timed = Timed(group, contender, turn, seconds, errors[group], bool(neighbours.faults))
            config.stash[_TIMED].append(timed)
            benchmark.extra_info |= {"contender": contender, "turn": turn, "calls": calls}

    return run


def pytest_benchmark_update_machine_info(config, machine_info):
    """Write down what a time depends on."""
    machine_info["environment"] = environment("cpu", config.getoption("threads"))


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Put the ratio of its group beside every benchmark."""
    found = {x.group: asdict(x) for x in ratios(config.stash[_TIMED])}
    for row in output_json["benchmarks"]:
        row["extra_info"]["against_torch"] = found.get(row["group"])


def pytest_terminal_summary(terminalreporter, config):
    """Print the ratios."""
    found = ratios(config.stash[_TIMED])
    if found:
        terminalreporter.section(f"ours over PyTorch's, {config.getoption('threads')} threads each")
        terminalreporter.write_line(table(found))
