"""The commands and their arguments. Imports nothing heavy: `--help` must answer at once."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from glassformer import __version__
from glassformer.cli import finetune_arguments, model_arguments, pretrain_arguments
from glassformer.cli.argument_types import (
    natural_float,
    natural_int,
    positive_float,
    positive_int,
    probability,
)
from glassformer.cli.device import add_device, add_device_and_precision
from glassformer.cli.presets import DESCRIPTIONS, PRESETS


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports an error in one line, and wants options written out.

    Options that it doesn't know it tells before all else: a missing argument may be one misspelt.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_known_args(  # type: ignore[override]  # argparse has overloads of it
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse, and leave nothing over: a command's own parser would pass that to the first."""
        given = list(sys.argv[1:] if args is None else args)
        for text in given:
            if text == "--":
                break
            if self._subparsers is not None and not text.startswith("-"):
                self._check_command(text)
                break
            name = text.partition("=")[0]
            if (
                text.startswith("--")
                and " " not in text
                and name not in self._option_string_actions
            ):
                self._unknown(name)
        found, rest = super().parse_known_args(given, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return found, rest

    def _check_command(self, name: str) -> None:
        assert self._subparsers is not None
        commands = [
            str(key) for one in self._subparsers._group_actions for key in one.choices or ()
        ]
        if name not in commands:
            close = difflib.get_close_matches(name, commands, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(commands)}"
            self.error(f"there is no command {name}; {hint}")

    def _unknown(self, name: str) -> NoReturn:
        close = difflib.get_close_matches(name, self._option_string_actions, n=1)
        self.error(f"there is no {name}" + (f"; did you mean {close[0]}?" if close else ""))

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
    finetune_arguments.add_to(commands.add_parser("finetune", help=finetune_arguments.HELP))
    pretrain_arguments.add_to(commands.add_parser("pretrain", help=pretrain_arguments.HELP))
    model_arguments.add_embed(commands.add_parser("embed", help=model_arguments.EMBED_HELP))
    model_arguments.add_classify(
        commands.add_parser("classify", help=model_arguments.CLASSIFY_HELP)
    )
    model_arguments.add_fill_mask(
        commands.add_parser("fill-mask", help=model_arguments.FILL_MASK_HELP)
    )
    _add_generate(commands.add_parser("generate", help="let a trained model write"))
    _add_info(commands.add_parser("info", help="show a run, or the models there are"))
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train a language model. The last tenth of the text is held out for validation."
    )
    parser.epilog = (
        "With --resume the defaults are the run's own settings; --steps, --save-steps, --device "
        "and --bf16 may change."
    )
    sizes = "; ".join(f"{name}: {text}" for name, text in DESCRIPTIONS.items())
    add = parser.add_argument
    add(
        "--data",
        metavar="FILE|DIR",
        help="text to learn from (default: the documentation that comes with Python)",
    )
    add("--config", choices=list(PRESETS), help=f"size of the model (default: small). {sizes}")
    add("--steps", type=positive_int, metavar="N", help="optimizer steps (default: by --config)")
    add("--output", metavar="DIR", help="the run's folder (default: runs/CONFIG)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="continue the run in --output")
    existing.add_argument(
        "--overwrite", action="store_true", help="replace the run that is in --output"
    )
    add("--seed", type=natural_int, metavar="N", help="of all random numbers (default: 1337)")
    for name, kind, metavar, meaning in (
        ("--batch-size", positive_int, "N", "windows in a batch"),
        ("--block-size", positive_int, "N", "tokens in a window"),
        ("--learning-rate", positive_float, "X", "peak learning rate"),
        ("--dropout", probability, "X", "probability of dropping"),
    ):
        add(name, type=kind, metavar=metavar, help=f"{meaning} (default: by --config)")
    add(
        "--save-steps",
        type=positive_int,
        metavar="N",
        help="evaluate and save every N steps (default: a quarter of --steps, at most 250)",
    )
    add("--vocabulary", choices=["char", "byte"], help="what a token is (default: char)")
    add_device_and_precision(parser)


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Continue a text with a trained model: a run's, or with --model one of the hub's. The "
        "latter continues, or translates, as many texts as there are, with a line "
        '{"text": …, "generated_text": …} for each, or with --stream as plain text. Options mean '
        "the same for both, unless they say that they go with --model alone."
    )
    add = parser.add_argument
    add("run", metavar="RUN", nargs="?", help="the run's folder, or one of its checkpoints")
    add(
        "--model",
        metavar="FOLDER",
        help="instead of a run: a folder as the Hugging Face hub serves it",
    )
    add(
        "--prompt",
        metavar="TEXT",
        help="the text to continue (default: a new line; with --model the lines of stdin)",
    )
    add(
        "--max-new-tokens",
        type=natural_int,
        metavar="N",
        help="default: 300; with --model as its folder says, else 256",
    )
    add(
        "--temperature",
        type=natural_float,
        metavar="X",
        help="below 1 is safer, above is bolder, 0 always takes the likeliest (default: 0.8; with "
        "--model as its folder says, else 0)",
    )
    add("--top-k", type=positive_int, metavar="K", help="draw from the K likeliest tokens only")
    add("--top-p", type=probability, metavar="P", help="... from the likeliest that sum to P")
    add(
        "--min-p", type=probability, metavar="P", help="... from those P times as likely as the top"
    )
    add("--repetition-penalty", type=positive_float, metavar="X", help="default: 1")
    add("--seed", type=natural_int, metavar="N", help="for the same text again")
    add_device(parser)
    add("--stream", action="store_true", help="print the text token by token, as it comes")
    add(
        "--do-sample",
        action=argparse.BooleanOptionalAction,
        help="draw tokens instead of taking the likeliest (default: unless --num-beams is given; "
        "with --model if --temperature, --top-k, --top-p or --min-p is given, or the folder says "
        "so)",
    )
    add("--num-beams", type=positive_int, metavar="N", help="beam search; not with --stream")
    add(
        "--chat",
        action="store_true",
        default=None,
        help="with --model, take each text as a user's message, by the model's chat template",
    )
    add("--system", metavar="TEXT", help="with --chat, what the model is told before")
    model_arguments.add_texts(parser, "texts, with --model")


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Show the layers, shapes, parameters and memory of a run, or of a folder as the Hugging "
        "Face hub serves it; of a run of train FLOPs a token, too."
    )
    parser.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        help="the folder (default: list the models there are)",
    )
