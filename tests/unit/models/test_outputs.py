"""What models return, taken by name, by key and by place as from transformers."""

import numpy as np
import pytest

import glassformer as gf
from glassformer.models.bert import BertForSequenceClassification
from tests.unit.models.folders import IDS, config, saved

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")


@pytest.mark.parametrize("labels", [None, [0, 1]])
def test_keys_and_places_are_transformers_s(labels, tmp_path):
    saved(tmp_path, BertForSequenceClassification)
    given = {} if labels is None else {"labels": labels}
    ours = BertForSequenceClassification.from_pretrained(tmp_path)
    theirs = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
    with gf.no_grad(), torch.no_grad():
        found = ours(IDS, output_hidden_states=True, **{k: gf.tensor(v) for k, v in given.items()})
        wanted = theirs(
            torch.tensor(IDS.numpy()),
            output_hidden_states=True,
            **{k: torch.tensor(v) for k, v in given.items()},
        )
    assert list(found) == list(found.keys()) == list(wanted.keys())
    assert [name for name, _ in found.items()] == list(wanted.keys())
    assert len(found.to_tuple()) == len(wanted.to_tuple()) == len(found[:])
    np.testing.assert_allclose(found["logits"].numpy(), wanted["logits"], atol=1e-5)
    np.testing.assert_allclose(found[0].numpy(), wanted[0], atol=1e-5)
    assert dict(found)["hidden_states"] is found.hidden_states is found[-1]


def test_what_is_not_there():
    found = BertForSequenceClassification(config())(IDS)
    for key in ("loss", "start_logits"):
        with pytest.raises(KeyError, match=f"{key}'; there are logits"):
            found[key]
    with pytest.raises(IndexError):
        found[1]
