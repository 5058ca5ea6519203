"""Beam search: follow the likeliest beginnings side by side, rather than the likeliest token."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from glassformer.generation.config import GenerationConfig
from glassformer.generation.context import Context
from glassformer.generation.rules import Lengths, apply_rules
from glassformer.generation.sampling import Ids, Logits, checked, narrow

Scores = npt.NDArray[np.float64]


class Hypotheses:
    """The finished sequences of one prompt, the best first, at most `num_beams`.

    Attributes:
        best: score and tokens of each.
        improvable: whether a better one can still come.
    """

    def __init__(self, config: GenerationConfig, lengths: Lengths) -> None:
        self.config = config
        self.lengths = lengths
        self.best: list[tuple[float, Ids]] = []
        self.improvable = True

    @property
    def full(self) -> bool:
        """Whether there are as many as beams."""
        return len(self.best) == self.config.num_beams

    @property
    def closed(self) -> bool:
        """Whether no more are taken."""
        return not self.improvable or (self.full and self.config.early_stopping is True)

    def add(self, finished: list[tuple[float, Ids]]) -> None:
        """Take in sequences (T,) that finished together, with their log-probabilities."""
        if not self.closed:
            scored = [(self._score(total, len(ids)), ids) for total, ids in finished]
            ranked = sorted([*self.best, *scored], key=lambda pair: -pair[0])
            self.best = ranked[: self.config.num_beams]

    def look_ahead(self, running: float, length: int) -> None:
        """Judge whether the best of the running sequences can still come in."""
        config = self.config
        if config.early_stopping == "never" and config.length_penalty > 0:
            length = self.lengths.maximum  # where dividing by the length helps most
        worst = self.best[-1][0] if self.full else -np.inf
        self.improvable &= self._score(running, length) > worst

    def _score(self, total: float, length: int) -> float:
        new_tokens = length - self.lengths.prompt
        return float(total / new_tokens**self.config.length_penalty)


def beam_search(
    context: Context, config: GenerationConfig, lengths: Lengths, random: np.random.Generator
) -> Ids:
    """Return the `num_return_sequences` best continuations of each prompt, best first.

    Sutskever, Vinyals and Le 2014, "Sequence to Sequence Learning with Neural Networks", section
    3.2; scores, their order and the end are those of Hugging Face's `generate`. With `do_sample`
    the continuations of each step are drawn without replacement, not the likeliest ones.

    Args:
        context: of the prompts (B, T).
        config: the settings.
        lengths: of the prompts, and those allowed.
        random: for `do_sample`.

    Returns:
        Tokens (B · num_return_sequences, T + new), with padding behind those that are shorter.
    """
    batch, beams = len(context.tokens), config.num_beams
    prompts = context.tokens
    context.repeat(beams)
    totals: Scores = np.full((batch, beams), -np.inf)  # log-probabilities of what runs
    totals[:, 0] = 0  # copies of a prompt would give copies of its continuations
    hypotheses = [Hypotheses(config, lengths) for _ in range(batch)]
    for length in range(lengths.prompt + 1, lengths.maximum + 1):
        steps = _next_scores(context, config, lengths)  # (B · beams, V)
        scores = (steps + totals.reshape(-1, 1)).reshape(batch, -1)  # (B, beams · V)
        scores, chosen = _candidates(scores, config, random)  # (B, K) each
        source, tokens = np.divmod(chosen, steps.shape[1])
        source += np.arange(batch)[:, None] * beams  # rows of the context
        ends = np.isin(tokens, config.stop_tokens) | (length == lengths.maximum)
        for row, found in enumerate(hypotheses):
            finished = np.flatnonzero(ends[row, :beams] & (scores[row, :beams] > -np.inf))
            found.add(
                [
                    (scores[row, k], np.append(context.tokens[source[row, k]], tokens[row, k]))
                    for k in finished
                ]
            )
        # Half the candidates or more don't end: each beam has one to offer for each stop token.
        left = np.where(ends, -np.inf, scores)
        order = np.argsort(-left, axis=1, kind="stable")[:, :beams]
        totals = np.take_along_axis(left, order, axis=1)
        for found, best in zip(hypotheses, totals[:, 0], strict=True):
            found.look_ahead(best, length)
        if length == lengths.maximum or all(found.closed for found in hypotheses):
            break
        context.reorder(np.take_along_axis(source, order, axis=1).ravel())
        context.append(np.take_along_axis(tokens, order, axis=1).ravel())
    return _best(hypotheses, prompts, config)


def _next_scores(context: Context, config: GenerationConfig, lengths: Lengths) -> Logits:
    """Return the log-probability of each token in each row, as the rules leave it."""
    logits = checked(context.next_logits())
    top = logits.max(axis=-1, keepdims=True)
    normalizer = top + np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    scores = apply_rules(logits - normalizer, context.history(), config, lengths)
    return narrow(scores, config) if config.do_sample else scores


def _candidates(
    scores: Scores, config: GenerationConfig, random: np.random.Generator
) -> tuple[Scores, Ids]:
    """Return the K continuations to consider for each prompt: their scores, and where they stand.

    K is so large that `num_beams` are left to go on with if all others end.
    """
    count = min(max(2, 1 + len(config.stop_tokens)) * config.num_beams, scores.shape[1])
    keys = scores
    if config.do_sample:
        # The largest of log p + Gumbel noise are a draw without replacement: Kool et al. 2019,
        # "Stochastic Beams and Where to Find Them", section 2.3.
        keys = scores + random.gumbel(size=scores.shape)
    some = np.argpartition(-keys, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(keys, some, axis=1), axis=1, kind="stable")
    best = np.take_along_axis(some, order, axis=1)
    return np.take_along_axis(scores, best, axis=1), best


def _best(hypotheses: list[Hypotheses], prompts: Ids, config: GenerationConfig) -> Ids:
    """Return the best sequences of each prompt as one array, shorter ones padded."""
    rows: list[Ids] = []
    for found, prompt in zip(hypotheses, prompts, strict=True):
        best = [ids for _, ids in found.best] or [prompt]  # no token was allowed at all
        rows += [best[min(k, len(best) - 1)] for k in range(config.num_return_sequences)]
    whole = np.full((len(rows), max(map(len, rows))), config.fill_token, dtype=np.int64)
    for row, ids in zip(whole, rows, strict=True):
        row[: len(ids)] = ids
    return whole
