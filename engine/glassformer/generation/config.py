"""GenerationConfig: how to continue a text, in Hugging Face's names and meanings."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import numpy as np

from glassformer.models.config import ConfigError, read_json_object
from glassformer.models.generative import GENERATION_FILE
from glassformer.models.settings import check_type

TokenIds = int | list[int] | None


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How to continue a text.

    The rules on logits apply in the order of their description; each sees what the earlier ones
    left. Beam search applies them to log-probabilities.

    Args:
        max_new_tokens: how many tokens to add at most.
        max_length: prompt and new tokens at most, where `max_new_tokens` is not given. Without
            either, 20 tokens are added.
        do_sample: draw from the distribution; otherwise take the likeliest token.
        num_beams: sequences that beam search follows at once; 1 is no beam search.
        num_return_sequences: how many continuations of each prompt to return.
        length_penalty: a finished beam's score is its log-probability over its new tokens' number
            to this power: above 0 favours long ones, below 0 short ones.
        early_stopping: when beam search ends, once there are `num_beams` finished ones. True: at
            once. False: when none of the running ones has a better score as it stands. "never":
            when none can come to a better score.
        repetition_penalty: divide the positive logits of tokens that occurred by this, multiply
            the negative ones (Keskar et al. 2019, "CTRL", section 4.1); 1 changes nothing.
        no_repeat_ngram_size: no sequence of so many tokens occurs twice; 0 is no such rule.
        bad_words_ids: sequences of tokens that may not occur.
        min_length: prompt and new tokens before which no sequence finishes.
        min_new_tokens: new tokens before which no sequence finishes.
        forced_bos_token_id: the second token of all, after a prompt (or start token) of one.
        forced_eos_token_id: the last token of a sequence that reaches its maximal length.
        suppress_tokens: tokens that may not occur.
        begin_suppress_tokens: tokens that may not come first.
        temperature: divide the logits by this; 0 takes the likeliest token.
        top_k: keep the k likeliest tokens (and those equal to the k-th).
        top_p: keep the fewest likeliest tokens whose probabilities sum to at least p (Holtzman et
            al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1).
        min_p: keep tokens at least this many times as likely as the likeliest.
        eos_token_id: a token, or several, after which a sequence is finished.
        pad_token_id: what follows in a finished sequence while others of its batch go on; the
            first `eos_token_id` unless told.
        bos_token_id: what an encoder-decoder starts with, if it has no `decoder_start_token_id`.
        decoder_start_token_id: what an encoder-decoder starts with.

    Raises:
        ValueError: a setting is out of range, or has no effect without `do_sample`.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    do_sample: bool = False
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: list[list[int]] | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: TokenIds = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    eos_token_id: TokenIds = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    decoder_start_token_id: int | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or self.temperature == np.inf:
            raise ValueError(f"temperature must be finite and >= 0, got {self.temperature}")
        if not 0 < self.repetition_penalty < np.inf:
            raise ValueError(f"repetition_penalty must be > 0, got {self.repetition_penalty}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}; None keeps all tokens")
        for name, probability in (("top_p", self.top_p), ("min_p", self.min_p)):
            if probability is not None and not 0 <= probability <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {probability}")
        self._check_counts()
        if not self.do_sample:
            asked = [name for name in _SAMPLING if getattr(self, name) not in _NEUTRAL[name]]
            if asked:
                raise ValueError(
                    f"{', '.join(asked)} has no effect without do_sample=True; pass that as well"
                )

    def _check_counts(self) -> None:
        least = {"max_new_tokens": 0, "max_length": 1, "num_beams": 1, "num_return_sequences": 1}
        least |= {"no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0}
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                what = "must not be negative" if minimum == 0 else f"must be at least {minimum}"
                raise ValueError(f"{name} {what}, got {value}")
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(
                f"early_stopping must be True, False or 'never', got {self.early_stopping!r}"
            )
        if any(not words for words in self.bad_words_ids or ()):
            raise ValueError(
                f"bad_words_ids must be lists of at least one token, got {self.bad_words_ids}"
            )
        returned = self.num_return_sequences
        if returned > self.num_beams and not (self.do_sample and self.num_beams == 1):
            raise ValueError(
                f"num_return_sequences={returned} is more than num_beams={self.num_beams} finds; "
                "ask for more beams, or sample with do_sample=True and one beam"
            )

    @property
    def stop_tokens(self) -> list[int]:
        """The tokens that finish a sequence, as a list."""
        return as_list(self.eos_token_id)

    @property
    def fill_token(self) -> int:
        """What follows in a finished sequence."""
        return self.pad_token_id if self.pad_token_id is not None else (self.stop_tokens or [0])[0]

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], **overrides: Any) -> GenerationConfig:
        """Return the config that a file's `settings` spell out, some of them replaced.

        What a file says about sampling has no effect where `overrides` ask for none. Names that
        `settings` have and we don't are left out, with a warning if they would change the result.

        Raises:
            TypeError: an override has no such name.
            ValueError: a setting is out of range.
        """
        names = {f.name for f in fields(cls)}
        unknown = [name for name in overrides if name not in names]
        if unknown:
            raise TypeError(f"generate() has no setting {', '.join(unknown)}; see GenerationConfig")
        known = _known(settings, overrides)
        left_out = [n for n in settings if settings[n] not in _NEUTRAL.get(n, (settings[n],))]
        left_out = [name for name in left_out if name not in names]
        if left_out:
            warnings.warn(f"not supported, and left out: {', '.join(left_out)}", stacklevel=2)
        return cls(**{**known, **overrides})

    @classmethod
    def from_pretrained(cls, folder: str | Path, **overrides: Any) -> GenerationConfig:
        """Read `generation_config.json` of a model's folder, some settings replaced.

        Raises:
            WeightsError: it is missing, or no JSON object.
            ConfigError: a setting in it is wrong; it is a WeightsError and a TypeError.
            TypeError, ValueError: an override is, as `from_dict`.
        """
        path = Path(folder) / GENERATION_FILE
        settings = read_json_object(path)
        check_file(path, settings)
        return cls.from_dict(settings, **overrides)


def check_file(path: Path, settings: Mapping[str, Any]) -> None:
    """Check what a `generation_config.json` says, as far as it is known.

    Raises:
        ConfigError: a setting is of a wrong type or out of range.
    """
    hints = get_type_hints(GenerationConfig)
    try:
        for name, value in settings.items():
            if name in hints and value is not None:
                check_type(name, value, hints[name])
        GenerationConfig(**_known(settings, {}))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: {error}; correct it, or delete the file to do without its settings"
        ) from error


def _known(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file says under our names, and what has an effect beside the overrides."""
    names = {f.name for f in fields(GenerationConfig)}
    known = {n: value for n, value in settings.items() if n in names and value is not None}
    if known.get("top_k") == 0:  # written for "all of them"
        del known["top_k"]
    if not overrides.get("do_sample", known.get("do_sample", False)):
        known = {name: value for name, value in known.items() if name not in _SAMPLING}
    return known


_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
# Values with which a setting does nothing; those below the first line are none of ours.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **{"temperature": (0, 1), "top_k": (None,), "top_p": (None,), "min_p": (None,)},
    **{"typical_p": (None, 1), "epsilon_cutoff": (None, 0), "eta_cutoff": (None, 0)},
    **{"num_beam_groups": (None, 1), "diversity_penalty": (None, 0), "penalty_alpha": (None, 0)},
    **{"encoder_repetition_penalty": (None, 1), "encoder_no_repeat_ngram_size": (None, 0)},
    **{"guidance_scale": (None, 1), "exponential_decay_length_penalty": (None,)},
    **{"sequence_bias": (None,), "renormalize_logits": (None, False), "stop_strings": (None,)},
}


def as_list(tokens: TokenIds) -> list[int]:
    """Return one token, several or none as a list."""
    if tokens is None:
        return []
    return [tokens] if isinstance(tokens, int) else list(tokens)
