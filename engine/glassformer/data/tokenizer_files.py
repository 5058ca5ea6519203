"""The files of a tokenizer, and the package that does the work: what can go wrong, in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any


class TokenizerError(ValueError):
    """A folder holds no tokenizer that can be used; the message names the file and what to do."""


def tokenizers_package() -> ModuleType:
    """Return the `tokenizers` package.

    Raises:
        ImportError: it isn't installed; says how to.
    """
    try:
        import tokenizers
    except ImportError:
        raise ImportError(
            "tokenizers are read by the 'tokenizers' package: pip install glassformer[hub]"
        ) from None
    module: ModuleType = tokenizers
    return module


def is_package_error(error: BaseException) -> bool:
    """Whether the `tokenizers` package raised this; a panic of its is no `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its beginning."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def token_content(path: Path | str, name: str, value: Any) -> str:
    """Return the text of a token that is given as a string or as an object with `content`."""
    content = value.get("content") if isinstance(value, Mapping) else value
    if not isinstance(content, str) or not content:
        raise TokenizerError(f"{path}: {name} must be a token or have its 'content', got {value!r}")
    return content


def read_json(path: Path) -> Any:
    """Return what a JSON file holds."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(
            f"{path}: not valid JSON ({one_line(error)}); get the file again"
        ) from error


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file, empty if there is no file."""
    if not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: must hold a JSON object, got {type(value).__name__}")
    return value


def read_text(path: Path) -> str:
    """Return a file's UTF-8 text."""
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path}: cannot be read ({error}); get the file again") from error


def write_whole(path: Path, data: bytes) -> None:
    """Write or replace a file: at any instant it has its old content or the new."""
    temporary = path.with_name(f".{path.name}.gf-saving")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
