"""Pipeline: inputs of any number in, answers in the caller's words out, batch by batch."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from glassformer.data.tokenizer import Tokenizer
from glassformer.devices import Device, as_device
from glassformer.grad_mode import no_grad
from glassformer.models.pretrained import PretrainedModel, callers_level
from glassformer.tensor import Tensor, tensor

Array = npt.NDArray[Any]
Row = dict[str, list[int]]  # what the model reads of one text: input_ids, token_type_ids

_WINDOW = 16  # batches that are read ahead and sorted by length
_WASTE = 1.25  # padded tokens of a batch, over real ones
_SLACK = 64  # padded tokens that are not worth a batch of their own
_FILLS = {"attention_mask": 0, "token_type_ids": 0}


@dataclass
class Item:
    """One input on its way: the rows that the model reads of it, and what it says about each.

    Args:
        source: the input as it was given.
        rows: for most tasks one; several where a long text is read in overlapping parts.
        notes: what else the answer needs to know of each row, such as its offsets.
    """

    source: Any
    rows: list[Row]
    notes: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of a task, named as in Hugging Face's pipelines.

    Args:
        truncation: True cuts long texts without a word, False refuses them; by default they are
            cut, and a warning tells of it.
        max_length: how many tokens to read of a text, special ones included; default: as many as
            tokenizer and model can.
    """

    truncation: bool | None = None
    max_length: int | None = None


