import json

import numpy as np
import pytest
import torch

import glassformer as gf
from glassformer.data import PaddingCollator
from glassformer.data.tokenizer_training import train_tokenizer
from glassformer.models.bert import BertConfig, BertForSequenceClassification
from glassformer.training import (
    CheckpointError,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from glassformer.training.checkpoint import list_checkpoints, load_weights
from tests.unit.training.models import (
    VOCABULARY,
    Bigram,
    MeanBigram,
    bits,
    parameters_of,
    small_gpt,
    windows,
)

# float64 against PyTorch over a few dozen steps: what the optimizers' own test allows
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def trainer_in(folder, model=None, train=None, eval_=None, callbacks=(), collator=None, **settings):
    settings = {
        "per_device_train_batch_size": 4,
        "learning_rate": 0.05,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        **settings,
    }
    return Trainer(
        model or Bigram(),
        TrainingArguments(str(folder), **settings),
        collator,
        train or windows(),
        eval_,
        callbacks=callbacks,
    )


class Events(TrainerCallback):
    """Writes down each event and the step it came at."""

    def __init__(self):
        self.seen = []


for name in [name for name in vars(TrainerCallback) if name.startswith("on_")]:

    def note(self, args, state, control, name=name, **kwargs):
        self.seen.append(f"{name[3:]} {state.global_step}")

    setattr(Events, name, note)


def test_events_come_as_in_hugging_face(tmp_path):
    """The sequence that transformers 5.23 gives for the same settings on 10 items."""
    step = "step_begin {0},substep_end {0},pre_optimizer_step {0},optimizer_step {0},step_end {1}"
    short = "step_begin {0},pre_optimizer_step {0},optimizer_step {0},step_end {1}"
    evaluation = "prediction_step {0},prediction_step {0},log {0},evaluate {0}"
    expected = [
        "init_end 0,train_begin 0,epoch_begin 0",
        step.format(0, 1),
        step.format(1, 2),
        "log 2",
        short.format(2, 3),
        "epoch_end 3",
        evaluation.format(3),
        "epoch_begin 3",
        step.format(3, 4),
        "log 4,save 4",
        step.format(4, 5),
        short.format(5, 6),
        "log 6,save 6,epoch_end 6",
        evaluation.format(6),
        "log 6,train_end 6,prediction_step 6,prediction_step 6,predict 6",
    ]
    events, data = Events(), windows(15)
    trainer = trainer_in(
        tmp_path,
        train=data,
        eval_=data,
        callbacks=[events],
        per_device_train_batch_size=2,
        per_device_eval_batch_size=5,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        logging_steps=2,
        eval_strategy="epoch",
        save_strategy="steps",
        save_steps=4,
    )
    assert len(data) == 10
    trainer.train()
    trainer.predict(data)
    assert events.seen == ",".join(expected).split(",")


def torch_twin(model):
    weights = {name: torch.tensor(array) for name, array in parameters_of(model).items()}
    return {name: tensor.requires_grad_() for name, tensor in weights.items()}


def test_training_follows_a_hand_written_pytorch_loop(tmp_path):
    """Clipping, decay on the matrices alone, warm-up, schedule, the order of a step."""
    data, steps, warmup, batch = windows(30), 20, 5, 4
    trainer = trainer_in(
        tmp_path,
        train=data,
        max_steps=steps,
        warmup_steps=warmup,
        weight_decay=0.1,
        max_grad_norm=0.5,
        per_device_train_batch_size=batch,
        num_train_epochs=99,
    )
    twin = torch_twin(trainer.model)
    optimizer = torch.optim.AdamW(
        [
            {"params": [twin["embedding.weight"], twin["head.weight"]], "weight_decay": 0.1},
            {"params": [twin["head.bias"]], "weight_decay": 0.0},
        ],
        lr=0.05,
    )
    batches, expected_rows = [], []
    loader = trainer.get_train_dataloader()
    while len(batches) < steps:
        batches += list(loader)
    for number, batch in enumerate(batches[:steps]):
        rate = number / warmup if number < warmup else (steps - number) / (steps - warmup)
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * rate
        ids, labels = (torch.tensor(batch[n].numpy()) for n in ("input_ids", "shift_labels"))
        logits = twin["embedding.weight"][ids] @ twin["head.weight"].T + twin["head.bias"]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(twin.values()), 0.5)
        optimizer.step()
        expected_rows.append((number + 1, loss.item(), norm.item(), 0.05 * rate))
    result = trainer.train()
    for name, array in parameters_of(trainer.model).items():
        np.testing.assert_allclose(array, twin[name].detach().numpy(), **EXACT, err_msg=name)
    rows = [row for row in trainer.state.log_history if "loss" in row]
    names = ("step", "loss", "grad_norm", "learning_rate")
    np.testing.assert_allclose([[row[n] for n in names] for row in rows], expected_rows, **EXACT)
    assert result.global_step == steps
    np.testing.assert_allclose(
        result.training_loss, np.mean([r[1] for r in expected_rows]), **EXACT
    )
    assert max(r[2] for r in expected_rows) > 0.5  # clipping did something


