"""Inputs that no model can read, given to every class of every family."""

import numpy as np
import pytest

import glassformer as gf
from glassformer.models import auto
from tests.unit.models.families import SHAPES, config_of

CHOOSERS = [one for name, one in vars(auto).items() if name.startswith("AutoModel")]
CLASSES = sorted(
    {
        (kind, chooser._found(kind))
        for kind in SHAPES
        for chooser in CHOOSERS
        if kind != "vit" and chooser._found(kind)
    },
    key=lambda pair: pair[1].__name__,
)
TARGETED = ("bart", "marian", "t5")


def build(kind, model_class):
    pad = {} if kind in TARGETED else {"pad_token_id": 0}
    return model_class(config_of(kind, **pad)).eval()


@pytest.mark.parametrize("kind, model_class", CLASSES, ids=lambda one: getattr(one, "__name__", ""))
def test_sequences_of_no_token_are_read_or_refused_by_their_shape(kind, model_class):
    """What predicts the next token, or reads a source, has an answer to nothing: of no position."""
    model = build(kind, model_class)
    nothing, some = gf.zeros(2, 0, dtype="int64"), gf.ones(2, 3, dtype="int64")
    classifies = not hasattr(model, "generate") and model.base_model is not model
    decoder = {} if classifies or kind not in TARGETED else {"decoder_input_ids": some}
    if classifies or kind not in ("gpt2", "llama", "mistral", "qwen2", *TARGETED):
        with pytest.raises(ValueError, match=r"^input_ids \(2, 0\) hold no token, not even pad"):
            model(nothing)
        return
    outputs = model(nothing, **decoder)
    found = outputs.logits if hasattr(outputs, "logits") else outputs.last_hidden_state
    assert found.shape[:2] == (2, 3 if decoder else 0)
    assert np.isfinite(found.detach().numpy()).all()


@pytest.mark.parametrize("kind", ["albert", "bert", "distilbert", "roberta"])
def test_positions_of_no_token_do_not_hide_that_there_is_none(kind):
    model = auto.AutoModel.from_config(config_of(kind))
    nothing = gf.zeros(2, 0, dtype="int64")
    with pytest.raises(ValueError, match=r"input_ids \(2, 0\) hold no token"):
        model(nothing, position_ids=nothing)


def test_errors_of_configs_are_where_those_of_weights_are():
    assert issubclass(gf.models.ConfigError, gf.models.WeightsError)
    with pytest.raises(gf.models.ConfigError, match="there is no setting 'hidden_sice'"):
        config_of("bert").of_file("config.json", {}, hidden_sice=3)
