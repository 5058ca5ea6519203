import numpy as np
import pytest

import glassformer as gf
from glassformer.data import PaddingCollator
from glassformer.models.auto import AutoModelForSequenceClassification
from glassformer.models.bert import BertConfig
from glassformer.models.distilbert import DistilBertConfig
from glassformer.models.gpt2 import GPT2Config
from glassformer.models.roberta import RobertaConfig
from glassformer.training import Trainer, TrainingArguments
from glassformer.training.freezing import freeze_backbone
from glassformer.training.frozen_features import frozen_features, has_frozen_features

LABELS = {"id2label": {0: "a", 1: "b", 2: "c"}, "vocab_size": 20}
BERT = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 16}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DISTIL = {"dim": 8, "n_heads": 2, "n_layers": 2, "hidden_dim": 16, "pad_token_id": 1}
DISTIL |= {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
GPT = {"n_embd": 8, "n_head": 2, "n_layer": 2, "pad_token_id": 1}
GPT |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
CONFIGS = [
    BertConfig(**LABELS, **BERT, **STILL),
    RobertaConfig(**LABELS, **BERT, **STILL, pad_token_id=1),
    DistilBertConfig(**LABELS, **DISTIL),
    GPT2Config(**LABELS, **GPT),
]


def items(count, seed):
    rng = np.random.default_rng(seed)
    rows = [rng.integers(2, 20, int(rng.integers(2, 9))) for _ in range(count)]
    return [{"input_ids": row, "labels": int(row[0]) % 3} for row in rows]


def fresh(config):
    return AutoModelForSequenceClassification.from_config(config, gf.Generator(5))


def trained(model, folder, learnt, judged, collate):
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        num_train_epochs=2,
        learning_rate=0.01,
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, collate, learnt, judged)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return losses, trainer.predict(judged).predictions


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_a_head_learns_from_kept_features_as_behind_its_backbone(tmp_path, config):
    collate = PaddingCollator(config.pad_token_id)
    learnt, judged = items(10, 0), items(5, 1)
    direct, model = fresh(config), fresh(config)
    freeze_backbone(direct)
    wanted = trained(direct, tmp_path / "direct", learnt, judged, collate)
    before = {name: p.detach().numpy().copy() for name, p in model.base_model.named_parameters()}
    assert has_frozen_features(model)
    with frozen_features(model, learnt + judged, collate, batch_size=4) as kept:
        found = trained(model, tmp_path / "kept", kept[:10], kept[10:], collate)
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-6)
    np.testing.assert_allclose(found[1], wanted[1], atol=1e-6)
    after = dict(model.base_model.named_parameters())
    assert all(
        np.array_equal(after[name].detach().numpy(), value) for name, value in before.items()
    )
    with gf.no_grad():
        logits = model.eval()(**collate(judged)).logits.numpy()
    np.testing.assert_allclose(logits, found[1], atol=1e-6)


def test_dropout_is_off_in_the_backbone_and_checkpoints_hold_the_head_alone():
    model = fresh(BertConfig(**LABELS, **BERT, hidden_dropout_prob=0.5)).train()
    rows = items(6, 0)
    with frozen_features(model, rows, PaddingCollator(0)) as kept:
        first = model.base_model.pooled
        assert {name for name, _ in model.named_parameters()} == {
            "classifier.weight",
            "classifier.bias",
        }
        assert set(model.state_dict()) == {"classifier.weight", "classifier.bias"}
        assert [item["labels"] for item in kept] == [item["labels"] for item in rows]
    assert all(module.training for module in model.modules())
    with frozen_features(model, rows, PaddingCollator(0)):
        np.testing.assert_array_equal(model.base_model.pooled, first)


def test_the_backbone_is_back_after_an_error():
    model = fresh(CONFIGS[0])
    backbone = model.base_model
    with pytest.raises(RuntimeError), frozen_features(model, items(3, 0), PaddingCollator(0)):
        raise RuntimeError
    assert model.base_model is backbone
