"""`glassformer finetune`: from a pre-trained model and a table of labelled texts to a classifier.

What a text is turned into, and how a model is judged, is in `finetune_task.py`.
"""

from __future__ import annotations

import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glassformer.cli.callbacks import Interrupt
from glassformer.cli.device import place, training_device
from glassformer.cli.errors import CommandError
from glassformer.cli.finetune_task import TASKS, Task, encode, longest, settle_padding
from glassformer.cli.folder_kinds import refuse_run_of_train
from glassformer.cli.run_folder import (
    ADAPTER_FOLDER,
    CURVE_FILE,
    LOG_FILE,
    METRICS_FILE,
    check_free,
    clear,
    prepare,
    read_run,
    write_run,
)
from glassformer.cli.training_run import (
    Settings,
    callbacks,
    check_finite,
    finished,
    remove_checkpoints,
    settle,
    train,
    usable,
)
from glassformer.data import AutoTokenizer, PaddingCollator, Tokenizer
from glassformer.data.labelled_texts import LabelledTexts, read_labelled, split_held_out
from glassformer.data.tables import ColumnError
from glassformer.durable import clean_leftovers, file_digest, write_file
from glassformer.models.auto import AutoConfig, AutoModelForSequenceClassification
from glassformer.models.lora import LoraConfig, add_lora, merge_lora, save_lora
from glassformer.models.pretrained import PretrainedModel
from glassformer.optim import AdamW, get_parameter_groups
from glassformer.training import Trainer, TrainingArguments, set_seed
from glassformer.training.checkpoint import json_bytes
from glassformer.training.freezing import freeze_backbone
from glassformer.training.frozen_features import frozen_features, has_frozen_features
from glassformer.training.progress import progress_bar

SETTINGS = (
    "model",
    "data",
    "eval",
    "text_column",
    "text_pair_column",
    "label_column",
    "task",
    "freeze",
    "lora",
    "epochs",
    "batch_size",
    "learning_rate",
    "head_learning_rate",
    "warmup_ratio",
    "weight_decay",
    "max_length",
    "seed",
)


@dataclass
class Plan:
    """All that a run is made from, checked."""

    folder: Path
    resuming: bool
    settings: Settings
    learnt: LabelledTexts
    judged: LabelledTexts
    items: list[dict[str, Any]]  # of those to learn from, then of those to judge by
    task: Task
    tokenizer: Tokenizer
    model: PretrainedModel
    lora: LoraConfig | None
    notes: list[str]
    sources: dict[str, str]

    def description(self) -> dict[str, Any]:
        """What the run's folder says of it."""
        return {"command": "finetune", "settings": self.settings, "data": self.sources}


def run(args: Namespace) -> int:
    """Fine-tune as the arguments say; return the exit status."""
    folder = Path(args.output or Path("runs", "finetune"))
    clean_leftovers(folder)
    begun = read_run(folder, "finetune") if args.resume else None
    if not args.resume:
        check_free(folder, args.overwrite)
    settings = settle(args, folder, begun, SETTINGS, _defaults)
    if finished(folder, begun, "finetune"):
        return 0
    plan = _plan(folder, settings, begun)
    prepare(folder)
    if args.overwrite:
        clear(folder)
    write_run(folder, plan.description())
    return _finetune(plan)


def _defaults(given: Settings) -> Settings:
    head_alone, lora = given.get("freeze") == "all", "lora" in given
    return {
        **dict.fromkeys(("model", "data", "eval", "text_pair_column", "lora", "max_length")),
        "head_learning_rate": None,
        "text_column": "text",
        "label_column": "label",
        "task": "classification",
        "freeze": "none",
        "epochs": 20.0 if head_alone else 3.0,
        "batch_size": 16,
        "learning_rate": 5e-3 if head_alone else 5e-4 if lora else 5e-5,
        "warmup_ratio": 0.1,
        "weight_decay": 0.01,
        "seed": 42,
    }


def _plan(folder: Path, settings: Settings, begun: dict[str, Any] | None) -> Plan:
    """Read and check everything, and write nothing."""
    for name in ("model", "data"):
        if settings[name] is None:
            raise CommandError(f"--{name} is missing: see glassformer finetune --help")
    source, device = Path(settings["model"]), training_device(settings)
    if source.resolve() == folder.resolve():
        raise CommandError(f"--output {folder} is the --model itself; choose another --output")
    refuse_run_of_train(source)
    learnt, judged, task = _read(settings)
    task.targets(judged)  # complains of labels that training texts lack
    with usable(f"--model {source}"):
        tokenizer = AutoTokenizer.from_pretrained(source)
        model, notes = _load(source, settings, task)
    _settle_length(model, tokenizer, settings)
    settle_padding(tokenizer, model.config)
    items = [
        item
        for part in (learnt, judged)
        for item in encode(tokenizer, model, part, task, settings["max_length"])
    ]
    with usable(f"--model {source}"):
        lora = _prepare(model, settings)
        model.to(device)
    return Plan(
        folder,
        begun is not None,
        settings,
        learnt,
        judged,
        items,
        task,
        tokenizer,
        model,
        lora,
        notes,
        _sources(folder, settings, begun),
    )


