"""Where a command computes and in which precision: its arguments, and checking them.

Imports nothing heavy.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from glassformer.cli.errors import CommandError
from glassformer.devices import Device, as_device

ON_CPU = {"device": "cpu", "bf16": False}  # what a training run is that doesn't say


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument(
        "--device", metavar="NAME", help="cpu (default), cuda, cuda:1 … or torch-cpu"
    )


def add_device_and_precision(parser: argparse.ArgumentParser) -> None:
    """Add what a command that trains has: `--device` and `--bf16`."""
    add_device(parser)
    parser.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        help="compute in bfloat16, with float32 weights; needs --device cuda or torch-cpu "
        "(default: --no-bf16, float32)",
    )


def usable_device(name: str | None) -> Device:
    """Return the device of that name.

    Raises:
        CommandError: it can't be used here.
    """
    try:
        return as_device(name)
    except ValueError as error:
        raise CommandError(str(error)) from error


def training_device(settings: Mapping[str, Any]) -> Device:
    """Return the device of a training run's settings.

    Raises:
        CommandError: it can't be used here, or has no bfloat16, but that is asked for.
    """
    device = usable_device(settings["device"])
    if device.type == "cpu" and settings["bf16"]:
        raise CommandError(
            "--bf16 needs a device that has bfloat16: --device cuda or --device torch-cpu; a run "
            "begun with --bf16 goes on in float32 with --no-bf16"
        )
    return device


def place(settings: Mapping[str, Any]) -> str:
    """Return the line of a run's introduction that says where it computes; none on the CPU."""
    if settings["device"] == "cpu":
        return ""
    return f"\ndevice {settings['device']}, {'bfloat16' if settings['bf16'] else 'float32'}"
