"""The folder of a run: what is in it, reading it with suspicion, writing it with care.

config.json         the model's config
vocabulary.json     the tokens
run.json            the settings, the text's fingerprint, the result
checkpoint-N/       where training can resume
model.safetensors   the trained weights, once training has ended
log.jsonl, loss.svg the log and the loss curve

`finetune` and `pretrain` leave a model's folder as the hub has it: the tokenizer's files in place
of vocabulary.json, and beside them metrics.json and, with LoRA, adapter/.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from glassformer.cli.errors import CommandError
from glassformer.data import Vocabulary, vocabulary_from_dict
from glassformer.durable import write_file
from glassformer.models import GPT, GPTConfig
from glassformer.training.checkpoint import (
    CONFIG_FILE,
    MODEL_FILE,
    CheckpointError,
    json_bytes,
    list_checkpoints,
    load_weights,
    read_json,
)
from glassformer.training.snapshot import load_weights_into

VOCABULARY_FILE = "vocabulary.json"
RUN_FILE = "run.json"
LOG_FILE = "log.jsonl"
CURVE_FILE = "loss.svg"
METRICS_FILE = "metrics.json"
ADAPTER_FOLDER = "adapter"
FILES = (
    CONFIG_FILE,
    VOCABULARY_FILE,
    RUN_FILE,
    MODEL_FILE,
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    METRICS_FILE,
    f"{ADAPTER_FOLDER}/adapter_config.json",
    f"{ADAPTER_FOLDER}/adapter_model.safetensors",
    LOG_FILE,
    CURVE_FILE,
)

_NEEDED = {  # what a command can't begin without
    "finetune": "--model FOLDER --data FILE ",
    "pretrain": "--objective clm --data FILE ",
}


@dataclass
class TrainedModel:
    """A model read from a run, and where its weights came from."""

    model: GPT
    vocabulary: Vocabulary
    weights_path: Path


def occupants(folder: Path) -> list[str]:
    """Return the names in `folder` that a run would write to."""
    present = [name for name in FILES if (folder / name).exists()]
    return present + [path.name for path in list_checkpoints(folder)]


def check_free(folder: Path, overwrite: bool) -> None:
    """Make sure that a new run in `folder` would write over nothing but, if asked to, a run.

    Raises:
        CommandError: it would.
    """
    names = occupants(folder)
    if not names:
        return
    if RUN_FILE not in names:
        raise CommandError(
            f"{folder} holds {', '.join(names)} that no run of ours wrote; choose another --output"
        )
    if not overwrite:
        raise CommandError(
            f"{folder} already holds a run; continue it with --resume, replace it with "
            "--overwrite, or choose another --output"
        )


def clear(folder: Path) -> None:
    """Remove a run's files, and nothing else."""
    for path in list_checkpoints(folder):
        shutil.rmtree(path)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


def prepare(folder: Path) -> None:
    """Make sure that the folder exists and can be written to.

    Raises:
        CommandError: it cannot.
    """
    probe = folder / ".gf-probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise CommandError(
            f"cannot write to {folder}: {error.strerror}; choose another folder with --output"
        ) from error


def write_description(
    folder: Path, config: GPTConfig, vocabulary: Vocabulary, run: dict[str, Any]
) -> None:
    """Write what is known of a run before it has learnt anything."""
    write_file(folder / CONFIG_FILE, json_bytes(asdict(config)))
    write_file(folder / VOCABULARY_FILE, json_bytes(vocabulary.to_dict()))
    write_run(folder, run)


def write_run(folder: Path, run: dict[str, Any]) -> None:
    """Write the run's settings and results."""
    write_file(folder / RUN_FILE, json_bytes(run))


