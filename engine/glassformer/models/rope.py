"""How a config says that rotary positions turn: in transformers 5's words, and in older ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from glassformer.models.safetensors_header import shown
from glassformer.nn.positions import llama3_frequencies, rotary_frequencies

Settings = Mapping[str, Any]


def settled_rope(
    parameters: Settings | None, theta: float | None, scaling: Settings | None
) -> dict[str, Any]:
    """Return `rope_parameters` as transformers 5 writes it, "rope_type" and "rope_theta" in it.

    Args:
        parameters: `rope_parameters`, if the file has it.
        theta: `rope_theta` of older files.
        scaling: `rope_scaling` of older files, where "rope_type" may be called "type".

    Raises:
        ValueError: these contradict each other.
    """
    older = {name: value for name, value in (scaling or {}).items() if name != "type"}
    kind = (scaling or {}).get("type")
    if kind is not None:
        older.setdefault("rope_type", kind)
    if theta is not None:
        older["rope_theta"] = theta
    rope = {"rope_type": "default", "rope_theta": 10000.0, **older, **(parameters or {})}
    for name, value in older.items():
        if rope[name] != value:
            raise ValueError(
                f"{name} is {shown(value)} in rope_theta or rope_scaling, but "
                f"{shown(rope[name])} in rope_parameters; give rope_theta=None and "
                "rope_scaling=None beside rope_parameters"
            )
    return rope


def rope_frequencies(rope: Settings, head_dim: int, max_positions: int) -> npt.NDArray[Any]:
    """Return how far each pair of channels turns from a position to the next: (head_dim / 2,).

    Args:
        rope: as `settled_rope` returns it; "rope_type" is "default", "linear" (Chen et al. 2023,
            "Extending Context Window of Large Language Models via Position Interpolation",
            section 2.3) or "llama3" (see `llama3_frequencies`).
        head_dim: channels of a head.
        max_positions: what "llama3" takes for the trained length if it isn't told.

    Raises:
        ValueError: another way is asked for, or a number is missing.
    """
    kind = rope["rope_type"]
    if kind not in ("default", "linear", "llama3") or rope.get("partial_rotary_factor", 1) != 1:
        raise ValueError(
            f"positions that turn by {shown(dict(rope))} are not supported; rope_type may be "
            "'default', 'linear' or 'llama3', over all channels of a head"
        )
    plain = rotary_frequencies(head_dim, _number(rope, "rope_theta"))
    if kind == "linear":
        return plain / _number(rope, "factor")
    if kind == "llama3":
        trained = {"original_max_position_embeddings": max_positions, **rope}
        low, high = _number(rope, "low_freq_factor"), _number(rope, "high_freq_factor")
        if low >= high:
            raise ValueError(f"low_freq_factor={low} must be below high_freq_factor={high}")
        return llama3_frequencies(
            plain,
            factor=_number(rope, "factor"),
            low_freq_factor=low,
            high_freq_factor=high,
            trained_positions=_number(trained, "original_max_position_embeddings"),
        )
    return plain


def _number(rope: Settings, name: str) -> float:
    value = rope.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-6 <= value <= 1e12:
        raise ValueError(
            f"{name} must be a positive number for rope_type={rope['rope_type']!r}, from 1e-6 to "
            f"1e12; got {shown(value)}"
        )
    return value