class Pipeline:
    """The base class of the tasks. Made by `glassformer.pipelines.pipeline`.

    One input gives one answer, a list gives a list in the same order. Any other iterable gives an
    iterator that reads a few batches ahead. Inputs of similar length go through the model
    together, without gradients and in evaluation mode.

    Args:
        model: has the head that the task needs.
        tokenizer: of the model.
        batch_size: rows that go through the model at once, unless a call says otherwise.
        device: where to compute; default: where the model is.
        settings: of the task, for calls that don't give their own.
    """

    settings_class: ClassVar[type[Settings]] = Settings
    padding_side: ClassVar[str | None] = None  # default: the tokenizer's

    def __init__(
        self,
        model: PretrainedModel,
        tokenizer: Tokenizer,
        *,
        task: str,
        batch_size: int = 32,
        device: str | int | Device | None = None,
        **settings: Any,
    ) -> None:
        self.model = model
        if device is not None:
            self.model.to(_device(device))
        self.device = next(iter(model.parameters())).device
        self.tokenizer = tokenizer
        self.task = task
        self.batch_size = _positive("batch_size", batch_size)
        self.defaults = settings
        self.settings(settings)  # wrong ones are told at once

    def __call__(self, inputs: Any, *, batch_size: int | None = None, **settings: Any) -> Any:
        """Return the answer to one input, a list of answers, or an iterator over them.

        Args:
            inputs: one input, a list of them, or another iterable.
            batch_size: rows that go through the model at once.
            settings: of the task.

        Raises:
            TypeError: a setting that the task doesn't have, or an input of another type.
            ValueError: a setting or an input that doesn't fit.
        """
        chosen = self.settings({**self.defaults, **settings})
        size = self.batch_size if batch_size is None else _positive("batch_size", batch_size)
        if self.is_single(inputs):
            return self.alone(next(self._stream([inputs], size, chosen)), chosen)
        try:
            inputs = inputs if isinstance(inputs, (list, tuple)) else iter(inputs)
        except TypeError:
            raise TypeError(
                f"{self.task} takes one input, a list or another iterable of them, got "
                f"{type(inputs).__name__} {inputs!r:.60}"
            ) from None
        answers = self._stream(inputs, size, chosen)
        return self.together(list(answers)) if isinstance(inputs, (list, tuple)) else answers

    def settings(self, given: dict[str, Any]) -> Any:
        """Return the settings of a call, checked.

        Raises:
            TypeError: the task has no such setting.
        """
        known = [one.name for one in fields(self.settings_class)]
        for name in given:
            if name not in known:
                raise TypeError(f"{self.task} has no {name!r}; it has {', '.join(sorted(known))}")
        return self.settings_class(**given)

    def is_single(self, inputs: Any) -> bool:
        """Whether this is one input rather than several."""
        return isinstance(inputs, (str, dict))

    def alone(self, answer: Any, settings: Any) -> Any:
        """Return the answer to an input that was given alone."""
        del settings
        return answer

    def together(self, answers: list[Any]) -> Any:
        """Return the answers to a list."""
        return answers

    def encode(self, inputs: list[Any], settings: Any) -> list[Item]:
        """Return what the model reads of each input."""
        rows = self.tokenize(inputs, settings)
        return [Item(source, [row]) for source, row in zip(inputs, rows, strict=True)]

    def forward(self, batch: dict[str, Tensor], settings: Any) -> list[Any]:
        """Return what the model says about each row of a batch (B, T)."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward()")

    def finish(self, item: Item, settings: Any) -> Any:
        """Return the answer, from what the model said."""
        raise NotImplementedError(f"{type(self).__name__} defines no finish()")

    def _stream(self, inputs: Iterable[Any], batch_size: int, settings: Any) -> Iterator[Any]:
        source = iter(inputs)
        while window := list(islice(source, batch_size * _WINDOW)):
            items = self.encode(window, settings)
            self._run(items, batch_size, settings)
            for item in items:
                yield self.finish(item, settings)

    def _run(self, items: list[Item], batch_size: int, settings: Any) -> None:
        """Fill in the items' outputs, in batches of rows of similar length."""
        order = [
            (len(row["input_ids"]), i, j)
            for i, it in enumerate(items)
            for j, row in enumerate(it.rows)
        ]
        order.sort(reverse=True)  # the largest batch first: what doesn't fit, fails at once
        for item in items:
            item.outputs = [None] * len(item.rows)
        while order:
            count = self.rows_at_once([length for length, _, _ in order[:batch_size]])
            taken, order = order[:count], order[count:]
            batch = self.padded([items[i].rows[j] for _, i, j in taken])
            with evaluating(self.model):
                outputs = self.forward(batch, settings)
            for (_, i, j), output in zip(taken, outputs, strict=True):
                items[i].outputs[j] = output

    def rows_at_once(self, lengths: list[int]) -> int:
        """Return how many rows of descending lengths to take, so that padding wastes little."""
        longest = lengths[0]
        if self.filler() is None:  # nothing to pad with: rows of one length only
            return sum(length == longest for length in lengths)
        tokens = 0
        for count, length in enumerate(lengths):
            tokens += length
            if longest * (count + 1) > _WASTE * tokens + _SLACK:
                return count
        return len(lengths)

    def padded(self, rows: list[Row]) -> dict[str, Tensor]:
        """Return rows of any lengths as tensors (B, T)."""
        length = max(len(row["input_ids"]) for row in rows)
        left = (self.padding_side or self.tokenizer.padding_side) == "left"
        fills = {**_FILLS, "input_ids": self.filler() or 0}
        batch: dict[str, Tensor] = {}
        for name in rows[0]:
            array = np.full((len(rows), length), fills[name], np.int64)
            for line, row in zip(array, rows, strict=True):
                values = row[name]
                line[slice(length - len(values), None) if left else slice(len(values))] = values
            batch[name] = tensor(array, device=self.device)
        return batch

    def filler(self) -> int | None:
        """Return the token that stands for padding; None if neither tokenizer nor model has one."""
        index = self.tokenizer.pad_token_id
        return self.model.config.pad_token_id if index is None else index

    def unpadded(self, states: Tensor, mask: Tensor) -> list[Array]:
        """Return (B, T, ...) as arrays (T of the row, ...), in float32 or wider."""
        array = states.to(states.dtype.wide).cpu().numpy()
        real = mask.cpu().numpy() != 0
        return [row[keep] for row, keep in zip(array, real, strict=True)]

    def tokenize(self, texts: list[Any], settings: Any) -> list[Row]:
        """Return the rows of texts, {"text": …, "text_pair": …} included, cut to what fits."""
        limit = self.limit(settings)
        plain = [_text_and_pair(one) for one in texts]
        rows = self._rows(plain, None)
        long = [index for index, row in enumerate(rows) if len(row["input_ids"]) > limit]
        if long:
            if not settings.truncation:
                lengths = [len(rows[index]["input_ids"]) for index in long]
                self.tell_of_long(lengths, len(texts), limit, settings)
            cut = self._rows([plain[index] for index in long], limit)
            for index, row in zip(long, cut, strict=True):
                rows[index] = row
        for text, row in zip(texts, rows, strict=True):
            if not row["input_ids"]:
                raise ValueError(
                    f"{self.task}: {text!r} has no tokens, and this tokenizer adds no special ones"
                )
        return rows

    def tell_of_long(self, lengths: list[int], count: int, limit: int, settings: Any) -> None:
        """Warn of those of `count` texts that are too long, and will be cut.

        Raises:
            ValueError: truncation=False forbids to cut them.
        """
        one = len(lengths) == 1
        which = "the text" if count == 1 else f"{len(lengths)} of {count} texts"
        problem = (
            f"{which} {'is' if one else 'are'} longer than the {limit} tokens that are read of "
            f"{'it' if count == 1 else 'each'}"
        )
        if settings.truncation is False:
            more = ", …" if len(lengths) > 5 else ""
            raise ValueError(
                f"{self.task}: {problem} ({', '.join(map(str, lengths[:5]))}{more}), and "
                f"truncation=False forbids to cut; shorten {'it' if one else 'them'}, or leave "
                "truncation out"
            )
        warnings.warn(
            f"{problem}; {'its' if one else 'their'} rest is left out (truncation=True says that "
            "this is intended)",
            stacklevel=callers_level(),
        )

    def _rows(self, texts: list[Any], limit: int | None) -> list[Row]:
        encoded = self.tokenizer(
            texts, truncation=limit is not None, max_length=limit, return_attention_mask=True
        )
        return self.rows_of(encoded)

    def rows_of(self, encoded: dict[str, Any]) -> list[Row]:
        """Return the rows of a tokenizer's batch, with what this model reads of them."""
        names = ["input_ids", "attention_mask"]
        if "token_type_ids" in encoded and takes(self.model, "token_type_ids"):
            names.append("token_type_ids")
        columns = (encoded[name] for name in names)
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    def limit(self, settings: Any) -> int:
        """Return how many tokens are read of a text at most."""
        limits = [self.tokenizer.model_max_length]
        positions = position_limit(self.model)
        if positions is not None:
            limits.append(positions)
        if settings.max_length is not None:
            limits.append(_positive("max_length", settings.max_length))
        return min(limits)


