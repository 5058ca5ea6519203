import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest

import glassformer as gf
from glassformer.models import GPT
from glassformer.training import (
    CheckpointError,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from glassformer.training.checkpoint import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from glassformer.training.snapshot import random_state, set_random_state
from tests.unit.training.models import bits, parameters_of, small_gpt, windows

STEPS = 14  # over 3.5 epochs of 4 steps: 10 batches in an epoch, the last step has only one


class NoisyCollate:
    """Draws from Python's and NumPy's global generators, as an augmentation would."""

    def __call__(self, items):
        ids = np.stack([item["input_ids"] for item in items])
        ids[random.randrange(len(ids)), np.random.randint(5)] = 0
        labels = np.stack([item["shift_labels"] for item in items])
        return {"input_ids": gf.from_numpy(ids), "shift_labels": gf.from_numpy(labels)}


def trainer_in(folder, model=None, data=None, collator=None, callbacks=(), **settings):
    settings = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 3,
        "max_steps": STEPS,
        "learning_rate": 0.01,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 3,
        "weight_decay": 0.1,
        "logging_steps": 5,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 1,
        "metric_for_best_model": "loss",
        "disable_tqdm": True,
        **settings,
    }
    return Trainer(
        model or small_gpt(dropout=0.2),
        TrainingArguments(str(folder), **settings),
        NoisyCollate() if collator is None else collator,
        data or windows(42),
        windows(20, seed=1),
        callbacks=callbacks,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never interrupted, with a checkpoint after every step."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = trainer_in(folder)
    assert len(trainer.get_train_dataloader()) == 10
    trainer.train()
    return folder


def without_times(state):
    """A checkpoint's state but for what measures time and names the run."""
    rows = [
        {name: value for name, value in row.items() if not name.endswith(TIMES)}
        for row in state["trainer"]["log_history"]
    ]
    arguments = {k: v for k, v in state["arguments"].items() if k != "output_dir"}
    return {**state, "arguments": arguments, "trainer": {**state["trainer"], "log_history": rows}}


TIMES = ("_second", "_step", "_seconds", "_runtime", "_mib")


@pytest.mark.parametrize("cut", range(1, STEPS))
def test_resumed_run_is_bitwise_the_uninterrupted_one(whole, tmp_path, cut):
    shutil.copytree(whole / f"checkpoint-{cut}", tmp_path / f"checkpoint-{cut}")
    gf.manual_seed(999 + cut)  # other weights and other random numbers than the run began with
    random.seed(cut)
    np.random.seed(cut)
    resumed = trainer_in(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    for step in range(cut + 1, STEPS + 1):
        expected = load_checkpoint(whole / f"checkpoint-{step}")
        found = load_checkpoint(tmp_path / f"checkpoint-{step}")
        assert bits(found.weights) == bits(expected.weights), step
        assert bits(found.optimizer) == bits(expected.optimizer), step
        assert without_times(found.state) == without_times(expected.state), step
    assert bits(parameters_of(resumed.model)) == bits(
        load_checkpoint(whole / f"checkpoint-{STEPS}").weights
    )


def test_cut_points_are_inside_and_between_epochs(whole):
    positions = [load_checkpoint(p).state["data"] for p in list_checkpoints(whole)]
    assert [p["epoch"] for p in positions] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 2
    assert [p["position"] for p in positions[:4]] == [3, 6, 9, 10]


def test_dropout_and_the_collator_do_draw_random_numbers(whole):
    states = [load_checkpoint(p).state["random"] for p in list_checkpoints(whole)]
    for name in ("glassformer", "python", "numpy"):
        assert len({json.dumps(state[name]) for state in states}) == STEPS, name


def test_resuming_at_an_epochs_end(tmp_path):
    def run(folder, **resume):
        trainer = trainer_in(
            folder, max_steps=-1, num_train_epochs=3, save_strategy="epoch", eval_strategy="epoch"
        )
        trainer.train(**resume)
        return trainer

    run(tmp_path / "a")
    names = [p.name for p in list_checkpoints(tmp_path / "a")]
    assert names == ["checkpoint-4", "checkpoint-8", "checkpoint-12"]
    shutil.copytree(tmp_path / "a" / "checkpoint-4", tmp_path / "b" / "checkpoint-4")
    resumed = run(tmp_path / "b", resume_from_checkpoint=True)
    evaluated = [r["step"] for r in resumed.state.log_history if "eval_loss" in r]
    assert evaluated == [4, 8, 12]  # the end of the first epoch is not repeated
    for name in names:
        a, b = load_checkpoint(tmp_path / "a" / name), load_checkpoint(tmp_path / "b" / name)
        assert bits(a.weights) == bits(b.weights) and bits(a.optimizer) == bits(b.optimizer)
        assert without_times(a.state) == without_times(b.state)


def test_early_stopping_goes_on_counting(tmp_path):
    class Worsening(TrainerCallback):
        """Pretends that evaluations give 1, 2, 3, ..."""

        def on_evaluate(self, args, state, control, **kwargs):
            kwargs["metrics"]["eval_loss"] = float(state.global_step)

    def run(folder, **resume):
        callbacks = [Worsening(), EarlyStoppingCallback(3)]
        trainer = trainer_in(folder, callbacks=callbacks, eval_steps=1)
        trainer.train(**resume)
        return trainer.state.global_step

    assert run(tmp_path / "a") == 4  # the best was the first
    shutil.copytree(tmp_path / "a" / "checkpoint-3", tmp_path / "b" / "checkpoint-3")
    assert run(tmp_path / "b", resume_from_checkpoint=True) == 4


def test_log_continues_without_what_was_lost(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    for step in range(8, STEPS + 1):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}")
    trainer_in(tmp_path / "run").train(resume_from_checkpoint=True)

    def rows(folder):
        lines = (folder / "log.jsonl").read_text().splitlines()
        return [
            {k: v for k, v in json.loads(line).items() if not k.endswith(TIMES)} for line in lines
        ]

    assert rows(tmp_path / "run") == rows(whole)


def test_leftovers_of_a_kill_are_cleaned_at_the_start(whole, tmp_path):
    shutil.copytree(whole / "checkpoint-13", tmp_path / ".checkpoint-13.gf-replaced")
    (tmp_path / ".checkpoint-14.gf-saving").mkdir()
    trainer_in(tmp_path).train(resume_from_checkpoint=True)
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-13", "checkpoint-14"]


def test_the_checkpoints_of_another_run_are_refused_or_replaced(whole, tmp_path):
    """Later ones would be taken for this run's newest, and rotation would delete this run's own."""
    shutil.copytree(whole / "checkpoint-9", tmp_path / "checkpoint-9")
    (tmp_path / "notes.txt").write_text("mine")
    settings = {"max_steps": 3, "save_total_limit": 1}
    for source in (None, str(whole / "checkpoint-2")):
        with pytest.raises(CheckpointError, match="holds checkpoint-9 of another run") as caught:
            trainer_in(tmp_path, **settings).train(resume_from_checkpoint=source)
        for remedy in ("resume_from_checkpoint=True", "overwrite_output_dir=True"):
            assert remedy in str(caught.value)
        assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-9"]
    trainer_in(tmp_path, overwrite_output_dir=True, **settings).train()
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-3"]
    assert (tmp_path / "notes.txt").exists()


def test_overwriting_deletes_nothing_of_the_run_that_is_resumed(whole, tmp_path):
    shutil.copytree(whole / "checkpoint-12", tmp_path / "checkpoint-12")
    trainer_in(tmp_path, overwrite_output_dir=True).train(resume_from_checkpoint=True)
    names = [p.name for p in list_checkpoints(tmp_path)]
    assert names == ["checkpoint-12", "checkpoint-13", "checkpoint-14"]


def test_a_run_that_has_reached_its_end_says_that_nothing_is_left(whole, tmp_path):
    shutil.copytree(whole / "checkpoint-14", tmp_path / "checkpoint-14")
    trainer = trainer_in(tmp_path)
    words = "checkpoint-14 is at step 14 of 14: nothing is left to train; raise max_steps"
    with pytest.warns(UserWarning, match=words):
        trainer.train(resume_from_checkpoint=True)
    assert bits(parameters_of(trainer.model)) == bits(
        load_checkpoint(whole / "checkpoint-14").weights
    )


def refused(whole, step=5, **changes):
    """Resume with changed settings; return the error, having checked that nothing was touched."""
    trainer = trainer_in(whole.parent / "other", save_strategy="no", **changes)
    before, generator = bits(parameters_of(trainer.model)), gf.default_generator.get_state()
    with pytest.raises(CheckpointError) as caught:
        trainer.train(resume_from_checkpoint=str(whole / f"checkpoint-{step}"))
    assert bits(parameters_of(trainer.model)) == before
    assert gf.default_generator.get_state() == generator
    assert trainer.optimizer.state_dict()["state"] == {}
    assert f"checkpoint-{step}" in str(caught.value)
    return str(caught.value)


def test_another_model_is_refused_with_every_difference(whole):
    config = replace(small_gpt().config, n_embd=4, n_layer=3)
    message = refused(whole, model=GPT(config))
    assert "missing blocks.2." in message
    assert "embed_tokens.weight is float32 (11, 8), not float32 (11, 4)" in message
    assert "unexpected" in refused(whole, model=GPT(replace(config, n_embd=8, n_layer=1)))


def test_another_precision_is_refused(whole):
    assert "is float32" in refused(whole, model=small_gpt().to("float64"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": windows(50)}, "num_items was 37, is 45"),
        ({"per_device_train_batch_size": 5}, "batch_size was 4, is 5"),
        ({"seed": 7}, "seed was 42, is 7"),
    ],
)
def test_other_data_are_refused(whole, changes, message):
    assert message in refused(whole, **changes)


def tampered(whole, tmp_path, change):
    """Write a checkpoint whose checksums hold but whose content `change` has altered."""
    checkpoint = load_checkpoint(whole / "checkpoint-5")
    optimizer = dict(checkpoint.optimizer)
    change(checkpoint.state, optimizer)
    path = tmp_path / "checkpoint-5"
    save_checkpoint(path, Checkpoint(checkpoint.weights, optimizer, checkpoint.state))
    return tmp_path


@pytest.mark.parametrize(
    "change",
    [
        lambda state, optimizer: state.pop("random"),
        lambda state, optimizer: state.pop("optimizer"),
        lambda state, optimizer: state.pop("callbacks"),
        lambda state, optimizer: state["random"].pop("numpy"),
        lambda state, optimizer: state["random"].update(python=[3, [1, 2], None]),
        lambda state, optimizer: state["random"]["glassformer"].update(bit_generator="MT19937"),
        lambda state, optimizer: state["data"].update(position=999),
        lambda state, optimizer: state.update(data=None),
        lambda state, optimizer: state["trainer"].update(global_step="5"),
        lambda state, optimizer: state["scheduler"].update(last_epoch="5"),
        lambda state, optimizer: state["scheduler"].update(base_lrs=[0.1]),
        lambda state, optimizer: state["optimizer"]["param_groups"].pop(),
        lambda state, optimizer: state["optimizer"]["param_groups"][0].update(lr="0.1"),
        lambda state, optimizer: state["optimizer"]["param_groups"][0].update(params=[0]),
        lambda state, optimizer: state["optimizer"].update(state=[]),
        lambda state, optimizer: optimizer.update({"99.exp_avg": np.ones(1)}),
        lambda state, optimizer: optimizer.update({"../x": np.ones(1)}),
        lambda state, optimizer: optimizer.update({"0.exp_avg": np.ones((2, 2), np.float32)}),
        lambda state, optimizer: optimizer.pop("0.exp_avg"),
    ],
)
def test_consistent_but_impossible_content_is_refused(whole, tmp_path, change):
    refused(tampered(whole, tmp_path, change))


def test_random_state_survives_json():
    before = json.loads(json.dumps(random_state()))

    def drawn():
        return (
            gf.default_generator.numpy.random(3).tolist(),
            random.random(),
            np.random.standard_normal(3).tolist(),
        )

    first = drawn()
    set_random_state(before)
    assert drawn() == first


def classifying(model, folder, resume=None):
    """Train a classifier for 4 steps, with a checkpoint every second; return it."""
    items = [{"input_ids": np.arange(1, 6) + i, "labels": i % 2} for i in range(6)]
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        max_steps=4,
        save_steps=2,
        disable_tqdm=True,
        load_best_model_at_end=False,
    )
    Trainer(model, arguments, train_dataset=items).train(resume_from_checkpoint=resume)
    return model


@pytest.mark.parametrize("kind", ["Bert", "GPT2"])  # with stacked, and with transposed weights
def test_checkpoints_of_a_pretrained_model_are_folders_of_the_hub(kind, tmp_path):
    head = getattr(gf.models, f"{kind}ForSequenceClassification")
    shape = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    if kind == "GPT2":
        shape = {"vocab_size": 11, "n_embd": 8, "n_layer": 1, "n_head": 2, "pad_token_id": 0}

    def trained(folder, resume=None):
        return classifying(head(head.config_class(**shape), gf.Generator(0)), folder, resume)

    whole = trained(tmp_path / "run")
    wanted = {name: value.numpy().copy() for name, value in whole.state_dict().items()}
    again = trained(tmp_path / "run", str(tmp_path / "run" / "checkpoint-2"))
    back = gf.models.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "run" / "checkpoint-4"
    )
    for found in (again, back):
        for name, value in wanted.items():
            np.testing.assert_array_equal(found.state_dict()[name].numpy(), value, err_msg=name)
    config = json.loads((tmp_path / "run" / "checkpoint-4" / "config.json").read_text())
    assert config["architectures"] == [head.__name__] and "extra" not in config


def test_updates_beside_weights_held_in_bfloat16_resume(tmp_path):
    shape = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    head, held = gf.models.BertForSequenceClassification, tmp_path / "model"
    head(head.config_class(**shape), gf.Generator(0)).save_pretrained(held)

    def trained(resume=None):
        model = head.from_pretrained(held, dtype="bfloat16")
        gf.models.add_lora(model, gf.models.LoraConfig(r=2), gf.Generator(1))
        return classifying(model, tmp_path / "run", resume)

    wanted = [p.array.tobytes() for p in trained().parameters()]
    again = trained(str(tmp_path / "run" / "checkpoint-2"))
    assert [p.array.tobytes() for p in again.parameters()] == wanted
