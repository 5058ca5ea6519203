"""What models take and refuse as inputs, each family alike."""

import numpy as np
import pytest

import glassformer as gf
from glassformer.models.bert import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)
from glassformer.models.distilbert import DistilBertConfig, DistilBertModel
from glassformer.models.roberta import RobertaConfig, RobertaModel
from tests.unit.models import families
from tests.unit.models.folders import IDS, SHAPE, config


def fresh(kind, chooser="AutoModel", **settings):
    return getattr(gf.models, chooser).from_config(families.config_of(kind, **settings)).eval()


def test_tokens_types_and_positions_out_of_range():
    model = BertModel(config()).eval()
    for wrong in (50, -1):
        with pytest.raises(IndexError, match=f"{wrong}.* limit is 50"):
            model(gf.tensor([[1, wrong, 2]]))
    with pytest.raises(IndexError, match="2.* limit is 2"):
        model(gf.tensor([[1, 2]]), token_type_ids=gf.tensor([[0, 2]]))
    with pytest.raises(IndexError, match="16.* limit is 16"):
        model(gf.tensor([[1, 2]]), position_ids=gf.tensor([[15, 16]]))


def ids(length):
    return gf.tensor(np.arange(5, 5 + length)[None])


def test_inputs_that_are_too_long():
    model = BertModel(config()).eval()
    assert model(ids(16)).last_hidden_state.shape == (1, 16, 12)
    with pytest.raises(ValueError, match="17 tokens exceed the model's max_position_embeddings=16"):
        model(ids(17))


def test_roberta_has_no_positions_for_padding_to_give_away():
    model = RobertaModel(RobertaConfig(**SHAPE)).eval()  # padding is token 1: positions 2 to 15
    assert model(ids(14)).last_hidden_state.shape == (1, 14, 12)
    with pytest.raises(ValueError, match="15 tokens exceed the model's 14 positions"):
        model(ids(15))


def test_shapes_that_do_not_fit():
    model = BertForSequenceClassification(config(problem_type="regression")).eval()
    with pytest.raises(ValueError, match=r"input_ids must be \(batch, length\), got \(3,\)"):
        model(gf.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=r"attention_mask is \(2, 6\), but input_ids \(2, 7\)"):
        model(IDS, attention_mask=gf.ones(2, 6))
    with pytest.raises(ValueError, match=r"labels of the logits' size \(2, 2\), got \(2,\)"):
        model(IDS, labels=gf.tensor([0.5, 1.0]))
    model = BertForTokenClassification(config())
    with pytest.raises(ValueError, match=r"labels are \(2,\), but there are \(2, 7\) tokens"):
        model(IDS, labels=gf.tensor([0, 1]))
    with pytest.raises(ValueError, match="problem_type must be one of regression"):
        BertForSequenceClassification(config(problem_type="ranking"))(IDS, labels=gf.tensor([0, 1]))


def test_an_answer_beyond_the_input_does_not_count():
    model = BertForQuestionAnswering(config()).eval()
    first = {"start_positions": gf.tensor([2]), "end_positions": gf.tensor([3])}
    both = {"start_positions": gf.tensor([2, 7]), "end_positions": gf.tensor([3, 99])}
    np.testing.assert_allclose(float(model(IDS, **both).loss), float(model(IDS[:1], **first).loss))


def test_padding_changes_nothing_for_real_tokens():
    model = DistilBertModel(
        DistilBertConfig(vocab_size=50, dim=12, n_layers=2, n_heads=3, hidden_dim=20)
    ).eval()
    alone = model(IDS).last_hidden_state.detach().numpy()
    padded = np.concatenate([IDS.numpy(), np.zeros((2, 4), np.int64)], axis=1)
    mask = np.repeat([[1] * 7 + [0] * 4], 2, axis=0)
    found = model(gf.tensor(padded), gf.tensor(mask)).last_hidden_state.detach().numpy()
    np.testing.assert_allclose(found[:, :7], alone, atol=1e-6, rtol=0)


DECODER_INPUT = ("bart", "marian", "t5")


def told(kind, ids):
    return {"decoder_input_ids": gf.tensor([[3, 4]] * len(ids))} if kind in DECODER_INPUT else {}


