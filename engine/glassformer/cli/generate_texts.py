"""`glassformer generate --model`: let a model of the hub's write about texts."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from glassformer.cli.errors import CommandError
from glassformer.cli.folder_kinds import refuse_run_of_train
from glassformer.cli.texts import answer_texts
from glassformer.models.auto import AutoConfig, AutoModelForSeq2SeqLM
from glassformer.models.generative import GENERATION_FILE

_SAMPLING = ("temperature", "top_k", "top_p", "min_p")

# What `generate` advises where the positions don't suffice names an argument that is no option.
_ADVICE = ", shorten the prompt, or pass on_overflow='slide'"
_ADVICE_HERE = " with --max-new-tokens, or shorten the prompt"


def run(args: Namespace) -> int:
    """Write a line for each text with what follows it, or answers it."""
    if args.run is not None:
        raise CommandError("give either a run or --model, not both")
    if args.stream:
        raise CommandError("--stream goes with a run, not with --model")
    refuse_run_of_train(Path(args.model))
    args.texts = [] if args.prompt is None else [args.prompt]
    settings = settings_of(args)
    if AutoModelForSeq2SeqLM.has(AutoConfig.from_pretrained(Path(args.model))):
        task = "text2text-generation"
    else:
        task = "text-generation"
        settings["return_full_text"] = False
        if not (Path(args.model) / GENERATION_FILE).is_file():
            settings.setdefault("do_sample", False)
    try:
        return answer_texts(args, task, _described, **settings)
    except CommandError as error:
        raise CommandError(str(error).replace(_ADVICE, _ADVICE_HERE)) from error


def settings_of(args: Namespace) -> dict[str, Any]:
    """Return what the arguments say to `generate`; what they don't say stays the folder's."""
    names = ("max_new_tokens", "num_beams", "repetition_penalty", "seed", "do_sample", *_SAMPLING)
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if given.get("temperature") == 0:  # as for runs: always the likeliest
        given = {name: value for name, value in given.items() if name not in _SAMPLING}
        given["do_sample"] = False
    elif any(name in given for name in _SAMPLING):
        given.setdefault("do_sample", True)
    return given


def _described(answer: Any) -> dict[str, Any]:
    return {"generated_text": (answer[0] if isinstance(answer, list) else answer)["generated_text"]}
