"""Continuing token sequences with a language model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from glassformer.generation.beam_search import beam_search
from glassformer.generation.config import GenerationConfig
from glassformer.generation.context import Context, Ids, TargetContext
from glassformer.generation.rules import Lengths, apply_rules
from glassformer.generation.sampling import checked, choose
from glassformer.generation.streaming import Streamer
from glassformer.random import Generator, default_generator
from glassformer.tensor import Tensor, from_numpy

DEFAULT_NEW_TOKENS = 20  # as in Hugging Face


def generate(
    model: Any,
    input_ids: Tensor | npt.ArrayLike,
    max_new_tokens: int | None = None,
    *,
    attention_mask: Tensor | npt.ArrayLike | None = None,
    decoder_input_ids: Tensor | npt.ArrayLike | None = None,
    generation_config: GenerationConfig | None = None,
    seed: int | None = None,
    generator: Generator | None = None,
    use_cache: bool = True,
    on_overflow: Literal["error", "slide"] = "error",
    streamer: Streamer | None = None,
    **settings: Any,
) -> Tensor:
    """Continue each sequence of a batch, or answer it if the model is an encoder-decoder.

    Args:
        model: called as `model(input_ids, attention_mask=, cache=)`; its `.logits` are (B, T, V).
            How an encoder-decoder is called, `TargetContext` tells. It is in evaluation mode while
            it computes.
        input_ids: the prompts, or sources, (B, T), or one of them (T,).
        max_new_tokens: how many tokens to add at most; 20 unless a setting says otherwise.
        attention_mask: (B, T), 0 where a shorter prompt is padded: on the left, or in a source on
            either side. Unless given, nothing is padding in a source, and in a prompt what equals
            `pad_token_id`, if that is no end of sequence.
        decoder_input_ids: what an encoder-decoder's target begins with, (B, T) or (T,), in place of
            `decoder_start_token_id`.
        generation_config: settings, in place of the model's own where they aren't None.
        seed: of the random numbers that sampling draws.
        generator: where to draw them from instead; the default generator unless one is given.
        use_cache: keep keys and values instead of computing them again for every token.
        on_overflow: when prompt and new tokens exceed the model's positions: "error", or "slide",
            which drops the older half of the context whenever it is full.
        streamer: told of the prompt, or the target's start, and of each token when it is chosen;
            `TextStreamer` prints them.
        settings: those of `GenerationConfig`, by name. They come before `generation_config`, and
            that before the model's own: its folder's generation_config.json, or without one, the
            settings of that name in its config.

    Returns:
        Prompts and continuations (B · num_return_sequences, T + new), or the targets, where the
        inputs were. Sequences that finished early end in padding.

    Raises:
        ValueError: a setting is out of range, the prompt is empty or too long, padding is not on
            the left, the model's logits give no probabilities, or there is a streamer for beam
            search, which only knows its tokens in the end.
    """
    run = _prepare(
        model,
        input_ids,
        max_new_tokens,
        attention_mask=attention_mask,
        decoder_input_ids=decoder_input_ids,
        generation_config=generation_config,
        seed=seed,
        generator=generator,
        use_cache=use_cache,
        on_overflow=on_overflow,
        **settings,
    )
    if streamer is not None and run.config.num_beams > 1:
        raise ValueError(
            f"num_beams={run.config.num_beams} can't be streamed: beam search knows its tokens "
            "only in the end; leave out the streamer, or num_beams at 1"
        )
    if run.config.num_beams > 1 and run.lengths.maximum > run.lengths.prompt:
        tokens = beam_search(run.context, run.config, run.lengths, run.random)
    else:
        run.context.repeat(run.config.num_return_sequences)
        first = run.context.tokens
        steps = _steps(run) if streamer is None else _told(streamer, first, _steps(run))
        tokens = np.concatenate([first, *(step[:, None] for step in steps)], axis=1)
    whole = from_numpy(tokens)
    return whole.to(input_ids.device) if isinstance(input_ids, Tensor) else whole


def stream_generate(
    model: Any,
    input_ids: Tensor | npt.ArrayLike,
    max_new_tokens: int | None = None,
    **settings: Any,
) -> Iterator[Ids]:
    """Yield the tokens (B,) of each step as soon as they are chosen; `generate` explains the rest.

    Arguments are checked before the first step, at the call.

    Raises:
        ValueError: as `generate`; or `num_beams` is more than 1.
    """
    one: dict[str, Any] = {"num_beams": 1, "num_return_sequences": 1}  # whatever the model's say
    run = _prepare(model, input_ids, max_new_tokens, **{**one, **settings})
    if run.config.num_beams > 1 or run.config.num_return_sequences > 1:
        raise ValueError(
            f"num_beams={run.config.num_beams} and num_return_sequences="
            f"{run.config.num_return_sequences} can't be streamed, one token after the other; use "
            "generate(), or leave them at 1"
        )
    return _steps(run)


class _Run(NamedTuple):
    """All that generation needs to know before it starts."""

    context: Context
    config: GenerationConfig
    lengths: Lengths
    random: np.random.Generator


def _steps(run: _Run) -> Iterator[Ids]:
    context, config, lengths, random = run
    unfinished = np.ones(len(context.tokens), dtype=bool)
    for _ in range(lengths.prompt, lengths.maximum):
        logits = checked(context.next_logits())  # (B, V)
        scores = apply_rules(logits, context.history(), config, lengths)
        chosen = np.where(unfinished, choose(scores, config, random), config.fill_token)
        context.append(chosen)
        yield chosen
        unfinished &= ~np.isin(chosen, config.stop_tokens)
        if not unfinished.any():
            return


def _told(streamer: Streamer, first: Ids, steps: Iterator[Ids]) -> Iterator[Ids]:
    """Yield the steps, and tell the streamer of each."""
    try:
        streamer.put(first)
        for step in steps:
            streamer.put(step)
            yield step
    finally:
        streamer.end()


def _prepare(
    model: Any,
    input_ids: Tensor | npt.ArrayLike,
    max_new_tokens: int | None,
    *,
    attention_mask: Tensor | npt.ArrayLike | None = None,
    decoder_input_ids: Tensor | npt.ArrayLike | None = None,
    generation_config: GenerationConfig | None = None,
    seed: int | None = None,
    generator: Generator | None = None,
    use_cache: bool = True,
    on_overflow: Literal["error", "slide"] = "error",
    **settings: Any,
) -> _Run:
    """Check the arguments of `generate`, and put together what they say."""
    if max_new_tokens is not None:
        settings["max_new_tokens"] = max_new_tokens
    asked = settings.keys() & {"max_new_tokens", "max_length"}
    config = _settled(model, generation_config, settings)
    if seed is not None and generator is not None:
        raise ValueError("give either a seed or a generator, not both")
    inputs = _ids(input_ids, "input_ids")
    limit = position_limit(model)
    to_target = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    mask = _mask(attention_mask, inputs, config, on_the_left=not to_target)
    if to_target:
        if on_overflow != "error":
            raise ValueError("on_overflow='slide' drops a prompt's older half; here is none")
        tokens = _target_start(decoder_input_ids, config, len(inputs))
    elif decoder_input_ids is not None:
        raise ValueError("decoder_input_ids are for encoder-decoders; this model continues prompts")
    else:
        tokens = inputs
    lengths = _lengths(config, tokens.shape[1], limit, on_overflow, bool(asked))
    context = (
        TargetContext(model, inputs, mask, tokens, use_cache)
        if to_target
        else Context(model, tokens, mask, limit, use_cache)
    )
    random = generator or (default_generator if seed is None else Generator(seed))
    return _Run(context, config, lengths, random.numpy)


def _settled(
    model: Any, given: GenerationConfig | None, settings: Mapping[str, Any]
) -> GenerationConfig:
    """Return the settings of a call, above those of a given config, above the model's own."""
    own = settings_of(model)
    if given is not None:
        own = {**own, **{n: value for n, value in asdict(given).items() if value is not None}}
    return GenerationConfig.from_dict(own, **settings)


