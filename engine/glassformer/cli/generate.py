"""`glassformer generate`: let a trained model write."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from glassformer.cli import generate_texts
from glassformer.cli.errors import CommandError
from glassformer.cli.folder_kinds import is_hub_folder
from glassformer.cli.run_folder import TrainedModel, load_model, usable_device
from glassformer.data import Vocabulary
from glassformer.generation import stream_generate

_MODEL_ONLY = ("do_sample", "num_beams", "input", "text_column", "output")


def run(args: Namespace) -> int:
    """Print the prompt and its continuation."""
    if args.model is not None:
        return generate_texts.run(args)
    if args.run is None:
        raise CommandError("give the folder of a run, or --model FOLDER (see --help)")
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
    temperature = 0.8 if args.temperature is None else args.temperature
    sampling = temperature > 0
    settings: dict[str, Any] = {
        "do_sample": sampling,
        "temperature": temperature,
        "top_k": args.top_k if sampling else None,
        "top_p": args.top_p if sampling else None,
        "min_p": args.min_p if sampling else None,
        "repetition_penalty": args.repetition_penalty or 1.0,
        "seed": args.seed,
    }
    prompt = default_prompt(trained.vocabulary) if args.prompt is None else args.prompt
    max_new_tokens = 300 if args.max_new_tokens is None else args.max_new_tokens
    pieces = continuation(trained, prompt, max_new_tokens, **settings)
    sys.stdout.write(prompt)
    if args.stream:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    else:
        sys.stdout.write("".join(pieces))
    sys.stdout.write("\n")
    return 0


def default_prompt(vocabulary: Vocabulary) -> str:
    """Return a new line, or where the vocabulary has none, its first character."""
    try:
        vocabulary.encode("\n")
    except ValueError:
        return vocabulary.decode([0])
    return "\n"


def continuation(
    trained: TrainedModel, prompt: str, max_new_tokens: int, **settings: Any
) -> Iterator[str]:
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
    steps = stream_generate(
        trained.model, ids[None], max_new_tokens, on_overflow="slide", **settings
    )
    return _decoded(trained, steps)


def _decoded(trained: TrainedModel, steps: Iterator[np.ndarray[Any, Any]]) -> Iterator[str]:
    decode = trained.vocabulary.stream_decoder()
    for tokens in steps:
        piece = decode(int(tokens[0]))
        if piece:
            yield piece
