"""The arguments of `glassformer finetune`. Imports nothing heavy."""

from __future__ import annotations

import argparse

from glassformer.cli.argument_types import natural_int, positive_float, positive_int, probability
from glassformer.cli.device import add_device_and_precision

HELP = "teach a pre-trained model to label texts"


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments to the command's parser."""
    parser.description = (
        "Fine-tune a model in a folder as the Hugging Face hub serves it on labelled text. The "
        "result is such a folder too."
    )
    parser.epilog = (
        "Tables are .csv, .tsv or .jsonl in UTF-8. With --resume every other setting is the run's "
        "own; --device and --bf16 may change."
    )
    add = parser.add_argument
    add("--model", metavar="FOLDER", help="config.json, model.safetensors, tokenizer.json (no "
        "default)")  # fmt: skip
    add("--data", metavar="FILE", help="table of texts and labels to learn from (no default)")
    add("--eval", metavar="FILE", help="table to judge by (default: a tenth of --data, held out)")
    add("--text-column", metavar="NAME", help="its column of texts (default: text)")
    add("--text-pair-column", metavar="NAME", help="... of second texts (default: none)")
    add("--label-column", metavar="NAME", help="... of labels (default: label)")
    add(
        "--task",
        choices=["classification", "regression"],
        help="labels are classes, or numbers (default: classification)",
    )
    trained = parser.add_mutually_exclusive_group()
    trained.add_argument(
        "--freeze",
        type=_freeze,
        metavar="all|N|none",
        help="train the head alone on features computed once (all: the whole bare model is "
        "frozen); or freeze the embeddings and the first N blocks (default: none)",
    )
    trained.add_argument(
        "--lora",
        type=positive_int,
        metavar="R",
        help="train the head, and updates of rank R beside every linear layer, scaled by 2 "
        "(default: none)",
    )
    add("--epochs", type=positive_float, metavar="X", help="passes over the texts (default: 3; 20 "
        "with --freeze all)")  # fmt: skip
    add("--batch-size", type=positive_int, metavar="N", help="texts in a batch (default: 16)")
    add("--learning-rate", type=positive_float, metavar="X", help="at its peak (default: 5e-5; "
        "5e-3 with --freeze all; 5e-4 with --lora)")  # fmt: skip
    add("--head-learning-rate", type=positive_float, metavar="X", help="the head's (default: the "
        "same)")  # fmt: skip
    add("--warmup-ratio", type=probability, metavar="X", help="share of the steps in which the "
        "rate rises; then it falls to 0 (default: 0.1)")  # fmt: skip
    add("--weight-decay", type=probability, metavar="X", help="of matrices (default: 0.01)")
    add("--max-length", type=positive_int, metavar="N", help="tokens that texts are cut to "
        "(default: 128, or the model's limit)")  # fmt: skip
    add("--seed", type=natural_int, metavar="N", help="of all random numbers (default: 42)")
    add_device_and_precision(parser)
    add("--output", metavar="DIR", help="the folder to write (default: runs/finetune)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="continue the run in --output")
    existing.add_argument(
        "--overwrite", action="store_true", help="replace the run that is in --output"
    )


def _freeze(text: str) -> str:
    if text not in ("all", "none") and not text.isdecimal():
        raise argparse.ArgumentTypeError(
            f"expected all, none or a whole number of blocks, got {text!r}"
        )
    return text