class UnevenLabels:
    """Items of which some have hardly a label that counts."""

    def __init__(self, size=24):
        self.base = windows(size + 5)

    def __len__(self):
        return len(self.base)

    def __getitem__(self, index):
        item = {name: array.copy() for name, array in self.base[index].items()}
        item["shift_labels"][: index % 6] = -100
        return item


@pytest.mark.parametrize("accumulate", [2, 3, 6])
def test_accumulated_batches_weigh_every_token_alike(tmp_path, accumulate):
    def trained(batch_size, accumulation):
        trainer = trainer_in(
            tmp_path,
            train=UnevenLabels(),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=2,
        )
        trainer.train()
        return trainer

    whole, parts = trained(12, 1), trained(12 // accumulate, accumulate)
    assert whole.state.global_step == parts.state.global_step == 4
    for name, array in parameters_of(parts.model).items():
        np.testing.assert_allclose(array, parameters_of(whole.model)[name], **EXACT)
    losses = [[r["loss"] for r in t.state.log_history if "loss" in r] for t in (whole, parts)]
    np.testing.assert_allclose(*losses, **EXACT)


def test_a_model_without_token_count_gets_the_mean_over_batches(tmp_path):
    def trained(model, **settings):
        trainer = trainer_in(tmp_path, model, max_steps=3, **settings)
        trainer.train()
        return parameters_of(trainer.model)

    parts = trained(MeanBigram(), per_device_train_batch_size=3, gradient_accumulation_steps=4)
    whole = trained(Bigram(), per_device_train_batch_size=12)
    for name in whole:  # every batch here has as many labels as the others
        np.testing.assert_allclose(parts[name], whole[name], **EXACT)


def test_loss_of_an_evaluation_is_the_mean_over_its_labels(tmp_path):
    data = UnevenLabels(25)
    trainer = trainer_in(tmp_path, eval_=data, per_device_eval_batch_size=7)
    metrics = trainer.evaluate()
    output = trainer.predict(data)
    logits, labels = torch.tensor(output.predictions), torch.tensor(output.label_ids)
    assert logits.shape == (25, 5, VOCABULARY) and labels.shape == (25, 5)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).item()
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-12)
    assert output.metrics["test_loss"] == pytest.approx(expected, rel=1e-12)
    assert {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"} < metrics.keys()


def test_evaluation_leaves_no_trace(tmp_path):
    """No dropout, no gradient, no random number drawn; and training mode comes back."""
    model = small_gpt(dropout=0.5)
    trainer = trainer_in(tmp_path, model, eval_=windows())
    model.train()
    before, state = parameters_of(model), gf.default_generator.get_state()
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]
    assert bits(parameters_of(model)) == bits(before)
    assert gf.default_generator.get_state() == state
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())


def test_prediction_without_labels_has_no_loss(tmp_path):
    items = [{"input_ids": item["input_ids"]} for item in (windows()[i] for i in range(6))]
    output = trainer_in(tmp_path).predict(items)
    assert output.predictions.shape == (6, 5, VOCABULARY)
    assert output.label_ids is None
    assert "test_loss" not in output.metrics


