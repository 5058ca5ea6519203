"""Telling a run of `train` from a folder as the hub serves it. Imports nothing heavy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glassformer.cli.errors import CommandError

_STATE_FILE = "trainer_state.json"  # of a checkpoint
_RUN_FILE = "run.json"  # of a run, from its beginning


def is_hub_folder(folder: Path) -> bool:
    """Whether a model's family is named in the folder, as `finetune` and `pretrain` do, too."""
    return _names_family(folder) is True


def is_run_of_train(folder: Path) -> bool:
    """Whether it is a run's folder, or one of its checkpoints."""
    vocabularies = [place / "vocabulary.json" for place in (folder, folder.absolute().parent)]
    return _names_family(folder) is False and any(path.is_file() for path in vocabularies)


def refuse_unless_whole(folder: Path) -> None:
    """Make sure that a folder is no unfinished run, and no checkpoint without a whole model.

    Checkpoints of `finetune --freeze all` and `--lora` are: their config names no architecture.

    Raises:
        CommandError: the folder is one or the other.
    """
    _refuse_unfinished(folder)
    if _is_for_resuming_alone(folder):
        raise CommandError(
            f"{folder} holds only what resuming needs of a training with --freeze all or --lora; "
            f"finish that with glassformer finetune --output {folder.parent} --resume, and use its "
            "folder"
        )


def _refuse_unfinished(folder: Path) -> None:
    """Raise CommandError for a run of `finetune` or `pretrain` that has no model yet."""
    command = (_read(folder / _RUN_FILE) or {}).get("command")
    if command not in ("finetune", "pretrain") or (folder / "config.json").exists():
        return
    from glassformer.training.checkpoint import list_checkpoints

    whole = [path for path in list_checkpoints(folder) if not _is_for_resuming_alone(path)]
    use = f"use {whole[-1]}, or " if whole else ""
    raise CommandError(
        f"{folder} is unfinished: {use}finish it with glassformer {command} --output {folder} "
        "--resume"
    )


def _is_for_resuming_alone(folder: Path) -> bool:
    config = _config(folder) or {}
    return (folder / _STATE_FILE).is_file() and config.get("architectures", True) is None


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
    return _read(folder / "config.json")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
