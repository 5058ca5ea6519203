"""Showing on a terminal how training goes."""

from __future__ import annotations

import importlib
import sys
from typing import Any, TextIO

from glassformer.training.callbacks import TrainerCallback

_SHOWN = {"loss": "loss", "eval_loss": "eval", "learning_rate": "lr", "skipped_steps": "skipped"}


class ProgressCallback(TrainerCallback):
    """A progress bar on stderr: tqdm's when it is installed, otherwise one line that is rewritten.

    Args:
        stream: where to write, stderr unless told.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream
        self._bar: Any = None
        self._values: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the bar."""
        stream = self.stream or sys.stderr
        self._values = {}
        self._bar = _bar(state.max_steps, state.global_step, stream)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the newest values beside the bar."""
        logs = kwargs.get("logs") or {}
        for name, label in _SHOWN.items():
            if isinstance(logs.get(name), (int, float)):
                self._values[label] = f"{logs[name]:.4g}"
        if self._bar is not None:
            self._bar.set_postfix(self._values)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Leave the terminal on a fresh line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _PlainBar:
    """The few of tqdm's methods that we use, on one rewritten line."""

    def __init__(self, total: int, initial: int, file: TextIO) -> None:
        self.total = total
        self.n = initial
        self.file = file
        self._postfix = ""
        self._percent = -1

    def update(self, steps: int) -> None:
        self.n += steps
        percent = 100 * self.n // max(1, self.total)
        if percent != self._percent:  # a hundred writes in all
            self._percent = percent
            self._show()

    def set_postfix(self, values: dict[str, str]) -> None:
        self._postfix = "".join(f"  {name} {value}" for name, value in values.items())
        self._show()

    def _show(self) -> None:
        self.file.write(f"\rstep {self.n}/{self.total} ({self._percent}%){self._postfix}\x1b[K")
        self.file.flush()

    def close(self) -> None:
        self._show()
        self.file.write("\n")
        self.file.flush()


def _bar(total: int, initial: int, stream: TextIO) -> Any:
    try:
        tqdm = importlib.import_module("tqdm").tqdm
    except ImportError:
        return _PlainBar(total, initial, stream)
    return tqdm(total=total, initial=initial, file=stream, unit="step", dynamic_ncols=True)
