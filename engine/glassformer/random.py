"""Random number generators that can be seeded, saved and restored."""

from __future__ import annotations

from typing import Any

import numpy as np


class Generator:
    """A stream of random numbers (PCG64). Every random function takes one as `generator=`."""

    def __init__(self, seed: int | None = None) -> None:
        self._seed = seed
        self._numpy: np.random.Generator | None = None

    @property
    def numpy(self) -> np.random.Generator:
        """The stream as NumPy's generator. (Made late: importing numpy.random takes a while.)"""
        if self._numpy is None:
            self._numpy = np.random.Generator(np.random.PCG64(self._seed))
        return self._numpy

    def manual_seed(self, seed: int) -> Generator:
        """Restart the stream from `seed`."""
        self._seed, self._numpy = seed, None
        return self

    def get_state(self) -> dict[str, Any]:
        """Return the position in the stream, as numbers and strings that JSON can hold."""
        return dict(self.numpy.bit_generator.state)

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a position returned by `get_state`."""
        self.numpy.bit_generator.state = state

    def seed(self) -> int:
        """Draw a 63-bit integer, to seed something else with."""
        return int(self.numpy.integers(0, 2**63 - 1))


default_generator = Generator()


def manual_seed(seed: int) -> Generator:
    """Seed the default generator, and return it."""
    return default_generator.manual_seed(seed)


def as_generator(generator: Generator | None) -> Generator:
    """Return `generator`, or the default one for None."""
    return default_generator if generator is None else generator
