"""Folders as the hub serves them: what loads, what is refused, what a save leaves behind."""

import json
import re
import socket
import subprocess
import sys
import warnings

import numpy as np
import pytest

import glassformer as gf
from glassformer.models.albert import AlbertConfig, AlbertForMaskedLM, AlbertModel
from glassformer.models.bert import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)
from glassformer.models.distilbert import DistilBertConfig
from glassformer.models.loading import load_weights
from glassformer.models.roberta import RobertaConfig, RobertaModel
from glassformer.models.safetensors_file import WeightsError, open_weights
from tests.unit.models.folders import (
    IDS,
    SHAPE,
    assert_same,
    config,
    keys,
    rewrite,
    saved,
    values,
)


def test_a_model_comes_back_bit_for_bit_and_in_evaluation_mode(tmp_path):
    model = saved(tmp_path)
    back = BertModel.from_pretrained(tmp_path)
    assert not any(module.training for module in back.modules())
    assert values(back).keys() == values(model).keys()
    assert_same(values(back), values(model))
    assert back.config.to_dict() | {"architectures": None, "dtype": None} == model.config.to_dict()


def test_a_bare_checkpoint_gets_a_fresh_head_and_a_warning(tmp_path):
    base = saved(tmp_path, num_hidden_layers=1)
    fresh = r"no classifier\.weight, classifier\.bias: BertForSequenceClassification starts"
    with pytest.warns(UserWarning, match=fresh) as caught:
        model = BertForSequenceClassification.from_pretrained(tmp_path, num_labels=40)
    assert len(caught) == 1
    assert_same(values(model.bert), values(base))
    weight = model.classifier.weight.detach().numpy()
    assert weight.shape == (40, 12)
    assert 0.018 < weight.std() < 0.022  # initializer_range is 0.02
    assert not model.classifier.bias.detach().numpy().any()


def test_a_checkpoint_with_a_head_loads_into_the_bare_model(tmp_path):
    classifier = saved(tmp_path, BertForSequenceClassification)
    left_out = r"also holds classifier\.bias, classifier\.weight, which BertModel has no place for"
    with pytest.warns(UserWarning, match=left_out) as caught:
        model = BertModel.from_pretrained(tmp_path)
    assert len(caught) == 1
    assert_same(values(model), values(classifier.bert))


def test_a_language_model_becomes_a_classifier(tmp_path):
    language_model = saved(tmp_path, BertForMaskedLM)
    with pytest.warns(UserWarning) as caught:
        model = BertForSequenceClassification.from_pretrained(tmp_path)
    fresh, left_out = (str(warning.message) for warning in caught)
    for name in (
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    ):
        assert name in fresh
    assert "cls.predictions.bias" in left_out
    shared = values(language_model.bert)
    assert_same(values(model.bert), shared)
    assert "pooler.weight" not in shared


def test_a_pooler_that_a_model_does_not_use_is_left_out(tmp_path):
    saved(tmp_path)
    with pytest.warns(UserWarning) as caught:
        BertForTokenClassification.from_pretrained(tmp_path)
    fresh, left_out = (str(warning.message) for warning in caught)
    assert "classifier.weight" in fresh
    assert "pooler.dense.weight" in left_out


def broken(arrays):
    kept = {name: array for name, array in arrays.items() if "layer.1.output.dense" not in name}
    kept["bert.encoder.layer.2.output.dense.bias"] = np.zeros(12, np.float32)
    kept["bert.embeddings.word_embeddings.weight"] = np.zeros((51, 12), np.float32)
    kept["bert.encoder.layer.0.attention.self.key.bias"] = np.zeros(11, np.float32)
    del kept["classifier.bias"]
    return kept


PROBLEMS = [
    "missing: bert.encoder.layer.1.output.dense.bias",
    "missing: bert.encoder.layer.1.output.dense.weight",
    "missing: classifier.bias",
    "unexpected: bert.encoder.layer.2.output.dense.bias",
    r"shape of bert.embeddings.word_embeddings.weight: given (51, 12), the model has (50, 12)",
    r"shape of bert.encoder.layer.0.attention.self.key.bias: given (11,), the model has (12,)",
]


