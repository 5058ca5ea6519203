"""Showing a text while it is being generated."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from glassformer.tensor import Tensor

_INCOMPLETE = "\ufffd"  # stands for bytes that are no whole character, or not yet one


class Streamer(Protocol):
    """What `generate` tells of tokens as soon as they are chosen."""

    def put(self, value: npt.NDArray[np.int64]) -> None:
        """Take the prompt (B, T), and after it the tokens (B,) of each step."""

    def end(self) -> None:
        """Take note that there are no more."""


class TextStreamer:
    """Prints a text while `generate` writes it, by the names of Hugging Face's class.

        generate(model, ids, streamer=TextStreamer(tokenizer, skip_prompt=True))

    All pieces together are what `tokenizer.decode` makes of all tokens, unless it drops bytes that
    are no text. So a character whose bytes are in several tokens waits for the last of them, and a
    word for the space after it if the tokenizer cleans up spaces. Every step decodes all tokens
    anew.

    Args:
        tokenizer: decodes the tokens.
        skip_prompt: leave the prompt out, as if the text began after it.
        decode_kwargs: for `tokenizer.decode`, such as `skip_special_tokens=True`.
    """

    def __init__(self, tokenizer: Any, skip_prompt: bool = False, **decode_kwargs: Any) -> None:
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_kwargs = decode_kwargs
        self._clear()

    def _clear(self) -> None:
        self._ids: list[int] = []
        self._shown = 0  # characters
        self._in_prompt = True

    def put(self, value: Tensor | npt.ArrayLike) -> None:
        """Print what the tokens (T,) or (1, T) add to the text.

        Raises:
            ValueError: they are of several texts.
        """
        array = np.asarray(value.cpu().numpy() if isinstance(value, Tensor) else value)
        if array.ndim > 1 and array.shape[0] != 1:
            raise ValueError(
                f"TextStreamer prints one text, got the tokens of {array.shape[0]}, {array.shape}; "
                "generate one after the other, and with num_return_sequences=1"
            )
        is_skipped, self._in_prompt = self._in_prompt and self.skip_prompt, False
        if not is_skipped:
            self._ids += array.reshape(-1).tolist()
            text = self._decoded()
            self._show(text, self._settled(text))

    def end(self) -> None:
        """Print what was held back, and end the line."""
        text = self._decoded()
        self.on_finalized_text(text[self._shown :], stream_end=True)
        self._clear()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print a piece of text; override it to send pieces elsewhere.

        Args:
            text: the piece.
            stream_end: whether it is the last.
        """
        print(text, flush=True, end="\n" if stream_end else "")

    def _decoded(self) -> str:
        text: str = self.tokenizer.decode(self._ids, **self.decode_kwargs)
        return text

    def _show(self, text: str, end: int) -> None:
        if end > self._shown:
            self.on_finalized_text(text[self._shown : end])
            self._shown = end

    def _settled(self, text: str) -> int:
        """Return how many characters of a text no later token changes."""
        text = text.rstrip(_INCOMPLETE)  # SentencePiece's bytes come as one each
        if self._cleans():  # "do n ' t" becomes "don't": the last two spaces may go yet
            return max(0, text.rfind(" ", 0, max(0, text.rfind(" "))))
        return len(text)

    def _cleans(self) -> bool:
        """Whether decoding removes spaces, which `Tokenizer.decode` tells."""
        told = self.decode_kwargs.get("clean_up_tokenization_spaces")
        cleans = self.tokenizer.settings.clean_up_tokenization_spaces if told is None else told
        return bool(cleans) and type(self.tokenizer.backend.model).__name__ != "BPE"
