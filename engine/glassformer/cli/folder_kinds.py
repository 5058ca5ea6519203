"""Telling a run of `train` from a folder as the hub serves it. Imports nothing heavy."""

from __future__ import annotations

import json
from pathlib import Path

from glassformer.cli.errors import CommandError


def is_hub_folder(folder: Path) -> bool:
    """Whether a model's family is named in the folder, as `finetune` and `pretrain` do, too."""
    return _names_family(folder) is True


def is_run_of_train(folder: Path) -> bool:
    """Whether it is a run's folder, or one of its checkpoints."""
    vocabularies = [place / "vocabulary.json" for place in (folder, folder.absolute().parent)]
    return _names_family(folder) is False and any(path.is_file() for path in vocabularies)


def refuse_run_of_train(folder: Path) -> None:
    """Make sure that --model names no run of `train`.

    Raises:
        CommandError: it does.
    """
    if is_run_of_train(folder):
        raise CommandError(
            f"--model {folder} is a run of glassformer train, which only generate and info read: "
            f"glassformer generate {folder}"
        )


def _names_family(folder: Path) -> bool | None:
    """Whether config.json has a model_type; None if there is no such file, or it is damaged."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return "model_type" in config if isinstance(config, dict) else None
