"""Finding the answer to a question in a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from glassformer.data.batch_encoding import BatchEncoding
from glassformer.pipelines.base import Array, Item, Pipeline, Settings
from glassformer.pipelines.scores import check_top_k
from glassformer.tensor import Tensor

_EXCLUDED = -10000.0  # the logit of positions where no answer can be


@dataclass(frozen=True, kw_only=True)
class QuestionAnsweringSettings(Settings):
    """Settings of `QuestionAnsweringPipeline`.

    Args:
        top_k: how many answers to return; one comes as a dict, several as a list, best first.
        doc_stride: how many tokens neighbouring parts of a long context share; default: 128, or
            half of max_seq_len if that is less.
        max_answer_len: of an answer, in tokens.
        max_seq_len: of the question with a part of the context, in tokens.
        handle_impossible_answer: let "there is no answer" take part, as the empty text.
        align_to_words: answers begin and end where words do.
    """

    top_k: int = 1
    doc_stride: int | None = None
    max_answer_len: int = 15
    max_seq_len: int = 384
    handle_impossible_answer: bool = False
    align_to_words: bool = True

    def __post_init__(self) -> None:
        check_top_k(self.top_k)
        for name in ("max_answer_len", "max_seq_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class _Part(NamedTuple):
    """A part of a context, as one row: what an answer's tokens are in the text."""

    allowed: Array  # bool (T,): the context's tokens, and the first special one
    spans: list[tuple[int, int]]  # of each token in its text
    words: list[int | None]
    sequences: list[int | None]

    def characters(self, first: int, last: int, whole_words: bool) -> tuple[int, int]:
        """Return where the answer from token `first` to `last` begins and ends in the context."""
        if whole_words and self.words[first] is not None and self.words[last] is not None:
            same = [
                index
                for index, (word, sequence) in enumerate(
                    zip(self.words, self.sequences, strict=True)
                )
                if sequence == 1 and word in (self.words[first], self.words[last])
            ]
            first, last = same[0], same[-1]
        return self.spans[first][0], self.spans[last][1]


