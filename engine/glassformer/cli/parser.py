"""The commands and their arguments. Imports nothing heavy: `--help` must answer at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn

from glassformer import __version__
from glassformer.cli.presets import DESCRIPTIONS, PRESETS


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = OneLineParser(
        prog="glassformer", description="Train a small Transformer, let it write, look at it."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands.add_parser("train", help="train a language model on text"))
    _add_generate(commands.add_parser("generate", help="let a trained model write"))
    _add_info(commands.add_parser("info", help="show a run, or the models there are"))
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train a language model. The last tenth of the text is held out for validation."
    )
    sizes = "; ".join(f"{name}: {text}" for name, text in DESCRIPTIONS.items())
    add = parser.add_argument
    add(
        "--data",
        metavar="FILE|DIR",
        help="text to learn from (default: the documentation that comes with Python)",
    )
    add("--config", choices=list(PRESETS), help=f"size of the model (default: small). {sizes}")
    add("--steps", type=positive_int, metavar="N", help="optimizer steps")
    add("--output", metavar="DIR", help="the run's folder (default: runs/CONFIG)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="continue the run in --output")
    existing.add_argument(
        "--overwrite", action="store_true", help="replace the run that is in --output"
    )
    add("--seed", type=natural_int, metavar="N", help="of all random numbers (default: 1337)")
    add("--batch-size", type=positive_int, metavar="N", help="windows in a batch")
    add("--block-size", type=positive_int, metavar="N", help="tokens in a window")
    add("--learning-rate", type=positive_float, metavar="X", help="peak learning rate")
    add("--dropout", type=probability, metavar="X", help="probability of dropping")
    add("--save-steps", type=positive_int, metavar="N", help="evaluate and save every N steps")
    add("--vocabulary", choices=["char", "byte"], help="what a token is (default: char)")
    add("--device", metavar="NAME", help="cpu (default), cuda, cuda:1 … or torch-cpu")
    add(
        "--bf16",
        action="store_true",
        default=None,
        help="compute in bfloat16, with float32 weights; needs --device cuda or torch-cpu",
    )


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.description = "Continue a text with a trained model."
    add = parser.add_argument
    add("run", metavar="RUN", help="the run's folder, or one of its checkpoints")
    add("--prompt", metavar="TEXT", help="the text to continue (default: a new line)")
    add("--max-new-tokens", type=natural_int, default=300, metavar="N", help="default: 300")
    add(
        "--temperature",
        type=natural_float,
        default=0.8,
        metavar="X",
        help="below 1 is safer, above is bolder, 0 always takes the likeliest (default: 0.8)",
    )
    add("--top-k", type=positive_int, metavar="K", help="draw from the K likeliest tokens only")
    add("--top-p", type=probability, metavar="P", help="... from the likeliest that sum to P")
    add(
        "--min-p", type=probability, metavar="P", help="... from those P times as likely as the top"
    )
    add("--repetition-penalty", type=positive_float, default=1.0, metavar="X", help="default: 1")
    add("--seed", type=natural_int, metavar="N", help="for the same text again")
    add("--device", metavar="NAME", help="cpu (default), cuda, cuda:1 … or torch-cpu")
    add("--stream", action="store_true", help="print each token as it comes")


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.description = "Show a run's layers, shapes, parameters, FLOPs a token and memory."
    parser.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        help="the run's folder (default: list the models there are)",
    )


def _number(kind: type, accepts: Callable[[float], bool], wanted: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value: float = kind(text)
        except ValueError:
            value = float("nan")
        if not accepts(value):
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
        return value

    return parse


_LARGEST = 2**63 - 1
positive_int = _number(int, lambda n: 1 <= n <= _LARGEST, "a whole number from 1")
natural_int = _number(int, lambda n: 0 <= n <= _LARGEST, "a whole number from 0")
positive_float = _number(float, lambda x: 0 < x < float("inf"), "a number above 0")
natural_float = _number(float, lambda x: 0 <= x < float("inf"), "a number from 0")
probability = _number(float, lambda x: 0 <= x <= 1, "a number in [0, 1]")
