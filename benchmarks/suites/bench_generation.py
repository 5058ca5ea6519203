"""Greedy generation with a cache of keys and values; the tokens must be the same."""

from functools import cache

import numpy as np
import pytest
import torch

import glassformer as gf
from glassformer.generation import generate
from glassformer_bench.torch_gpt import twins
from glassformer_bench.train_step import CONFIGS

_PROMPT, _NEW = 16, 48
models = cache(twins)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("size", CONFIGS)
def bench_generation(race, size, batch):
    """Continue random prompts; a call of the operation is a token of every sequence."""
    model, twin, _ = models(CONFIGS[size].model())
    prompt = np.random.default_rng(0).integers(0, model.config.vocab_size, (batch, _PROMPT))

    def ours():
        return generate(model, prompt, max_new_tokens=_NEW).numpy()

    def theirs():
        return twin.generate(torch.from_numpy(prompt), _NEW).numpy()

    def check():
        np.testing.assert_array_equal(ours(), theirs())
        with gf.no_grad(), torch.no_grad():
            mine = model(gf.from_numpy(prompt)).logits.numpy()
            other = twin(torch.from_numpy(prompt)).numpy()
        return float(np.abs(mine - other).max() / np.abs(other).max())

    race(f"a token, {size} GPT, batch {batch}", ours, theirs, check, calls=_NEW)
