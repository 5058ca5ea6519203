"""Saves checkpoints in a child process, kills it at random instants, and looks at what is left.

Run by test_kill_while_saving.py as a script: a process of one thread, which may fork safely.
Prints one JSON object.
"""

import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path

import numpy as np

from glassformer import durable
from glassformer.durable import clean_leftovers
from glassformer.training.checkpoint import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    remove_old_checkpoints,
    save_checkpoint,
)
from tests.unit.training.faulty_os import FaultyOs


def checkpoint_of(version):
    weights = {f"layer{i}": np.full((16, 16), version, np.float64) for i in range(3)}
    return Checkpoint(weights, {"0.mean": np.full(9, version)}, {"version": version}, {"size": 16})


def save_forever(folder, same_name, version, pipe):
    while True:
        version += 1
        path = folder / f"checkpoint-{1 if same_name else version}"
        save_checkpoint(path, checkpoint_of(version))
        if not same_name:
            remove_old_checkpoints(folder, 1, {path})
        os.write(pipe, b"%d\n" % version)


def kill_once(folder, same_name, version, delay):
    """Return the last version that the child reported as saved, and what its death left behind."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            save_forever(folder, same_name, version, writing)
        finally:
            os._exit(1)  # never back into the caller
    os.close(writing)
    select.select([reading], [], [])  # the first save is done: from now on any instant is fair
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child ended by itself"
    with os.fdopen(reading) as pipe:
        reported = int(pipe.read().split()[-1])
    return reported, sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


def whole_versions(folder):
    versions = []
    for path in list_checkpoints(folder):
        loaded = load_checkpoint(path)  # raises if anything is wrong
        version = loaded.state["version"]
        for array in [*loaded.weights.values(), *loaded.optimizer.values()]:
            assert (array == version).all(), "a mixture of two checkpoints"
        versions.append(version)
    return versions


class DyingOs(FaultyOs):
    """Ends the process, without any clean-up, where its parent class would raise an error."""

    def fail(self):
        os._exit(9)


def die_at_every_call(folder):
    """Replace a checkpoint, ending the process before each call that touches the disk in turn."""
    path, lost = folder / "checkpoint-1", []
    for index in range(1000):
        save_checkpoint(path, checkpoint_of(1))
        child = os.fork()
        if child == 0:
            durable.os = DyingOs(index)
            save_checkpoint(path, checkpoint_of(2))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        clean_leftovers(folder)
        if whole_versions(folder) not in ([1], [2]) or len(list(folder.iterdir())) != 1:
            lost.append(index)
        if os.WEXITSTATUS(status) == 0:
            return index, lost
    raise AssertionError("a save takes fewer calls than that")


def main(folder, rounds, seed):
    (folder / "calls").mkdir()
    calls, lost_at_calls = die_at_every_call(folder / "calls")
    rng = random.Random(seed)
    lost, leftovers, kinds, version = [], 0, set(), {True: 0, False: 0}
    for number in range(rounds):
        same_name = number % 2 == 0
        home = folder / str(same_name)
        home.mkdir(exist_ok=True)
        reported, left = kill_once(home, same_name, version[same_name], rng.uniform(0, 0.02))
        leftovers += bool(left)
        kinds.update(name.rpartition(".")[2] for name in left)
        clean_leftovers(home)
        found = max(whole_versions(home), default=-1)
        if found < reported or any(p.name.startswith(".") for p in home.iterdir()):
            lost.append([number, reported, found])
        version[same_name] = found
    result = {
        "lost": lost,
        "mid_save": leftovers,
        "kinds": sorted(kinds),
        "calls": calls,
        "lost_at_calls": lost_at_calls,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
