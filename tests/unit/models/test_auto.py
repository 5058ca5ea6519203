"""Auto classes: the right class for a folder, and what they say when there is none."""

import json

import pytest

import glassformer as gf
from glassformer.models import auto
from glassformer.models.auto import AutoConfig
from glassformer.models.pretrained import PretrainedModel
from glassformer.models.safetensors_file import WeightsError

ENCODERS = ("albert", "bert", "camembert", "distilbert", "roberta", "xlm-roberta")
DECODERS = ("gpt2", "llama", "mistral", "qwen2")
KINDS = {
    "AutoModel": (*ENCODERS, *DECODERS, "bart", "marian", "t5", "vit"),
    "AutoModelForPreTraining": (*ENCODERS, *DECODERS),
    "AutoModelForMaskedLM": ENCODERS,
    "AutoModelForCausalLM": DECODERS,
    "AutoModelForSeq2SeqLM": ("bart", "marian", "t5"),
    "AutoModelForSequenceClassification": (*ENCODERS, *DECODERS, "bart"),
    "AutoModelForTokenClassification": ENCODERS,
    "AutoModelForQuestionAnswering": ENCODERS,
    "AutoModelForImageClassification": ("vit",),
}


def config_of(kind):
    return getattr(auto._module(kind), f"{auto._FAMILIES[kind].prefix}Config")()


@pytest.mark.parametrize("name", KINDS)
def test_every_family_is_found_where_it_has_the_task(name):
    chooser = getattr(auto, name)
    found = {kind for kind in auto._FAMILIES if chooser._found(kind) is not None}
    assert found == set(KINDS[name])
    for kind in found:
        chosen = chooser._found(kind)
        assert issubclass(chosen, PretrainedModel)
        assert isinstance(config_of(kind), chosen.config_class)
        assert config_of(kind).model_type == kind


def test_every_name_is_exported():
    for name in gf.models.__all__:
        assert getattr(gf.models, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'BertForEverything'"):
        gf.models.BertForEverything  # noqa: B018
    assert "BertModel" in dir(gf.models)


def test_a_folder_decides_and_settings_replace_it(tmp_path):
    shape = {"vocab_size": 11, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = gf.models.BertConfig(**shape, intermediate_size=4)
    fresh = gf.models.AutoModelForMaskedLM.from_config(config, gf.Generator(0))
    assert type(fresh).__name__ == "BertForMaskedLM"
    fresh.save_pretrained(tmp_path)
    again = gf.models.AutoModelForMaskedLM.from_pretrained(tmp_path)
    for name, value in fresh.state_dict().items():
        assert (again.state_dict()[name] == value).all(), name
    fresh_head = pytest.warns(UserWarning, match="classifier.bias: .* starts with fresh ones")
    with fresh_head, pytest.warns(UserWarning, match="cls.predictions.bias, .* has no place for"):
        classifier = gf.models.AutoModelForSequenceClassification.from_pretrained(
            tmp_path, id2label={0: "no", 1: "yes", 2: "?"}
        )
    assert classifier.config.num_labels == 3
    assert AutoConfig.from_pretrained(tmp_path, num_labels=5).num_labels == 5


@pytest.mark.parametrize("kind", ["gpt_neox", None, 3, ["bert"]])
def test_an_unknown_model_type_lists_the_known(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(WeightsError) as caught:
        gf.models.AutoModel.from_pretrained(tmp_path)
    assert repr(kind) in str(caught.value) and "known are albert, bart, bert" in str(caught.value)


def test_a_task_that_a_family_lacks_lists_those_that_have_it(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(WeightsError, match="none of model_type 'vit'; there are of bart, marian"):
        gf.models.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)


def test_a_folder_that_is_not_there_is_not_looked_for_elsewhere(tmp_path):
    with pytest.raises(WeightsError, match="the folder does not exist; .*Nothing is ever downloa"):
        gf.models.AutoModel.from_pretrained(tmp_path / "bert-base-uncased")


def test_models_are_imported_when_they_are_named():
    import subprocess
    import sys

    code = (
        "import sys, glassformer.models; "
        "assert not [m for m in sys.modules if m.endswith(('.bert', '.llama', '.auto'))]; "
        "glassformer.models.BertModel; "
        "assert 'glassformer.models.llama' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
