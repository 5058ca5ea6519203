import pytest

from glassformer.training import TrainingArguments
from glassformer.training.arguments import interval

# Hugging Face transformers 5.23: dataclasses.fields(TrainingArguments)
HUGGING_FACE_DEFAULTS = {
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "eval_strategy": "no",
    "eval_steps": None,
    "learning_rate": 5e-05,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-08,
    "max_grad_norm": 1.0,
    "num_train_epochs": 3.0,
    "max_steps": -1,
    "lr_scheduler_type": "linear",
    "lr_scheduler_kwargs": None,
    "warmup_ratio": None,
    "warmup_steps": 0,
    "logging_strategy": "steps",
    "logging_first_step": False,
    "logging_steps": 500,
    "save_strategy": "steps",
    "save_steps": 500,
    "save_total_limit": None,
    "load_best_model_at_end": False,
    "metric_for_best_model": None,
    "greater_is_better": None,
    "resume_from_checkpoint": None,
    "seed": 42,
    "data_seed": None,
    "dataloader_drop_last": False,
    "disable_tqdm": None,
    "use_cpu": False,
    "bf16": False,
}


def test_defaults_are_hugging_faces():
    ours = TrainingArguments().to_dict()
    assert {name: ours[name] for name in HUGGING_FACE_DEFAULTS} == HUGGING_FACE_DEFAULTS
    assert ours.keys() - HUGGING_FACE_DEFAULTS.keys() == {
        "output_dir",
        "overwrite_output_dir",
        "max_skipped_steps",
        "device",
    }


def test_what_follows_from_other_settings():
    args = TrainingArguments(eval_strategy="steps", logging_steps=7)
    assert args.eval_steps == 7
    best = TrainingArguments(
        eval_strategy="steps", eval_steps=10, save_steps=20, load_best_model_at_end=True
    )
    assert best.metric_for_best_model == "loss" and best.greater_is_better is False
    assert TrainingArguments(metric_for_best_model="accuracy").greater_is_better is True
    assert TrainingArguments(metric_for_best_model="eval_loss").greater_is_better is False


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_strategy": "sometimes"}, "eval_strategy must be one of"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be positive, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"warmup_ratio": 1.5}, "warmup_ratio"),
        ({"save_total_limit": 0}, "save_total_limit"),
        ({"num_train_epochs": 0}, "num_train_epochs"),
        ({"load_best_model_at_end": True}, "make them equal"),
        (
            {
                "load_best_model_at_end": True,
                "eval_strategy": "steps",
                "eval_steps": 10,
                "save_steps": 15,
            },
            "multiple of eval_steps, got 15 and 10",
        ),
        ({"load_best_model_at_end": True, "save_strategy": "best"}, "needs eval_strategy"),
    ],
)
def test_contradictions_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainingArguments(**settings)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, 0),
        ({"warmup_steps": 30}, 30),
        ({"warmup_ratio": 0.101}, 21),
        ({"warmup_steps": 30, "warmup_ratio": 0.5}, 30),
        ({"warmup_steps": 0.1}, 20),
    ],
)
def test_warmup(settings, steps):
    assert TrainingArguments(**settings).get_warmup_steps(200) == steps


def test_intervals_below_one_are_shares():
    assert [interval(s, 1000) for s in (1, 50, 0.05, 0.0001)] == [1, 50, 50, 1]
