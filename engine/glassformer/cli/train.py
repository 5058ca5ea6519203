"""`glassformer train`: learn a text, from its file to a sample of what was learnt."""

from __future__ import annotations

import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glassformer.cli.callbacks import Interrupt, LastStep, Report
from glassformer.cli.device import ON_CPU, place, training_device
from glassformer.cli.errors import CommandError
from glassformer.cli.generate import continuation, default_prompt
from glassformer.cli.presets import PRESETS
from glassformer.cli.run_folder import (
    CURVE_FILE,
    LOG_FILE,
    RUN_FILE,
    TrainedModel,
    check_free,
    clear,
    prepare,
    read_config,
    read_run,
    read_vocabulary,
    write_description,
    write_run,
)
from glassformer.cli.training_run import divergence_told
from glassformer.data import (
    ByteVocabulary,
    CharVocabulary,
    NextTokenWindows,
    ScoringWindows,
    Vocabulary,
    python_documentation,
    read_text,
)
from glassformer.data.corpus import fingerprint
from glassformer.durable import clean_leftovers
from glassformer.models import GPT, GPTConfig
from glassformer.training import (
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from glassformer.training.checkpoint import (
    CONFIG_FILE,
    MODEL_FILE,
    CheckpointError,
    list_checkpoints,
    save_weights,
)
from glassformer.training.snapshot import model_arrays

# What a run is made with: the command's arguments, their types and what they may be.
SETTINGS: dict[str, tuple[type, Callable[[Any], bool]]] = {
    "config": (str, lambda name: name in PRESETS),
    "steps": (int, lambda n: n >= 1),
    "seed": (int, lambda n: n >= 0),
    "batch_size": (int, lambda n: n >= 1),
    "block_size": (int, lambda n: n >= 1),
    "learning_rate": (float, lambda x: 0 < x < float("inf")),
    "dropout": (float, lambda x: 0 <= x <= 1),
    "save_steps": (int, lambda n: n >= 1),
    "vocabulary": (str, lambda name: name in ("char", "byte")),
    "device": (str, bool),
    "bf16": (bool, lambda value: True),
}
_MAY_CHANGE = ("steps", "save_steps", "device", "bf16")  # when a run is resumed
Tokens = npt.NDArray[np.int64]
SAMPLE_LENGTH = 400
EVALUATED = 50_000  # held-out tokens that the evaluations on the way look at


@dataclass
class Text:
    """A text and where it came from."""

    source: str | None  # None: Python's documentation
    content: str

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return "Python's documentation" if self.source is None else self.source


@dataclass
class Plan:
    """All that a run is made from, checked."""

    folder: Path
    resuming: bool
    settings: dict[str, Any]
    text: Text
    vocabulary: Vocabulary
    config: GPTConfig
    learnt: Tokens
    held_out: Tokens

    def description(self) -> dict[str, Any]:
        """What the run's folder says of it."""
        content = self.text.content
        data = {"source": self.text.source, "characters": len(content)}
        return {"settings": self.settings, "data": {**data, "sha256": fingerprint(content)}}


def run(args: Namespace) -> int:
    """Train as the arguments say; return the exit status."""
    folder = Path(args.output or Path("runs", args.config or "small"))
    clean_leftovers(folder)
    if not args.resume:
        check_free(folder, args.overwrite)
    plan = _plan(args, folder)
    prepare(folder)
    if args.overwrite:
        clear(folder)
    write_description(folder, plan.config, plan.vocabulary, plan.description())
    return _train(plan)


def _plan(args: Namespace, folder: Path) -> Plan:
    """Read and check everything, and write nothing."""
    began = read_run(folder, "train") if args.resume else None
    settings = _settings(args, folder, began)
    training_device(settings)  # complains of one that can't be used
    text = _read(args, began)
    vocabulary = _vocabulary(folder, settings, text, began)
    _check_steps(folder, settings["steps"], args.resume)
    learnt, held_out = _split(_encode(vocabulary, text, folder), settings["block_size"], text)
    if began is not None and began["data"].get("sha256") != fingerprint(text.content):
        raise CommandError(
            f"{text.name} is not the text that {folder} was trained on (or was changed since); "
            "give the same with --data, or train anew in another --output"
        )
    config = _config(folder, settings, len(vocabulary), args.resume)
    return Plan(folder, args.resume, settings, text, vocabulary, config, learnt, held_out)


def _check_steps(folder: Path, steps: int, resuming: bool) -> None:
    """A run can go on to more steps, not back to fewer."""
    done = _steps_done(folder) if resuming else 0
    if done > steps:
        raise CommandError(
            f"{folder} is at step {done} already; ask for more than that with --steps, or train "
            "anew in another --output"
        )


def _steps_done(folder: Path) -> int:
    checkpoints = list_checkpoints(folder)
    return int(checkpoints[-1].name.rpartition("-")[2]) if checkpoints else 0


def _train(plan: Plan) -> int:
    folder, block_size = plan.folder, plan.settings["block_size"]
    set_seed(plan.settings["seed"])
    model = GPT(plan.config)
    _introduce(plan, model)
    interrupt = Interrupt()
    trainer = Trainer(
        model,
        _arguments(folder, plan.settings),
        train_dataset=NextTokenWindows(plan.learnt, block_size),
        eval_dataset=ScoringWindows(plan.held_out[:EVALUATED], block_size),
        callbacks=[interrupt, LastStep(), *([] if sys.stderr.isatty() else [Report()])],
    )
    trainer.remove_callback(PrinterCallback)  # `Report` has fewer lines
    done = _steps_done(folder) if plan.resuming else 0
    started = time.perf_counter()
    try:
        with interrupt, divergence_told(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* nothing is left to train")  # said below
            trainer.train(resume_from_checkpoint=done > 0)
    except KeyboardInterrupt:
        interrupt.wanted = True
    if interrupt.wanted:
        print(
            f"glassformer train: interrupted in step {trainer.state.global_step}; continue from "
            f"the last checkpoint with: glassformer train --output {folder} --resume",
            file=sys.stderr,
        )
        return 130
    if done == plan.settings["steps"]:
        print(
            f"glassformer train: {folder} has done its {done} steps: nothing is left to train; ask "
            "for more with --steps",
            file=sys.stderr,
        )
    seconds = time.perf_counter() - started
    whole = ScoringWindows(plan.held_out, block_size)
    loss = trainer.evaluate(whole, metric_key_prefix="validation")["validation_loss"]
    save_weights(folder / MODEL_FILE, model_arrays(model))
    result = {"validation_loss": loss, "step": trainer.state.global_step}
    write_run(folder, {**plan.description(), "result": result})
    _conclude(plan, trainer, loss, seconds, TrainedModel(model.eval(), plan.vocabulary, folder))
    return 0


def _settings(args: Namespace, folder: Path, description: dict[str, Any] | None) -> dict[str, Any]:
    """The run's settings: those given, and for the rest the preset's or those it began with."""
    given = {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
    if description is not None:
        saved = {**ON_CPU, **description["settings"]}
        for name, (kind, possible) in SETTINGS.items():
            if type(saved.get(name)) is not kind or not possible(saved[name]):
                raise CheckpointError(
                    folder / RUN_FILE, f"has no valid {name}", "train again with --overwrite"
                )
        for name, value in given.items():
            if name not in _MAY_CHANGE and value != saved[name]:
                option = "--" + name.replace("_", "-")
                raise CommandError(
                    f"{folder} was trained with {option} {saved[name]}, not {value}; leave "
                    f"{option} out to resume, or train anew in another --output"
                )
        return {**saved, **given}
    preset = PRESETS[given.get("config", "small")]
    steps = given.get("steps", preset.steps)
    defaults = {
        "config": "small",
        "steps": steps,
        "seed": 1337,
        "batch_size": preset.batch_size,
        "block_size": preset.block_size,
        "learning_rate": preset.learning_rate,
        "dropout": preset.dropout,
        "save_steps": max(1, min(250, steps // 4)),
        "vocabulary": "char",
        **ON_CPU,
    }
    return {**defaults, **given}


def _read(args: Namespace, description: dict[str, Any] | None) -> Text:
    source = args.data
    if source is None and description is not None:
        source = description["data"].get("source")
    if source is None:
        return Text(None, python_documentation())
    return Text(str(source), read_text(source))


def _vocabulary(
    folder: Path, settings: dict[str, Any], text: Text, description: dict[str, Any] | None
) -> Vocabulary:
    if description is not None:
        config = read_config(folder / CONFIG_FILE)
        return read_vocabulary(folder / "vocabulary.json", config)
    return ByteVocabulary() if settings["vocabulary"] == "byte" else CharVocabulary(text.content)


def _encode(vocabulary: Vocabulary, text: Text, folder: Path) -> Tokens:
    try:
        return vocabulary.encode(text.content)
    except ValueError as error:
        raise CommandError(
            f"{text.name} does not fit the vocabulary of {folder}: {error}; give the text that it "
            "was trained on, or train anew in another --output"
        ) from error


def _split(tokens: Tokens, block_size: int, text: Text) -> tuple[Tokens, Tokens]:
    """Return nine tenths to learn from, and the last tenth."""
    cut = tokens.size * 9 // 10
    learnt, held_out = tokens[:cut], tokens[cut:]
    if min(learnt.size, held_out.size) <= block_size:
        raise CommandError(
            f"{text.name} is too short: its last tenth is {held_out.size} tokens, and a window and "
            f"the token after it need {block_size + 1}; give more text, or a smaller --block-size"
        )
    return learnt, held_out


def _config(folder: Path, settings: dict[str, Any], vocab_size: int, resuming: bool) -> GPTConfig:
    preset = PRESETS[settings["config"]]
    config = GPTConfig(
        vocab_size=vocab_size,
        n_positions=settings["block_size"],
        n_embd=preset.n_embd,
        n_layer=preset.n_layer,
        n_head=preset.n_head,
        dropout=settings["dropout"],
    )
    if resuming and read_config(folder / CONFIG_FILE) != config:
        raise CheckpointError(
            folder / CONFIG_FILE, f"does not belong to {RUN_FILE}", "train again with --overwrite"
        )
    return config


def _arguments(folder: Path, settings: dict[str, Any]) -> TrainingArguments:
    steps, rate = settings["steps"], settings["learning_rate"]
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings["batch_size"],
        per_device_eval_batch_size=64,
        max_steps=steps,
        learning_rate=rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": rate / 10},
        warmup_steps=min(100, max(1, steps // 10)),
        weight_decay=0.1,
        adam_beta1=0.9,
        adam_beta2=0.99,
        max_grad_norm=1.0,
        logging_steps=max(1, min(20, steps // 10)),
        eval_strategy="steps",
        eval_steps=settings["save_steps"],
        save_strategy="steps",
        save_steps=settings["save_steps"],
        save_total_limit=2,
        load_best_model_at_end=True,
        seed=settings["seed"],
        device=settings["device"],
        bf16=settings["bf16"],
    )


def _introduce(plan: Plan, model: GPT) -> None:
    config, text = plan.config, plan.text
    print(
        f"text   {text.name}: {len(text.content):,} characters, {len(plan.vocabulary)} different "
        f"tokens; {plan.learnt.size:,} to learn from, {plan.held_out.size:,} held out\n"
        f"model  {config.n_layer} layers, {config.n_head} heads, {config.n_embd} channels, "
        f"{config.n_positions} tokens: {model.num_parameters():,} parameters"
        f"{place(plan.settings)}\n"
        f"run    {plan.folder} (log: {plan.folder / LOG_FILE})"
    )
    sys.stdout.flush()


def _conclude(
    plan: Plan, trainer: Trainer, loss: float, seconds: float, trained: TrainedModel
) -> None:
    folder = plan.folder
    unit = "byte" if isinstance(trained.vocabulary, ByteVocabulary) else "character"
    state = trainer.state
    best = state.best_global_step
    which = f" (the parameters of step {best:,})" if best not in (None, state.global_step) else ""
    skipped = f"; {state.skipped_steps} steps skipped, see the log" if state.skipped_steps else ""
    settings = {"do_sample": True, "temperature": 0.8, "seed": 0, "max_new_tokens": SAMPLE_LENGTH}
    prompt = default_prompt(trained.vocabulary)
    sample = "".join(continuation(trained, prompt, **settings))
    print(
        f"\nvalidation loss {loss:.3f} nats a {unit} after {state.global_step:,} steps in "
        f"{seconds:.0f} s{which}{skipped}\n\nsample\n------\n{sample.strip()}\n------\n"
        f"run    {folder}\nlog    {folder / LOG_FILE}\ncurve  {folder / CURVE_FILE}\n"
        f'write  glassformer generate {folder} --prompt "The "'
    )