@contextmanager
def evaluating(model: PretrainedModel) -> Iterator[None]:
    """Compute in evaluation mode and without gradients inside."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        with no_grad():
            yield
    finally:
        if was_training:
            model.train()


def position_limit(model: PretrainedModel) -> int | None:
    """Return how many tokens a model can read; None if its config sets no limit."""
    config = model.config
    for name in ("n_positions", "max_position_embeddings"):
        limit = getattr(config, name, None)
        if limit is not None:
            # RoBERTa's table begins with rows for padding, see `models/roberta.py`.
            is_roberta = model.base_model_prefix == "roberta"
            return int(limit) - (config.pad_token_id + 1 if is_roberta else 0)
    return None


def takes(model: PretrainedModel, name: str) -> bool:
    """Whether the bare model has an argument of this name."""
    return name in inspect.signature(model.base_model.forward).parameters


def _text_and_pair(given: Any) -> Any:
    if isinstance(given, dict):
        unknown = given.keys() - {"text", "text_pair"}
        if unknown or "text" not in given:
            raise ValueError(
                f'an input is a str or {{"text": …, "text_pair": …}}, got keys {sorted(given)}'
            )
        pair = given.get("text_pair")
        return given["text"] if pair is None else (given["text"], pair)
    if not isinstance(given, str):
        raise TypeError(
            f"an input must be a str, got {type(given).__name__} {given!r:.60}; a pair of texts is "
            '{"text": …, "text_pair": …}'
        )
    return given


def _device(spec: str | int | Device) -> Device:
    """Return a device; Hugging Face's pipelines number GPUs from 0, and -1 is the CPU."""
    if isinstance(spec, bool) or not isinstance(spec, int):
        return as_device(spec)
    if spec < -1:
        raise ValueError(f"device must be a GPU's number or -1 for the CPU, got {spec}")
    return as_device("cpu" if spec == -1 else f"cuda:{spec}")


def _positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number from 1, got {value!r}")
    return value
