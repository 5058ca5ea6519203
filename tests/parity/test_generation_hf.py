"""generate() against transformers': the same tokens, by greedy and beam search."""

import itertools

import numpy as np
import pytest

import glassformer as gf
from glassformer.generation import generate, stream_generate
from glassformer.models.bart import BartForConditionalGeneration
from glassformer.models.gpt2 import GPT2LMHeadModel
from glassformer.models.marian import MarianMTModel
from glassformer.models.t5 import T5ForConditionalGeneration
from tests.parity import hub
from tests.parity.hub import torch, transformers

VOCABULARY = 30
SIZES = {
    "vocab_size": VOCABULARY,
    "d_model": 12,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 40,
    "init_std": 0.6,
}
FAMILIES = {
    "bart": (
        transformers.BartForConditionalGeneration,
        transformers.BartConfig(**SIZES, pad_token_id=1),
        BartForConditionalGeneration,
    ),
    "marian": (
        transformers.MarianMTModel,
        transformers.MarianConfig(
            **SIZES,
            pad_token_id=29,
            eos_token_id=2,
            decoder_start_token_id=29,
            forced_eos_token_id=2,
        ),
        MarianMTModel,
    ),
    "t5": (
        transformers.T5ForConditionalGeneration,
        transformers.T5Config(
            vocab_size=VOCABULARY,
            d_model=12,
            d_kv=4,
            d_ff=20,
            num_layers=2,  # transformers' cache has no place for more layers in the decoder
            num_decoder_layers=2,
            num_heads=3,
            decoder_start_token_id=0,
        ),
        T5ForConditionalGeneration,
    ),
    "gpt2": (
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=12,
            n_layer=2,
            n_head=3,
            n_positions=40,
            bos_token_id=2,
            eos_token_id=2,
            pad_token_id=1,
            initializer_range=0.5,
        ),
        GPT2LMHeadModel,
    ),
}


def build(family, seed, folder):
    """A model of each side with the same weights, whose sequences end after some tokens."""
    hf_class, config, our_class = FAMILIES[family]
    model = hub.build(hf_class, config, "float64", seed)
    end = config.eos_token_id
    with torch.no_grad():
        if family in ("bart", "marian"):
            model.final_logits_bias[:, end] = 2.5
        if family == "marian":
            model.final_logits_bias[:, 29] = -1e9  # padding is not a word
            for stack in (model.get_encoder(), model.get_decoder()):  # these are not saved
                stack.embed_positions.weight.copy_(stack.embed_positions.create_weight())
        if family == "t5":
            model.shared.weight[end] *= 3
            model.shared.weight[2:] *= 2
        if family == "gpt2":
            model.transformer.ln_f.bias += model.transformer.wte.weight[end] * 0.5
    model.save_pretrained(folder)
    return model, our_class.from_pretrained(folder)


