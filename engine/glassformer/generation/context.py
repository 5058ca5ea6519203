"""What a model has read and written so far, and the question what follows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from glassformer.devices import Device, as_device
from glassformer.generation.cache import KVCache
from glassformer.grad_mode import no_grad
from glassformer.models.causal import CausalLM
from glassformer.models.outputs import BaseModelOutput
from glassformer.tensor import Tensor, tensor

Ids = npt.NDArray[np.int64]


class Context:
    """The tokens of a decoder, and the part of them that it has read into its cache.

    Args:
        model: called as `model(input_ids, attention_mask=, cache=)`.
        tokens: (B, T).
        mask: (B, T), 0 where tokens are padding; None where none is.
        limit: tokens that the model can see at once; of more, the older half is dropped.
        use_cache: keep keys and values instead of computing them again for every token.
    """

    def __init__(
        self, model: Any, tokens: Ids, mask: Ids | None, limit: int | None, use_cache: bool
    ) -> None:
        self.model = model
        self.device = device_of(model)
        self.tokens = tokens
        self.mask = mask
        self.limit = limit
        self.start = 0  # the first token that the model still sees
        self.use_cache = use_cache
        self.cache = KVCache() if use_cache else None
        # Of a prompt's logits only the last are looked at; a model that can spares itself the rest.
        self.settings = {"logits_to_keep": 1} if isinstance(model, CausalLM) else {}

    def next_logits(self) -> npt.NDArray[Any]:
        """Return the logits (B, V) of the token that follows."""
        length = self.tokens.shape[1]
        if self.limit is not None and length - self.start > self.limit:
            self.start = length - max(1, self.limit // 2)
            self.cache = KVCache() if self.use_cache else None
        read = 0 if self.cache is None else self.cache.length
        was_training = self.model.training
        if was_training:  # else a walk through all its modules for every token
            self.model.eval()
        try:
            with no_grad():
                output = self.read(self.on_device(self.tokens[:, self.start + read :]))
        finally:
            if was_training:
                self.model.train()
        last = output.logits[:, -1]
        logits: npt.NDArray[Any] = last.to(last.dtype.wide).cpu().numpy()
        return logits

    def read(self, tokens: Tensor) -> Any:
        """Call the model with the tokens (B, T) that it has not read."""
        mask = None if self.mask is None else self.on_device(self.mask[:, self.start :])
        return self.model(tokens, attention_mask=mask, cache=self.cache, **self.settings)

    def append(self, chosen: Ids) -> None:
        """Add a token (B,) to each row."""
        self.tokens = np.concatenate([self.tokens, chosen[:, None]], axis=1)
        if self.mask is not None:
            self.mask = np.concatenate([self.mask, np.ones_like(chosen)[:, None]], axis=1)

    def repeat(self, times: int) -> None:
        """Make so many neighbouring rows of each; before the first logits."""
        self.tokens = self.tokens.repeat(times, axis=0)
        self.mask = None if self.mask is None else self.mask.repeat(times, axis=0)

    def reorder(self, rows: Ids) -> None:
        """Let each row b go on from row `rows[b]`, a copy of the same prompt's."""
        self.tokens = self.tokens[rows]
        if self.cache is not None:
            self.cache.reorder(rows)

    def history(self) -> Ids:
        """Return the tokens (B, T), −1 where there is padding."""
        return self.tokens if self.mask is None else np.where(self.mask != 0, self.tokens, -1)

    def on_device(self, ids: Ids) -> Tensor:
        """Return integers where the model's parameters are."""
        return tensor(ids, device=self.device)


class TargetContext(Context):
    """The tokens of an encoder-decoder's target, and its source.

    The source is encoded once, and the cache holds what cross-attention makes of it.

    Args:
        model: called as `model(encoder_outputs=, attention_mask=, decoder_input_ids=, cache=)`.
        source: (B, S).
        source_mask: (B, S), 0 where the source is padding; None where nothing is.
        tokens: the target's first ones, (B, T).
        use_cache: as in `Context`.
    """

    def __init__(
        self, model: Any, source: Ids, source_mask: Ids | None, tokens: Ids, use_cache: bool
    ) -> None:
        super().__init__(model, tokens, None, None, use_cache)
        self.source = source
        self.source_mask = None if source_mask is None else self.on_device(source_mask)
        self.encoded: BaseModelOutput | None = None
        self.copies = 1

    def read(self, tokens: Tensor) -> Any:  # noqa: D102
        if self.encoded is None:
            source = self.on_device(self.source)
            output = self.model.base_model.encode(source, self.source_mask)
            rows = self.on_device(np.arange(len(self.source)).repeat(self.copies))
            self.encoded = BaseModelOutput(output.last_hidden_state[rows])
            self.source_mask = None if self.source_mask is None else self.source_mask[rows]
        return self.model(
            encoder_outputs=self.encoded,
            attention_mask=self.source_mask,
            decoder_input_ids=tokens,
            cache=self.cache,
        )

    def repeat(self, times: int) -> None:  # noqa: D102
        super().repeat(times)
        self.copies *= times


def device_of(model: Any) -> Device:
    """Return where a model's parameters are; the CPU if it has none."""
    parameters = getattr(model, "parameters", tuple)
    first = next(iter(parameters()), None)
    return as_device() if first is None else first.device
