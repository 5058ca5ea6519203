"""The arguments of `glassformer pretrain`. Imports nothing heavy."""

from __future__ import annotations

import argparse

from glassformer.cli.argument_types import natural_int, positive_float, positive_int, probability
from glassformer.cli.device import add_device_and_precision

HELP = "train a BERT or a GPT-2 from raw text"


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments to the command's parser."""
    parser.description = (
        "Learn a vocabulary and train a model from scratch: a BERT that fills in masked tokens, or "
        "a GPT-2 that predicts the next one. The result is a folder as the Hugging Face hub serves "
        "it. The last tenth of the text is held out to judge by."
    )
    parser.epilog = (
        "With --resume every other setting is the run's own; --device and --bf16 may change."
    )
    add = parser.add_argument
    add(
        "--objective",
        choices=["mlm", "clm"],
        help="mlm: masked tokens, a BERT; clm: the next token, a GPT-2 (no default)",
    )
    add("--data", metavar="FILE|DIR", help="text to learn from (default: the documentation that "
        "comes with Python)")  # fmt: skip
    add(
        "--whole-word",
        action=argparse.BooleanOptionalAction,
        help="mask words rather than their pieces (default: --no-whole-word)",
    )
    for name, meaning in (
        ("vocab-size", "tokens in the vocabulary (default: 4096)"),
        ("hidden-size", "channels (default: 128)"),
        ("layers", "blocks (default: 4)"),
        ("heads", "attention heads (default: 4)"),
        ("max-length", "tokens in a window, and the most the model takes (default: 128)"),
        ("steps", "optimizer steps (default: 1000)"),
        ("batch-size", "windows in a batch (default: 16)"),
        ("save-steps", "evaluate and save every N steps (default: a quarter of --steps, at most "
         "250)"),
    ):  # fmt: skip
        add(f"--{name}", type=positive_int, metavar="N", help=meaning)
    add("--learning-rate", type=positive_float, metavar="X", help="at its peak (default: 1e-3)")
    add("--warmup-ratio", type=probability, metavar="X", help="share of the steps in which the "
        "rate rises; then it falls to 0 (default: 0.1)")  # fmt: skip
    add("--weight-decay", type=probability, metavar="X", help="of matrices (default: 0.01)")
    add("--dropout", type=probability, metavar="X", help="probability of dropping (default: 0.1)")
    add("--seed", type=natural_int, metavar="N", help="of all random numbers (default: 42)")
    add_device_and_precision(parser)
    add("--output", metavar="DIR", help="the folder to write (default: runs/OBJECTIVE)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="continue the run in --output")
    existing.add_argument(
        "--overwrite", action="store_true", help="replace the run that is in --output"
    )
