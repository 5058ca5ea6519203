"""BERT, RoBERTa, DistilBERT and ALBERT, every class of theirs, against transformers."""

import json
from importlib import import_module

import numpy as np
import pytest

from tests.parity.hub import build, compare, torch, transformers

LENGTH = 9
BERT = {
    "vocab_size": 53,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
}
DISTILBERT = {
    "vocab_size": 53,
    "dim": 12,
    "n_layers": 2,
    "n_heads": 3,
    "hidden_dim": 20,
    "max_position_embeddings": 16,
}
BASES = {
    "Bert": BERT,
    "Roberta": {**BERT, "type_vocab_size": 1},
    "DistilBert": DISTILBERT,
    "Albert": {**BERT, "embedding_size": 8, "num_hidden_layers": 4, "num_hidden_groups": 2},
}
RENAMED = ("XLMRoberta", "Camembert")  # what is RoBERTa but for a name and a vocabulary
HEADS = (
    "Model",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
)
CLASSES = [(family, head) for family in BASES for head in HEADS]
CLASSES += [("Bert", "ForPreTraining"), ("Albert", "ForPreTraining")]

OUTPUTS = {
    "Model": ["last_hidden_state", "pooler_output"],
    "ForQuestionAnswering": ["loss", "start_logits", "end_logits"],
}


def classes_of(family, head):
    """Their config class, their model's and ours."""
    names = f"{family}Config", f"{family}{head}"
    module = "xlm_roberta" if family == "XLMRoberta" else family.lower()
    ours = import_module(f"glassformer.models.{module}")
    return *(getattr(transformers, name) for name in names), getattr(ours, names[1])


def real_tokens(padding):
    """Which of (3, LENGTH) tokens are real; one row is whole, one has a single token."""
    lengths = np.array([[LENGTH], [4], [1]])
    places = np.arange(LENGTH)
    if padding == "left":
        return places >= LENGTH - lengths
    if padding in ("inside", "unmasked"):
        return (places + np.arange(3)[:, None]) % 4 != 3
    return places < (lengths if padding == "right" else LENGTH)


def batch(config, padding="right", token_types=True):
    """Return inputs for a model of `config`, padded at a side, and which tokens are real."""
    rng = np.random.default_rng(1)
    real = np.broadcast_to(real_tokens(padding), (3, LENGTH))
    ids = np.where(real, rng.integers(3, config.vocab_size, real.shape), config.pad_token_id)
    inputs = {"input_ids": ids}
    if padding == "unmasked":
        return inputs, np.ones_like(real)
    if padding is not None:
        inputs["attention_mask"] = real.astype(np.int64)
    if token_types and getattr(config, "type_vocab_size", 0):
        inputs["token_type_ids"] = rng.integers(0, config.type_vocab_size, real.shape)
    return inputs, real


def labels(family, head, config, real):
    """Return labels for a head; where a word or a token is padding there is none."""
    rng = np.random.default_rng(2)
    pairs = {"Bert": "next_sentence_label", "Albert": "sentence_order_label"}
    if head == "ForQuestionAnswering":
        return {
            "start_positions": np.array([2, 0, LENGTH + 5]),  # the last is beyond the input
            "end_positions": np.array([4, 3, 0]),
        }
    if head == "ForSequenceClassification":
        return {"labels": rng.integers(0, config.num_labels, len(real))}
    if head == "Model":
        return {}
    classes = config.num_labels if head == "ForTokenClassification" else config.vocab_size
    chosen = real & (rng.random(real.shape) < 0.6)
    wanted = {"labels": np.where(chosen, rng.integers(0, classes, real.shape), -100)}
    if head == "ForPreTraining":
        wanted[pairs[family]] = np.array([0, 1, 1])
    return wanted


def outputs_of(family, head):
    if head == "ForPreTraining":
        pair = "seq_relationship_logits" if family == "Bert" else "sop_logits"
        return ["loss", "prediction_logits", pair, "hidden_states"]
    names = OUTPUTS.get(head, ["loss", "logits"])
    left = {"pooler_output"} if family == "DistilBert" else set()
    return [name for name in names if name not in left] + ["hidden_states"]


def check(family, head, folder, dtype="float32", padding="right", token_types=True, **settings):
    """Compare a class under some settings; return our model."""
    extra = settings.pop("inputs", {})
    config_class, their_class, our_class = classes_of(family, head)
    if head in ("ForSequenceClassification", "ForTokenClassification"):
        settings = {"num_labels": 3, **settings}
    config = config_class(**{**BASES.get(family, BASES["Roberta"]), **settings})
    inputs, real = batch(config, padding, token_types)
    inputs |= labels(family, head, config, real) | extra | {"output_hidden_states": True}
    theirs = build(their_class, config, dtype)
    return compare(theirs, our_class, inputs, outputs_of(family, head), folder, real)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("family, head", CLASSES)
def test_every_class_gives_the_same_outputs_losses_and_gradients(family, head, dtype, tmp_path):
    check(family, head, tmp_path, dtype)


VARIANTS = {
    "no mask": {"padding": None},
    "padding on the left": {"padding": "left"},
    "padding in between": {"padding": "inside"},
    "padding that no mask tells of": {"padding": "unmasked"},
    "no token types given": {"token_types": False},
    "one head, one layer": {"heads": 1, "layers": 1},
    "six heads, three layers": {"heads": 6, "layers": 3},
    "relu": {"activation": "relu"},
    "gelu_new": {"activation": "gelu_new"},
    "silu": {"activation": "silu"},
    "positions given": {"inputs": {"position_ids": (np.arange(3 * LENGTH) % 11).reshape(3, -1)}},
    "one row of positions": {"inputs": {"position_ids": np.arange(3, 3 + LENGTH)[None]}},
    "another padding token": {"pad_token_id": 2},
}
THEIR_NAMES = {
    "heads": {"DistilBert": "n_heads", None: "num_attention_heads"},
    "layers": {"DistilBert": "n_layers", None: "num_hidden_layers"},
    "activation": {"DistilBert": "activation", None: "hidden_act"},
}