def read_run(folder: Path, command: str | None = None) -> dict[str, Any]:
    """Return what `write_run` wrote.

    Raises:
        CommandError: there is no run in the folder, or not one of this command.
        CheckpointError: its description is damaged.
    """
    if not (folder / RUN_FILE).exists():
        there = "no such folder" if not folder.is_dir() else f"it has no {RUN_FILE}"
        raise CommandError(
            f"{folder} is not a run ({there}); start one: "
            f"glassformer {command or 'train'} {_NEEDED.get(command or '', '')}--output {folder}"
        )
    run = read_json(folder / RUN_FILE)
    settings, data = run.get("settings"), run.get("data")
    if not isinstance(settings, dict) or not isinstance(data, dict):
        raise CheckpointError(folder / RUN_FILE, "not the description of a run", _REMEDY)
    began_by = run.get("command", "train")
    if command not in (None, began_by):
        raise CommandError(f"{folder} is a run of glassformer {began_by}; choose another --output")
    return run


_REMEDY = "restore it from a copy, or train anew in another folder"


def read_config(path: Path) -> GPTConfig:
    """Read a model's config and check every field's type.

    Raises:
        CheckpointError: the file is not the config of a GPT.
    """
    values = read_json(path)
    expected = {field.name: type(field.default) for field in fields(GPTConfig)}
    wrong = [name for name in expected if name not in values]
    wrong += [name for name in values if name not in expected]
    wrong += [n for n, kind in expected.items() if n in values and not _is(values[n], kind)]
    if wrong:
        raise CheckpointError(path, f"not a GPT's config (see {', '.join(wrong)})", _REMEDY)
    try:
        return GPTConfig(**values)
    except ValueError as error:
        raise CheckpointError(path, f"not a possible config ({error})", _REMEDY) from error


def _is(value: Any, kind: type) -> bool:
    return type(value) is kind or (kind is float and type(value) is int)


def read_vocabulary(path: Path, config: GPTConfig) -> Vocabulary:
    """Read a vocabulary and check that it fits the model.

    Raises:
        CheckpointError: the file is no vocabulary, or has another number of tokens.
    """
    try:
        vocabulary = vocabulary_from_dict(read_json(path))
    except ValueError as error:
        raise CheckpointError(path, str(error), _REMEDY) from error
    if len(vocabulary) != config.vocab_size:
        raise CheckpointError(
            path,
            f"the vocabulary has {len(vocabulary)} tokens, the model {config.vocab_size}",
            "use the vocabulary that the run was trained with",
        )
    return vocabulary


def load_model(path: Path) -> TrainedModel:
    """Read a trained model from a run's folder, or from one of its checkpoints.

    Raises:
        CommandError: nothing there to read.
        CheckpointError: a file is damaged, or they do not fit together.
    """
    if not path.is_dir():
        raise CommandError(f"{path} is not a folder; give the folder of a run")
    if not (path / CONFIG_FILE).exists():
        raise CommandError(f"{path} is not a run (it has no {CONFIG_FILE}); give a run's folder")
    candidates = [path / MODEL_FILE, *(p / MODEL_FILE for p in reversed(list_checkpoints(path)))]
    weights_path = next((candidate for candidate in candidates if candidate.exists()), None)
    if weights_path is None:
        raise CommandError(
            f"{path} holds no weights yet; train first: glassformer train --output {path} --resume"
        )
    config = read_config(path / CONFIG_FILE)
    beside = path / VOCABULARY_FILE
    vocabulary = read_vocabulary(
        beside if beside.exists() else path.absolute().parent / VOCABULARY_FILE, config
    )
    weights = load_weights(weights_path)
    _check_size(weights_path, weights, config)
    try:
        model = GPT(config)
    except ValueError as error:
        raise CheckpointError(path / CONFIG_FILE, f"not possible ({error})", _REMEDY) from error
    load_weights_into(weights_path, weights, model)
    return TrainedModel(model.eval(), vocabulary, weights_path)


def _check_size(path: Path, weights: dict[str, Any], config: GPTConfig) -> None:
    """Compare the sizes that a config claims with those on file, before memory is spent on them."""
    blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    shapes = {name: array.shape for name, array in weights.items()}
    if (
        len(blocks) != config.n_layer
        or shapes.get("embed_tokens.weight") != (config.vocab_size, config.n_embd)
        or shapes.get("embed_positions.weight") != (config.n_positions, config.n_embd)
    ):
        raise CheckpointError(path, "the weights are not those of the config beside them", _REMEDY)
