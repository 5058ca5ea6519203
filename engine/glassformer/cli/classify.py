"""`glassformer classify`: tell the class of texts."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from glassformer.cli.errors import CommandError
from glassformer.cli.folder_kinds import refuse_run_of_train
from glassformer.cli.texts import answer_texts
from glassformer.models.auto import AutoConfig


def run(args: Namespace) -> int:
    """Write a line with the class of each text, or the best few; of a regression its number."""
    refuse_run_of_train(Path(args.model))
    config = AutoConfig.from_pretrained(Path(args.model))
    is_number = config.problem_type == "regression" and config.num_labels == 1
    if is_number and args.top_k is not None:
        raise CommandError(
            f"--top-k is for classes, but {args.model} gives each text a number; leave it out"
        )
    return answer_texts(
        args,
        "text-classification",
        _value if is_number else _labels,
        top_k=args.top_k,
        max_length=args.max_length,
    )


def _value(found: Any) -> dict[str, Any]:
    return {"value": found["score"]}


def _labels(found: Any) -> dict[str, Any]:
    return {"labels": found} if isinstance(found, list) else found
