"""Tables of names: where the Hugging Face hub's checkpoints keep what a model of ours holds.

A table has a row for each tensor that is called or laid out differently there, ours on the left:

    Names({
        "embed_tokens.weight": "embeddings.word_embeddings.weight",
        "blocks.{i}.self_attn.in_proj_{p}": Stacked(
            "encoder.layer.{i}.attention.self.query.{p}",
            "encoder.layer.{i}.attention.self.key.{p}",
            "encoder.layer.{i}.attention.self.value.{p}",
        ),
        "blocks.{i}.feed_forward.linear1.{p}": Transposed("h.{i}.mlp.c_fc.{p}"),
    })

`{i}` and `{j}` stand for numbers and `{p}` for "weight" or "bias". A name without a row is the
same on both sides. Read from left to right the table saves, from right to left it loads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_PLACEHOLDERS = {"i": r"\d+", "j": r"\d+", "p": "weight|bias"}


class Stacked:
    """One matrix of ours is several of the hub's, one below the other.

    Args:
        names: of theirs, from the top.
        rows: how many rows each has, told by the model's config; equally many unless given.
    """

    def __init__(self, *names: str, rows: Callable[[Any], tuple[int, ...]] | None = None) -> None:
        self.names = names
        self.rows = rows


class Transposed(str):
    """The hub keeps the matrix as (in, out); ours is (out, in)."""


@dataclass(frozen=True)
class Place:
    """Where the hub keeps one tensor: under these names, each with so many rows of it."""

    names: tuple[str, ...]
    rows: tuple[int, ...] | None = None  # None: equal parts
    transposed: bool = False


class Names:
    """A table of names; see above."""

    def __init__(self, table: Mapping[str, str | Stacked]) -> None:
        self._rows = [(_pattern(ours), theirs) for ours, theirs in table.items()]

    def place(self, name: str, config: Any, prefix: str = "") -> Place:
        """Return where the hub keeps what we call `name`; its own names begin with `prefix`."""
        for pattern, theirs in self._rows:
            match = pattern.fullmatch(name)
            if match is None:
                continue
            found = match.groupdict()
            if isinstance(theirs, Stacked):
                rows = None if theirs.rows is None else theirs.rows(config)
                return Place(tuple(prefix + part.format(**found) for part in theirs.names), rows)
            hub_name = prefix + theirs.format(**found)
            return Place((hub_name,), transposed=isinstance(theirs, Transposed))
        return Place((prefix + name,))


def _pattern(ours: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", ours)
    pattern = "".join(
        f"(?P<{part}>{_PLACEHOLDERS[part]})" if index % 2 else re.escape(part)
        for index, part in enumerate(parts)
    )
    return re.compile(pattern)
