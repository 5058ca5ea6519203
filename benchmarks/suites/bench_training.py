"""A training step: forward, backward and AdamW; the losses and gradients must agree."""

import itertools
from functools import cache

import pytest

from glassformer_bench.train_step import CONFIGS, Contest

contest = cache(Contest)


@pytest.mark.parametrize("size", CONFIGS)
def bench_training_step(race, size):
    """Train on the next batch."""
    both, batches = contest(CONFIGS[size]), itertools.count(1)
    race(
        f"training step, {size} GPT",
        lambda: both.our_step(next(batches)),
        lambda: both.their_step(next(batches)),
        check=both.check,
    )
