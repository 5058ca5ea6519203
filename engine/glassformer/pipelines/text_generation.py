"""Continuing texts and conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from glassformer.generation.generate import generate
from glassformer.pipelines.base import Item, Pipeline, Row, Settings, position_limit
from glassformer.tensor import Tensor

_NEW_TOKENS = 256  # unless a call or the folder says how many


@dataclass(frozen=True, kw_only=True)
class GenerationSettings(Settings):
    """Settings of pipelines that write; the others are those of `generate`.

    Args:
        clean_up_tokenization_spaces: remove the spaces before punctuation; default: as the
            tokenizer does.
        generation: what goes to `generate`, such as `max_new_tokens=50`.
    """

    clean_up_tokenization_spaces: bool | None = None
    generation: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TextGenerationSettings(GenerationSettings):
    """Settings of `TextGenerationPipeline`.

    Args:
        return_full_text: give the prompt as well.
        prefix: what comes before each prompt, unseen; not before chats.
        continue_final_message: go on with a chat's last message instead of answering it; default:
            if it is the assistant's.
        tools: what the model of a chat may call, as JSON schemas.
        documents: what it may read, such as `{"title": …, "text": …}`.
        tokenizer_encode_kwargs: of chats, what else goes to `tokenizer.apply_chat_template`, such
            as `{"enable_thinking": False}`.
    """

    return_full_text: bool = True
    prefix: str = ""
    continue_final_message: bool | None = None
    tools: Sequence[Any] | None = None
    documents: Sequence[Any] | None = None
    tokenizer_encode_kwargs: Mapping[str, Any] | None = None


class GenerationPipeline(Pipeline):
    """The base class of pipelines that write."""

    settings_class = GenerationSettings
    usual: ClassVar[dict[str, Any]] = {}  # for `generate`, where neither call nor folder says

    def settings(self, given: dict[str, Any]) -> Any:  # noqa: D102
        own = {one.name for one in fields(self.settings_class)} - {"generation", "max_length"}
        generation = {name: value for name, value in given.items() if name not in own}
        rest = {name: value for name, value in given.items() if name in own}
        return self.settings_class(**rest, generation={**self._unsaid(generation), **generation})

    def _unsaid(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return what is usual, without what the call or the folder says otherwise."""
        said = self.said(given)
        usual = {name: value for name, value in self.usual.items() if name not in said}
        if "max_length" in said:
            usual.pop("max_new_tokens", None)
        if not {**usual, **said}.get("do_sample"):
            usual.pop("temperature", None)
        return usual

    def said(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return what the folder's generation_config.json and a call say."""
        both = {**(getattr(self.model, "generation_settings", None) or {}), **given}
        return {name: value for name, value in both.items() if value is not None}

    def generated(self, batch: dict[str, Tensor], settings: Any) -> list[list[list[int]]]:
        """Return the continuations of each row, all tokens included."""
        ids = generate(
            self.model, batch["input_ids"], attention_mask=batch["attention_mask"], **settings
        ).cpu()
        rows = batch["input_ids"].shape[0]
        several = ids.reshape(rows, ids.shape[0] // rows, ids.shape[1])
        lists: list[list[list[int]]] = several.numpy().tolist()
        return lists


class TextGenerationPipeline(GenerationPipeline):
    """A prompt gives [{"generated_text": …}], one for each of `num_return_sequences`.

    A prompt is a text or a chat, a list of messages {"role": "user", "content": "Hi"}, which the
    tokenizer's chat template makes a text; its `generated_text` is the messages with the
    assistant's after them, with `return_full_text=False` only what that one says.

    Unless the call or the folder's generation_config.json says otherwise, 256 tokens are drawn at
    temperature 0.7, as in Hugging Face's pipeline, fewer where the model has no more positions.
    """

    settings_class = TextGenerationSettings
    padding_side = "left"  # a text goes on where it ends
    usual: ClassVar[dict[str, Any]] = {"do_sample": True, "temperature": 0.7}

    def is_single(self, inputs: Any) -> bool:  # noqa: D102
        return super().is_single(inputs) or _is_chat(inputs)

    def encode(self, inputs: list[Any], settings: Any) -> list[Item]:  # noqa: D102
        texts = [one for one in inputs if not _is_chat(one)]
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(
                    'a prompt must be a str or a chat, [{"role": "user", "content": …}], got '
                    f"{type(text).__name__} {text!r:.60}"
                )
        rows = iter(self.tokenize([f"{settings.prefix}{text}" for text in texts], settings))
        return [
            Item(one, [self._chat_row(one, settings) if _is_chat(one) else next(rows)])
            for one in inputs
        ]

    def _chat_row(self, chat: Any, settings: Any) -> Row:
        continues = _continues(chat, settings)
        options = {
            "tools": settings.tools,
            "documents": settings.documents,
            "add_generation_prompt": not continues,
            "continue_final_message": continues,
            "tokenizer_kwargs": {"return_attention_mask": True},
            **(settings.tokenizer_encode_kwargs or {}),
        }
        limit = self.limit(settings)
        row = self.rows_of(self.tokenizer.apply_chat_template([chat], **options))[0]
        if not row["input_ids"]:
            raise ValueError("the chat template makes no text of this chat; see what it expects")
        if len(row["input_ids"]) > limit and not settings.truncation:
            raise ValueError(
                f"the chat has {len(row['input_ids'])} tokens, more than the {limit} that the "
                "model reads before it writes: leave out its earliest messages, or ask for fewer "
                "new tokens"
            )
        if len(row["input_ids"]) > limit:
            options |= {"truncation": True, "max_length": limit}
            row = self.rows_of(self.tokenizer.apply_chat_template([chat], **options))[0]
        return row

    def limit(self, settings: Any) -> int:
        """Return how many tokens are read of a prompt, with room for those that are asked for."""
        limit, positions = super().limit(settings), position_limit(self.model)
        new = self.said(settings.generation).get("max_new_tokens", 1)
        if positions is None or not isinstance(new, int) or not 0 < new <= positions:
            return limit  # of which `generate` will complain
        return min(limit, positions + 1 - new)  # the last new token is never read

    def filler(self) -> int | None:  # noqa: D102
        found = super().filler()
        return 0 if found is None else found  # any will do: the mask says what is real

    def forward(self, batch: dict[str, Tensor], settings: Any) -> list[Any]:  # noqa: D102
        length = batch["input_ids"].shape[1]
        chosen = dict(settings.generation)
        if not self.said(chosen).keys() & {"max_new_tokens", "max_length"}:
            limit = position_limit(self.model)
            room = _NEW_TOKENS if limit is None else limit - length + 1
            chosen["max_new_tokens"] = min(_NEW_TOKENS, room)
        found = self.generated(batch, chosen)
        return [[tokens[length:] for tokens in row] for row in found]

    def finish(self, item: Item, settings: Any) -> Any:  # noqa: D102
        texts = self.tokenizer.batch_decode(
            item.outputs[0], True, settings.clean_up_tokenization_spaces
        )
        if not settings.return_full_text:
            return [{"generated_text": text} for text in texts]
        if not _is_chat(item.source):
            return [{"generated_text": item.source + text} for text in texts]
        join = _with_more if _continues(item.source, settings) else _with_answer
        return [{"generated_text": join(item.source, text)} for text in texts]


def _is_chat(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], Mapping)


def _continues(chat: Sequence[Mapping[str, Any]], settings: Any) -> bool:
    if settings.continue_final_message is not None:
        return bool(settings.continue_final_message)
    return isinstance(chat[-1], Mapping) and chat[-1].get("role") == "assistant"


def _with_answer(chat: Sequence[Any], text: str) -> list[Any]:
    return [*chat, {"role": "assistant", "content": text}]


def _with_more(chat: Sequence[Any], text: str) -> list[Any]:
    """Return the messages with more text in the last one, whose content may be in blocks."""
    last = chat[-1]
    content = last["content"]
    if isinstance(content, str):
        more: Any = content + text
    else:
        index = max(i for i, block in enumerate(content) if "text" in block)
        more = [*content[:index], {**content[index], "text": content[index]["text"] + text}]
        more += content[index + 1 :]
    return [*chat[:-1], {"role": last["role"], "content": more}]
