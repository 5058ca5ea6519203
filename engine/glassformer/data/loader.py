"""Batches of a dataset, in an order that can be stopped and resumed anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from glassformer.data.collate import default_collate, to_tensors


class Dataset(Protocol):
    """A map-style dataset.

    One that also has `batch(indices) -> mapping of arrays (B, ...)` is asked for whole batches,
    unless the loader was given a `collate_fn`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class DataLoader:
    """Iterate over a dataset in batches.

    Each `iter()` is one pass (an epoch). The order of a shuffled pass depends on `seed` and the
    number of the pass alone, so `state_dict()` is a handful of integers, and after
    `load_state_dict()` the next `iter()` continues with the very batch that would have followed.

    Args:
        dataset: a map-style dataset, such as a list or `NextTokenWindows`.
        batch_size: items in a batch.
        shuffle: visit the items in a random order, another one each pass.
        seed: what the orders derive from.
        drop_last: leave out the last batch when it is smaller than the others.
        collate_fn: makes a batch from a list of items; `default_collate` unless told.

    Raises:
        ValueError: batch_size is not positive, or the seed is negative.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        collate_fn: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.collate_fn = collate_fn
        self.epoch = 0  # the pass under way, or the next one if none is
        self.position = 0  # batches of that pass that were handed out
        self._under_way = False

    def __len__(self) -> int:
        """Batches in a pass."""
        items = len(self.dataset)
        return items // self.batch_size if self.drop_last else -(-items // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        if self._under_way:  # the earlier pass was left unfinished: this is the next one
            self.set_epoch(self.epoch + 1)
        self._under_way = True
        return self._batches(self.epoch, self.position)

    def _batches(self, epoch: int, start: int) -> Iterator[Any]:
        items, size = len(self.dataset), self.batch_size
        order: npt.NDArray[np.int64] = np.arange(items)
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(items)
        for position in range(start, len(self)):
            batch = self._fetch(order[position * size : (position + 1) * size])
            if self.epoch == epoch:  # an iterator that a later pass overtook no longer counts
                self.position = position + 1
            yield batch
        if self.epoch == epoch:
            self.set_epoch(epoch + 1)

    def _fetch(self, indices: npt.NDArray[np.int64]) -> Any:
        if self.collate_fn is not None:
            return self.collate_fn([self.dataset[int(index)] for index in indices])
        if hasattr(self.dataset, "batch"):
            return to_tensors(self.dataset.batch(indices))
        return default_collate([self.dataset[int(index)] for index in indices])

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of pass `epoch`: the next `iter()` begins there."""
        self.epoch, self.position, self._under_way = epoch, 0, False

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader is, with what that position means only for."""
        return {"epoch": self.epoch, "position": self.position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next `iter()` continue from a position returned by `state_dict`.

        Raises:
            ValueError: the position belongs to another dataset length, batch size, order or seed.
        """
        self.check_state_dict(state)
        self.set_epoch(state["epoch"])
        self.position = state["position"]

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """Raise ValueError, naming each difference, unless `load_state_dict` would take it."""
        differences = [
            f"{name} was {state.get(name)!r}, is {value!r}"
            for name, value in self._identity().items()
            if type(state.get(name)) is not type(value) or state[name] != value
        ]
        if differences:
            raise ValueError(
                "this data position belongs to another loader "
                f"({'; '.join(differences)}): resume with the data and settings it was saved with"
            )
        for name, limit in (("epoch", None), ("position", len(self))):
            value = state.get(name)
            if type(value) is not int or value < 0 or (limit is not None and value > limit):
                raise ValueError(f"the data position's {name} is not possible: {value!r}")

    def _identity(self) -> dict[str, Any]:
        return {
            "num_items": len(self.dataset),
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "drop_last": self.drop_last,
        }