class QuestionAnsweringPipeline(Pipeline):
    """question=…, context=… gives {"score", "start", "end", "answer"}, characters of the context.

    Lists of both, or a list of {"question": …, "context": …}, give a list. A long context is read
    in overlapping parts. An answer's score is the probability of its start times that of its end
    (Devlin et al. 2019, "BERT", section 4.2), each a softmax over one part; the same words found
    at several places are one answer, whose scores add up.
    """

    settings_class = QuestionAnsweringSettings

    def __call__(
        self,
        inputs: Any = None,
        *,
        question: str | list[str] | None = None,
        context: str | list[str] | None = None,
        batch_size: int | None = None,
        **settings: Any,
    ) -> Any:
        """Return the answer to a question, or to several; see `Pipeline.__call__`."""
        if inputs is None:
            inputs = _questions(question, context)
        elif question is not None or context is not None:
            raise TypeError("give either inputs, or question= and context=")
        return super().__call__(inputs, batch_size=batch_size, **settings)

    def encode(self, inputs: list[Any], settings: Any) -> list[Item]:  # noqa: D102
        return [self._encoded(one, settings) for one in inputs]

    def _encoded(self, given: Any, settings: Any) -> Item:
        for name in ("question", "context"):
            text = given.get(name) if isinstance(given, dict) else None
            if not isinstance(text, str) or not text:
                raise ValueError(
                    'an input is {"question": …, "context": …}, neither of them empty; got '
                    f"{given!r:.80}"
                )
        length = min(settings.max_seq_len, self.limit(settings))
        stride = settings.doc_stride
        if stride is None:
            stride = min(128, length // 2)
        room = length - len(self.tokenizer(given["question"], "")["input_ids"])
        if room <= stride:
            raise ValueError(
                f"the question and its special tokens leave {room} of {length} tokens to a part of "
                f"the context, of which doc_stride={stride} overlap; shorten the question, or give "
                "a larger max_seq_len or a smaller doc_stride"
            )
        encoded = self.tokenizer(
            given["question"],
            given["context"],
            truncation="only_second",
            max_length=length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=True,
        )
        rows = self.rows_of(encoded)
        return Item(given, rows, [self._part(encoded, index) for index in range(len(rows))])

    def _part(self, encoded: BatchEncoding, index: int) -> _Part:
        ids = np.asarray(encoded["input_ids"][index])
        sequences = encoded.sequence_ids(index)
        allowed = np.array([one == 1 for one in sequences])
        if self.tokenizer.cls_token_id is not None:
            allowed |= ids == self.tokenizer.cls_token_id
        spans = encoded["offset_mapping"][index]
        return _Part(allowed, spans, encoded.word_ids(index), sequences)

    def forward(self, batch: dict[str, Tensor], settings: Any) -> list[Any]:  # noqa: D102
        output = self.model(**batch)
        mask = batch["attention_mask"]
        starts, ends = (
            self.unpadded(output.start_logits, mask),
            self.unpadded(output.end_logits, mask),
        )
        return list(zip(starts, ends, strict=True))

    def finish(self, item: Item, settings: Any) -> Any:  # noqa: D102
        context = item.source["context"]
        answers: dict[str, dict[str, Any]] = {}
        impossible = np.inf
        for part, (start_logits, end_logits) in zip(item.notes, item.outputs, strict=True):
            starts, ends = (_shares(x, part.allowed) for x in (start_logits, end_logits))
            impossible = min(impossible, float(starts[0] * ends[0]))
            starts[0] = ends[0] = 0.0
            for first, last, score in _best_spans(starts, ends, part.allowed, settings):
                start, end = part.characters(first, last, settings.align_to_words)
                answer = context[start:end]
                known = answers.setdefault(
                    answer.lower(), {"score": 0.0, "start": start, "end": end, "answer": answer}
                )
                known["score"] += score
        found = list(answers.values()) or [{"score": 0.0, "start": 0, "end": 0, "answer": ""}]
        if settings.handle_impossible_answer:
            found.append({"score": impossible, "start": 0, "end": 0, "answer": ""})
        found = sorted(found, key=lambda one: -one["score"])[: settings.top_k]
        return found[0] if len(found) == 1 else found


def _shares(logits: Array, allowed: Array) -> Array:
    """Softmax over the positions where an answer may begin or end."""
    powers = np.where(allowed, logits, _EXCLUDED)
    powers = np.exp(powers - powers.max())
    return np.asarray(powers / powers.sum())


def _best_spans(
    starts: Array, ends: Array, allowed: Array, settings: QuestionAnsweringSettings
) -> list[tuple[int, int, float]]:
    """Return (first token, last token, score) of the likeliest answers."""
    scores = np.outer(starts, ends)  # (T, T)
    scores = np.tril(np.triu(scores), settings.max_answer_len - 1)
    count = 2 * settings.top_k + 10 if settings.align_to_words else settings.top_k
    order = np.argsort(-scores, axis=None, kind="stable")[:count]
    return [
        (int(first), int(last), float(scores[first, last]))
        for first, last in zip(*np.unravel_index(order, scores.shape), strict=True)
        if 0 < first <= last < first + settings.max_answer_len and allowed[first] and allowed[last]
    ]


def _questions(question: Any, context: Any) -> Any:
    """Return {"question", "context"}, or a list of them where either is a list."""
    if question is None or context is None:
        raise TypeError("give question= and context=, or a list of both in dicts")
    many = [len(one) for one in (question, context) if isinstance(one, (list, tuple))]
    if not many:
        return {"question": question, "context": context}
    if len(set(many)) > 1:
        raise ValueError(f"{many[0]} questions don't go with {many[1]} contexts")
    columns = [
        [one] * many[0] if isinstance(one, str) else list(one) for one in (question, context)
    ]
    return [{"question": q, "context": c} for q, c in zip(*columns, strict=True)]
