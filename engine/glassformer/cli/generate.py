"""`glassformer generate`: let a trained model write."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from glassformer.cli import generate_texts
from glassformer.cli.device import usable_device
from glassformer.cli.errors import CommandError
from glassformer.cli.folder_kinds import is_hub_folder, refuse_unless_whole
from glassformer.cli.run_folder import TrainedModel, load_model
from glassformer.cli.stream_texts import showable
from glassformer.data import Vocabulary
from glassformer.generation import generate, stream_generate

_MODEL_ONLY = ("chat", "system", "input", "text_column", "output", "batch_size")


def run(args: Namespace) -> int:
    """Print the prompt and its continuation."""
    if args.stream and (args.num_beams or 1) > 1:
        raise CommandError(
            "--stream prints tokens as they come, but --num-beams knows them only in the end; "
            "leave out one of both"
        )
    if args.model is not None:
        return generate_texts.run(args)
    if args.run is None:
        raise CommandError("give the folder of a run, or --model FOLDER (see --help)")
    refuse_unless_whole(Path(args.run))
    if is_hub_folder(Path(args.run)):
        raise CommandError(
            f"{args.run} is a folder as the hub serves it, not a run of glassformer train: "
            f"glassformer generate --model {args.run}"
        )
    for name in _MODEL_ONLY:
        if getattr(args, name) is not None:
            raise CommandError(f"--{name.replace('_', '-')} goes with --model, not with a run")
    device = usable_device(args.device)
    trained = load_model(Path(args.run))
    trained.model.to(device)
    settings: dict[str, Any] = {
        "do_sample": args.num_beams is None,
        "temperature": 0.8,
        "max_new_tokens": 300,
        **generate_texts.settings_of(args),
    }
    if not settings["do_sample"]:
        settings.pop("temperature", None)
    prompt = default_prompt(trained.vocabulary) if args.prompt is None else args.prompt
    try:
        pieces = continuation(trained, prompt, **settings)
    except ValueError as error:  # settings that don't go together
        raise CommandError(str(error)) from error
    sys.stdout.write(prompt)
    if args.stream:
        for piece in pieces:
            sys.stdout.write(showable(piece))
            sys.stdout.flush()
    else:
        sys.stdout.write(showable("".join(pieces)))
    sys.stdout.write("\n")
    return 0


def default_prompt(vocabulary: Vocabulary) -> str:
    """Return a new line, or where the vocabulary has none, its first character."""
    try:
        vocabulary.encode("\n")
    except ValueError:
        return vocabulary.decode([0])
    return "\n"


def continuation(trained: TrainedModel, prompt: str, **settings: Any) -> Iterator[str]:
    """Return an iterator over the text that follows `prompt`, piece by piece.

    Raises:
        CommandError: the prompt is empty, or has characters that the model never saw.
    """
    if not prompt:
        raise CommandError("the prompt is empty; give at least one character with --prompt")
    try:
        ids = trained.vocabulary.encode(prompt)
    except ValueError as error:
        raise CommandError(
            f"the prompt does not fit the model's vocabulary: {error}; leave them out"
        ) from error
    if settings.get("num_beams", 1) > 1:
        whole = generate(trained.model, ids[None], on_overflow="slide", **settings)
        return iter([trained.vocabulary.decode(whole.numpy()[0, len(ids) :])])
    steps = stream_generate(trained.model, ids[None], on_overflow="slide", **settings)
    return _decoded(trained, steps)


def _decoded(trained: TrainedModel, steps: Iterator[np.ndarray[Any, Any]]) -> Iterator[str]:
    decode = trained.vocabulary.stream_decoder()
    for tokens in steps:
        piece = decode(int(tokens[0]))
        if piece:
            yield piece
