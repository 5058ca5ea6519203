"""The command line: `glassformer train`, `generate`, `embed`, … One file a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from glassformer.cli.errors import CommandError, describe
from glassformer.cli.parser import build_parser

__all__ = ["CommandError", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0 if it did what was asked, 2 with one line on stderr if it could not, 1 if training diverged,
    130 if interrupted.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us, with >&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (until the process ends)
    args = build_parser().parse_args(argv)
    if hasattr(
        sys.stdout, "reconfigure"
    ):  # text that the terminal cannot show is no reason to stop
        sys.stdout.reconfigure(errors="replace")
    try:
        status: int = import_module(f"glassformer.cli.{args.command.replace('-', '_')}").run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print(f"glassformer {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has had enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        line = describe(error)
        if line is None:
            raise
        print(f"glassformer {args.command}: error: {line}", file=sys.stderr)
        return 1 if isinstance(error, ArithmeticError) else 2
