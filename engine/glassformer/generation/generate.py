"""Continuing token sequences with a language model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from glassformer.devices import Device, as_device
from glassformer.generation.cache import KVCache
from glassformer.generation.sampling import GenerationConfig, choose
from glassformer.graph import no_grad
from glassformer.random import Generator, default_generator
from glassformer.tensor import Tensor, from_numpy, tensor

Ids = npt.NDArray[np.int64]


def generate(
    model: Any,
    input_ids: Tensor | npt.ArrayLike,
    max_new_tokens: int = 20,
    *,
    attention_mask: Tensor | npt.ArrayLike | None = None,
    seed: int | None = None,
    generator: Generator | None = None,
    use_cache: bool = True,
    on_overflow: Literal["error", "slide"] = "error",
    **settings: Any,
) -> Tensor:
    """Continue each sequence of a batch by up to `max_new_tokens` tokens.

    Args:
        model: called as `model(input_ids, attention_mask=, cache=)`; its `.logits` are (B, T, V).
            It is in evaluation mode while it computes.
        input_ids: the prompts (B, T), or one prompt (T,).
        max_new_tokens: how many tokens to add at most.
        attention_mask: (B, T), 0 where a shorter prompt is padded; padding must be on the left.
        seed: of the random numbers that sampling draws.
        generator: where to draw them from instead; the default generator unless one is given.
        use_cache: keep keys and values instead of computing them again for every token.
        on_overflow: when prompt and new tokens exceed the model's positions: "error", or "slide",
            which drops the older half of the context whenever it is full.
        settings: those of `GenerationConfig`: do_sample, temperature, top_k, top_p, min_p,
            repetition_penalty, eos_token_id, pad_token_id.

    Returns:
        Prompts and continuations (B, T + new), where the prompts were. Sequences that finished
        early end in padding.

    Raises:
        ValueError: a setting is out of range, the prompt is empty or too long, padding is not on
            the left, or the model's logits give no probabilities.
    """
    tokens = _prompt(input_ids)
    steps = list(
        stream_generate(
            model,
            tokens,
            max_new_tokens,
            attention_mask=attention_mask,
            seed=seed,
            generator=generator,
            use_cache=use_cache,
            on_overflow=on_overflow,
            **settings,
        )
    )
    whole = from_numpy(np.concatenate([tokens, *(step[:, None] for step in steps)], axis=1))
    return whole.to(input_ids.device) if isinstance(input_ids, Tensor) else whole


def stream_generate(
    model: Any,
    input_ids: Tensor | npt.ArrayLike,
    max_new_tokens: int = 20,
    *,
    attention_mask: Tensor | npt.ArrayLike | None = None,
    seed: int | None = None,
    generator: Generator | None = None,
    use_cache: bool = True,
    on_overflow: Literal["error", "slide"] = "error",
    **settings: Any,
) -> Iterator[Ids]:
    """Yield the tokens (B,) of each step as soon as they are chosen; `generate` explains the rest.

    Arguments are checked before the first step, at the call.
    """
    config = GenerationConfig(**settings)
    tokens = _prompt(input_ids)
    mask = _mask(attention_mask, tokens)
    if seed is not None and generator is not None:
        raise ValueError("give either a seed or a generator, not both")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must not be negative, got {max_new_tokens}")
    limit = position_limit(model)
    _check_length(tokens.shape[1], max_new_tokens, limit, on_overflow)
    random = generator or (default_generator if seed is None else Generator(seed))
    context = _Context(model, tokens, mask, limit, use_cache)
    return _steps(context, max_new_tokens, config, random)


def _steps(
    context: _Context, max_new_tokens: int, config: GenerationConfig, random: Generator
) -> Iterator[Ids]:
    stops = config.stop_tokens
    pad = config.pad_token_id if config.pad_token_id is not None else (stops or [0])[0]
    unfinished = np.ones(len(context.tokens), dtype=bool)
    for _ in range(max_new_tokens):
        logits = context.next_logits()  # (B, V)
        seen = context.seen(logits.shape[-1]) if config.repetition_penalty != 1 else None
        chosen = np.where(unfinished, choose(logits, config, random.numpy, seen), pad)
        context.append(chosen)
        yield chosen
        unfinished &= ~np.isin(chosen, stops)
        if not unfinished.any():
            return


class _Context:
    """The tokens so far, and the part of them that the model has read into its cache."""

    def __init__(
        self, model: Any, tokens: Ids, mask: Ids | None, limit: int | None, use_cache: bool
    ) -> None:
        self.model = model
        self.device = device_of(model)
        self.tokens = tokens  # (B, T)
        self.mask = mask  # (B, T), or None where nothing is padded
        self.limit = limit
        self.use_cache = use_cache
        self.start = 0  # the first token that the model still sees
        self.cache = KVCache() if use_cache else None

    def next_logits(self) -> npt.NDArray[Any]:
        """Return the logits (B, V) of the token that follows."""
        length = self.tokens.shape[1]
        if self.limit is not None and length - self.start > self.limit:
            self.start = length - max(1, self.limit // 2)
            self.cache = KVCache() if self.use_cache else None
        read = 0 if self.cache is None else self.cache.length
        mask = None if self.mask is None else self.on_device(self.mask[:, self.start :])
        was_training = self.model.training
        self.model.eval()
        try:
            with no_grad():
                output = self.model(
                    self.on_device(self.tokens[:, self.start + read :]),
                    attention_mask=mask,
                    cache=self.cache,
                )
        finally:
            self.model.train(was_training)
        last = output.logits[:, -1]
        logits: npt.NDArray[Any] = last.to(last.dtype.wide).cpu().numpy()
        return logits

    def on_device(self, ids: Ids) -> Tensor:
        return tensor(ids, device=self.device)

    def append(self, chosen: Ids) -> None:
        self.tokens = np.concatenate([self.tokens, chosen[:, None]], axis=1)
        if self.mask is not None:
            self.mask = np.concatenate([self.mask, np.ones_like(chosen)[:, None]], axis=1)

    def seen(self, vocabulary: int) -> npt.NDArray[np.bool_]:
        """Which tokens (B, V) have occurred, padding left out."""
        seen = np.zeros((len(self.tokens), vocabulary), dtype=bool)
        rows, columns = np.nonzero(np.ones_like(self.tokens) if self.mask is None else self.mask)
        seen[rows, self.tokens[rows, columns]] = True
        return seen


def device_of(model: Any) -> Device:
    """Return where a model's parameters are; the CPU if it has none."""
    parameters = getattr(model, "parameters", tuple)
    first = next(iter(parameters()), None)
    return as_device() if first is None else first.device