def _settle_length(model: PretrainedModel, tokenizer: Tokenizer, settings: Settings) -> None:
    """Fill in `max_length`, unless the model can't read that much or another vocabulary."""
    source, limit = settings["model"], longest(model.config, tokenizer)
    if len(tokenizer) > model.config.vocab_size:
        raise CommandError(
            f"--model {source}: its tokenizer has {len(tokenizer)} tokens, but the model only "
            f"{model.config.vocab_size}; do these files belong together?"
        )
    settings["max_length"] = settings["max_length"] or min(128, limit)
    if settings["max_length"] > limit:
        raise CommandError(
            f"--max-length {settings['max_length']} is more than the {limit} tokens that "
            f"{source} can read"
        )


def _read(settings: Settings) -> tuple[LabelledTexts, LabelledTexts, Task]:
    """Return the texts to learn from, those to judge by, and the task that their labels make."""
    columns = (settings["text_column"], settings["label_column"], settings["text_pair_column"])
    try:
        learnt = read_labelled(settings["data"], *columns)
        judged = None if settings["eval"] is None else read_labelled(settings["eval"], *columns)
    except ColumnError as error:
        raise CommandError(
            f"{error}; name those to read with --text-column and --label-column"
        ) from error
    task = TASKS[settings["task"]].of(learnt)
    if judged is None:
        stratified = settings["task"] == "classification"
        learnt, judged = split_held_out(learnt, settings["seed"], stratified)
    return learnt, judged, task


