import inspect
import json

import pytest

from glassformer.training import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from glassformer.training.callbacks import DefaultFlowCallback, metric_value

# Hugging Face transformers 5.23: the events of TrainerCallback (but for on_push_begin, the hub's)
EVENTS = """on_init_end on_train_begin on_train_end on_epoch_begin on_epoch_end on_step_begin
on_pre_optimizer_step on_optimizer_step on_substep_end on_step_end on_evaluate on_predict on_save
on_log on_prediction_step"""


def test_events_are_hugging_faces():
    ours = {name for name in vars(TrainerCallback) if name.startswith("on_")}
    assert ours == set(EVENTS.split())
    for name in ours:
        parameters = list(inspect.signature(getattr(TrainerCallback, name)).parameters)
        assert parameters == ["self", "args", "state", "control", "kwargs"]


def stopped_after(values, greater_is_better, patience, threshold=0.0):
    """At which evaluation training stops, or None; as in training, the best is updated last."""
    args = TrainingArguments(
        eval_strategy="steps",
        metric_for_best_model="score",
        greater_is_better=greater_is_better,
    )
    callback, state, control = (
        EarlyStoppingCallback(patience, threshold),
        TrainerState(),
        TrainerControl(),
    )
    for number, value in enumerate(values, 1):
        callback.on_evaluate(args, state, control, metrics={"eval_score": value})
        if control.should_training_stop:
            return number
        better = max if greater_is_better else min
        state.best_metric = value if state.best_metric is None else better(value, state.best_metric)
    return None


@pytest.mark.parametrize(
    ("values", "greater", "patience", "threshold", "expected"),
    [
        ([3, 2, 1, 0], False, 1, 0, None),
        ([3, 2, 2], False, 1, 0, 3),
        ([3, 4, 2, 3, 3], False, 2, 0, 5),
        ([1, 2, 3, 2, 2, 2], True, 3, 0, 6),
        ([3.0, 2.95, 2.9], False, 2, 0.1, 3),
        ([3.0, 2.8, 2.6], False, 1, 0.1, None),
    ],
)
def test_early_stopping(values, greater, patience, threshold, expected):
    assert stopped_after(values, greater, patience, threshold) == expected


def test_early_stopping_needs_something_to_watch():
    with pytest.raises(ValueError, match="metric_for_best_model"):
        EarlyStoppingCallback().on_train_begin(TrainingArguments(), None, None)
    args = TrainingArguments(metric_for_best_model="loss")
    with pytest.raises(ValueError, match="eval_strategy"):
        EarlyStoppingCallback().on_train_begin(args, None, None)


def test_missing_metric_lists_those_there_are():
    with pytest.raises(KeyError, match="'f1'.*eval_loss"):
        metric_value({"eval_loss": 1.0}, "f1")


def test_state_survives_json():
    state = TrainerState(epoch=1.5, global_step=7, best_metric=0.25, log_history=[{"step": 1}])
    assert TrainerState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


@pytest.mark.parametrize(
    "change", [{"global_step": "7"}, {"global_step": True}, {"log_history": 3}, {"new": 1}]
)
def test_foreign_state_is_refused(change):
    with pytest.raises(ValueError, match="trainer state has"):
        TrainerState.from_dict({**TrainerState().to_dict(), **change})


def asked(step, **settings):
    args = TrainingArguments(**settings)
    control = TrainerControl()
    state = TrainerState(global_step=step, max_steps=100)
    DefaultFlowCallback().on_step_end(args, state, control)
    return {name for name, value in vars(control).items() if value}


def test_default_flow():
    every = {"logging_steps": 10, "eval_strategy": "steps", "eval_steps": 20, "save_steps": 50}
    assert asked(7, **every) == set()
    assert asked(10, **every) == {"should_log"}
    assert asked(20, **every) == {"should_log", "should_evaluate"}
    assert asked(50, **every) == {"should_log", "should_save"}
    assert asked(100, **every) == {
        "should_log",
        "should_evaluate",
        "should_save",
        "should_training_stop",
    }
    assert asked(1, logging_first_step=True) == {"should_log"}
    assert asked(100, save_strategy="no") == {"should_training_stop"}
    assert asked(100, save_steps=70) == {"should_save", "should_training_stop"}  # the last is saved
    assert asked(5, logging_steps=0.05) == {"should_log"}
