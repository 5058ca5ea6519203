"""Windows over a stream of tokens, for training and for scoring a language model."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[np.int64]]

IGNORED = -100  # the target that no loss counts


class NextTokenWindows:
    """Every window of `block_size` tokens, at every offset, with the tokens that follow.

    Item `i` is `{"input_ids": tokens[i : i + T], "shift_labels": tokens[i + 1 : i + T + 1]}`.
    Read in shuffled order this samples windows at random offsets, each once an epoch.

    Args:
        tokens: token ids (N,), of any integer type.
        block_size: T, the length of a window.

    Raises:
        ValueError: the tokens are not one line of integers, or fewer than block_size + 1.
    """

    def __init__(self, tokens: npt.ArrayLike, block_size: int) -> None:
        self.tokens = _token_stream(tokens, block_size)
        self.block_size = block_size
        self._offsets = np.arange(block_size + 1)

    def __len__(self) -> int:
        return int(self.tokens.size) - self.block_size

    def __getitem__(self, index: int) -> Arrays:
        start = range(len(self))[index]
        return {name: array[0] for name, array in self.batch(np.array([start])).items()}

    def batch(self, indices: npt.NDArray[np.int64]) -> Arrays:
        """Return the windows at `indices` (B,) as two arrays (B, T), in one indexing."""
        windows = self.tokens[indices[:, None] + self._offsets].astype(np.int64)  # (B, T + 1)
        return {
            "input_ids": windows[:, :-1].copy(),  # copies: who marks labels as ignored marks
            "shift_labels": windows[:, 1:].copy(),  # no input
        }


class ScoringWindows:
    """Windows that together predict every token after the first exactly once.

    Successive windows start `stride` tokens apart. Targets that an earlier window has predicted
    are -100, so with a stride below `block_size` each prediction sees at least
    `block_size - stride` tokens of context (but for the first window).

    Args:
        tokens: token ids (N,).
        block_size: T, the length of a window.
        stride: tokens between the starts of windows, `block_size` unless told.

    Raises:
        ValueError: too few tokens, or a stride outside [1, block_size].
    """

    def __init__(self, tokens: npt.ArrayLike, block_size: int, stride: int | None = None) -> None:
        self.windows = NextTokenWindows(tokens, block_size)
        self.stride = block_size if stride is None else stride
        if not 1 <= self.stride <= block_size:
            raise ValueError(f"stride must be in [1, block_size = {block_size}], got {stride}")
        last = len(self.windows) - 1
        starts = np.arange(0, last + 1, self.stride)
        self._starts = starts if starts[-1] == last else np.append(starts, last)

    def __len__(self) -> int:
        return int(self._starts.size)

    def __getitem__(self, index: int) -> Arrays:
        position = range(len(self))[index]
        return {name: array[0] for name, array in self.batch(np.array([position])).items()}

    def batch(self, indices: npt.NDArray[np.int64]) -> Arrays:
        """Return the windows at `indices` (B,) as two arrays (B, T)."""
        starts = self._starts[indices]
        arrays = self.windows.batch(starts)
        length = self.windows.block_size
        previous = np.where(indices > 0, self._starts[indices - 1] + length, starts)  # its end
        seen = np.arange(length) < (previous - starts)[:, None]  # (B, T)
        arrays["shift_labels"][seen] = IGNORED
        return arrays


def _token_stream(tokens: npt.ArrayLike, block_size: int) -> npt.NDArray[Any]:
    array = np.asarray(tokens)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"tokens must be integers (N,), got {array.dtype} {array.shape}")
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    if array.size <= block_size:
        raise ValueError(
            f"{array.size} tokens are too few for a window of {block_size} and the token after it: "
            f"give at least {block_size + 1}, or a smaller block_size"
        )
    return array