def test_batches_of_different_lengths_are_joined_with_padding(tmp_path):
    items = [{"input_ids": list(range(n)), "shift_labels": list(range(n))} for n in (2, 3, 5)]

    def collate(batch):
        padded = PaddingCollator()(batch)
        return {name: padded[name] for name in ("input_ids", "shift_labels")}

    trainer = trainer_in(tmp_path, collator=collate, per_device_eval_batch_size=2)
    output = trainer.predict(items)
    assert output.label_ids.tolist()[0] == [0, 1, -100, -100, -100]
    assert output.predictions.shape == (3, 5, VOCABULARY)
    assert (output.predictions[:2, 3:] == -100).all()


def test_compute_metrics_is_prefixed_and_can_choose_the_best(tmp_path):
    scores = iter([0.2, 0.9, 0.5])
    trainer = Trainer(
        Bigram(),
        TrainingArguments(
            str(tmp_path),
            max_steps=3,
            eval_strategy="steps",
            eval_steps=1,
            save_steps=1,
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="score",
            learning_rate=0.05,
            disable_tqdm=True,
        ),
        train_dataset=windows(),
        eval_dataset=windows(seed=1),
        compute_metrics=lambda p: {"score": next(scores), "items": np.float32(len(p.label_ids))},
    )
    trainer.train()
    assert (trainer.state.best_metric, trainer.state.best_global_step) == (0.9, 2)
    kept = [p.name for p in list_checkpoints(tmp_path)]
    assert kept == ["checkpoint-2", "checkpoint-3"]  # the best, beside the newest
    best = load_weights(tmp_path / "checkpoint-2" / "model.safetensors")
    assert bits(parameters_of(trainer.model)) == bits(best)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["eval_score"] for row in rows if "eval_score" in row] == [0.2, 0.9, 0.5]
    assert next(row for row in rows if "eval_items" in row)["eval_items"] == len(windows())


def test_save_strategy_best_saves_improvements_only(tmp_path):
    scores = iter([3.0, 4.0, 2.0, 2.5])
    trainer = trainer_in(
        tmp_path,
        eval_=windows(),
        max_steps=4,
        eval_strategy="steps",
        save_strategy="best",
        metric_for_best_model="cost",
        greater_is_better=False,
    )
    trainer.compute_metrics = lambda prediction: {"cost": next(scores)}
    trainer.train()
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-3"]


def test_early_stopping_ends_training(tmp_path):
    scores = iter([3.0, 2.0, 2.5, 2.5, 1.0])
    trainer = trainer_in(
        tmp_path,
        eval_=windows(),
        callbacks=[EarlyStoppingCallback(2)],
        max_steps=50,
        eval_strategy="steps",
        eval_steps=5,
        metric_for_best_model="cost",
        greater_is_better=False,
    )
    trainer.compute_metrics = lambda prediction: {"cost": next(scores)}
    assert trainer.train().global_step == 20


def test_epochs_and_steps(tmp_path):
    data = windows(15)  # 10 items: 3 batches of 4, 2 steps of two batches
    settings = {"train": data, "gradient_accumulation_steps": 2}
    trainer = trainer_in(tmp_path, num_train_epochs=3, **settings)
    assert trainer.train().global_step == 6
    assert trainer.state.epoch == 3
    trainer = trainer_in(tmp_path, num_train_epochs=1.5, **settings)
    assert trainer.train().global_step == 3
    assert trainer.state.num_train_epochs == 2
    trainer = trainer_in(tmp_path, dataloader_drop_last=True, num_train_epochs=1, **settings)
    assert trainer.train().global_step == 1
    assert trainer.state.num_input_tokens_seen == 8 * 5


