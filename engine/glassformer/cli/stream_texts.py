"""`glassformer generate --model … --stream`: texts on the terminal while they are written."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from glassformer.cli.errors import CommandError
from glassformer.cli.texts import loaded, one_line_warnings, texts_of
from glassformer.generation import TextStreamer

# C0 but tab and newline, DEL and C1: a terminal obeys them instead of showing them.
_CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - {9, 10}, "\ufffd")


def stream_texts(
    args: Namespace, task: str, asked: Callable[[str], Any] | None, settings: dict[str, Any]
) -> int:
    """Print each text with what follows it, or if it is answered only the answer.

    A line is left empty between two of them.

    Args:
        args: of the command.
        task: of the pipeline.
        asked: makes the pipeline's input of a text; default: the text.
        settings: of the task.

    Raises:
        CommandError: the texts, or the model for them, are of no use.
    """
    follows = task == "text-generation" and asked is None  # decoded together: spaces are right
    with one_line_warnings(args.command):
        read = texts_of(args)
        # Beams that a task takes by itself give way: their tokens are only known in the end.
        answer = loaded(task, args, {"num_beams": 1, **settings})
        for index, text in enumerate(read):
            if index:
                print()
            streamer = ShowingStreamer(
                answer.tokenizer, skip_prompt=not follows, skip_special_tokens=True
            )
            try:
                answer(text if asked is None else asked(text), streamer=streamer)
            except (ImportError, IndexError, ValueError) as error:
                raise CommandError(str(error)) from error
    return 0


class ShowingStreamer(TextStreamer):
    """Prints what a terminal shows, and nothing that it would obey."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print a piece of text."""
        super().on_finalized_text(showable(text), stream_end)


def showable(text: str) -> str:
    """Return the text; if stdout is a terminal, with U+FFFD for each control character."""
    return text.translate(_CONTROLS) if sys.stdout.isatty() else text