def _load(source: Path, settings: Settings, task: Task) -> tuple[PretrainedModel, list[str]]:
    """Return the model with a head for the task, and what there is to say about its weights."""
    another_head = AutoConfig.from_pretrained(source).num_labels != len(task.id2label)
    set_seed(settings["seed"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model: PretrainedModel = AutoModelForSequenceClassification.from_pretrained(
            source,
            dtype="float32",
            ignore_mismatched_sizes=another_head,
            num_labels=len(task.id2label),
            id2label=task.id2label,
            problem_type=task.problem_type,
        )
    return model, [str(warning.message).partition(";")[0] for warning in caught]


def _prepare(model: PretrainedModel, settings: Settings) -> LoraConfig | None:
    """Freeze what is not trained; attach updates if they are asked for."""
    if settings["lora"] is not None:
        prefix = f"{model.base_model_prefix}."
        head = {
            place.names[0].partition(".")[0]
            for name, _, place in model.hub_tensors()
            if not name.startswith(prefix)
        }
        rank = settings["lora"]
        config = LoraConfig(rank, 2 * rank, modules_to_save=tuple(sorted(head)))
        add_lora(model, config)
        return config
    freeze = settings["freeze"]
    if freeze == "all":
        freeze_backbone(model)
    elif freeze != "none":
        blocks = len(getattr(model.base_model, "blocks", ()))
        if int(freeze) > blocks:
            raise CommandError(
                f"--freeze {freeze}: {settings['model']} has only {blocks} blocks; --freeze all "
                "freezes the whole bare model"
            )
        freeze_backbone(model, blocks - int(freeze))
    return None


def _sources(folder: Path, settings: Settings, begun: dict[str, Any] | None) -> dict[str, str]:
    """Return fingerprints of the files that a resumed run must find as they were.

    Raises:
        CommandError: they are not.
    """
    weights = sorted(Path(settings["model"]).glob("*.safetensors"))
    tables = [Path(settings[name]) for name in ("data", "eval") if settings[name] is not None]
    found = {str(path): file_digest(path) for path in [*weights, *tables]}
    if begun is not None and begun["data"] != found:
        changed = [name for name in found if begun["data"].get(name) != found[name]]
        raise CommandError(
            f"{', '.join(changed)} changed since {folder} was begun; put back what was there, or "
            "train anew in another --output"
        )
    return found


def _finetune(plan: Plan) -> int:
    _introduce(plan)
    interrupt, collate = Interrupt(), PaddingCollator(plan.model.config.pad_token_id)
    started = time.perf_counter()
    with _items(plan, collate) as items:
        learnt, judged = items[: len(plan.learnt)], items[len(plan.learnt) :]
        trainer = Trainer(
            plan.model,
            _arguments(plan),
            collate,
            learnt,
            judged,
            compute_metrics=plan.task.brief,
            callbacks=callbacks(interrupt),
            optimizers=(_optimizer(plan.model, plan.settings), None),
            processing_class=plan.tokenizer,
        )
        trainer.loss_unit = plan.task.loss_unit
        if not train(trainer, interrupt, "finetune", resuming=plan.resuming):
            return 130
        found = trainer.predict(judged)
    assert found.predictions is not None and found.label_ids is not None
    check_finite(found.metrics["test_loss"], "the texts to judge by")
    metrics = {
        "loss": found.metrics["test_loss"],
        "texts": len(judged),
        "steps": trainer.state.global_step,
        **plan.task.metrics(found.predictions, found.label_ids),
    }
    report = plan.task.report(found.predictions, found.label_ids)
    _save(plan, metrics)
    _conclude(plan, metrics, report, time.perf_counter() - started)
    return 0


@contextmanager
def _items(plan: Plan, collate: PaddingCollator) -> Iterator[list[Any]]:
    """Give the items to train with: their features in place of tokens if the backbone is frozen."""
    if plan.settings["freeze"] != "all" or not has_frozen_features(plan.model):
        yield plan.items
        return
    print(f"the features of {len(plan.items):,} texts are computed once …", flush=True)
    bar = progress_bar(len(plan.items), 0, sys.stderr, "text") if sys.stderr.isatty() else None
    tell = None if bar is None else bar.update
    with frozen_features(plan.model, plan.items, collate, on_batch=tell) as kept:
        if bar is not None:
            bar.close()
        yield kept


def _optimizer(model: PretrainedModel, settings: Settings) -> AdamW:
    """Return AdamW with a learning rate for the head and one for the rest."""
    prefix = f"{model.base_model_prefix}."
    head = {id(p) for name, p in model.named_parameters() if not name.startswith(prefix)}
    rates = {True: settings["head_learning_rate"], False: settings["learning_rate"]}
    groups = []
    for group in get_parameter_groups(model, settings["weight_decay"]):
        for of_head, rate in rates.items():
            params = [p for p in group["params"] if (id(p) in head) == of_head]
            if params:
                rate = settings["learning_rate"] if rate is None else rate
                groups.append({**group, "params": params, "lr": rate})
    return AdamW(groups, lr=settings["learning_rate"])


def _arguments(plan: Plan) -> TrainingArguments:
    settings = plan.settings
    steps = settings["epochs"] * -(-len(plan.learnt) // settings["batch_size"])
    return TrainingArguments(
        output_dir=str(plan.folder),
        per_device_train_batch_size=settings["batch_size"],
        per_device_eval_batch_size=settings["batch_size"],
        num_train_epochs=settings["epochs"],
        learning_rate=settings["learning_rate"],
        warmup_ratio=settings["warmup_ratio"],
        logging_steps=max(1, round(steps / 50)),
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        seed=settings["seed"],
        device=settings["device"],
        bf16=settings["bf16"],
    )


def _save(plan: Plan, metrics: dict[str, Any]) -> None:
    """Write the model's folder, then the result, and delete what only resuming needs."""
    if plan.lora is not None:
        save_lora(plan.model, plan.folder / ADAPTER_FOLDER, plan.lora)
        merge_lora(plan.model)
    plan.tokenizer.save_pretrained(plan.folder)
    plan.model.save_pretrained(plan.folder)
    write_file(plan.folder / METRICS_FILE, json_bytes(metrics))
    result = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
    write_run(plan.folder, {**plan.description(), "result": result})
    remove_checkpoints(plan.folder)


def _introduce(plan: Plan) -> None:
    model = plan.model
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(
        f"texts  {plan.learnt.path}: {len(plan.learnt):,} to learn from; "
        f"{len(plan.judged):,} to judge by, "
        f"{'held out of it' if plan.settings['eval'] is None else f'from {plan.judged.path}'}\n"
        f"labels {plan.task.summary()}\n"
        f"model  {plan.settings['model']}: {type(model).__name__}, {model.num_parameters():,} "
        f"parameters, {trained:,} of them trained{place(plan.settings)}\n"
        f"run    {plan.folder} (log: {plan.folder / LOG_FILE})"
    )
    for note in [*plan.notes, *plan.task.doubts(plan.learnt)]:
        print(f"note   {note}")
    sys.stdout.flush()


def _conclude(plan: Plan, metrics: dict[str, Any], report: str, seconds: float) -> None:
    folder = plan.folder
    adapter = f"\nupdates {folder / ADAPTER_FOLDER}" if plan.lora is not None else ""
    print(
        f"\n{report}\n\n{plan.task.headline(metrics)} on {metrics['texts']:,} texts after "
        f"{metrics['steps']:,} steps in {seconds:.0f} s\n\n"
        f"model   {folder}{adapter}\nmetrics {folder / METRICS_FILE}\n"
        f"log     {folder / LOG_FILE}\ncurve   {folder / CURVE_FILE}\n"
        f'use     glassformer classify --model {folder} "a text"'
    )
