"""Reading text to train on: a file, a folder, or what comes with Python."""

from __future__ import annotations

import ast
import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path


class CorpusError(ValueError):
    """There is no usable text; the message names the path and what to do."""


def python_documentation() -> str:
    """Return the language reference that every Python carries for `help()`: 465,000 characters.

    The topics in the order of their names, separated by blank lines. The text differs a little
    between versions of Python.
    """
    from pydoc_data import topics

    return "\n\n".join(topics.topics[name] for name in sorted(topics.topics))


DOCUMENTED_PACKAGES = (
    "asyncio",
    "email",
    "http",
    "importlib",
    "logging",
    "multiprocessing",
    "unittest",
    "xml",
)


def python_docstrings(
    per_package: int = 100, packages: Sequence[str] = DOCUMENTED_PACKAGES
) -> list[tuple[str, str]]:
    """Return (docstring, package) pairs of the standard library: labelled text on every machine.

    From each package come the first `per_package` different docstrings of five words or more, by
    the files' paths and the places in them. The modules are read, not imported. The texts differ a
    little between versions of Python; the default packages have over 130 each.

    Raises:
        CorpusError: a package has fewer docstrings, as where the library comes without sources.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    pairs = []
    for package in packages:
        texts = list(dict.fromkeys(_docstrings(library / package)))[:per_package]
        if len(texts) < per_package:
            raise CorpusError(
                f"{library / package} holds {len(texts)} docstrings, not {per_package}; ask for "
                "fewer, or for other packages"
            )
        pairs += [(text, package) for text in texts]
    return pairs


def _docstrings(folder: Path) -> Iterator[str]:
    """Yield the docstrings in a package's modules, its tests left out."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in sorted(folder.rglob("*.py")):
        if {"test", "tests"} & set(path.relative_to(folder).parts):
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            text = ast.get_docstring(node) if isinstance(node, documented) else None
            if text and len(text.split()) >= 5:
                yield text


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the text of a file, or of all text files in a folder and below.

    A folder's files are read in the order of their paths and joined by blank lines; hidden files
    and files that are not UTF-8 text are left out.

    Raises:
        CorpusError: nothing there, not readable, not text, or empty.
    """
    path = Path(path)
    if path.is_dir():
        texts = [text for file in _visible_files(path) if (text := _decoded(file)) is not None]
        if not texts:
            raise CorpusError(f"{path} holds no UTF-8 text files; give a file or folder with text")
        text = "\n\n".join(texts)
    elif not path.exists():
        raise CorpusError(f"{path} does not exist; give a text file or a folder of text files")
    else:
        decoded = _decoded(path)
        if decoded is None:
            raise CorpusError(f"{path} is not UTF-8 text (a binary file?); give a text file")
        text = decoded
    if not text.strip():
        raise CorpusError(f"{path} is empty; give a file with text to learn from")
    return text


def fingerprint(text: str) -> str:
    """Return a hash of the text, to tell whether two runs read the same."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _visible_files(folder: Path) -> list[Path]:
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(root, name) for name in files if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())


def _decoded(path: Path) -> str | None:
    """The text of a file, or None if it is binary."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}; check the path") from error
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
