"""Where a folder keeps its chat templates: files of their own, or `tokenizer_config.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glassformer.data.chat_template import Templates
from glassformer.data.tokenizer_files import TokenizerError, read_text

_FILE = "chat_template.jinja"
_FOLDER = "additional_chat_templates"  # holds NAME.jinja


def templates_in(folder: Path) -> Templates:
    """Return the templates of a folder's own files, None if there are none."""
    found = {}
    if (folder / _FILE).is_file():
        found["default"] = read_text(folder / _FILE)
    for path in sorted((folder / _FOLDER).glob("*.jinja")):
        found[path.name.removesuffix(".jinja")] = read_text(path)
    return found["default"] if list(found) == ["default"] else found or None


def checked_templates(path: Path, value: Any) -> Templates:
    """Return `chat_template` as a setting has it: one, or a list of {"name": …, "template": …}.

    Args:
        path: of the file that says so, for errors.
        value: what it says.

    Raises:
        TokenizerError: something else.
    """
    if value is None or isinstance(value, str):
        return value
    try:
        named = (
            value if isinstance(value, dict) else {one["name"]: one["template"] for one in value}
        )
    except (TypeError, KeyError):
        named = {"": None}
    for name, template in named.items():
        if not isinstance(name, str) or not isinstance(template, str):
            raise TokenizerError(
                f"{path}: chat_template must be a template or a list of "
                f'{{"name": …, "template": …}}, got {value!r:.80}'
            )
    return named


def template_files(templates: Templates) -> dict[str, str]:
    """Return what to write, by path in the folder.

    Raises:
        ValueError: a template's name is none for a file.
    """
    if not isinstance(templates, dict):
        return {} if templates is None else {_FILE: templates}
    files = {}
    for name, template in templates.items():
        if not name or set(name) & set("/\\\0") or name.startswith("."):
            raise ValueError(f"the chat template {name!r} becomes a file: give it another name")
        files[_FILE if name == "default" else f"{_FOLDER}/{name}.jinja"] = template
    return files


def remove_other_templates(folder: Path, files: dict[str, str]) -> None:
    """Delete the templates of a tokenizer that was saved there before: they would be read."""
    for path in (folder / _FILE, *(folder / _FOLDER).glob("*.jinja")):
        if path.relative_to(folder).as_posix() not in files:
            path.unlink(missing_ok=True)