def settings_of(model: Any) -> Mapping[str, Any]:
    """Return what a model's folder says about generation, or without a file, what its config says.

    Names and values are those of `GenerationConfig`.
    """
    own: Mapping[str, Any] | None = getattr(model, "generation_settings", None)
    if own is not None:
        return own
    config = getattr(model, "config", None)
    extra = getattr(config, "extra", {})
    names = [f.name for f in fields(GenerationConfig)]
    found = {name: getattr(config, name, extra.get(name)) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def position_limit(model: Any) -> int | None:
    """Return how many positions a model has, or None if its config sets no limit."""
    config = getattr(model, "config", None)
    for name in ("n_positions", "max_position_embeddings"):
        limit = getattr(config, name, None)
        if limit is not None:
            return int(limit)
    return None


def _ids(given: Tensor | npt.ArrayLike, name: str) -> Ids:
    if isinstance(given, str | Mapping):
        raise TypeError(
            f"{name} must be tokens, got {type(given).__name__}; "
            "generate(**tokenizer(text, return_tensors='gf')) continues a text"
        )
    array = np.asarray(given.cpu().numpy() if isinstance(given, Tensor) else given)
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name} must be (B, T) with at least one token, got {array.shape}")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {array.dtype}")
    return array.astype(np.int64)


def _target_start(
    given: Tensor | npt.ArrayLike | None, config: GenerationConfig, batch: int
) -> Ids:
    """Return what the targets of `batch` sources begin with, (B, T)."""
    if given is not None:
        tokens = _ids(given, "decoder_input_ids")
        if len(tokens) not in (1, batch):
            raise ValueError(f"decoder_input_ids are {tokens.shape}, but there are {batch} sources")
        return tokens.repeat(batch, axis=0) if len(tokens) == 1 else tokens
    start = config.decoder_start_token_id
    start = config.bos_token_id if start is None else start
    if start is None:
        raise ValueError(
            "nothing says what the target begins with; pass decoder_start_token_id=, which is in "
            "most models' generation_config.json or config.json"
        )
    return np.full((batch, 1), start, dtype=np.int64)


