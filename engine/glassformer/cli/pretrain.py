"""`glassformer pretrain`: from raw text to a BERT or a GPT-2, its vocabulary included."""

from __future__ import annotations

import re
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glassformer.cli.callbacks import Interrupt, LastStep
from glassformer.cli.device import place, training_device
from glassformer.cli.errors import CommandError
from glassformer.cli.run_folder import (
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
from glassformer.data import (
    AutoTokenizer,
    DataLoader,
    Dataset,
    NextTokenWindows,
    ScoringWindows,
    Tokenizer,
    python_documentation,
    read_text,
)
from glassformer.data.corpus import fingerprint
from glassformer.data.objectives import DataCollatorForLanguageModeling, group_texts
from glassformer.data.tokenizer_training import train_tokenizer
from glassformer.durable import clean_leftovers, write_file
from glassformer.models.bert import BertConfig, BertForMaskedLM
from glassformer.models.gpt2 import GPT2Config, GPT2LMHeadModel
from glassformer.models.pretrained import PretrainedModel
from glassformer.training import Trainer, TrainingArguments, set_seed
from glassformer.training.checkpoint import json_bytes
from glassformer.training.scores import perplexity

SETTINGS = (
    "objective",
    "data",
    "whole_word",
    "vocab_size",
    "hidden_size",
    "layers",
    "heads",
    "max_length",
    "steps",
    "batch_size",
    "save_steps",
    "learning_rate",
    "warmup_ratio",
    "weight_decay",
    "dropout",
    "seed",
)
Tokens = npt.NDArray[np.int64]
_NAMES = {"mlm": "masked tokens", "clm": "the next token"}
_USES = {
    "mlm": 'glassformer fill-mask --model {folder} "The [MASK] of a module."',
    "clm": 'glassformer generate --model {folder} --prompt "The "',
}
_OPTIONS = {  # what the settings of configs are called here
    "hidden_size": "--hidden-size",
    "n_embd": "--hidden-size",
    "intermediate_size": "four times --hidden-size",
    "num_hidden_layers": "--layers",
    "n_layer": "--layers",
    "num_attention_heads": "--heads",
    "n_head": "--heads",
    "max_position_embeddings": "--max-length",
    "n_positions": "--max-length",
}


@dataclass
class Plan:
    """All that a run is made from, checked."""

    folder: Path
    resuming: bool
    settings: Settings
    text: str
    tokenizer: Tokenizer
    model: PretrainedModel
    learnt: Tokens
    held_out: Tokens

    @property
    def source(self) -> str:
        """What to call the text."""
        return self.settings["data"] or "Python's documentation"

    def description(self) -> dict[str, Any]:
        """What the run's folder says of it."""
        data = {"characters": len(self.text), "sha256": fingerprint(self.text)}
        return {"command": "pretrain", "settings": self.settings, "data": data}


class LanguageModelTrainer(Trainer):
    """A trainer that masks the text to judge by alike each time, so that losses compare."""

    eval_collator: DataCollatorForLanguageModeling | None = None

    def get_eval_dataloader(self, dataset: Dataset | None = None) -> DataLoader:
        """Return the loader, its masks drawn from the tokens alone."""
        loader = super().get_eval_dataloader(dataset)
        if self.eval_collator is not None:
            loader.collate_fn = self.eval_collator
        return loader


def run(args: Namespace) -> int:
    """Pre-train as the arguments say; return the exit status."""
    folder = Path(args.output or Path("runs", args.objective or "pretrain"))
    clean_leftovers(folder)
    begun = read_run(folder, "pretrain") if args.resume else None
    if not args.resume:
        check_free(folder, args.overwrite)
    settings = settle(args, folder, begun, SETTINGS, _defaults)
    if finished(folder, begun, "pretrain"):
        return 0
    plan = _plan(folder, settings, begun)
    prepare(folder)
    if args.overwrite:
        clear(folder)
    if begun is None:
        plan.tokenizer.save_pretrained(folder)
        write_run(folder, plan.description())
    return _pretrain(plan)


def _defaults(given: Settings) -> Settings:
    steps = given.get("steps", 1000)
    return {
        "objective": None,
        "data": None,
        "whole_word": False,
        "vocab_size": 4096,
        "hidden_size": 128,
        "layers": 4,
        "heads": 4,
        "max_length": 128,
        "steps": steps,
        "batch_size": 16,
        "save_steps": max(1, min(250, steps // 4)),
        "learning_rate": 1e-3,
        "warmup_ratio": 0.1,
        "weight_decay": 0.01,
        "dropout": 0.1,
        "seed": 42,
    }


def _plan(folder: Path, settings: Settings, begun: dict[str, Any] | None) -> Plan:
    """Read and check everything, and write nothing."""
    objective = settings["objective"]
    training_device(settings)  # complains of one that can't be used
    if objective is None:
        raise CommandError("--objective is missing: mlm for a BERT, clm for a GPT-2")
    if settings["whole_word"] and objective == "clm":
        raise CommandError("--whole-word masks words, but --objective clm masks nothing")
    if objective == "mlm" and settings["max_length"] < 3:
        raise CommandError("--max-length must be at least 3: two tokens mark a window's ends")
    text = python_documentation() if settings["data"] is None else read_text(settings["data"])
    if begun is not None and begun["data"].get("sha256") != fingerprint(text):
        raise CommandError(
            f"the text changed since {folder} was begun; put back what was there, or train anew in "
            "another --output"
        )
    learnt, held_out = _split(text)
    if begun is not None:
        with usable(str(folder)):
            tokenizer = AutoTokenizer.from_pretrained(folder)
    else:
        with usable(f"--vocab-size {settings['vocab_size']}"):
            tokenizer = train_tokenizer(
                learnt,
                "wordpiece" if objective == "mlm" else "bpe",
                vocab_size=settings["vocab_size"],
                model_max_length=settings["max_length"],
            )
    set_seed(settings["seed"])
    try:
        model = _model(settings, tokenizer)
    except ValueError as error:
        raise CommandError(_in_options(str(error))) from error
    tokens = [_tokens(tokenizer, part) for part in (learnt, held_out)]
    plan = Plan(folder, begun is not None, settings, text, tokenizer, model, *tokens)
    for part in tokens:
        if part.size <= settings["max_length"]:
            raise CommandError(
                f"{plan.source} is too short: a tenth of it, held out, is {tokens[1].size} tokens, "
                f"and a window takes {settings['max_length']}; give more text, or a smaller "
                "--max-length"
            )
    return plan


def _split(text: str) -> tuple[list[str], list[str]]:
    """Return the lines to learn from, and the last tenth of the text.

    It begins with a line, or where lines are so long that this leaves less than half of a tenth,
    with a space (or anywhere, in a text without).
    """
    lines = text.splitlines(keepends=True)
    ends = np.cumsum([len(line) for line in lines])
    wanted, least = len(text) * 9 // 10, len(text) // 20
    cut = int(np.searchsorted(ends, wanted)) + 1
    if sum(len(line) for line in lines[cut:]) >= least:
        return lines[:cut], lines[cut:]
    space = text.find(" ", wanted, len(text) - least)
    at = wanted if space < 0 else space
    return text[:at].splitlines(keepends=True), text[at:].splitlines(keepends=True)


def _tokens(tokenizer: Tokenizer, lines: list[str]) -> Tokens:
    """Return the tokens of a text (N,), without special ones."""
    if not lines:
        return np.empty(0, dtype=np.int64)
    with usable("the text"):
        encoded = tokenizer(lines, add_special_tokens=False, truncation=False)
    return np.concatenate([np.array(ids, dtype=np.int64) for ids in encoded["input_ids"]])


def _in_options(problem: str) -> str:
    """Return what a config complains of, with the options that its settings were given by."""
    return re.sub(r"\w+", lambda word: _OPTIONS.get(word[0], word[0]), problem)


def _model(settings: Settings, tokenizer: Tokenizer) -> PretrainedModel:
    dropout, hidden = settings["dropout"], settings["hidden_size"]
    if settings["objective"] == "mlm":
        return BertForMaskedLM(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=hidden,
                num_hidden_layers=settings["layers"],
                num_attention_heads=settings["heads"],
                intermediate_size=4 * hidden,
                hidden_dropout_prob=dropout,
                attention_probs_dropout_prob=dropout,
                max_position_embeddings=settings["max_length"],
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=settings["max_length"],
            n_embd=hidden,
            n_layer=settings["layers"],
            n_head=settings["heads"],
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def _pretrain(plan: Plan) -> int:
    _introduce(plan)
    interrupt = Interrupt()
    trainer = _trainer(plan, interrupt)
    started = time.perf_counter()
    if not train(trainer, interrupt, "pretrain", resuming=plan.resuming):
        return 130
    loss = trainer.evaluate(metric_key_prefix="validation")["validation_loss"]
    check_finite(perplexity(loss), "the held-out text")
    metrics = {
        "loss": loss,
        "perplexity": perplexity(loss),
        "tokens": int(plan.held_out.size),
        "steps": trainer.state.global_step,
    }
    plan.model.save_pretrained(plan.folder)
    write_file(plan.folder / METRICS_FILE, json_bytes(metrics))
    write_run(plan.folder, {**plan.description(), "result": metrics})
    remove_checkpoints(plan.folder)
    _conclude(plan, metrics, time.perf_counter() - started)
    return 0


def _trainer(plan: Plan, interrupt: Interrupt) -> Trainer:
    settings, length = plan.settings, plan.settings["max_length"]
    masked = settings["objective"] == "mlm"
    options = {"whole_word_mask": settings["whole_word"]}
    learnt: Dataset
    held_out: Dataset
    if masked:
        learnt, held_out = (_windows(plan, part) for part in (plan.learnt, plan.held_out))
    else:
        learnt, held_out = (
            NextTokenWindows(plan.learnt, length),
            ScoringWindows(plan.held_out, length),
        )
    trainer = LanguageModelTrainer(
        plan.model,
        _arguments(plan),
        DataCollatorForLanguageModeling(plan.tokenizer, **options) if masked else None,
        learnt,
        held_out,
        callbacks=[*callbacks(interrupt), LastStep()],
    )
    trainer.processing_class = plan.tokenizer  # as an argument it would pad: windows need none
    if masked:
        trainer.eval_collator = DataCollatorForLanguageModeling(
            plan.tokenizer, seed=settings["seed"], **options
        )
    return trainer


def _windows(plan: Plan, tokens: Tokens) -> Sequence[dict[str, Tokens]]:
    """Return the text in windows that begin with [CLS] and end with [SEP]."""
    first, last = plan.tokenizer.cls_token_id, plan.tokenizer.sep_token_id
    return [
        {"input_ids": np.array([first, *item["input_ids"], last])}
        for item in group_texts([tokens], plan.settings["max_length"] - 2)
    ]


def _arguments(plan: Plan) -> TrainingArguments:
    settings = plan.settings
    return TrainingArguments(
        output_dir=str(plan.folder),
        per_device_train_batch_size=settings["batch_size"],
        per_device_eval_batch_size=32,
        max_steps=settings["steps"],
        learning_rate=settings["learning_rate"],
        warmup_ratio=settings["warmup_ratio"],
        weight_decay=settings["weight_decay"],
        logging_steps=max(1, min(20, settings["steps"] // 10)),
        eval_strategy="steps",
        eval_steps=settings["save_steps"],
        save_strategy="steps",
        save_steps=settings["save_steps"],
        save_total_limit=1,
        seed=settings["seed"],
        device=settings["device"],
        bf16=settings["bf16"],
    )


def _introduce(plan: Plan) -> None:
    settings = plan.settings
    print(
        f"text   {plan.source}: {len(plan.text):,} characters; {plan.learnt.size:,} tokens to "
        f"learn from, {plan.held_out.size:,} held out\n"
        f"tokens {len(plan.tokenizer):,}, "
        f"{'WordPiece' if settings['objective'] == 'mlm' else 'byte-level BPE'}, learnt from the "
        "same text\n"
        f"model  {type(plan.model).__name__}, {settings['layers']} layers, {settings['heads']} "
        f"heads, {settings['hidden_size']} channels: {plan.model.num_parameters():,} parameters"
        f"{place(settings)}\n"
        f"run    {plan.folder} (log: {plan.folder / LOG_FILE})"
    )
    sys.stdout.flush()


def _conclude(plan: Plan, metrics: dict[str, Any], seconds: float) -> None:
    folder = plan.folder
    print(
        f"\nperplexity {metrics['perplexity']:.2f} ({metrics['loss']:.3f} nats) of "
        f"{_NAMES[plan.settings['objective']]} in the held-out text after {metrics['steps']:,} "
        f"steps in {seconds:.0f} s\n\n"
        f"model   {folder}\nmetrics {folder / METRICS_FILE}\n"
        f"log     {folder / LOG_FILE}\ncurve   {folder / CURVE_FILE}\n"
        f"use     {_USES[plan.settings['objective']].format(folder=folder)}"
    )
