"""Telling the caller what is wrong in one line."""

from __future__ import annotations


class CommandError(Exception):
    """Something the caller can put right; the message says what is wrong and what to do."""


def describe(error: Exception) -> str | None:
    """Return the one line that tells the caller of `error`, or None if it is a fault of ours."""
    from glassformer.data import CorpusError
    from glassformer.training import CheckpointError, NonFiniteError

    if isinstance(error, (CommandError, CorpusError, CheckpointError, NonFiniteError)):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}; check the path, its permissions and the free space"
    return None
