"""Reading tables of texts and labels: CSV, TSV, JSONL."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glassformer.data.corpus import CorpusError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
_DELIMITERS = {"\t": "tabs", ";": "semicolons (';')", ",": "commas"}
_REMEDIES = {
    "\t": "rename it to end in .tsv",
    ";": "save it again with commas (where a program asks for the field delimiter)",
    ",": "rename it to end in .csv",
}


class TableError(CorpusError):
    """A file is no usable table; the message names the file, the line and what to do."""


class ColumnError(TableError):
    """A table has no column of a name."""


@dataclass(frozen=True)
class Table:
    """Rows of named values.

    Attributes:
        path: the file.
        columns: their names, in the file's order.
        rows: the values of each row by column; a row of JSONL may lack some.
        lines: where in the file each row ends, from 1.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> list[str]:
        """Return a column's values as text; numbers and truth values of JSON as JSON writes them.

        Raises:
            ColumnError: there is no such column; those there are get listed.
            TableError: a row lacks it or holds something that is no text.
        """
        if name not in self.columns:
            shown = ", ".join(one if one == one.strip() else repr(one) for one in self.columns)
            raise ColumnError(f"{self.path} has no column {name!r}; its columns are {shown}")
        values = []
        for row, line in zip(self.rows, self.lines, strict=True):
            value = row.get(name)
            if isinstance(value, (bool, int, float)):
                value = json.dumps(value)
            if not isinstance(value, str):
                what = json.dumps(value) if name in row else "missing"
                raise TableError(
                    f"{self.path}, line {line}: {name} should be text or a number but is "
                    f"{what:.60}; correct or remove the line"
                )
            values.append(value)
        return values


def read_table(path: str | os.PathLike[str]) -> Table:
    """Read a table whose first line names the columns, or whose lines are JSON objects.

    The end of the path says which: ".csv" (commas, fields with commas, quotes or line breaks in
    double quotes), ".tsv" (tabs; quotes are characters like others), ".jsonl" or ".ndjson" (the
    columns are the keys of all objects). The encoding is UTF-8. Blank lines are left out.

    Raises:
        TableError: nothing there, not readable, not a table, or without rows.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise TableError(f"{path}: the name should end in one of {', '.join(SUFFIXES)}")
    text = _text(path)
    if not text.strip():
        raise TableError(f"{path} is empty; give a table of texts and labels")
    if kind in (".csv", ".tsv"):
        table = _delimited(path, text, "," if kind == ".csv" else "\t")
    else:
        table = _json_lines(path, text)
    if not table.rows:
        raise TableError(f"{path} has a header but no rows; give a table of texts and labels")
    return table


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TableError(f"cannot read {path}: {error.strerror}; check the path") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise TableError(
            f"{path}, line {line}: byte {data[error.start]:#04x} is not UTF-8; save the file as "
            "UTF-8"
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise TableError(f"{path}, line {line}: a zero byte; save the file as UTF-8 text")
    return text


def _delimited(path: Path, text: str, delimiter: str) -> Table:
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE,
        strict=True,
    )
    rows, lines = [], []
    columns: tuple[str, ...] | None = None
    try:
        with _fields_of_any_length():
            for fields in reader:
                if not fields:
                    continue
                if columns is None:
                    columns = _header(path, fields, delimiter)
                    continue
                if len(fields) != len(columns):
                    raise TableError(
                        f"{path}, line {reader.line_num}: {len(fields)} fields, but the header has "
                        f"{len(columns)} ({', '.join(columns)}); quote fields that hold the "
                        "delimiter"
                    )
                rows.append(dict(zip(columns, fields, strict=True)))
                lines.append(reader.line_num)
    except csv.Error as error:
        raise TableError(
            f"{path}, line {reader.line_num}: {error}; is a double quote left open?"
        ) from error
    return Table(path, columns or (), rows, lines)


def _header(path: Path, names: list[str], delimiter: str) -> tuple[str, ...]:
    others = [other for other in _DELIMITERS if other != delimiter and other in names[0]]
    if len(names) == 1 and others:
        raise TableError(
            f"{path} has a single column, {names[0]!r:.60}: its fields seem to be separated by "
            f"{_DELIMITERS[others[0]]}, but those of a {path.suffix} file are by "
            f"{_DELIMITERS[delimiter]}; {_REMEDIES[others[0]]}"
        )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise TableError(
            f"{path} has more than one column {', '.join(map(repr, repeated))}; rename them"
        )
    return tuple(names)


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    """Lift csv's limit of 131,072 characters a field: a text may be a book."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _json_lines(path: Path, text: str) -> Table:
    rows, lines = [], []
    columns: dict[str, None] = {}
    for number, line in enumerate(text.split("\n"), 1):  # texts may hold other line separators
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TableError(f"{path}, line {number}: not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise TableError(
                f"{path}, line {number}: not a JSON object but {line.strip():.40}; each line "
                'should be like {"text": "…", "label": "…"}'
            )
        rows.append(row)
        lines.append(number)
        columns.update(dict.fromkeys(row))
    return Table(path, tuple(columns), rows, lines)
