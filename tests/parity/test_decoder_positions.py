"""Positions that are given: GPT-2, Llama, Mistral and Qwen2 against transformers."""

import numpy as np
import pytest

import glassformer as gf
from glassformer.generation import KVCache
from tests.parity.hub import compare
from tests.parity.test_decoder_families import (
    EACH,
    PAD,
    B,
    T,
    model,
    one_torch_thread,  # noqa: F401
    padded,
    tokens,
)

MOST = 24  # positions of the models there
POSITIONS = {
    "one offset for all": np.arange(5, 5 + T)[None],
    "an offset for each": np.arange(T) + np.array([[0], [7], [15]]),
    "gaps and turns": np.random.default_rng(4).integers(0, MOST, (B, T)),
}


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("case", [*EACH, "llama, one key head", "llama, llama3"])
def test_outputs_and_gradients(case, positions, tmp_path):
    theirs, ours = model(case, "ForCausalLM")
    inputs = {"input_ids": tokens(), "position_ids": POSITIONS[positions]}
    compare(theirs, ours, inputs, ["logits"], tmp_path)


@pytest.mark.parametrize("case", EACH)
def test_beside_padding(case, tmp_path):
    theirs, ours = model(case, "ForCausalLM")
    inputs, real = padded("left", "GPT2")  # positions that count real tokens
    compare(theirs, ours, inputs, ["logits"], tmp_path, real)


@pytest.mark.parametrize("case", EACH)
def test_in_a_classifier(case, tmp_path):
    theirs, ours = model(case, "ForSequenceClassification", num_labels=3)
    inputs = {"input_ids": tokens(), "position_ids": POSITIONS["an offset for each"]}
    compare(theirs, ours, inputs, ["logits"], tmp_path)


@pytest.mark.parametrize("case", EACH)
def test_from_a_cache_they_give_what_the_whole_sequence_gives(case, tmp_path):
    theirs, ours = model(case, "ForCausalLM", "float64")
    theirs.save_pretrained(tmp_path)
    mine, ids = ours.from_pretrained(tmp_path), gf.tensor(tokens())
    positions = gf.tensor(POSITIONS["gaps and turns"])
    with gf.no_grad():
        whole = mine(ids, position_ids=positions).logits.numpy()
        cache, parts = KVCache(), []
        for start, stop in ((0, 5), (5, 6), (6, T)):
            told = positions[:, start:stop]
            parts.append(mine(ids[:, start:stop], position_ids=told, cache=cache).logits.numpy())
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-10)


@pytest.mark.parametrize("case", EACH)
def test_blocks_that_are_computed_again_in_backward_are_told_again(case):
    theirs, ours = model(case)
    dropouts = ("attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop")
    config = ours.config_class.from_dict(theirs.config.to_dict() | dict.fromkeys(dropouts, 0.0))
    mine, gradients = ours(config).train(), []
    for enabled in (False, True):
        mine.gradient_checkpointing_enable(enabled)
        mine.zero_grad()
        told = gf.tensor(POSITIONS["gaps and turns"])
        states = mine(gf.tensor(tokens()), position_ids=told).last_hidden_state
        (states * states).sum().backward()
        gradients.append([parameter.grad.numpy().copy() for parameter in mine.parameters()])
    for kept, again in zip(*gradients, strict=True):
        np.testing.assert_array_equal(kept, again)


@pytest.mark.parametrize("case", EACH)
def test_they_hold_for_one_call(case, monkeypatch):
    """Whether it ends well or not."""
    theirs, ours = model(case)
    mine = ours(ours.config_class.from_dict(theirs.config.to_dict())).eval()
    ids, told = gf.tensor(tokens()), gf.tensor(POSITIONS["gaps and turns"])

    def states(**given):
        with gf.no_grad():
            return mine(ids, **given).last_hidden_state.numpy()

    before = states()
    assert np.abs(states(position_ids=told) - before).max() > 1e-3
    np.testing.assert_array_equal(states(), before)
    with monkeypatch.context() as broken, pytest.raises(ZeroDivisionError):
        broken.setattr(mine.blocks[0].feed_forward, "forward", lambda _: 1 / 0)
        states(position_ids=told)
    np.testing.assert_array_equal(states(), before)


@pytest.mark.parametrize("case", EACH)
def test_those_that_do_not_fit_are_refused(case):
    theirs, ours = model(case)
    mine = ours(ours.config_class.from_dict(theirs.config.to_dict()))
    ids = gf.tensor(tokens())
    with pytest.raises(ValueError, match=r"position_ids are \(2, 9\), but input_ids \(3, 9\)"):
        mine(ids, position_ids=gf.zeros(2, T, dtype="int64"))
    for beyond in (MOST, -1):
        with pytest.raises(IndexError, match=f"{beyond}.*{MOST}"):
            mine(ids, position_ids=gf.full((1, T), beyond))
    with pytest.raises(TypeError, match="integer"):
        mine(ids, position_ids=gf.zeros(1, T))


@pytest.mark.parametrize("pad", [PAD, None])
@pytest.mark.parametrize("case", EACH)
def test_a_classifier_refuses_an_input_without_a_token(case, pad):
    theirs, ours = model(case, "ForSequenceClassification")
    mine = ours(ours.config_class.from_dict({**theirs.config.to_dict(), "pad_token_id": pad}))
    with pytest.raises(ValueError, match=r"input_ids \(1, 0\) hold no token"):
        mine(gf.zeros(1, 0, dtype="int64"))
