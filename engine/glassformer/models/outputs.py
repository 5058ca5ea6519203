"""What models return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from glassformer.tensor import Tensor


@dataclass(frozen=True, slots=True)
class CausalLMOutput:
    """The output of a language model that predicts the next token.

    Attributes:
        loss: cross-entropy in nats, 0-d; None when no labels were given.
        logits: (B, T, V); logits[:, t] are for the token after position t.
        cache: the cache that was passed in, now longer; None when there was none.
    """

    loss: Tensor | None
    logits: Tensor
    cache: Any = None
