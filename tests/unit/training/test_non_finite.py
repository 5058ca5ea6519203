import json
import math

import numpy as np
import pytest

from glassformer.training import NonFiniteError, TrainerCallback
from tests.unit.training.models import Bigram, Output, bits, parameters_of
from tests.unit.training.test_trainer import trainer_in


class Poisoned(Bigram):
    """A model whose loss or gradient is spoilt in the calls of the given numbers."""

    def __init__(self, bad_losses=(), bad_gradients=(), value=math.nan):
        super().__init__()
        self.calls, self.value = 0, value
        self.bad_losses, self.bad_gradients = set(bad_losses), set(bad_gradients)

    def forward(self, input_ids, shift_labels=None, num_items_in_batch=None):
        output = super().forward(input_ids, shift_labels, num_items_in_batch)
        self.calls += 1
        loss = output.loss
        if self.calls in self.bad_losses:
            loss = loss * self.value
        elif self.calls in self.bad_gradients:
            loss.register_hook(lambda gradient: gradient * self.value)
        return Output(loss, output.logits)


class Recorder(TrainerCallback):
    def __init__(self):
        self.after, self.moments = {}, {}

    def on_step_end(self, args, state, control, **kwargs):
        optimizer = kwargs["optimizer"].state_dict()["state"]
        self.after[state.global_step] = bits(parameters_of(kwargs["model"]))
        self.moments[state.global_step] = [
            np.array(v["exp_avg"].numpy()).tobytes() for v in optimizer.values()
        ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["bad_losses", "bad_gradients"])
def test_step_is_skipped_counted_and_reported(tmp_path, where, value):
    recorder = Recorder()
    model = Poisoned(**{where: {3, 4, 7}}, value=value)
    trainer = trainer_in(tmp_path, model, callbacks=[recorder], max_steps=10)
    trainer.train()
    for step in (3, 4, 7):
        assert recorder.after[step] == recorder.after[step - 1]
        assert recorder.moments[step] == recorder.moments[step - 1]
    for step in (2, 5, 6, 8):
        assert recorder.after[step] != recorder.after[step - 1]
    assert trainer.state.skipped_steps == 3
    assert trainer.state.skipped_in_a_row == 0
    assert trainer.state.global_step == 10
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "skipped" in row] == [3, 4, 7]
    named = "loss" if where == "bad_losses" else "gradient norm"
    assert all(f"the {named} is" in row["skipped"] for row in rows if "skipped" in row)
    assert rows[-2]["skipped_steps"] == 3
    assert all(np.isfinite(p).all() for p in parameters_of(model).values())


def test_one_bad_batch_spoils_its_whole_step(tmp_path):
    recorder = Recorder()
    model = Poisoned(bad_losses={5})  # the first batch of step 3
    trainer_in(
        tmp_path, model, callbacks=[recorder], max_steps=4, gradient_accumulation_steps=2
    ).train()
    assert recorder.after[3] == recorder.after[2] != recorder.after[1]
    assert recorder.after[4] != recorder.after[3]  # and no gradient of it is left over


def test_too_many_in_a_row_stop_with_a_clear_error(tmp_path):
    model = Poisoned(bad_losses=set(range(6, 99)))
    trainer = trainer_in(tmp_path, model, max_steps=50, max_skipped_steps=4)
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    assert str(caught.value).startswith(
        "the loss is nan at step 9, and 4 steps in a row were skipped; "
        "the parameters are those of step 5. Lower the learning rate (0.05)"
    )
    assert all(np.isfinite(p).all() for p in parameters_of(model).values())


def test_good_steps_in_between_reset_the_count(tmp_path):
    model = Poisoned(bad_losses=set(range(2, 30, 2)))
    trainer = trainer_in(tmp_path, model, max_steps=20, max_skipped_steps=2)
    trainer.train()
    assert trainer.state.skipped_steps == 10


def test_all_labels_ignored_is_such_a_step(tmp_path):
    items = [{"input_ids": np.arange(4), "shift_labels": np.full(4, -100)}] * 4
    trainer = trainer_in(tmp_path, train=items, max_steps=1)
    before = bits(parameters_of(trainer.model))
    trainer.train()
    assert trainer.state.skipped_steps == 1
    assert bits(parameters_of(trainer.model)) == before
