"""BART, Marian and T5 against transformers: outputs, gradients, files in both directions."""

import numpy as np
import pytest

import glassformer as gf
from glassformer.generation import KVCache
from glassformer.models import bart, marian, t5
from tests.parity import hub
from tests.parity.hub import torch, transformers

VOCABULARY, SOURCE, TARGET = 29, 7, 5
END = 2

BART = {
    "vocab_size": VOCABULARY,
    "d_model": 12,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 16,
    "pad_token_id": 1,
    "dropout": 0.3,
}
MARIAN = {**BART, "eos_token_id": END, "decoder_start_token_id": 1, "forced_eos_token_id": END}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 12,
    "d_kv": 5,
    "d_ff": 20,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 6,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.3,
}
FAMILIES = {
    "bart": (transformers.BartConfig, BART),
    "bart-scaled-relu": (
        transformers.BartConfig,
        {**BART, "scale_embedding": True, "activation_function": "relu", "decoder_layers": 3},
    ),
    "bart-untied": (
        transformers.BartConfig,
        {**BART, "tie_word_embeddings": False, "scale_embedding": True},
    ),
    "marian": (transformers.MarianConfig, {**MARIAN, "scale_embedding": True}),
    "marian-apart": (
        transformers.MarianConfig,
        {**MARIAN, "share_encoder_decoder_embeddings": False, "decoder_vocab_size": 23},
    ),
    "t5": (transformers.T5Config, T5),
    "t5-v1.1": (
        transformers.T5Config,
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "t5-gated-silu": (transformers.T5Config, {**T5, "feed_forward_proj": "gated-silu"}),
}
CLASSES = {
    "bart": (transformers.BartModel, transformers.BartForConditionalGeneration, bart),
    "marian": (transformers.MarianModel, transformers.MarianMTModel, marian),
    "t5": (transformers.T5Model, transformers.T5ForConditionalGeneration, t5),
}
# A bare Marian model misses its fixed positions; transformers looks for them below "model." alone.
transformers.MarianModel._keys_to_ignore_on_load_missing = ["embed_positions.weight"]
HIDDEN = ("encoder_last_hidden_state", "encoder_hidden_states", "decoder_hidden_states")


class WideNorm(torch.nn.Module):
    """T5's norm without the step to float32 that transformers takes even in float64."""

    def forward(self, x):
        variance = x.pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + self.variance_epsilon))


@pytest.fixture(autouse=True)
def wide_norms(monkeypatch):
    monkeypatch.setattr(transformers.models.t5.modeling_t5.T5LayerNorm, "forward", WideNorm.forward)


def build(family, head, dtype, seed=0):
    config_class, settings = FAMILIES[family]
    hf_class = CLASSES[family.partition("-")[0]][head]
    model = hub.build(hf_class, config_class(**settings), dtype, seed)
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name == "final_logits_bias":
                buffer.normal_()
        if family.startswith("marian"):  # `hub.build` has shaken what is not trained, or saved
            for stack in (model.get_encoder(), model.get_decoder()):
                stack.embed_positions.weight.copy_(stack.embed_positions.create_weight())
        if head and family == "t5-v1.1":
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    return model, getattr(CLASSES[family.partition("-")[0]][2], hf_class.__name__)


def inputs(padding, vocabulary=23):
    """Sources and targets, padded on either side, or on neither."""
    rng = np.random.default_rng(3)
    given = {
        "input_ids": rng.integers(3, vocabulary, (3, SOURCE)),
        "decoder_input_ids": rng.integers(3, vocabulary, (3, TARGET)),
    }
    if padding is None:
        return given, None
    source, target = np.ones((3, SOURCE), int), np.ones((3, TARGET), int)
    if padding == "right":
        source[1, 4:], target[2, 3:] = 0, 0
    else:
        source[1, :4], target[2, :2] = 0, 0
    return {**given, "attention_mask": source, "decoder_attention_mask": target}, target


