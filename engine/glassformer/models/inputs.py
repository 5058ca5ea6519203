"""What models check of their inputs before they compute anything."""

from __future__ import annotations

from typing import Any

import numpy as np

from glassformer.models.safetensors_header import shown
from glassformer.tensor import Tensor


def check_ids(input_ids: Tensor) -> None:
    """Check that `input_ids` are a tensor (B, T).

    Raises:
        TypeError: they are something else, None for one.
        ValueError: they have another number of dimensions.
    """
    if not isinstance(input_ids, Tensor):
        raise TypeError(
            f"input_ids must be a Tensor, got {shown(input_ids)}; glassformer.tensor(...) makes one"
        )
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids must be (batch, length), got {input_ids.shape}")


def check_not_empty(tokens: Tensor, name: str = "input_ids") -> None:
    """Raise ValueError if tokens (B, T) are sequences of no token."""
    if tokens.shape[1] == 0:
        raise ValueError(f"{name} {tokens.shape} hold no token, not even padding")


def check_beside(name: str, given: Tensor | None, input_ids: Tensor) -> None:
    """Check that what is said of each token, if anything, is (B, T) or (1, T) as `input_ids`.

    Raises:
        TypeError, ValueError: it isn't, or `input_ids` are none, see `check_ids`.
    """
    check_ids(input_ids)
    batch, length = input_ids.shape
    if given is not None and given.shape not in ((batch, length), (1, length)):
        raise ValueError(f"{name} are {given.shape}, but input_ids {input_ids.shape}")


def padding_mask(attention_mask: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """Return what is real as bool (B, T), of 1s and 0s of that shape; None where all is real.

    Raises:
        ValueError: the mask has another shape, or holds anything else.
    """
    if attention_mask is None:
        return None
    if attention_mask.shape != tuple(shape):
        raise ValueError(f"attention_mask is {attention_mask.shape}, but input_ids {tuple(shape)}")
    return real_positions(attention_mask)


def real_positions(attention_mask: Tensor) -> Tensor | None:
    """Return as bool what is 1 in a mask of 1s and 0s; None where all is.

    Raises:
        ValueError: the mask holds anything else, such as -inf, to be added to scores.
    """
    real = attention_mask != 0
    if bool((real != (attention_mask == 1)).any()):
        raise ValueError("attention_mask must be 1 for a token and 0 for padding, and nothing else")
    return None if bool(real.all()) else real


def check_is_no_array(name: str, value: Any) -> None:
    """Raise TypeError for what users of other libraries pass where a tensor is expected."""
    is_torch = type(value).__module__.partition(".")[0] == "torch"
    if is_torch or isinstance(value, np.ndarray | np.generic | list | tuple | str):
        raise TypeError(
            f"{name} must be a Tensor, got {type(value).__module__}.{type(value).__name__}; "
            "glassformer.tensor(...) makes one"
        )
