import sys

import pytest

from glassformer.data import CorpusError, python_documentation, read_text
from glassformer.data.corpus import python_docstrings


def test_python_documentation_is_the_topics_in_key_order():
    from pydoc_data.topics import topics

    text = python_documentation()
    assert text == "\n\n".join(topics[key] for key in sorted(topics))
    if sys.version_info[:2] == (3, 11):  # the text changes with the documentation
        assert abs(len(text) - 465_126) < 20_000


def test_docstrings_are_those_that_help_shows():
    import inspect
    from asyncio.base_events import BaseEventLoop

    pairs = python_docstrings(100)
    assert len(set(pairs)) == 800 and len({package for _, package in pairs}) == 8
    assert (inspect.getdoc(BaseEventLoop.set_task_factory), "asyncio") in pairs
    assert not any(text.count(" ") < 1 for text, _ in pairs)
    with pytest.raises(CorpusError, match=r"json holds \d+ docstrings, not 100"):
        python_docstrings(100, ["json"])


def test_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffzwölf\r\nBären\n".encode())
    assert read_text(path) == "zwölf\r\nBären\n"  # without its byte-order mark


def test_folder_is_read_in_order_without_hidden_and_binary_files(tmp_path):
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "z.md").write_text("one")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0")
    (tmp_path / ".hidden").write_text("no")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("no")
    assert read_text(tmp_path) == "one\n\ntwo"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b" \n\t ", "is empty"),
        (b"text\0more", "not UTF-8 text"),
        (b"\xff\xfe\xfa", "not UTF-8 text"),
    ],
)
def test_unusable_file_is_named(tmp_path, content, message):
    path = tmp_path / "corpus.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CorpusError, match=f"corpus.txt.*{message}"):
        read_text(path)


def test_folder_without_text_is_named(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\0\1")
    with pytest.raises(CorpusError, match="no UTF-8 text files"):
        read_text(tmp_path)
