"""Rotary positions of checkpoints: how a config says that they turn, and positions token by token.

A config says it in transformers 5's words, or in older ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import numpy as np
import numpy.typing as npt

from glassformer.models.inputs import check_beside
from glassformer.models.safetensors_header import shown
from glassformer.nn import RotaryPositions
from glassformer.nn import functional as F
from glassformer.nn.positions import llama3_frequencies, rotary_frequencies
from glassformer.tensor import Tensor, tensor

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


# cos and sin of the angles of each token, (T, D/2) or (B, 1, T, D/2), while a block runs on them.
_TOLD: ContextVar[tuple[Tensor, Tensor] | None] = ContextVar("told positions", default=None)


class ToldRotaryPositions(RotaryPositions):
    """`RotaryPositions` for blocks that are told each token's position, see `told`."""

    def rotate(self, query: Tensor, key: Tensor, offset: int) -> tuple[Tensor, Tensor]:  # noqa: D102
        table = _TOLD.get()
        if table is None:
            return super().rotate(query, key, offset)
        return F.rotary_embedding(query, *table), F.rotary_embedding(key, *table)

    def table(self, position_ids: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin for tokens at positions (B, T) or (1, T), as x is held."""
        angles = position_ids.cpu().numpy()[..., None] * np.asarray(self.frequencies)  # (B, T, D/2)
        # What is one for the whole batch is a table as kernels take it, (T, D/2).
        angles = angles[0] if len(angles) == 1 else angles[:, None]
        cos, sin = (
            tensor(part, dtype=x.dtype, device=x.device)
            for part in (np.cos(angles), np.sin(angles))
        )
        return cos, sin


def check_positions(position_ids: Tensor, input_ids: Tensor, most: int) -> None:
    """Check positions given for `input_ids` (B, T).

    Raises:
        TypeError: they aren't integers.
        ValueError: they are neither (B, T) nor (1, T).
        IndexError: one is negative, or not below `most`.
    """
    check_beside("position_ids", position_ids, input_ids)
    positions = position_ids.cpu().numpy()
    if positions.dtype.kind not in "iu":
        raise TypeError(f"position_ids must be integers, got {position_ids.dtype.name}")
    wrong = positions[(positions < 0) | (positions >= most)]
    if wrong.size:
        raise IndexError(
            f"position {wrong[0]} in position_ids; the model's max_position_embeddings={most} "
            f"allow 0 to {most - 1}"
        )


def told(block: Callable[..., Any], table: tuple[Tensor, Tensor]) -> Callable[..., Any]:
    """Return `block`, its attention at the positions of a `ToldRotaryPositions.table`.

    Around each call rather than around all, for a block may be run again in backward.
    """

    def run(*inputs: Any, **settings: Any) -> Any:
        before = _TOLD.set(table)
        try:
            return block(*inputs, **settings)
        finally:
            _TOLD.reset(before)

    return run