def test_everything_that_does_not_fit_is_in_one_error(tmp_path):
    saved(tmp_path, BertForSequenceClassification)
    rewrite(tmp_path, broken)
    with pytest.raises(WeightsError) as caught:
        BertForSequenceClassification.from_pretrained(tmp_path)
    first, *listed = str(caught.value).splitlines()
    assert first == f"the checkpoint {tmp_path} does not fit BertForSequenceClassification:"
    assert sorted(line.strip() for line in listed) == sorted(PROBLEMS)


def test_a_model_that_a_checkpoint_does_not_fit_is_untouched(tmp_path):
    model = saved(tmp_path, BertForSequenceClassification)
    before = {name: array.copy() for name, array in values(model).items()}
    rewrite(tmp_path, lambda arrays: broken({name: a + 1 for name, a in arrays.items()}))
    with open_weights(tmp_path) as weights, pytest.raises(WeightsError):
        load_weights(model, weights, None, False)
    assert_same(values(model), before)


def test_another_number_of_labels_is_an_error_unless_it_is_asked_for(tmp_path):
    three = saved(tmp_path, BertForSequenceClassification, id2label={0: "a", 1: "b", 2: "c"})
    wanted = r"shape of classifier.weight: given (3, 12), the model has (5, 12)"
    with pytest.raises(WeightsError, match=re.escape(wanted)):
        BertForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    found_and_expected = (
        r"has classifier.weight \(3, 12\) instead of \(5, 12\), classifier.bias \(3,\) instead of "
        r"\(5,\): BertForSequenceClassification starts with fresh ones"
    )
    with pytest.warns(UserWarning, match=found_and_expected) as caught:
        five = BertForSequenceClassification.from_pretrained(
            tmp_path, num_labels=5, ignore_mismatched_sizes=True
        )
    assert len(caught) == 1
    assert five.classifier.weight.shape == (5, 12)
    assert five.config.id2label == {i: f"LABEL_{i}" for i in range(5)}
    assert_same(values(five.bert), values(three.bert))


def test_norms_may_be_called_gamma_and_beta(tmp_path):
    model = saved(tmp_path)

    def old(arrays):
        spelled = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        renamed = {}
        for name, array in arrays.items():
            end = next((end for end in spelled if name.endswith(end)), "")
            renamed[name.removesuffix(end) + spelled.get(end, "")] = array
        return renamed

    rewrite(tmp_path, old)
    assert "embeddings.LayerNorm.gamma" in keys(tmp_path)
    assert_same(values(BertModel.from_pretrained(tmp_path)), values(model))


def test_buffers_of_old_checkpoints_are_passed_over(tmp_path):
    model = saved(tmp_path)
    positions = {"embeddings.position_ids": np.arange(16)[None]}
    rewrite(tmp_path, lambda arrays: {**arrays, **positions})
    assert_same(values(BertModel.from_pretrained(tmp_path)), values(model))


def test_tied_weights_are_saved_once_and_shared_when_loaded(tmp_path):
    model = saved(tmp_path, BertForMaskedLM)
    held = keys(tmp_path)
    assert "cls.predictions.bias" in held
    assert not {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"} & held
    back = BertForMaskedLM.from_pretrained(tmp_path)
    assert back.predictions.decoder.weight is back.bert.embeddings.word_embeddings.weight
    assert back.predictions.decoder.bias is back.predictions.bias
    assert_same(values(back), values(model))


def test_a_tied_tensor_may_stand_under_either_name(tmp_path):
    model = saved(tmp_path, BertForMaskedLM)

    def moved(arrays):
        bias = arrays.pop("cls.predictions.bias")
        words = arrays["bert.embeddings.word_embeddings.weight"]
        extra = {"cls.predictions.decoder.bias": bias, "cls.predictions.decoder.weight": words}
        return {**arrays, **extra}

    rewrite(tmp_path, moved)
    assert_same(values(BertForMaskedLM.from_pretrained(tmp_path)), values(model))


def test_blocks_that_albert_uses_several_times_are_saved_once(tmp_path):
    shape = {**SHAPE, "embedding_size": 8, "num_hidden_layers": 6, "num_hidden_groups": 2}
    model = AlbertForMaskedLM(AlbertConfig(**shape))
    model.save_pretrained(tmp_path)
    layers = {
        name.split("albert_layer_groups.")[1][0] for name in keys(tmp_path) if "group" in name
    }
    assert layers == {"0", "1"}
    stored = sum(a.size for a in values(model).values())
    with open_weights(tmp_path) as weights:
        assert sum(weights.array(name).size for name in weights) == stored


def test_shards(tmp_path):
    model = BertForMaskedLM(config())
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    assert not (tmp_path / "model.safetensors").exists()
    assert_same(values(BertForMaskedLM.from_pretrained(tmp_path)), values(model))
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]
    assert_same(values(BertForMaskedLM.from_pretrained(tmp_path)), values(model))


