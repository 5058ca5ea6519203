"""What the commands that train have a `Trainer` do beside training."""

from __future__ import annotations

import signal
import sys
import time
from typing import Any

from glassformer.training import TrainerCallback


class Interrupt(TrainerCallback):
    """Makes the first Ctrl-C finish the step, save and stop; the second stops at once."""

    def __init__(self) -> None:
        self.wanted = False
        self._before: Any = None

    def __enter__(self) -> None:
        try:
            self._before = signal.signal(signal.SIGINT, self._note)
        except ValueError:  # not in the main thread: signals go elsewhere
            self._before = None

    def __exit__(self, *details: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: Any) -> None:
        self.wanted = True
        signal.signal(signal.SIGINT, self._before)
        print("\nfinishing this step and saving (again to stop at once)", file=sys.stderr)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint and the end, if interrupted."""
        if self.wanted:
            control.should_save = control.should_training_stop = True


class LastStep(TrainerCallback):
    """Evaluates and saves after the last step, whatever the interval: it may be the best."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for both."""
        if state.global_step == state.max_steps:
            control.should_evaluate = control.should_save = True


class Report(TrainerCallback):
    """Where no terminal shows progress: a line for every evaluation, and between them for the log.

    Of rows of the log that follow fast only one in ten seconds is shown; of evaluations that do,
    one in a tenth of all steps, and the last.
    """

    seconds_between = 10.0

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._shown = 0  # the step of the last evaluation that was

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._last = time.monotonic()
        self._shown = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Print how far training is, unless a line was just printed."""
        loss = (kwargs.get("logs") or {}).get("loss")
        if loss is not None and self._is_time():
            self._print(state, f"training loss {loss:.3f}")

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Print how far training is."""
        metrics = kwargs["metrics"]
        loss = metrics.get("eval_loss")
        steps = state.global_step - self._shown
        is_due = 10 * steps >= state.max_steps or state.global_step == state.max_steps
        if loss is not None and (is_due or self._is_time()):
            self._shown = state.global_step
            right = (
                f", accuracy {metrics['eval_accuracy']:.3f}" if "eval_accuracy" in metrics else ""
            )
            self._print(state, f"validation loss {loss:.3f}{right}")

    def _is_time(self) -> bool:
        return time.monotonic() - self._last >= self.seconds_between

    def _print(self, state: Any, what: str) -> None:
        times = [row["eta_seconds"] for row in state.log_history if "eta_seconds" in row]
        left = f", about {times[-1]:.0f} s left" if times and times[-1] >= 1 else ""
        print(f"step {state.global_step}/{state.max_steps}  {what}{left}", flush=True)
        self._last = time.monotonic()
