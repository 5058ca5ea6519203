"""GPT-2, Llama, Mistral and Qwen2 against transformers."""

import json

import numpy as np
import pytest

import glassformer as gf
from glassformer.generation import KVCache, generate
from glassformer.models import gpt2, llama
from tests.parity.hub import build, compare, torch, transformers

V, B, T = 31, 3, 9
PAD = 5
GPT2 = {"vocab_size": V, "n_positions": 24, "n_embd": 12, "n_layer": 2, "n_head": 3,
        "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
LLAMA = {"vocab_size": V, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2,
         "num_attention_heads": 3, "num_key_value_heads": 3, "max_position_embeddings": 24,
         "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
HEADS_6_2 = {"num_attention_heads": 6, "num_key_value_heads": 2}

# name: (family, settings); a family's names begin alike in transformers and here
CASES = {
    "gpt2": ("GPT2", {}),
    "gpt2, inner": ("GPT2", {"n_inner": 7, "activation_function": "relu", "n_head": 1}),
    "gpt2, unscaled": ("GPT2", {"scale_attn_weights": False, "tie_word_embeddings": False}),
    "gpt2, scaled by layer": ("GPT2", {"scale_attn_by_inverse_layer_idx": True}),
    "llama": ("Llama", {}),
    "llama, tied, biases": (
        "Llama",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, **HEADS_6_2},
    ),
    "llama, one key head": ("Llama", {"num_key_value_heads": 1, "head_dim": 6}),
    "llama, rope_theta": ("Llama", {"rope_theta": 50.0, "rms_norm_eps": 1e-3}),
    "llama, linear": ("Llama", {"rope_scaling": {"type": "linear", "factor": 2.5}}),
    "llama, llama3": (
        "Llama",
        {"rope_parameters": {**LLAMA3, "rope_theta": 500.0}, "head_dim": 10},
    ),
    "mistral": ("Mistral", {"num_key_value_heads": 1, "sliding_window": None}),
    "mistral, window": ("Mistral", {"sliding_window": 4, "head_dim": 8, **HEADS_6_2}),
    "mistral, window of one": ("Mistral", {"sliding_window": 1, "hidden_act": "gelu_pytorch_tanh"}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "qwen2, upper layers see a window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1, **HEADS_6_2},
    ),
    "qwen2, layer_types": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 2,
         "layer_types": ["sliding_attention", "full_attention"], "hidden_size": 24,
         "num_attention_heads": 6},
    ),
}  # fmt: skip
EACH = ("gpt2", "llama, linear", "mistral, window", "qwen2, upper layers see a window")
REAL = {
    None: np.ones((B, T), dtype=np.int64),
    "left": (np.arange(T) >= np.array([[0], [3], [T - 1]])).astype(np.int64),
    "right": (np.arange(T) < np.array([[T], [4], [1]])).astype(np.int64),
}


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread():
    """Tensors are small: threads that wait for each other would take most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model(case, head="", dtype="float32", **more):
    """Return a model of transformers, and the class of ours that should load it."""
    family, settings = CASES[case]
    base = GPT2 if family == "GPT2" else LLAMA
    config = getattr(transformers, f"{family}Config")(**{**base, **settings, **more})
    head = "LMHeadModel" if (family, head) == ("GPT2", "ForCausalLM") else head or "Model"
    theirs = build(getattr(transformers, family + head), config, dtype)
    return theirs, getattr(gpt2 if family == "GPT2" else llama, family + head)


@pytest.fixture(params=["float32", "float64"])
def dtype(request, monkeypatch):
    """In float64, wherever transformers computes in float32 whatever the model's dtype (angles,
    RMSNorm, softmax, losses), it computes in float64 as well."""
    if request.param == "float64":
        monkeypatch.setattr(torch, "float32", torch.float64)
        monkeypatch.setattr(torch, "float", torch.float64)
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    return request.param


def tokens(seed=0, low=6, shape=(B, T)):
    return np.random.default_rng(seed).integers(low, V, shape)


def padded(side, family):
    """Tokens with padding on a side, and the arguments that say so.

    GPT-2's positions count real tokens, which transformers' model must be told.
    """
    real = REAL[side]
    ids = np.where(real, tokens(), PAD)
    inputs = {"input_ids": ids, "attention_mask": real}
    if family == "GPT2" and side == "left":
        inputs["position_ids"] = np.maximum(real.cumsum(1) - 1, 0)
    return inputs, real


@pytest.mark.parametrize("case", CASES)
def test_logits_loss_states_and_gradients(case, dtype, tmp_path):
    theirs, ours = model(case, "ForCausalLM", dtype)
    ids = tokens()
    inputs = {"input_ids": ids, "labels": np.where(ids == 7, -100, ids)}
    inputs["output_hidden_states"] = True
    compare(theirs, ours, inputs, ["logits", "loss", "hidden_states"], tmp_path)


@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize("case", EACH)
def test_the_bare_model_beside_padding(case, side, tmp_path):
    theirs, ours = model(case)
    inputs, real = padded(side, CASES[case][0])
    compare(theirs, ours, inputs, ["last_hidden_state"], tmp_path, real=real)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", EACH)
@pytest.mark.parametrize("labels", [1, 4])
def test_sequence_classification(case, side, labels, tmp_path):
    theirs, ours = model(case, "ForSequenceClassification", num_labels=labels)
    inputs, _ = padded(side, CASES[case][0])
    inputs["labels"] = np.array([0.5, -1, 2], np.float32) if labels == 1 else np.array([1, 0, 3])
    compare(theirs, ours, inputs, ["logits", "loss"], tmp_path)


def test_a_classifier_without_padding_takes_the_last_token_of_one_sequence(tmp_path):
    theirs, ours = model("gpt2", "ForSequenceClassification", pad_token_id=None)
    inputs = {"input_ids": tokens()[:1]}
    found = compare(theirs, ours, inputs, ["logits"], tmp_path)
    with pytest.raises(ValueError, match="3 sequences, but the config has no pad_token_id"):
        found(gf.tensor(tokens()))


@pytest.mark.parametrize("case", EACH)
def test_greedy_generation_is_transformers_token_for_token(case, tmp_path):
    theirs, ours = model(case, "ForCausalLM")
    theirs.save_pretrained(tmp_path)
    mine = ours.from_pretrained(tmp_path)
    inputs, real = padded("left", "Llama")
    plain = generate(mine, inputs["input_ids"], 14, attention_mask=real).numpy()
    # A token that one sequence meets halfway ends it there, and the others go on.
    stop = int(plain[0, T + 5])
    settings = {"eos_token_id": stop, "pad_token_id": PAD}
    expected = theirs.generate(
        input_ids=torch.tensor(inputs["input_ids"]),
        attention_mask=torch.tensor(real),
        max_new_tokens=14,
        do_sample=False,
        **settings,
    ).numpy()
    assert (expected[0, T + 6 :] == PAD).all()
    for use_cache in (True, False):
        found = generate(
            mine, inputs["input_ids"], 14, attention_mask=real, use_cache=use_cache, **settings
        )
        np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("case", EACH)
@pytest.mark.parametrize("side", [None, "left"])
def test_logits_from_a_cache_are_those_of_the_whole_sequence(case, side, tmp_path):
    theirs, ours = model(case, "ForCausalLM", "float64")
    theirs.save_pretrained(tmp_path)
    mine = ours.from_pretrained(tmp_path)
    real = REAL[side]
    ids, mask = gf.tensor(tokens()), gf.tensor(real)
    with gf.no_grad():
        whole = mine(ids, attention_mask=mask).logits.numpy()
        cache, parts = KVCache(), []
        for start, stop in ((0, 5), (5, 6), (6, T)):
            part = mine(ids[:, start:stop], attention_mask=mask[:, :stop], cache=cache)
            assert part.cache is cache
            parts.append(part.logits.numpy())
    counts = real.astype(bool)
    np.testing.assert_allclose(np.concatenate(parts, 1)[counts], whole[counts], atol=1e-10)


def test_labels_as_the_trainer_passes_them(tmp_path):
    """Sums divided by a count, over labels that are shifted already."""
    theirs, ours = model("llama", "ForCausalLM")
    theirs.save_pretrained(tmp_path)
    mine, ids = ours.from_pretrained(tmp_path), gf.tensor(tokens())
    shifted = gf.cat([ids[:, 1:], gf.full((B, 1), -100)], 1)
    loss = mine(ids, labels=ids).loss.item()
    assert mine(ids, shift_labels=shifted).loss.item() == pytest.approx(loss, rel=1e-6)
    summed = mine(ids, labels=ids, num_items_in_batch=7).loss.item()
    assert summed == pytest.approx(loss * B * (T - 1) / 7, rel=1e-6)


def test_buffers_of_older_files_are_ignored(tmp_path):
    from safetensors.numpy import load_file, save_file

    for case, buffers in (
        ("gpt2", {"h.0.attn.bias": (1, 1, 4, 4), "h.1.attn.masked_bias": ()}),
        ("llama", {"layers.0.self_attn.rotary_emb.inv_freq": (2,)}),
    ):
        folder = tmp_path / case
        theirs, ours = model(case)
        theirs.save_pretrained(folder)
        weights = load_file(folder / "model.safetensors")
        weights |= {name: np.ones(shape, np.float32) for name, shape in buffers.items()}
        save_file(weights, folder / "model.safetensors")
        with torch.no_grad():
            expected = theirs(torch.tensor(tokens())).last_hidden_state.numpy()
        found = ours.from_pretrained(folder)(gf.tensor(tokens())).last_hidden_state
        np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5)


def test_fresh_weights_start_as_transformers():
    """The standard deviation of each kind of weight; GPT-2's residual branches start smaller."""
    config = {"n_embd": 64, "n_layer": 8, "n_head": 4, "vocab_size": 200, "n_positions": 100}
    mine = gpt2.GPT2LMHeadModel(gpt2.GPT2Config(**config), gf.Generator(0))
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config)).state_dict()
    for _, tensor, place in mine.hub_tensors():
        expected = theirs[place.names[0]].numpy()
        assert tensor.detach().numpy().std() == pytest.approx(expected.std(), rel=0.1), place


