"""Rendering a chat template, which may come from anywhere, where it can reach nothing.

Templates are written in Jinja's language. The sandbox keeps them from Python's own names, from
files and from changing what they are given; it does not bound the time or memory they take.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np

from glassformer.data.tokenizer_files import one_line

_OLDEST = (3, 1, 6)  # earlier sandboxes have known ways out
_ADVICE = "pip install glassformer[hub]"
_EXACTLY: dict[type, Any] = {str: str.__str__, int: int.__int__, float: float.__float__}


class ChatTemplateError(ValueError):
    """A conversation cannot be rendered; the message says whether the template refused it."""


def render_template(
    template: str, variables: Mapping[str, Any], *, find_generation: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    """Return the text that a template makes of variables.

    Args:
        template: in Jinja's language.
        variables: what it sees of them is rebuilt from plain types.
        find_generation: find what stands between `{% generation %}` and `{% endgeneration %}`.

    Returns:
        The text, and the (start, end) of each such part in it; none unless asked for.

    Raises:
        ChatTemplateError: the template is malformed, fails, or refuses the variables.
        ImportError: jinja2 is missing or too old.
    """
    try:
        compiled, marks = _compiled(template, find_generation)
        text: str = compiled.render(_plain(dict(variables)))
    except (ChatTemplateError, ImportError):
        raise
    except Exception as error:  # its expressions may raise whatever Python's do
        raise ChatTemplateError(
            f"the chat template fails on this conversation: {type(error).__name__}: "
            f"{one_line(error)}"
        ) from error
    return _without_marks(text, marks) if find_generation else (text, [])


def _require_jinja() -> None:
    try:
        import_module("jinja2")
    except ImportError:
        raise ImportError(
            f"chat templates are rendered by the 'jinja2' package: {_ADVICE}"
        ) from None
    # Imported here: it alone would take longer than all else that reads text.
    found = import_module("importlib.metadata").version("jinja2")
    if tuple(int(part) for part in re.findall(r"\d+", found)[:3]) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise ImportError(
            f"jinja2 {found} has known ways out of its sandbox; chat templates need {oldest} or "
            f"newer: {_ADVICE} --upgrade"
        )


@lru_cache(maxsize=32)
def _compiled(template: str, find_generation: bool) -> tuple[Any, tuple[str, str]]:
    """Return a template ready to render, and what it writes around each generated part."""
    _require_jinja()
    nonce = secrets.token_hex(8) if find_generation else ""  # so that no text holds them by chance
    marks = (f"<{nonce}>", f"</{nonce}>") if find_generation else ("", "")
    environment = import_module("jinja2.sandbox").ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _generation_tag(*marks)],
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "namespace": _namespace(),
        "dict": _new_dict,  # not the class, whose attributes lead on
    }
    return environment.from_string(template), marks


def _generation_tag(opening: str, closing: str) -> Any:
    """Return the extension of Jinja that reads `{% generation %}`, marking what is inside."""
    nodes = import_module("jinja2.nodes")

    class Generation(import_module("jinja2.ext").Extension):  # type: ignore[misc]
        tags = {"generation"}

        def parse(self, parser: Any) -> list[Any]:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            before, after = (
                nodes.Output([nodes.TemplateData(mark)]) for mark in (opening, closing)
            )
            return [node.set_lineno(line) for node in (before, nodes.Scope(body), after)]

    return Generation


def _namespace() -> Any:
    """Return Jinja's `namespace` without names that mean something to Python."""

    class PlainNamespace(import_module("jinja2.utils").Namespace):  # type: ignore[misc]
        def __init__(*args: Any, **values: Any) -> None:  # "self" is free to be a value's name
            self, *given = args
            for name in dict(*given, **values):
                _refuse_internal(name)
            super(PlainNamespace, self).__init__(*given, **values)

        def __setitem__(self, name: str, value: Any) -> None:
            _refuse_internal(name)
            super().__setitem__(name, value)

    return PlainNamespace


def _refuse_internal(name: Any) -> None:
    if str(name).startswith("_"):
        raise ChatTemplateError(f"the chat template sets a name that begins with '_', {name!r}")


def _new_dict(*args: Any, **values: Any) -> dict[Any, Any]:
    return dict(*args, **values)


def _raise_exception(message: Any) -> None:
    reason = " ".join(str(message).split())
    raise ChatTemplateError(f"the chat template refuses this conversation: {reason}")


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models read it; Jinja's own filter writes it for web pages, with `<` as an escape."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _plain(value: Any) -> Any:
    """Return the same in plain types: an object's methods would be the template's to call."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    for kind, exactly in _EXACTLY.items():
        if isinstance(value, kind):  # an enum, say
            return exactly(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return (
        f"<{type(value).__name__}>"  # an image or an array: templates ask only whether it is there
    )


def _without_marks(text: str, marks: tuple[str, str]) -> tuple[str, list[tuple[int, int]]]:
    opening, closing = marks
    kept, spans, length, start = "", [], 0, None
    for piece in re.split(f"({opening}|{closing})", text):
        if piece == opening:
            start = length
        elif piece == closing and start is not None:
            spans.append((start, length))
        elif piece != closing:
            kept += piece
            length = len(kept)
    return kept, spans
