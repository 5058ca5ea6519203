"""`glassformer info`: what a model consists of, what it costs, how its run went."""

from __future__ import annotations

from argparse import Namespace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import glassformer
from glassformer.cli.folder_kinds import is_hub_folder, refuse_unless_whole
from glassformer.cli.presets import DESCRIPTIONS, PRESETS
from glassformer.cli.run_folder import LOG_FILE, RUN_FILE, load_model, read_run
from glassformer.cli.texts import one_line_warnings
from glassformer.cli.training_run import usable
from glassformer.models import GPT, GPTConfig
from glassformer.models.auto import AutoConfig, AutoModel
from glassformer.models.pretrained import PretrainedModel
from glassformer.training.checkpoint import list_checkpoints
from glassformer.training.metrics import read_log


def run(args: Namespace) -> int:
    """Print the table of a run, of a model as the hub has it, or of every preset."""
    print("\n".join(_presets() if args.run is None else _folder(Path(args.run))))
    return 0


def _folder(path: Path) -> list[str]:
    refuse_unless_whole(path)
    if not is_hub_folder(path):
        return _run(path)
    with one_line_warnings("info"):
        return _hub_folder(path)


def forward_flops(config: GPTConfig) -> int:
    """Return the floating-point operations of one token's forward pass at full context.

    Two for each weight of a matrix product (12 C² a layer, V C for the logits), and 4 T C a layer
    for scores and weighted values (Kaplan et al. 2020, "Scaling Laws for Neural Language Models",
    table 1). Training costs three times as much.
    """
    channels, layers = config.n_embd, config.n_layer
    matrices = 12 * channels * channels * layers + config.vocab_size * channels
    attention = 2 * config.n_positions * channels * layers
    return 2 * (matrices + attention)


def _costs(config: GPTConfig, model: GPT) -> list[str]:
    size = sum(parameter.numel() * parameter.dtype.itemsize for parameter in model.parameters())
    itemsize = next(iter(model.parameters())).dtype.itemsize
    flops = forward_flops(config)
    cache = 2 * config.n_layer * config.n_embd * itemsize
    return [
        f"FLOPs a token   {_si(flops)} forward, {_si(3 * flops)} to train "
        f"(at {config.n_positions} tokens of context)",
        f"memory          {_bytes(size)} weights; {_bytes(4 * size)} to train, with gradients and "
        f"AdamW's moments, activations besides",
        f"KV cache        {_bytes(cache)} a token, {_bytes(cache * config.n_positions)} at most",
    ]


def _run(path: Path) -> list[str]:
    trained = load_model(path)
    model = trained.model
    lines = [repr(model), "", *_costs(model.config, model)]
    lines.append(f"vocabulary      {len(trained.vocabulary)} tokens")
    lines.append(f"weights from    {trained.weights_path}")
    return lines + _history(path)


def _hub_folder(path: Path) -> list[str]:
    with usable(str(path)):
        model = _model_class(path).from_pretrained(path)
    size = sum(parameter.numel() * parameter.dtype.itemsize for parameter in model.parameters())
    names = list((model.config.id2label or {}).values())
    lines = [
        repr(model),
        "",
        f"family          {model.config.model_type}",
        f"memory          {_bytes(size)} weights",
    ]
    if type(model).__name__.endswith("Classification") and names:
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        lines.append(f"labels          {', '.join(names[:8])}{more}")
    return lines + _history(path)


def _model_class(path: Path) -> Any:
    """The class that the folder's config names; the bare model's if we have none of that name."""
    config = AutoConfig.from_pretrained(path)
    family = import_module(type(config).__module__)
    for name in config.architectures or ():
        found = getattr(family, name, None)
        if isinstance(found, type) and issubclass(found, PretrainedModel):
            return found
    return AutoModel


def _history(path: Path) -> list[str]:
    """How the folder's run went, if it has one."""
    if not (path / RUN_FILE).exists():
        return []
    lines, description = [], read_run(path)
    given = {name: value for name, value in description["settings"].items() if value is not None}
    settings = ", ".join(f"{name} {value}" for name, value in given.items())
    lines.append(f"settings        {settings}")
    result = description.get("result")
    if isinstance(result, dict):
        loss, step = result.get("validation_loss"), result.get("step")
        if isinstance(loss, float) and isinstance(step, int):
            lines.append(f"validation      {loss:.4f} nats a token after {step:,} steps")
        else:
            found = (f"{name} {value:.6g}" for name, value in result.items())
            lines.append(f"result          {', '.join(found)}")
    rows = [row for row in read_log(path / LOG_FILE) if "loss" in row]
    if rows:
        lines.append(f"last log row    step {rows[-1].get('step')}, loss {rows[-1]['loss']}")
    names = ", ".join(checkpoint.name for checkpoint in list_checkpoints(path))
    return [*lines, f"checkpoints     {names or 'none'}"]


def _presets() -> list[str]:
    lines = [
        f"glassformer {glassformer.__version__}, NumPy {np.__version__}",
        "",
        f"{'config':8} {'layers':>6} {'heads':>5} {'channels':>8} {'tokens':>6} {'parameters':>11} "
        f"{'FLOPs a token':>14} {'to train':>10}",
    ]
    for name, preset in PRESETS.items():
        config = GPTConfig(
            vocab_size=256,
            n_positions=preset.block_size,
            n_embd=preset.n_embd,
            n_layer=preset.n_layer,
            n_head=preset.n_head,
        )
        count = GPT(config).num_parameters()
        lines.append(
            f"{name:8} {preset.n_layer:6} {preset.n_head:5} {preset.n_embd:8} "
            f"{preset.block_size:6} {count:11,} {_si(forward_flops(config)):>14} "
            f"{_bytes(16 * count):>10}  {DESCRIPTIONS[name]}"
        )
    return [*lines, "", "(256 byte tokens; memory of weights, gradients and AdamW in float32)"]


def _si(number: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if number < 1000 or unit == "T":
            return f"{number:.3g} {unit}".rstrip()
        number /= 1000
    raise AssertionError("unreachable")


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if number < 1024 or unit == "TiB":
            return f"{number:.4g} {unit}"
        number /= 1024
    raise AssertionError("unreachable")
