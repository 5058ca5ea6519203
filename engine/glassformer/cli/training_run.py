"""What `finetune` and `pretrain` share: a run's settings, its training, and how it ends."""

from __future__ import annotations

import math
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glassformer.cli.callbacks import Interrupt, Report
from glassformer.cli.device import ON_CPU
from glassformer.cli.errors import CommandError
from glassformer.cli.run_folder import RUN_FILE
from glassformer.durable import remove_folder
from glassformer.training import NonFiniteError, PrinterCallback, Trainer
from glassformer.training.checkpoint import CheckpointError, list_checkpoints

Settings = dict[str, Any]

_ANEW = (
    "It can't be resumed with other settings: check the data, and train anew with --overwrite and "
    "a lower --learning-rate"
)


def settle(
    args: Namespace,
    folder: Path,
    begun: Mapping[str, Any] | None,
    names: tuple[str, ...],
    defaults: Callable[[Settings], Settings],
) -> Settings:
    """Return a run's settings: those given, and for the rest its defaults or what it began with.

    `defaults(given)` has them all but those of the device. Of a run that goes on only these can
    change.

    Raises:
        CommandError: one would change.
        CheckpointError: the run's description lacks some.
    """
    names = (*names, *ON_CPU)
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if begun is None:
        return {**ON_CPU, **defaults(given), **given}
    saved: Settings = {**ON_CPU, **begun["settings"]}
    if set(saved) != set(names):
        raise CheckpointError(
            folder / RUN_FILE, "does not hold the run's settings", "train again with --overwrite"
        )
    for name, value in given.items():
        if name not in ON_CPU and value != saved[name]:
            option = "--" + name.replace("_", "-")
            raise CommandError(
                f"{folder} was begun with {option} {_typed(saved[name])}, not {_typed(value)}; "
                f"leave {option} out to resume, or train anew in another --output"
            )
    return {**saved, **given}


def _typed(value: Any) -> str:
    """Return a setting as one types it: 4 rather than 4.0."""
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


@contextmanager
def usable(what: str) -> Iterator[None]:
    """Turn errors in what the caller gave (files, settings, a missing package) into one line.

    Raises:
        CommandError: in place of them.
    """
    try:
        yield
    except (ValueError, TypeError, ImportError) as error:
        raise CommandError(f"{what}: {error}") from error


def callbacks(interrupt: Interrupt) -> list[Any]:
    """Return what a command's trainer needs beside its progress bar."""
    return [interrupt, *([] if sys.stderr.isatty() else [Report()])]


def train(trainer: Trainer, interrupt: Interrupt, command: str, *, resuming: bool) -> bool:
    """Train, from the last checkpoint if there is one to resume from.

    Returns:
        False if it was interrupted; how to go on has then been said.
    """
    folder = trainer.args.output_dir
    trainer.remove_callback(PrinterCallback)  # `Report` has fewer lines
    try:
        with interrupt, divergence_told(), warnings.catch_warnings():
            # Killed between the last step and the end, a run has only the end before it.
            warnings.filterwarnings("ignore", message=".* nothing is left to train")
            trainer.train(resume_from_checkpoint=resuming and bool(list_checkpoints(folder)))
    except KeyboardInterrupt:
        interrupt.wanted = True
    if interrupt.wanted:
        print(
            f"glassformer {command}: interrupted in step {trainer.state.global_step}; continue "
            f"from the last checkpoint with: glassformer {command} --output {folder} --resume",
            file=sys.stderr,
        )
    return not interrupt.wanted


@contextmanager
def divergence_told() -> Iterator[None]:
    """Tell of training that diverged what helps here: the trainer names settings, not options.

    Raises:
        NonFiniteError: in place of the trainer's.
    """
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"{str(error).partition('. Lower')[0]}. {_ANEW}") from error


def check_finite(value: float, source: str) -> None:
    """Make sure that training left a model worth keeping.

    Raises:
        NonFiniteError: the loss or what follows from it isn't finite.
    """
    if not math.isfinite(value):
        raise NonFiniteError(
            f"the loss of {source} is not finite: training diverged, or labels are numbers too "
            f"large to learn from. {_ANEW}"
        )


def finished(folder: Path, begun: Mapping[str, Any] | None, command: str) -> bool:
    """Tell whether a run that should go on has its result already, and say so."""
    if begun is None or "result" not in begun:
        return False
    remove_checkpoints(folder)
    print(
        f"glassformer {command}: {folder} is finished: nothing is left to train",
        file=sys.stderr,
    )
    return True


def remove_checkpoints(folder: Path) -> None:
    """Delete what only resuming needs: a finished run is a third of its size."""
    for path in list_checkpoints(folder):
        remove_folder(path)