@pytest.mark.parametrize(
    ("padding", "dtype"),
    [(None, "float32"), ("right", "float64"), ("left", "float64"), ("left", "float32")],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_models(family, padding, dtype, tmp_path):
    theirs, our_class = build(family, 0, dtype)
    given, real = inputs(padding)
    given["output_hidden_states"] = True
    hub.compare(theirs, our_class, given, ("last_hidden_state", *HIDDEN), tmp_path, real)


@pytest.mark.parametrize(
    ("padding", "dtype"),
    [(None, "float32"), ("right", "float64"), ("left", "float64"), ("left", "float32")],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_language_models(family, padding, dtype, tmp_path):
    theirs, our_class = build(family, 1, dtype)
    given, real = inputs(padding)
    labels = given.pop("decoder_input_ids")
    counts = np.arange(TARGET) < [[TARGET], [3], [4]]
    if real is not None:
        counts &= real != 0
    given["labels"] = np.where(counts, labels, -100)
    outputs = ("logits", "loss", "encoder_last_hidden_state")
    hub.compare(theirs, our_class, given, outputs, tmp_path, real)


@pytest.mark.parametrize("family", ["t5", "t5-v1.1"])
def test_t5_encoder(family, tmp_path):
    config_class, settings = FAMILIES[family]
    theirs = hub.build(transformers.T5EncoderModel, config_class(**settings), "float64")
    given, _ = inputs("left")
    given = {name: given[name] for name in ("input_ids", "attention_mask")}
    given["output_hidden_states"] = True
    hub.compare(theirs, t5.T5EncoderModel, given, ("last_hidden_state", "hidden_states"), tmp_path)


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        ({"num_labels": 4}, [3, 0, 1]),
        ({"num_labels": 4, "tie_word_embeddings": False}, [3, 0, 1]),
        ({"num_labels": 1}, [0.5, -1.0, 2.0]),
        ({"num_labels": 4}, [[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]),
    ],
)
def test_bart_classifier(problem, labels, tmp_path):
    config = transformers.BartConfig(**BART, **problem)
    theirs = hub.build(transformers.BartForSequenceClassification, config, "float64")
    given, _ = inputs("right")
    ids = given["input_ids"]
    ids[0, [2, 6]], ids[1, [1, 3]], ids[2, [0, 5]] = END, END, END
    given = {"input_ids": ids, "attention_mask": given["attention_mask"]}
    given["labels"] = np.asarray(labels)
    hub.compare(theirs, bart.BartForSequenceClassification, given, ("logits", "loss"), tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_with_a_cache_is_the_whole_at_once(family, tmp_path):
    theirs, our_class = build(family, 1, "float64")
    theirs.save_pretrained(tmp_path)
    model = our_class.from_pretrained(tmp_path)
    given = {name: gf.tensor(value) for name, value in inputs("left")[0].items()}
    target, mask = given.pop("decoder_input_ids"), given.pop("decoder_attention_mask")
    with gf.no_grad():
        whole = model(**given, decoder_input_ids=target, decoder_attention_mask=mask).logits
        memory = model.base_model.encode(given["input_ids"], given["attention_mask"])
        cache, parts = KVCache(), []
        for start, stop in ((0, 2), (2, 3), (3, TARGET)):
            step = model(
                encoder_outputs=memory,
                attention_mask=given["attention_mask"],
                decoder_input_ids=target[:, start:stop],
                decoder_attention_mask=mask[:, :stop],
                cache=cache,
            )
            parts.append(step.logits)
    real = mask.numpy()[:, :, None] != 0
    difference = (gf.cat(parts, dim=1) - whole).numpy()
    assert abs(np.where(real, difference, 0)).max() < 1e-10


@pytest.mark.parametrize("family", ["bart", "marian", "t5"])
def test_a_model_without_a_head_becomes_one_with_it_and_back(family, tmp_path):
    bare, our_bare = build(family, 0, "float32")
    bare.save_pretrained(tmp_path / "bare")
    with_head = getattr(CLASSES[family][2], CLASSES[family][1].__name__)
    model = with_head.from_pretrained(tmp_path / "bare")  # the head is tied: nothing starts fresh
    model.save_pretrained(tmp_path / "headed")
    given = {name: gf.tensor(value) for name, value in inputs(None)[0].items()}
    with gf.no_grad():
        again = our_bare.from_pretrained(tmp_path / "headed")(**given).last_hidden_state
        first = our_bare.from_pretrained(tmp_path / "bare")(**given).last_hidden_state
    assert (again.numpy() == first.numpy()).all()


def test_t5_starts_as_in_transformers():
    settings = {**T5, "d_model": 64, "d_kv": 16, "d_ff": 96, "vocab_size": 500}
    settings["feed_forward_proj"] = "gated-gelu"
    torch.manual_seed(0)
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**settings))
    ours = t5.T5ForConditionalGeneration(t5.T5Config(**settings), gf.Generator(0))
    arrays = hub.hub_arrays(ours)
    for name, parameter in theirs.named_parameters():
        size = parameter.numel()
        spread = float(parameter.detach().std())
        # four standard deviations of either estimate of a standard deviation
        assert abs(arrays[name].std() - spread) <= 8 * spread / np.sqrt(2 * size), name


def test_errors():
    model = bart.BartModel(bart.BartConfig(**BART))
    ids = gf.ones(1, 17, dtype="int64")
    with pytest.raises(ValueError, match="17 tokens exceed .*max_position_embeddings=16"):
        model(ids)
    with pytest.raises(ValueError, match=r"\(batch, length\), got \(17,\)"):
        model(ids[0])
    with pytest.raises(ValueError, match="encoder_outputs of an earlier call"):
        model(decoder_input_ids=ids[:, :3])
    with pytest.raises(ValueError, match="MarianModel needs decoder_input_ids"):
        marian.MarianModel(marian.MarianConfig(**MARIAN))(ids[:, :3])
    classifier = bart.BartForSequenceClassification(bart.BartConfig(**BART))
    with pytest.raises(ValueError, match="input 1 has no end-of-text token"):
        classifier(gf.tensor([[5, END], [5, 6]]))
    with pytest.raises(ValueError, match=r"input_ids \(2, 0\) hold no token"):
        classifier(gf.zeros(2, 0, dtype="int64"))
    with pytest.raises(ValueError, match=r"labels \(2, 0\) hold no token"):
        bart.BartForConditionalGeneration(bart.BartConfig(**BART))(
            gf.tensor([[5, END], [5, 6]]), labels=gf.zeros(2, 0, dtype="int64")
        )
    lm = t5.T5ForConditionalGeneration(t5.T5Config(**{**T5, "decoder_start_token_id": None}))
    with pytest.raises(ValueError, match="has a decoder_start_token_id"):
        lm(ids[:, :3], labels=ids[:, :3])
    with pytest.raises(ValueError, match="feed_forward_proj='gated-relu' is none of"):
        t5.T5Config(feed_forward_proj="gated-relu")