def prompts(family, seed):
    """Three rows, the second and third padded: on the left for a decoder, on the right else."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, VOCABULARY - 1, (3, 6))
    mask = np.ones_like(ids)
    for row, length in ((1, 4), (2, 1)):
        mask[row, slice(6 - length) if family == "gpt2" else slice(length, None)] = 0
    pad = FAMILIES[family][1].pad_token_id
    return np.where(mask == 1, ids, pad), mask


def settings_at_random(rng):
    """Settings as users combine them; each rule is on in some."""

    def some(name, *values, often=0.3):
        return {name: values[rng.integers(len(values))]} if rng.random() < often else {}

    beams, new = int(rng.integers(2, 6)), int(rng.integers(3, 14))
    return {
        "num_beams": beams,
        "max_new_tokens": new,
        "num_return_sequences": int(rng.integers(1, beams + 1)),
        **some("length_penalty", -1.0, 0.0, 0.6, 2.0, often=0.6),
        **some("early_stopping", True, "never", often=0.6),
        **some("no_repeat_ngram_size", 1, 2, 3),
        **some("min_new_tokens", min(3, new), new // 2),
        **some("repetition_penalty", 0.7, 1.3),
        **some("bad_words_ids", [[5], [7, 8], [2]], [[2, 3, 4], [9]]),
        **some("forced_bos_token_id", 4),
        # Padding on the left has occurred, transformers finds; so that the rules about repetition
        # agree it mustn't occur.
        "suppress_tokens": [1, *some("x", [10, 11, 12]).get("x", [])],
        **some("begin_suppress_tokens", [2, 13]),
        **some("eos_token_id", [2, 20], [2, 6, 17], often=0.2),
    }


def ended(tokens, start, ends, pad):
    """Sequences with padding behind their first end.

    transformers' beam search pads with the end of sequence where padding is token 0.
    """
    after = np.isin(tokens, ends) & (np.arange(tokens.shape[1]) >= start)
    after = np.cumsum(after, axis=1) - after > 0
    return np.where(after, pad, tokens)


def both(family, models, given, mask, **settings):
    """What either side generates."""
    theirs, ours = models
    expected = theirs.generate(
        torch.tensor(given), attention_mask=torch.tensor(mask), do_sample=False, **settings
    ).numpy()
    found = generate(ours, given, attention_mask=mask, **settings).numpy()
    config = FAMILIES[family][1]
    ends = settings.get("eos_token_id", config.eos_token_id)
    start = given.shape[1] if family == "gpt2" else 1
    assert (found == ended(found, start, ends, config.pad_token_id)).all()
    return ended(expected, start, ends, config.pad_token_id), found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", FAMILIES)
def test_beam_search_finds_the_same_tokens(family, seed, tmp_path):
    models = build(family, seed, tmp_path)
    given, mask = prompts(family, seed)
    rng = np.random.default_rng(seed)
    lengths = set()
    for _ in range(8):
        settings = settings_at_random(rng)
        expected, found = both(family, models, given, mask, **settings)
        assert found.tolist() == expected.tolist(), settings
        lengths.add(found.shape[1])
    assert len(lengths) > 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_search_finds_the_same_tokens(family, seed, tmp_path):
    models = build(family, seed, tmp_path)
    given, mask = prompts(family, seed)
    rng = np.random.default_rng(seed)
    for _ in range(6):
        settings = {**settings_at_random(rng), "num_beams": 1, "num_return_sequences": 1}
        settings.pop("length_penalty", None), settings.pop("early_stopping", None)
        expected, found = both(family, models, given, mask, **settings)
        assert found.tolist() == expected.tolist(), settings


@pytest.mark.parametrize(
    ("penalty", "stopping"), [*itertools.product([-1.0, 0.0, 1.0, 2.5], [False, True, "never"])]
)
def test_every_length_penalty_and_end(penalty, stopping, tmp_path):
    models = build("bart", 9, tmp_path)
    given, mask = prompts("bart", 9)
    for beams in (2, 3, 4):
        expected, found = both(
            "bart",
            models,
            given,
            mask,
            num_beams=beams,
            num_return_sequences=beams,
            length_penalty=penalty,
            early_stopping=stopping,
            max_new_tokens=25,
        )
        assert found.tolist() == expected.tolist(), beams


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_changes_nothing(family, beams, tmp_path):
    _, model = build(family, 5, tmp_path)
    given, mask = prompts(family, 5)
    cached, uncached = (
        generate(
            model, given, 12, attention_mask=mask, num_beams=beams, min_length=9, use_cache=cache
        ).tolist()
        for cache in (True, False)
    )
    assert cached == uncached


def test_settings_come_from_the_folder(tmp_path):
    theirs, _ = build("bart", 2, tmp_path / "first")
    theirs.generation_config.update(
        num_beams=3, max_length=11, min_length=4, no_repeat_ngram_size=2, length_penalty=2.0
    )
    theirs.save_pretrained(tmp_path / "theirs")
    ours = BartForConditionalGeneration.from_pretrained(tmp_path / "theirs")
    given, mask = prompts("bart", 2)
    rows = {"attention_mask": torch.tensor(mask)}
    expected = theirs.generate(torch.tensor(given), **rows)
    assert ours.generate(given, attention_mask=mask).tolist() == expected.tolist()
    expected = theirs.generate(torch.tensor(given), **rows, num_beams=1, max_new_tokens=5)
    found = ours.generate(given, 5, attention_mask=mask, num_beams=1)
    assert found.tolist() == expected.tolist()
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.BartForConditionalGeneration.from_pretrained(tmp_path / "ours")
    assert again.generation_config.num_beams == 3
    steps = list(stream_generate(ours, given))  # token by token: one beam
    greedy = ours.generate(given, num_beams=1).numpy()
    assert (np.stack(steps, axis=1) == greedy[:, 1:]).all()


def test_padding_of_prompts_is_found_by_its_token(tmp_path):
    theirs, ours = build("gpt2", 3, tmp_path)
    given, mask = prompts("gpt2", 3)
    expected = theirs.generate(torch.tensor(given), max_new_tokens=6)
    assert ours.generate(given, 6).tolist() == expected.tolist()
    assert ours.generate(given, 6, attention_mask=mask).tolist() == expected.tolist()


def test_the_target_may_have_begun(tmp_path):
    theirs, ours = build("t5", 4, tmp_path)
    given, mask = prompts("t5", 4)
    begun = np.array([[0, 9, 3], [0, 8, 8], [0, 5, 7]])
    settings = {"num_beams": 3, "max_length": 12, "min_length": 6}
    expected = theirs.generate(
        torch.tensor(given),
        attention_mask=torch.tensor(mask),
        decoder_input_ids=torch.tensor(begun),
        **settings,
    )
    found = generate(ours, given, attention_mask=mask, decoder_input_ids=begun, **settings)
    assert ended(expected.numpy(), 3, 1, 0).tolist() == found.tolist()


def test_sampled_beams_are_among_the_possible_ones(tmp_path):
    _, ours = build("bart", 1, tmp_path)
    given, mask = prompts("bart", 1)
    settings = {"attention_mask": mask, "do_sample": True, "num_return_sequences": 3}
    settings |= {"suppress_tokens": [5, 6], "temperature": 1.5, "max_new_tokens": 9}
    for beams in (1, 4):
        first, second, again = (
            generate(ours, given, num_beams=beams, seed=seed, **settings).tolist()
            for seed in (0, 1, 0)
        )
        assert first == again != second
        assert len(first) == 9
        assert not {5, 6} & set(np.ravel(first))


def test_gradients_are_recorded_again_afterwards(tmp_path):
    _, ours = build("t5", 0, tmp_path)
    ours.train()
    ours.generate([[3, 4]], 3, num_beams=2)
    assert ours.training and gf.is_grad_enabled()
