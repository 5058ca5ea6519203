"""Rematerialisation: compute activations again in backward rather than keep them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from glassformer.grad_mode import recording, set_grad_enabled
from glassformer.random import default_generator
from glassformer.tensor import Tensor


class _Slot:
    """Stands for a node's saved values inside a checkpoint, which will compute them again."""

    __slots__ = ("frame", "index")

    def __init__(self, frame: _CheckpointFrame, index: int) -> None:
        self.frame = frame
        self.index = index

    def fetch(self) -> tuple[Any, ...]:
        return self.frame.saved_again()[self.index]

    def drop(self) -> None:
        if self.frame.computed is not None:
            self.frame.computed[self.index] = ()


# An operation's name and the versions of its inputs: what a second run must find unchanged.
_Entry = tuple[str, tuple[int, ...]]


def _entry(name: str, inputs: Iterable[Any]) -> _Entry:
    return name, tuple(value.version for value in inputs if isinstance(value, Tensor))


class _CheckpointFrame:
    """One call of checkpoint(): notes what would have been saved, and can compute it again."""

    def __init__(self, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs
        self.random_state = default_generator.get_state()
        self.call = self.arguments()
        self.recorded: list[_Entry] = []
        self.computed: list[tuple[Any, ...]] | None = None

    def arguments(self) -> _Entry:
        return _entry("the checkpointed function", (*self.args, *self.kwargs.values()))

    def hold(self, name: str, inputs: Sequence[Any], packed: tuple[Any, ...]) -> _Slot:
        del packed  # dropped: that's the memory a checkpoint saves
        self.recorded.append(_entry(name, inputs))
        return _Slot(self, len(self.recorded) - 1)

    def saved_again(self) -> list[tuple[Any, ...]]:
        if self.computed is None:
            collector = _Collector()
            after = default_generator.get_state()
            default_generator.set_state(self.random_state)
            try:
                with set_grad_enabled(True), _recording_into(collector):
                    self.function(*self.args, **self.kwargs)
            finally:
                default_generator.set_state(after)
            self.compare([self.arguments(), *collector.recorded])
            self.computed = collector.saved
        return self.computed

    def compare(self, again: list[_Entry]) -> None:
        """Check that the second run was the first one over."""
        first = [self.call, *self.recorded]
        if [name for name, _ in first] != [name for name, _ in again]:
            raise RuntimeError(
                f"the checkpointed function recorded {len(first) - 1} operations the first time "
                f"and {len(again) - 1} (or others) when run again; it must do the same both times"
            )
        for (name, before), (_, after) in zip(first, again, strict=True):
            if before != after:
                raise RuntimeError(
                    f"an input of {name} was changed in place since checkpoint() ran it (versions "
                    f"{before}, now {after}); change a copy instead: tensor.clone()"
                )


class _Collector:
    """Collects what nodes save while a checkpointed function runs again."""

    def __init__(self) -> None:
        self.recorded: list[_Entry] = []
        self.saved: list[tuple[Any, ...]] = []

    def hold(self, name: str, inputs: Sequence[Any], packed: tuple[Any, ...]) -> tuple[Any, ...]:
        self.recorded.append(_entry(name, inputs))
        self.saved.append(packed)
        return packed


@contextmanager
def _recording_into(frame: Any) -> Iterator[None]:
    before = recording.frame
    recording.frame = frame
    try:
        yield
    finally:
        recording.frame = before


@contextmanager
def outside_checkpoint() -> Iterator[bool]:
    """Record operations in a checkpointed function that are kept, and not computed again with it.

    Gives whether the function is just being run again, where these operations have no place.
    """
    again = isinstance(recording.frame, _Collector)
    with _recording_into(None):
        yield again


def checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call `function` without keeping what backward needs; backward calls it again to get that.

    Memory for the activations of `function` is traded for a second forward pass. Results and
    gradients are those of a plain call, dropout included: the default generator is put back to
    where it stood. (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".)

    Args:
        function: must compute the same when it is called again.
        *args: passed on, as are keyword arguments.
    """
    if not recording.enabled:
        return function(*args, **kwargs)
    with _recording_into(_CheckpointFrame(function, args, kwargs)):
        return function(*args, **kwargs)
