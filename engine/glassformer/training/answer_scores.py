"""Scores of answers to questions, as SQuAD's evaluation script computes them.

Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text", section 6.1;
with the rules for questions without an answer of Rajpurkar et al. 2018, "Know What You Don't Know".
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Return text in lower case, without ASCII punctuation and articles, single-spaced."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if the normalised prediction is one of the answers, else 0.

    No answers mean that there is none: then the empty prediction is right.
    """
    given = normalize_answer(prediction)
    return float(any(given == answer for answer in _normalized(answers)))


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Return the F1 of the prediction's words, for the answer where it is highest.

    With `common` words in both, each as often as in the one that has fewer:
    F1 = 2 common / (words of the prediction + words of the answer).

    No answers mean that there is none: then the empty prediction scores 1, any other 0.
    """
    given = normalize_answer(prediction).split()
    return max(_overlap(given, answer.split()) for answer in _normalized(answers))


def squad_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Return the means of `exact_match` and `token_f1` ("f1") over questions, in percent.

    Args:
        predictions: an answer for each question, "" for none.
        references: for each question the right answers; no answers if it has none.

    Raises:
        ValueError: there are no questions, or not as many references as predictions.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions but {len(references)} references")
    if not predictions:
        raise ValueError("predictions are empty: there is nothing to score")
    pairs = list(zip(predictions, references, strict=True))
    return {
        "exact_match": 100 * sum(exact_match(*pair) for pair in pairs) / len(pairs),
        "f1": 100 * sum(token_f1(*pair) for pair in pairs) / len(pairs),
    }


def _normalized(answers: Sequence[str]) -> list[str]:
    """The answers that are left after normalising; if none is, the empty one."""
    if isinstance(answers, str):
        raise ValueError(f"answers must be a list of texts, got the text {answers!r}: wrap it")
    return [text for answer in answers if (text := normalize_answer(answer))] or [""]


def _overlap(given: list[str], answer: list[str]) -> float:
    if not given or not answer:
        return float(given == answer)
    common = (Counter(given) & Counter(answer)).total()
    return 2 * common / (len(given) + len(answer))
