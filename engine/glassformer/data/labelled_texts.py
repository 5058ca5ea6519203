"""Texts, or pairs of texts, with a label each: what a classifier learns from."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from glassformer.data.tables import TableError, read_table


@dataclass(frozen=True)
class LabelledTexts:
    """Texts and labels from a table.

    Attributes:
        path: the table.
        texts: (N,).
        pairs: the second text of each, or None.
        labels: (N,), as the table has them.
        lines: where in the table each text ends.
    """

    path: Path
    texts: list[str]
    pairs: list[str] | None
    labels: list[str]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int]) -> LabelledTexts:
        """Return some of the texts, in the order of the indices."""
        return LabelledTexts(
            self.path,
            [self.texts[i] for i in indices],
            None if self.pairs is None else [self.pairs[i] for i in indices],
            [self.labels[i] for i in indices],
            [self.lines[i] for i in indices],
        )

    def seem_numbers(self) -> bool:
        """Whether the labels look like amounts: ten different numbers or more, of few texts each.

        Few are fewer than five on average.
        """
        names = set(self.labels)
        if len(names) < 10 or len(self) >= 5 * len(names):
            return False
        try:
            return all(math.isfinite(float(name)) for name in names)
        except ValueError:
            return False

    def label_names(self) -> list[str]:
        """Return the different labels, sorted: whole numbers by value, others as text.

        Raises:
            TableError: there are fewer than two, or as many as texts.
        """
        names = set(self.labels)
        if len(names) < 2:
            raise TableError(
                f"{self.path}: every text has the label {next(iter(names))!r}; there must be two "
                "labels at least to tell apart"
            )
        if len(names) == len(self) > 2:
            raise TableError(
                f"{self.path}: each of the {len(self)} texts has a label of its own; is it another "
                "column that holds the labels, or are they numbers (--task regression)?"
            )
        try:
            return sorted(names, key=lambda name: (int(name), name))
        except ValueError:
            return sorted(names)

    def classes(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return each label's place in `names`, (N,).

        Raises:
            TableError: a label is none of them.
        """
        place = {name: index for index, name in enumerate(names)}
        unseen = sorted(set(self.labels) - place.keys())
        if unseen:
            line = self.lines[self.labels.index(unseen[0])]
            numbers = "; are they numbers (--task regression)?" if self.seem_numbers() else ""
            raise TableError(
                f"{self.path} has labels that the training texts lack: {_some(unseen)} (the first "
                f"in line {line}); those to learn are {_some(names)}{numbers}"
            )
        return np.array([place[label] for label in self.labels])

    def numbers(self) -> npt.NDArray[np.float32]:
        """Return the labels as numbers, (N,).

        Raises:
            TableError: one is no finite number.
        """
        found = np.empty(len(self), dtype=np.float32)
        for index, (label, line) in enumerate(zip(self.labels, self.lines, strict=True)):
            try:
                found[index] = float(label)
            except ValueError:
                found[index] = math.nan
            if not math.isfinite(found[index]):
                raise TableError(
                    f"{self.path}, line {line}: the label {label!r:.40} is no finite number"
                )
        return found


def read_labelled(
    path: str | os.PathLike[str], text: str, label: str, pair: str | None = None
) -> LabelledTexts:
    """Read a table's columns of texts and labels, and of second texts if `pair` names one.

    Raises:
        TableError: the file is no table, a column is missing, a label or a text is empty.
    """
    table = read_table(path)
    texts = table.column(text)
    pairs = None if pair is None else table.column(pair)
    labels = [value.strip() for value in table.column(label)]
    for name, values in ((label, labels), (text, texts)):
        empty = [line for value, line in zip(values, table.lines, strict=True) if not value.strip()]
        if empty:
            raise TableError(
                f"{path}, line {empty[0]}: {name} is empty, as in {len(empty)} of {len(values)} "
                "rows; fill in or remove them"
            )
    return LabelledTexts(Path(path), texts, pairs, labels, table.lines)


def split_held_out(
    data: LabelledTexts, seed: int, stratified: bool
) -> tuple[LabelledTexts, LabelledTexts]:
    """Return nine tenths to learn from, in their order, and a tenth drawn by `seed`.

    Stratified, it is a tenth of each label's texts, rounded; a label that has but one text keeps
    it, and of all together at least one is held out.

    Raises:
        TableError: too few texts to hold any out.
    """
    rng = np.random.default_rng(seed)
    groups: dict[str, list[int]] = {}
    for index, label in enumerate(data.labels):
        groups.setdefault(label if stratified else "", []).append(index)
    held: list[int] = []
    for members in groups.values():
        count = round(len(members) / 10)
        held += rng.permutation(members)[:count].tolist()
    if not held:
        largest = max(groups.values(), key=len)
        if len(largest) < 2:
            raise TableError(f"{data.path} has too few texts to hold any out; give more")
        held = [int(rng.choice(largest))]
    out = set(held)
    learnt = [index for index in range(len(data)) if index not in out]
    return data.take(learnt), data.take(sorted(out))


def _some(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
