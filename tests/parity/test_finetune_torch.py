"""MiniLM fine-tuned on the standard library's docstrings here and in PyTorch, by one recipe.

The trial to the end of training, with accuracies, is `glassformer_bench.finetune_trial`.
"""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers

from glassformer_bench import finetune_trial

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

pytestmark = [
    pytest.mark.skipif(
        find_spec(finetune_trial.PACKAGE) is None, reason="MiniLM's weights are not installed"
    ),
    pytest.mark.filterwarnings("ignore:.* starts with fresh ones:UserWarning"),  # the head
]


@pytest.fixture(autouse=True)
def one_thread():
    """Two libraries with threads of their own would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", list(finetune_trial.RECIPES))
def test_the_first_twenty_losses_are_pytorchs(name):
    recipe = replace(finetune_trial.RECIPES[name], steps=20, batch_size=4)
    ours, theirs = finetune_trial.compare(recipe, per_package=15, max_length=16)
    assert len(ours["losses"]) == len(theirs["losses"]) == 20
    np.testing.assert_allclose(ours["losses"], theirs["losses"], atol=1e-4, rtol=0)
    assert np.ptp(ours["losses"]) > 0.1  # there was something to learn
    assert ours["accuracy"] == theirs["accuracy"]