def test_a_callback_can_end_the_epoch(tmp_path):
    class Short(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_epoch_stop = True

    events = Events()
    trainer = trainer_in(tmp_path, callbacks=[Short(), events], max_steps=3)
    trainer.train()
    assert sum(event.startswith("epoch_begin") for event in events.seen) == 3
    assert trainer.state.epoch == pytest.approx(2.1)  # one of ten batches in the third


def test_log_has_what_the_reader_needs(tmp_path):
    trainer = trainer_in(
        tmp_path, eval_=windows(), max_steps=7, logging_steps=2, eval_strategy="steps", eval_steps=4
    )
    trainer.train()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    training = [row for row in rows if "grad_norm" in row]
    assert [row["step"] for row in training] == [2, 4, 6, 7]
    for row in training:
        assert {"epoch", "loss", "learning_rate", "tokens_per_second", "ms_per_step"} < row.keys()
        assert row["eta_seconds"] >= 0 and row["peak_memory_mib"] > 10
    assert training[-1]["eta_seconds"] == 0
    assert [row["step"] for row in rows if "eval_loss" in row] == [4]
    assert rows[-1]["train_loss"] > 0
    assert rows == trainer.state.log_history
    assert "<svg" in (tmp_path / "loss.svg").read_text()


def test_training_again_starts_a_new_schedule(tmp_path):
    trainer = trainer_in(tmp_path, max_steps=4)
    rates = []
    for _ in range(2):
        trainer.train()
        rows = [row for row in trainer.state.log_history if "learning_rate" in row]
        rates.append([row["learning_rate"] for row in rows])
    assert rates[0] == rates[1] == pytest.approx([0.05, 0.0375, 0.025, 0.0125])


def test_no_checkpoint_to_resume_from(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        trainer_in(tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        trainer_in(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_missing_data_are_named(tmp_path):
    trainer = Trainer(Bigram(), TrainingArguments(str(tmp_path), disable_tqdm=True))
    with pytest.raises(ValueError, match="train_dataset"):
        trainer.train()
    with pytest.raises(ValueError, match="eval_dataset"):
        trainer.evaluate()


def test_batch_without_labels_is_named(tmp_path):
    items = [{"input_ids": np.arange(5)}] * 8
    with pytest.raises(ValueError, match=r"no loss for a batch of \['input_ids'\]"):
        trainer_in(tmp_path, train=items).train()


def test_same_seed_same_run_other_seed_another(tmp_path):
    def trained(seed, **more):
        gf.manual_seed(0)
        trainer = trainer_in(tmp_path, small_gpt(), max_steps=3, seed=seed, **more)
        trainer.train()
        return bits(parameters_of(trainer.model))

    assert trained(1) == trained(1)
    assert trained(1) != trained(2)
    assert trained(1) != trained(1, data_seed=2)


def test_save_model_writes_the_weights_alone(tmp_path):
    model = small_gpt()
    trainer = trainer_in(tmp_path / "run", model, windows())
    path = trainer.save_model(str(tmp_path / "elsewhere"))
    assert path == tmp_path / "elsewhere" / "model.safetensors"
    saved = load_weights(path)
    for name, tensor in model.state_dict().items():
        if name in saved:  # a tied weight is there under one name
            np.testing.assert_array_equal(saved[name], tensor.detach().numpy())
    assert len(saved) == len({id(tensor) for tensor in model.state_dict().values()})


def test_a_tokenizer_pads_batches_and_is_saved_with_the_model_and_each_checkpoint(tmp_path):
    pytest.importorskip("tokenizers")
    tokenizer = train_tokenizer(["the cat sat on a mat"] * 3, "wordpiece", vocab_size=60)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForSequenceClassification(
        BertConfig(vocab_size=len(tokenizer), intermediate_size=8, **shape)
    )
    texts = ["the cat", "a", "the cat sat", "a mat", "on"]
    items = [{**tokenizer(text), "label": len(text) % 2} for text in texts]
    args = TrainingArguments(
        str(tmp_path / "run"),
        per_device_train_batch_size=3,
        max_steps=2,
        save_steps=2,
        disable_tqdm=True,
    )
    trainer = Trainer(model, args, train_dataset=items, processing_class=tokenizer)
    trainer.train()
    for folder in (
        trainer.save_model(str(tmp_path / "saved")).parent,
        tmp_path / "run" / "checkpoint-2",
    ):
        back = gf.models.AutoModelForSequenceClassification.from_pretrained(folder)
        encoded = gf.data.AutoTokenizer.from_pretrained(folder)(texts[:1], return_tensors="gf")
        np.testing.assert_array_equal(
            back(**encoded).logits.detach().numpy(), model.eval()(**encoded).logits.detach().numpy()
        )
        found, wanted = (
            gf.pipeline("text-classification", one, of)(texts[0])
            for one, of in ((folder, None), (model, tokenizer))
        )
        assert found == wanted
