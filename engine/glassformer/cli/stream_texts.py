"""`glassformer generate --model … --stream`: texts on the terminal while they are written."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from glassformer.cli.errors import CommandError
from glassformer.cli.texts import loaded, one_line_warnings, texts_of
from glassformer.generation import TextStreamer


def stream_texts(
    args: Namespace, task: str, asked: Callable[[str], Any] | None, settings: dict[str, Any]
) -> int:
    """Print each text with what follows it, or if it is answered only the answer.

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
        for text in read:
            streamer = TextStreamer(
                answer.tokenizer, skip_prompt=not follows, skip_special_tokens=True
            )
            try:
                answer(text if asked is None else asked(text), streamer=streamer)
            except (ImportError, IndexError, ValueError) as error:
                raise CommandError(str(error)) from error
    return 0
