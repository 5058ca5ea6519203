"""What only a process of its own shows: start-up time, signals, pipes, terminals."""

import os
import random
import signal
import struct
import subprocess
import sys
import time

import pytest

from glassformer.training.checkpoint import list_checkpoints, load_checkpoint
from tests.cli.commands import SMALL, TEXT

COMMAND = [sys.executable, "-m", "glassformer.cli"]
ENVIRONMENT = {
    **os.environ,
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "",  # bytecode is kept, as it is where the package is installed
}


def run(*argv, **options):
    return subprocess.run(
        [*COMMAND, *map(str, argv)], capture_output=True, text=True, env=ENVIRONMENT, **options
    )


@pytest.mark.parametrize(
    "command", [[], ["train"], ["finetune"], ["pretrain"], ["generate"], ["info"]]
)
def test_help_answers_at_once(command):
    """At most 150 ms of processor time: it waits for nothing, and other work does not count."""
    resource = pytest.importorskip("resource")

    def spent():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    times = []
    for _ in range(8):
        before = spent()
        shown = run(*command, "--help")
        times.append(spent() - before)
        assert shown.returncode == 0 and shown.stderr == ""
        assert shown.stdout.startswith("usage: glassformer")
        if times[-1] <= 0.150:
            return
    assert min(times) <= 0.150


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell closes the streams")
@pytest.mark.parametrize(
    ("argv", "closed", "status"), [(["info"], ">&-", 0), (["info", "nowhere"], "2>&-", 2)]
)
def test_closed_streams_are_no_fault(argv, closed, status):
    """Nothing goes to the other stream in their place."""
    done = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *COMMAND, *argv], capture_output=True, env=ENVIRONMENT
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")


def test_interrupt_saves_and_tells_how_to_go_on(tmp_path):
    (tmp_path / "data.txt").write_text(TEXT)
    folder = tmp_path / "run"
    settings = ["--config", "tiny", "--block-size", "16", "--steps", "100000"]
    process = subprocess.Popen(
        [*COMMAND, "train", "--data", tmp_path / "data.txt", "--output", folder, *settings],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (folder / "log.jsonl").exists() or not (folder / "log.jsonl").stat().st_size:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"with: glassformer train --output {folder} --resume" in err.splitlines()[-1]
    assert "Traceback" not in err
    (checkpoint,) = list_checkpoints(folder)
    assert load_checkpoint(checkpoint).state["trainer"]["global_step"] > 0


def test_kills_and_resumes_end_in_the_same_bits(tmp_path):
    (tmp_path / "data.txt").write_text(TEXT)
    settings = ["--config", "tiny", "--block-size", "16", "--steps", "60", "--save-steps", "3"]
    settings += ["--dropout", "0.1", "--data", tmp_path / "data.txt"]
    run("train", "--output", tmp_path / "whole", *settings, check=True)
    folder, rng, kills = tmp_path / "run", random.Random(4), 0
    arguments = [*COMMAND, "train", "--output", folder, *settings]
    while True:
        process = subprocess.Popen(
            arguments, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        process.stdout.readline()  # it has begun
        try:
            if kills < 4:
                time.sleep(rng.uniform(0.1, 0.4))
                process.kill()
                kills += process.wait(timeout=60) == -signal.SIGKILL
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
        if process.returncode == 0:
            break
        assert (process.returncode, err) == (-signal.SIGKILL, "")
        arguments = [*COMMAND, "train", "--output", folder, "--resume"]
    files = [path / "model.safetensors" for path in (tmp_path / "whole", folder)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_reader_that_leaves_early_is_no_error(tmp_path):
    (tmp_path / "data.txt").write_text(TEXT)
    run("train", "--data", tmp_path / "data.txt", "--output", tmp_path / "run", *SMALL, check=True)
    process = subprocess.Popen(
        [*COMMAND, "generate", tmp_path / "run", "--stream", "--max-new-tokens", "100000"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


def test_nothing_on_stderr_without_a_terminal(tmp_path):
    (tmp_path / "data.txt").write_text(TEXT)
    done = run("train", "--data", tmp_path / "data.txt", "--output", tmp_path / "run", *SMALL)
    assert (done.returncode, done.stderr) == (0, "")
    assert "step 4/12  validation loss" in done.stdout


def test_progress_on_a_terminal(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    termios = pytest.importorskip("termios")
    (tmp_path / "data.txt").write_text(TEXT)
    terminal, end = os.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, "train", "--data", tmp_path / "data.txt", "--output", tmp_path / "run", *SMALL],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=end,
    )
    os.close(end)
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(terminal)
    assert process.wait(timeout=60) == 0
    assert b"12/12" in shown and b"loss" in shown
