"""Telling a run of `train` from a folder as the hub serves it. Imports nothing heavy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glassformer.cli.errors import CommandError

_STATE_FILE = "trainer_state.json"  # of a checkpoint


def is_hub_folder(folder: Path) -> bool:
    """Whether a model's family is named in the folder, as `finetune` and `pretrain` do, too."""
    return _names_family(folder) is True


def is_run_of_train(folder: Path) -> bool:
    """Whether it is a run's folder, or one of its checkpoints."""
    vocabularies = [place / "vocabulary.json" for place in (folder, folder.absolute().parent)]
    return _names_family(folder) is False and any(path.is_file() for path in vocabularies)


def refuse_unless_whole(folder: Path) -> None:
    """Make sure that a folder is no checkpoint without a whole model as the hub has it.

    Those of `finetune --freeze all` and `--lora` are: their config names no architecture.

    Raises:
        CommandError: the folder is such a checkpoint.
    """
    config = _config(folder) or {}
    if (folder / _STATE_FILE).is_file() and config.get("architectures", True) is None:
        raise CommandError(
            f"{folder} holds only what resuming needs of a training with --freeze all or --lora; "
            f"finish that with glassformer finetune --output {folder.parent} --resume, and use its "
            "folder"
        )


def refuse_run_of_train(folder: Path) -> None:
    """Make sure that --model names no run of `train`, and no checkpoint without a whole model.

    Raises:
        CommandError: it does.
    """
    refuse_unless_whole(folder)
    if is_run_of_train(folder):
        raise CommandError(
            f"--model {folder} is a run of glassformer train, which only generate and info read: "
            f"glassformer generate {folder}"
        )


def _names_family(folder: Path) -> bool | None:
    """Whether config.json has a model_type; None if there is no such file, or it is damaged."""
    config = _config(folder)
    return None if config is None else "model_type" in config


def _config(folder: Path) -> dict[str, Any] | None:
    """Return what is in config.json; None if there is no such file, or it is damaged."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) else None
