"""Telling the caller what is wrong in one line."""

from __future__ import annotations


class CommandError(Exception):
    """Something the caller can put right; the message says what is wrong and what to do."""


def describe(error: Exception) -> str | None:
    """Return the one line that tells the caller of `error`, or None if it is a fault of ours."""
    if isinstance(error, (CommandError, *_told())):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}; check the path, its permissions and the free space"
    return None


def _told() -> tuple[type[Exception], ...]:
    """The errors of the engine that are the caller's to put right; imported once one happens."""
    from glassformer.data import CorpusError
    from glassformer.data.image_input import ImageError
    from glassformer.data.tokenizer_files import TokenizerError
    from glassformer.models.safetensors_header import WeightsError  # ConfigError is one, too
    from glassformer.training import CheckpointError, NonFiniteError

    return CorpusError, CheckpointError, ImageError, NonFiniteError, TokenizerError, WeightsError