def position_limit(model: Any) -> int | None:
    """Return how many positions a model has, or None if its config sets no limit."""
    config = getattr(model, "config", None)
    for name in ("n_positions", "max_position_embeddings"):
        limit = getattr(config, name, None)
        if limit is not None:
            return int(limit)
    return None


def _prompt(input_ids: Tensor | npt.ArrayLike) -> Ids:
    array = np.asarray(input_ids.cpu().numpy() if isinstance(input_ids, Tensor) else input_ids)
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"input_ids must be (B, T) with at least one token, got {array.shape}")
    if array.dtype.kind not in "iu":
        raise TypeError(f"input_ids must be integers, got {array.dtype}")
    return array.astype(np.int64)


def _mask(attention_mask: Tensor | npt.ArrayLike | None, tokens: Ids) -> Ids | None:
    if attention_mask is None:
        return None
    given = attention_mask.cpu().numpy() if isinstance(attention_mask, Tensor) else attention_mask
    mask = (np.atleast_2d(np.asarray(given)) != 0).astype(np.int64)
    if mask.shape != tokens.shape:
        raise ValueError(
            f"attention_mask is {mask.shape}, input_ids {tokens.shape}; they must match"
        )
    if (np.diff(mask, axis=1) < 0).any() or not mask[:, -1].all():
        raise ValueError(
            "attention_mask has padding after real tokens; pad prompts on the left "
            "(PaddingCollator(padding_side='left'))"
        )
    return None if mask.all() else mask


def _check_length(prompt: int, new: int, limit: int | None, on_overflow: str) -> None:
    if on_overflow not in ("error", "slide"):
        raise ValueError(f"on_overflow must be 'error' or 'slide', got {on_overflow!r}")
    # The last new token is returned without being read, so it needs no position.
    if limit is not None and on_overflow == "error" and prompt + new - 1 > limit:
        raise ValueError(
            f"a prompt of {prompt} tokens and {new} new ones exceed the model's {limit} positions; "
            f"ask for at most {max(0, limit - prompt + 1)} new tokens, shorten the prompt, "
            "or pass on_overflow='slide'"
        )