@pytest.mark.parametrize("loader", [BertModel, gf.models.AutoModel, gf.models.AutoConfig])
def test_arguments_of_transformers(loader, tmp_path):
    saved(tmp_path)
    loader.from_pretrained(tmp_path, local_files_only=True, trust_remote_code=False)
    wrong = {"device_map": "auto", "trust_remote_code": True, "output_attentions": True}
    for name, value in wrong.items():
        with pytest.raises(TypeError, match="not a setting of BertConfig; ") as caught:
            loader.from_pretrained(tmp_path, **{name: value})
        assert str(caught.value).startswith(f"{name}={value!r}")
        assert "config.json" not in str(caught.value)


@pytest.mark.parametrize("chooser", ["BertForMaskedLM", "AutoModelForMaskedLM"])
def test_a_warning_shows_the_callers_line(chooser, tmp_path):
    saved(tmp_path, BertForSequenceClassification)
    with pytest.warns(UserWarning) as caught:
        getattr(gf.models, chooser).from_pretrained(tmp_path)
    assert [warning.filename for warning in caught] == [__file__] * 2


def test_what_git_leaves_without_lfs(tmp_path):
    saved(tmp_path)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    with pytest.raises(WeightsError, match="a Git LFS pointer, not the weights; git lfs pull"):
        BertModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("model_class", [BertForSequenceClassification, BertForTokenClassification])
def test_labels_that_are_asked_for(model_class, tmp_path):
    saved(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the fresh head
        model = model_class.from_pretrained(tmp_path, id2label={0: "bad", 1: "good", 2: "ugly"})
    assert model.classifier.out_features == 3
    model.save_pretrained(tmp_path)
    back = model_class.from_pretrained(tmp_path)
    assert back.config.id2label == {0: "bad", 1: "good", 2: "ugly"}
    assert back.config.label2id == {"bad": 0, "good": 1, "ugly": 2}


def test_a_config_in_place_of_the_folders(tmp_path):
    saved(tmp_path)
    model = BertModel.from_pretrained(tmp_path, config=config(hidden_act="relu"))
    assert model.blocks[0].feed_forward.activation == "relu"
    with pytest.raises(TypeError, match="either a config or settings, not both: hidden_act"):
        BertModel.from_pretrained(tmp_path, config=config(), hidden_act="relu")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"hidden_size": "12"}, "hidden_size must be int, got '12'"),
        ({"hidden_size": 12.0}, "hidden_size must be int, got 12.0"),
        ({"hidden_act": None}, "hidden_act must be str, got None"),
        ({"is_decoder": 0}, "is_decoder must be bool, got 0"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be int, got True"),
        ({"classifier_dropout": "x"}, "classifier_dropout must be float or null, got 'x'"),
    ],
)
def test_settings_of_the_wrong_type(settings, message, tmp_path):
    saved(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    with pytest.raises(TypeError, match=re.escape(message)):
        BertModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: config(num_attention_heads=5), "num_attention_heads=5 must divide hidden_size=12"),
        (lambda: config(position_embedding_type="relative_key"), "'relative_key' is not supported"),
        (lambda: config(is_decoder=True), "is_decoder=True"),
        (lambda: RobertaConfig(pad_token_id=None), "pad_token_id=None"),
        (lambda: DistilBertConfig(n_heads=5), "n_heads=5 must divide dim=768"),
        (lambda: AlbertConfig(num_hidden_groups=13), "num_hidden_groups=13 must be between 1 and"),
    ],
)
def test_settings_that_no_model_has(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_a_config_of_another_family_is_refused(tmp_path):
    with pytest.raises(TypeError, match="BertModel takes a BertConfig, got RobertaConfig"):
        BertModel(RobertaConfig(**SHAPE))
    RobertaModel(RobertaConfig(**SHAPE)).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="model_type 'roberta', but BertConfig is of 'bert'"):
        BertModel.from_pretrained(tmp_path)