def _mask(
    given: Tensor | npt.ArrayLike | None, tokens: Ids, config: GenerationConfig, on_the_left: bool
) -> Ids | None:
    """Return where tokens (B, T) are real, 1 or 0; None where all are."""
    if given is None:
        pad = config.pad_token_id
        mask = np.ones_like(tokens)
        if on_the_left and pad is not None and pad not in config.stop_tokens:
            mask = (tokens != pad).astype(np.int64)
    else:
        array = given.cpu().numpy() if isinstance(given, Tensor) else given
        mask = (np.atleast_2d(np.asarray(array)) != 0).astype(np.int64)
    if mask.shape != tokens.shape:
        raise ValueError(
            f"attention_mask is {mask.shape}, input_ids {tokens.shape}; they must match"
        )
    if on_the_left and ((np.diff(mask, axis=1) < 0).any() or not mask[:, -1].all()):
        raise ValueError(
            "attention_mask has padding after real tokens; pad prompts on the left "
            "(tokenizer.padding_side = 'left', or PaddingCollator(padding_side='left'))"
        )
    return None if mask.all() else mask


def _lengths(
    config: GenerationConfig, prompt: int, limit: int | None, on_overflow: str, asked: bool
) -> Lengths:
    """Return the lengths allowed; `asked` is whether the call itself says how many tokens to add.

    If it doesn't, positions end the sequence where a default would exceed them.
    """
    if on_overflow not in ("error", "slide"):
        raise ValueError(f"on_overflow must be 'error' or 'slide', got {on_overflow!r}")
    new = config.max_new_tokens
    if new is None:
        new = DEFAULT_NEW_TOKENS
        if config.max_length is not None:
            new = config.max_length - prompt
            if new <= 0:
                raise ValueError(
                    f"a prompt of {prompt} tokens leaves no room below max_length="
                    f"{config.max_length}; pass max_new_tokens, which doesn't count the prompt"
                )
    # The last new token is returned without being read, so it needs no position.
    room = None if limit is None or on_overflow == "slide" else limit - prompt + 1
    if room is not None and new > room:
        if asked or room < 1:
            raise ValueError(
                f"a prompt of {prompt} tokens and {new} new ones exceed the model's {limit} "
                f"positions; ask for at most {max(0, room)} new tokens, shorten the prompt, "
                "or pass on_overflow='slide'"
            )
        new = room
    minimum = config.min_length
    if config.min_new_tokens is not None:
        minimum = prompt + config.min_new_tokens
    return Lengths(prompt, minimum, prompt + new)
