"""`glassformer generate --model`: let a model of the hub's write about texts."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from glassformer.cli.errors import CommandError
from glassformer.cli.folder_kinds import refuse_run_of_train
from glassformer.cli.stream_texts import stream_texts
from glassformer.cli.texts import answer_texts
from glassformer.models.auto import AutoConfig, AutoModelForSeq2SeqLM
from glassformer.models.generative import GENERATION_FILE

_SAMPLING = ("temperature", "top_k", "top_p", "min_p")

# What `generate` advises where the positions don't suffice names an argument that is no option.
_ADVICE = ", shorten the prompt, or pass on_overflow='slide'"
_ADVICE_HERE = " with --max-new-tokens, or shorten the prompt"


def run(args: Namespace) -> int:
    """Write a line for each text with what follows it, or answers it; or stream that."""
    if args.run is not None:
        raise CommandError("give either a run or --model, not both")
    if args.stream and args.output is not None:
        raise CommandError("--stream prints to stdout; leave out --output")
    refuse_run_of_train(Path(args.model))
    args.texts = [] if args.prompt is None else [args.prompt]
    if args.system is not None and not args.chat:
        raise CommandError("--system is a message of a chat; give --chat too")
    settings = settings_of(args)
    if AutoModelForSeq2SeqLM.has(AutoConfig.from_pretrained(Path(args.model))):
        task = "text2text-generation"
        if args.chat:
            raise CommandError(f"--chat needs a model that continues; {args.model} rewrites")
    else:
        task = "text-generation"
        settings["return_full_text"] = False
        if not (Path(args.model) / GENERATION_FILE).is_file():
            settings.setdefault("do_sample", False)
    try:
        asked = (lambda text: _chat(text, args.system)) if args.chat else None
        if args.stream:
            return stream_texts(args, task, asked, settings)
        return answer_texts(args, task, _described, asked=asked, **settings)
    except CommandError as error:
        raise CommandError(str(error).replace(_ADVICE, _ADVICE_HERE)) from error


def settings_of(args: Namespace) -> dict[str, Any]:
    """Return what the arguments say to `generate`; what they don't say is left to the model.

    Raises:
        CommandError: two contradict each other.
    """
    names = ("max_new_tokens", "num_beams", "repetition_penalty", "seed", "do_sample", *_SAMPLING)
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if given.get("temperature") == 0:  # always the likeliest
        given = {name: value for name, value in given.items() if name not in _SAMPLING}
        given["do_sample"] = False
    for name in _SAMPLING:
        if name in given and not given.setdefault("do_sample", True):
            raise CommandError(
                f"--no-do-sample takes the likeliest tokens, but --{name.replace('_', '-')} is for "
                "drawing them; leave out one of both"
            )
    return given


def _chat(text: str, system: str | None) -> list[dict[str, str]]:
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": text}]


def _described(answer: Any) -> dict[str, Any]:
    return {"generated_text": (answer[0] if isinstance(answer, list) else answer)["generated_text"]}