LOAD_AND_RUN = """
import sys
from pathlib import Path
import numpy as np
import glassformer as gf
from glassformer.models.bert import BertModel
model = BertModel.from_pretrained(sys.argv[1])
with gf.no_grad():
    model(gf.tensor(np.arange(8)[None]))
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


# Not ru_maxrss, which a process inherits from the one that started it.
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_takes_no_more_memory_than_the_file_and_200_megabytes(tmp_path):
    with gf.nn.init.skip():
        model = BertModel(BertConfig(vocab_size=29000, num_hidden_layers=4))
    with gf.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    model.save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size > 190e6
    run = subprocess.run(
        [sys.executable, "-c", LOAD_AND_RUN, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(run.stdout) * 1024 <= size + 200e6


def test_saving_over_the_folder_that_a_model_is_mapped_from(tmp_path):
    first = saved(tmp_path)
    mapped = BertModel.from_pretrained(tmp_path)
    wanted = {name: array.copy() for name, array in values(first).items()}
    second = saved(tmp_path)
    assert_same(values(mapped), wanted)
    assert_same(values(BertModel.from_pretrained(tmp_path)), values(second))
    mapped.save_pretrained(tmp_path)
    mapped.save_pretrained(tmp_path)
    assert_same(values(mapped), wanted)
    assert_same(values(BertModel.from_pretrained(tmp_path)), wanted)


def test_training_a_mapped_model_leaves_the_file_alone(tmp_path):
    saved(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    model = BertModel.from_pretrained(tmp_path).train()
    model(IDS).last_hidden_state.sum().backward()
    gf.optim.SGD(model.parameters(), lr=0.1).step()
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "model_class, config_class, settings",
    [
        (BertModel, BertConfig, {}),
        (RobertaModel, RobertaConfig, {}),
        (AlbertModel, AlbertConfig, {"embedding_size": 12}),
    ],
)
def test_fresh_weights(model_class, config_class, settings):
    model = model_class(config_class(**{**SHAPE, "vocab_size": 999}, **settings))
    words = model.embeddings.word_embeddings.weight.detach().numpy()
    padding = model.config.pad_token_id
    assert not words[padding].any()
    assert 0.019 < np.delete(words, padding, axis=0).std() < 0.021
    norm = model.embeddings.norm
    assert (norm.weight.detach().numpy() == 1).all()
    assert not norm.bias.detach().numpy().any()


@pytest.mark.parametrize(
    "model",
    [
        lambda: BertModel(config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)),
        lambda: AlbertModel(AlbertConfig(**{**SHAPE, "num_hidden_layers": 4}, embedding_size=8)),
    ],
)
def test_checkpointed_blocks_give_the_same_gradients(model):
    model = model().train()
    weight = gf.randn(2, 7, 12)
    gradients = []
    for enabled in (False, True):
        model.gradient_checkpointing_enable(enabled)
        model.zero_grad()
        (model(IDS).last_hidden_state * weight).sum().backward()
        gradients.append(
            {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name, wanted in gradients[0].items():
        np.testing.assert_allclose(gradients[1][name], wanted, rtol=1e-5, atol=1e-6, err_msg=name)


def test_nothing_ever_reaches_for_the_network(tmp_path, monkeypatch):
    saved(tmp_path)

    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    BertModel.from_pretrained(tmp_path).save_pretrained(tmp_path / "copy")
    with pytest.raises(WeightsError, match="Nothing is ever downloaded"):
        BertModel.from_pretrained("bert-base-uncased")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="has neither model.safetensors nor"):
        BertModel.from_pretrained(tmp_path)