# ---- configs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rope, wrong",
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'.*'linear' or 'llama3'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "'dynamic'.*not supported"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "'longrope'.*not supported"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "all channels of a head"),
        ({"rope_scaling": {"type": "linear"}}, "factor must be a positive number.*None"),
        ({"rope_theta": 5.0, "rope_parameters": {"rope_theta": 6.0}}, "rope_theta is 5.0.*but 6.0"),
        ({"hidden_act": "relu"}, "hidden_act='relu' is not supported, only silu"),
        ({"num_key_value_heads": 2}, "num_key_value_heads=2 must divide num_attention_heads=3"),
        ({"hidden_size": 13}, "num_attention_heads=3 must divide hidden_size=13"),
    ],
)
def test_settings_that_are_not_supported(rope, wrong):
    with pytest.raises(ValueError, match=wrong):
        llama.LlamaConfig.from_dict({**LLAMA, **rope})


def test_other_refusals():
    with pytest.raises(ValueError, match="layer_types must say .* for each of 2 layers"):
        llama.Qwen2Config.from_dict({**LLAMA, "layer_types": ["full_attention"]})
    with pytest.raises(ValueError, match="add_cross_attention=True"):
        gpt2.GPT2Config(add_cross_attention=True)
    fresh = llama.LlamaModel(llama.LlamaConfig(**LLAMA))
    with pytest.raises(ValueError, match="25 tokens exceed the model's max_position_embeddings=24"):
        fresh(gf.zeros(1, 25, dtype="int64"))


def test_both_ways_of_writing_rotary_positions_are_saved(tmp_path):
    """Older releases of transformers read rope_theta and rope_scaling, newer ones the dict."""
    config = llama.LlamaConfig(**LLAMA, rope_parameters={**LLAMA3, "rope_theta": 500.0})
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["rope_parameters"] == {**LLAMA3, "rope_theta": 500.0}
    assert (saved["rope_theta"], saved["rope_scaling"]) == (500.0, LLAMA3)
    assert llama.LlamaConfig.from_pretrained(tmp_path) == config
    theirs = transformers.LlamaConfig.from_pretrained(tmp_path)
    assert theirs.rope_parameters == {**LLAMA3, "rope_theta": 500.0}
