"""Showing on a terminal how training goes."""

from __future__ import annotations

import importlib
import sys
from typing import Any, TextIO

from glassformer.training.callbacks import TrainerCallback

_SHOWN = {"loss": "loss", "eval_loss": "eval", "learning_rate": "lr", "skipped_steps": "skipped"}


def _shown(logs: dict[str, Any]) -> dict[str, str]:
    """The values of a row of the log that a terminal has room for, by their short names."""
    return {
        label: f"{logs[name]:.4g}"
        for name, label in _SHOWN.items()
        if isinstance(logs.get(name), (int, float))
    }


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
        self._bar = progress_bar(state.max_steps, state.global_step, stream)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the newest values beside the bar."""
        self._values |= _shown(kwargs.get("logs") or {})
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


class PrinterCallback(TrainerCallback):
    """A line on stderr for every row of the log that has a loss: where no bar is shown.

    Args:
        stream: where to write, stderr unless told.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Print the newest values."""
        values = _shown(kwargs.get("logs") or {})
        if values:
            shown = "".join(f"  {name} {value}" for name, value in values.items())
            stream = self.stream or sys.stderr
            total = f"/{state.max_steps}" if state.max_steps else ""  # 0 unless it was trained
            stream.write(f"step {state.global_step}{total}{shown}\n")
            stream.flush()


class _PlainBar:
    """The few of tqdm's methods that we use, on one rewritten line."""

    def __init__(self, total: int, initial: int, file: TextIO, unit: str) -> None:
        self.total = total
        self.n = initial
        self.file = file
        self.unit = unit
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
        self.file.write(
            f"\r{self.unit} {self.n}/{self.total} ({self._percent}%){self._postfix}\x1b[K"
        )
        self.file.flush()

    def close(self) -> None:
        self._show()
        self.file.write("\n")
        self.file.flush()


def progress_bar(total: int, initial: int, stream: TextIO, unit: str = "step") -> Any:
    """Return a bar that shows how many of `total` are done; it has tqdm's `update` and `close`."""
    try:
        tqdm = importlib.import_module("tqdm").tqdm
    except ImportError:
        return _PlainBar(total, initial, stream, unit)
    return tqdm(total=total, initial=initial, file=stream, unit=unit, dynamic_ncols=True)
