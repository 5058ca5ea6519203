import csv
import json

import pytest

from glassformer.data.corpus import CorpusError
from glassformer.data.tables import TableError, read_table

TEXTS = ["plain", "a, comma", 'a "quote"', "two\nlines", "", "Größe\u2028ß", "x" * 200_000]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_what_csv_writes_comes_back(tmp_path):
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text", "label"], *([text, "x"] for text in TEXTS)])
    table = read_table(path)
    assert table.columns == ("text", "label") and len(table) == len(TEXTS)
    assert table.column("text") == TEXTS
    assert csv.field_size_limit() == 131_072


def test_json_lines_are_columns_of_text(tmp_path):
    rows = [{"text": text, "label": i, "on": i > 1} for i, text in enumerate(TEXTS)]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    table = read_table(write(tmp_path / "a.jsonl", lines + "\n\n"))
    assert table.column("text") == TEXTS
    assert table.column("label") == [str(i) for i in range(len(TEXTS))]
    assert table.column("on")[:3] == ["false", "false", "true"]


def test_quotes_in_tsv_are_characters(tmp_path):
    path = write(tmp_path / "a.tsv", '\ufefftext\tlabel\r\n"quoted"\tx\r\nan "open one\ty\r\n')
    assert read_table(path).column("text") == ['"quoted"', 'an "open one']


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.xlsx", "text", [".csv, .tsv, .jsonl"]),
        ("a.csv", "", ["is empty"]),
        ("a.csv", " \n", ["is empty"]),
        ("a.csv", "text,label\n", ["has a header but no rows"]),
        ("a.csv", "text,label\na,b,c\n", ["line 2", "3 fields", "2 (text, label)"]),
        ("a.csv", 'text,label\na,b\n"open,b\nc,d\n', ["line 4", "double quote left open?"]),
        ("a.csv", "text,text\na,b\n", ["more than one column 'text'"]),
        ("a.csv", "text,label\na,b\nGr\u00f6\u00dfe,c\n".encode("latin-1"), ["line 3", "0xf6"]),
        ("a.csv", "text,label\na,b\n".encode("utf-16"), ["line 1", "not UTF-8"]),
        ("a.csv", "text,label\na\0,b\n", ["line 2", "a zero byte"]),
        ("a.jsonl", '{"text": "a"}\n{"text"\n', ["line 2", "not valid JSON"]),
        ("a.jsonl", '["a"]\n', ["line 1", 'not a JSON object but ["a"]']),
    ],
)
def test_what_is_no_table_is_named_with_its_line(tmp_path, name, content, parts):
    path = write(tmp_path / name, content)
    with pytest.raises(TableError) as raised:
        read_table(path)
    assert str(path) in str(raised.value)
    for part in parts:
        assert part in str(raised.value)


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "no.csv", tmp_path):
        with pytest.raises(CorpusError, match="No such file|should end in"):
            read_table(path)


def test_missing_columns_and_values(tmp_path):
    table = read_table(write(tmp_path / "a.csv", "text,label\na,b\n"))
    with pytest.raises(TableError, match="no column 'words'; its columns are text, label"):
        table.column("words")
    lines = '{"text": "a"}\n{"text": null}\n{"label": 1}\n'
    table = read_table(write(tmp_path / "a.jsonl", lines))
    with pytest.raises(TableError, match="line 2: text should be text or a number but is null"):
        table.column("text")
    with pytest.raises(TableError, match="line 1: label .* missing"):
        table.column("label")