TEXT_KINDS = sorted(set(families.SHAPES) - {"vit"})


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_what_no_family_takes_is_told_before_it_computes(kind):
    model = fresh(kind)
    good = gf.tensor([[3, 4, 5, 2], [6, 7, 2, 1]])
    given = told(kind, [0, 0])
    for wrong in (-1, 40, 2**40):
        with pytest.raises(IndexError, match=f"index {wrong} is out of range, the limit is 40"):
            model(gf.tensor([[3, wrong, 2, 2]] * 2), **given)
    with pytest.raises(ValueError, match=r"input_ids must be \(batch, length\), got \(3,\)"):
        model(gf.tensor([3, 4, 2]), **given)
    for mask in (gf.ones(2, 3), gf.ones(2, 1, 4)):
        with pytest.raises(ValueError, match="attention_mask is"):
            model(good, attention_mask=mask, **given)
    for wrong in (-np.inf, np.nan, 2.0):
        mask = gf.tensor([[1.0, 1.0, 1.0, wrong]] * 2)
        with pytest.raises(ValueError, match="attention_mask must be 1 for a token and 0 for pad"):
            model(good, attention_mask=mask, **given)
    for wrong in (good.numpy(), [[3, 4]], "text"):
        with pytest.raises(TypeError, match=r"must be a Tensor, got .*; glassformer\.tensor\("):
            model(wrong, **given)
        with pytest.raises(TypeError, match=r"attention_mask must be a Tensor, got .*tensor\("):
            model(good, attention_mask=wrong, **given)
    with pytest.raises(TypeError, match="input_ids must be a Tensor, got 3"):
        model(3, **given)
    with pytest.raises(TypeError, match="takes integer indices"):
        model(good.to("float32"), **given)
    if kind != "t5":  # whose positions have no end
        with pytest.raises(ValueError, match="25 tokens exceed the model's"):
            model(gf.tensor(np.full((2, 25), 2)), **given)


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_masks_of_any_type_say_the_same(kind):
    model = fresh(kind)
    ids = gf.tensor([[3, 4, 5, 2], [6, 7, 2, 1]])
    rows = [[1, 1, 1, 0], [0, 1, 1, 1]]
    found = [
        model(ids, attention_mask=gf.tensor(rows).to(dtype), **told(kind, rows))
        .last_hidden_state.detach()
        .numpy()
        for dtype in ("int64", "bool", "float32")
    ]
    assert np.isfinite(found[0]).all()
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_an_empty_batch_gives_an_empty_result(kind):
    model = fresh(kind)
    decoder = {"decoder_input_ids": gf.zeros(0, 4, dtype="int64")} if kind in DECODER_INPUT else {}
    found = model(
        gf.zeros(0, 4, dtype="int64"), attention_mask=gf.ones(0, 4), **decoder
    ).last_hidden_state
    assert found.shape == (0, 4, 12)


@pytest.mark.parametrize("kind", ["albert", "bert", "camembert", "distilbert", "roberta"])
def test_encoders_need_a_token(kind):
    with pytest.raises(ValueError, match=r"input_ids \(2, 0\) hold no token"):
        fresh(kind)(gf.zeros(2, 0, dtype="int64"))


@pytest.mark.parametrize("name", ["token_type_ids", "position_ids"])
def test_types_and_positions_of_another_shape(name):
    wrong = {name: gf.zeros(2, 3, dtype="int64")}
    with pytest.raises(ValueError, match=rf"{name} are \(2, 3\), but input_ids \(2, 7\)"):
        BertModel(config())(IDS, **wrong)


@pytest.mark.parametrize("kind", DECODER_INPUT)
def test_a_target_that_does_not_go_with_its_source(kind):
    model, source = fresh(kind), gf.tensor([[3, 4, 2]] * 2)
    with pytest.raises(ValueError, match="the target is 3 sequences, but the source 2"):
        model(source, decoder_input_ids=gf.tensor([[1]] * 3))
    with pytest.raises(ValueError, match=r"must be \(batch, length\), got \(2,\)"):
        model(source, decoder_input_ids=gf.tensor([1, 1]))


@pytest.mark.parametrize(
    "kind, chooser, labels",
    [
        ("bert", "AutoModelForSequenceClassification", [0, 2]),
        ("gpt2", "AutoModelForSequenceClassification", [0, 2]),
        ("bert", "AutoModelForTokenClassification", [[0, 2, 1]] * 2),
        ("bert", "AutoModelForMaskedLM", [[0, 40, 1]] * 2),
        ("llama", "AutoModelForCausalLM", [[0, 40, 1]] * 2),
        ("t5", "AutoModelForSeq2SeqLM", [[0, 40, 1]] * 2),
        ("bart", "AutoModelForSeq2SeqLM", [[0, 40, -1]] * 2),
    ],
)
def test_labels_out_of_range(kind, chooser, labels):
    model = fresh(kind, chooser, pad_token_id=1)
    with pytest.raises(IndexError, match=r"index (2|40) is out of range, the limit is (2|40)"):
        model(gf.tensor([[3, 4, 2]] * 2), labels=gf.tensor(labels))
