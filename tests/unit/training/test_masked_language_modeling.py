import shutil

import pytest

import glassformer as gf
from glassformer.data.objectives import DataCollatorForLanguageModeling
from glassformer.training import Trainer, TrainingArguments
from glassformer.training.checkpoint import load_checkpoint
from tests.unit.data.test_objectives import StandIn, rows
from tests.unit.training.models import Bigram, Output, bits

STEPS = 5


class Masked(Bigram):
    """The same with labels in place, as a masked language model has them."""

    def forward(self, input_ids, attention_mask=None, labels=None, num_items_in_batch=None):
        del attention_mask
        output = super().forward(input_ids, labels, num_items_in_batch)
        return Output(output.loss, output.logits)


class SmallVocabulary(StandIn):
    def __len__(self):
        return 11  # that of the small models


def trainer_in(folder, seed=None):
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=STEPS,
        learning_rate=0.01,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=1,
        disable_tqdm=True,
    )
    collator = DataCollatorForLanguageModeling(SmallVocabulary(), seed=seed)
    data, others = rows(20, 9, high=11), rows(6, 9, seed=1, high=11)
    return Trainer(Masked(dropout=0.1), arguments, collator, data, others)


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_resumed_training_masks_as_the_uninterrupted_one(tmp_path, cut, seed):
    trainer_in(tmp_path / "a", seed).train()
    name = f"checkpoint-{cut}"
    shutil.copytree(tmp_path / "a" / name, tmp_path / "b" / name)
    gf.manual_seed(999)
    trainer_in(tmp_path / "b", seed).train(resume_from_checkpoint=True)
    a, b = (load_checkpoint(tmp_path / run / f"checkpoint-{STEPS}") for run in "ab")
    assert bits(a.weights) == bits(b.weights) and bits(a.optimizer) == bits(b.optimizer)


def test_evaluations_with_a_seed_agree(tmp_path):
    trainer = trainer_in(tmp_path, seed=7)
    first, second = (trainer.evaluate()["eval_loss"] for _ in range(2))
    assert first == second
