"""Running commands in this process, and what all refusals have in common."""

import re
import signal
from dataclasses import dataclass

from glassformer.cli import main
from glassformer.cli.callbacks import Report

TEXT = "".join(f"{i} times {j} is {i * j}.\n" for i in range(1, 16) for j in range(1, 16))
SMALL = ["--config", "tiny", "--block-size", "16", "--steps", "12", "--save-steps", "4"]
COMMANDS = "train|generate|info|finetune|pretrain|embed|classify|fill-mask"


@dataclass
class Result:
    status: int
    out: str
    err: str


def runner(capsys):
    """Return what runs a command line; what it prints is kept."""

    def call(*argv):
        capsys.readouterr()
        try:
            status = main([str(a) for a in argv])
        except SystemExit as stop:  # argparse's way to end
            status = stop.code
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return call


def assert_refused(result, *parts):
    """One line on stderr that says what is wrong, and exit status 2."""
    assert result.status == 2, result.err
    assert result.err.count("\n") == 1 and result.err.endswith("\n"), result.err
    assert re.match(rf"glassformer( {COMMANDS.replace('|', '| ')})?: error: ", result.err)
    for part in parts:
        assert part in result.err, result.err


def snapshot(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def interrupt_after_evaluation(monkeypatch, step):
    """Send this process Ctrl-C once training has been judged after `step`."""

    def on_evaluate(self, args, state, control, **kwargs):
        if state.global_step == step:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Report, "on_evaluate", on_evaluate)