def in_their_names(family, variant):
    spelled = {}
    for name, value in variant.items():
        names = THEIR_NAMES.get(name, {None: name})
        spelled[names.get(family, names[None])] = value
    if family == "Albert" and "num_hidden_layers" in spelled:
        spelled["num_hidden_groups"] = 1
    return spelled


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", BASES)
def test_variants_of_masked_language_models(family, variant, tmp_path):
    check(family, "ForMaskedLM", tmp_path, "float64", **in_their_names(family, VARIANTS[variant]))


WITH_WORDS = [
    (family, head) for family, head in CLASSES if head in ("ForMaskedLM", "ForPreTraining")
]


@pytest.mark.parametrize("family, head", WITH_WORDS)
def test_without_tied_embeddings(family, head, tmp_path):
    ours = check(family, head, tmp_path / "free", tie_word_embeddings=False)
    tied = check(family, head, tmp_path / "tied")
    assert ours.num_parameters() > tied.num_parameters()


@pytest.mark.parametrize(
    "problem, num_labels, wanted",
    [
        (None, 1, np.array([0.5, -1.0, 2.0], np.float32)),
        ("regression", 3, np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3)),
        (None, 5, np.array([4, 0, 2])),
        ("single_label_classification", 2, np.array([1, 0, 1])),
        (None, 4, (np.arange(12).reshape(3, 4) % 3 == 0).astype(np.float32)),
        ("multi_label_classification", 2, np.array([[1, 0], [1, 1], [0, 0]], np.float32)),
    ],
)
@pytest.mark.parametrize("family", BASES)
def test_losses_of_every_kind_of_problem(family, problem, num_labels, wanted, tmp_path):
    settings = {"problem_type": problem, "num_labels": num_labels, "inputs": {"labels": wanted}}
    check(family, "ForSequenceClassification", tmp_path, **settings)


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_a_classifiers_own_dropout_is_read(family, tmp_path):
    head = "ForTokenClassification"
    ours = check(family, head, tmp_path / "own", classifier_dropout=0.7)
    assert ours.dropout.p == 0.7
    ours = check(family, head, tmp_path / "default", hidden_dropout_prob=0.3)
    assert ours.dropout.p == 0.3


@pytest.mark.parametrize(
    "head, setting",
    [
        ("ForSequenceClassification", "seq_classif_dropout"),
        ("ForQuestionAnswering", "qa_dropout"),
        ("ForTokenClassification", "dropout"),
    ],
)
def test_dropouts_of_distilbert(head, setting, tmp_path):
    assert check("DistilBert", head, tmp_path, **{setting: 0.7}).dropout.p == 0.7


def test_dropout_of_albert(tmp_path):
    ours = check("Albert", "ForSequenceClassification", tmp_path, classifier_dropout_prob=0.7)
    assert ours.dropout.p == 0.7


@pytest.mark.parametrize(
    "layers, groups, inner", [(3, 1, 1), (3, 1, 2), (4, 2, 1), (5, 2, 1), (6, 3, 2), (7, 5, 1)]
)
def test_albert_shares_layers_in_groups(layers, groups, inner, tmp_path):
    shape = {"num_hidden_layers": layers, "num_hidden_groups": groups, "inner_group_num": inner}
    ours = check("Albert", "Model", tmp_path, "float64", **shape)
    assert len(ours.layers()) == layers * inner
    assert len({id(block) for block in ours.layers()}) == groups * inner


def test_sinusoidal_positions_of_distilbert_start_as_theirs(tmp_path):
    config_class, their_class, our_class = classes_of("DistilBert", "ForMaskedLM")
    config = config_class(**DISTILBERT, sinusoidal_pos_embds=True)
    theirs = their_class(config)
    theirs.save_pretrained(tmp_path)
    ours = our_class(our_class.config_class.from_pretrained(tmp_path))
    found = ours.distilbert.embeddings.position_embeddings.weight.detach().numpy()
    wanted = theirs.distilbert.embeddings.position_embeddings.weight.detach().numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", RENAMED)
def test_families_that_are_roberta_by_another_name(family, head, tmp_path):
    ours = check(family, head, tmp_path)
    saved = json.loads((tmp_path / "ours" / "config.json").read_text())
    theirs = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert saved["architectures"] == theirs["architectures"] == [type(ours).__name__]
    assert saved["model_type"] == theirs["model_type"]


@pytest.mark.parametrize("family", BASES)
def test_transformers_loads_shards_of_half_precision(family, tmp_path):
    config_class, their_class, our_class = classes_of(family, "ForMaskedLM")
    theirs = build(their_class, config_class(**BASES[family])).half()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = our_class.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours", max_shard_size="3KB")
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    back, info = their_class.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    kept = back.state_dict()
    for name, value in theirs.state_dict().items():
        assert kept[name].dtype == value.dtype == torch.float16
        assert torch.equal(kept[name], value), name


@pytest.mark.parametrize("family", BASES)
def test_settings_that_a_config_leaves_out_are_theirs(family):
    config_class, _, our_class = classes_of(family, "Model")
    theirs, ours = config_class().to_dict(), our_class.config_class().to_dict()
    same = theirs.keys() & ours.keys()
    assert len(same) > 15
    assert {name: ours[name] for name in same} == {
        name: dict(enumerate(theirs[name].values())) if name == "id2label" else theirs[name]
        for name in same
    }
