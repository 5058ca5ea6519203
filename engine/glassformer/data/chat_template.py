"""Chat templates: a conversation as the text that a model was trained on."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glassformer.data.batch_encoding import BatchEncoding
from glassformer.data.chat_sandbox import ChatTemplateError, render_template

Templates = str | dict[str, str] | None  # one, or several by name
Message = dict[str, Any]

# What a message's thoughts are called: the name that templates read now, and earlier ones.
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")
_HERE = "[[THE-MESSAGE-GOES-ON-HERE]] "  # the space tells whether the template strips messages


@dataclass(frozen=True)
class RenderedChat:
    """The text of a conversation.

    Args:
        text: for a tokenizer that adds no special tokens.
        generated: the (start, end) of what the assistant said in it, where that was asked for.
    """

    text: str
    generated: list[tuple[int, int]]


def check_chat_options(
    prompts: bool,
    continues: bool | str,
    masks: bool,
    ids: bool,
    variables: Mapping[str, Any],
) -> None:
    """Refuse arguments of `apply_chat_template` that don't fit each other.

    Raises:
        ValueError: they don't.
    """
    if prompts and continues:
        raise ValueError(
            "add_generation_prompt begins a new message and continue_final_message goes on with "
            "the last one; choose one of them"
        )
    if masks and (continues or not ids):
        raise ValueError(
            "return_assistant_tokens_mask needs tokenize=True and return_dict=True, and no "
            "continue_final_message"
        )
    if variables.get("sanitize_control_tokens"):  # unheard, it would leave a hole
        raise ValueError(
            "sanitize_control_tokens isn't supported: remove special tokens from the messages, "
            "such as tokenizer.eos_token, before they are rendered"
        )


def chosen_template(templates: Templates, given: str | None, has_tools: bool) -> str:
    """Return the template to use.

    Args:
        templates: the tokenizer's.
        given: one of their names, or a template in their place.
        has_tools: choose "tool_use" where there is one.

    Raises:
        ChatTemplateError: there is none, or no default among several.
        TypeError: `given` is no str.
    """
    if given is not None and not isinstance(given, str):
        raise TypeError(
            f"chat_template must be a str, a template or its name, got {type(given).__name__}"
        )
    if isinstance(templates, dict):
        if given is not None:
            return templates.get(given, given)
        for name in ("tool_use", "default") if has_tools else ("default",):
            if name in templates:
                return templates[name]
        raise ChatTemplateError(
            "this tokenizer has several chat templates and no default; choose one with "
            f"chat_template=…: {', '.join(sorted(templates)) or 'there is none'}"
        )
    found = templates if given is None else given
    if found is None:
        raise ChatTemplateError(
            "this tokenizer has no chat template, so it is hardly a chat model's; give plain text, "
            "or set tokenizer.chat_template to the template that the model was trained with"
        )
    return found


def conversations_of(conversation: Any) -> tuple[bool, list[list[Message]]]:
    """Return whether several were given, and a copy of each without the entries that are None.

    Raises:
        ValueError: there is no message.
        TypeError: something else than messages.
    """
    if not isinstance(conversation, (list, tuple)):
        raise TypeError(
            'a conversation is a list of messages {"role": …, "content": …}, got '
            f"{type(conversation).__name__} {conversation!r:.60}"
        )
    several = bool(conversation) and isinstance(conversation[0], (list, tuple))
    chats = list(conversation) if several else [conversation]
    return several, [_messages(chat) for chat in chats]


def _messages(chat: Any) -> list[Message]:
    if not isinstance(chat, (list, tuple)):
        raise TypeError(
            f"several conversations are a list of lists of messages, got {type(chat).__name__} "
            f"{chat!r:.60} among them"
        )
    if not chat:
        raise ValueError("the conversation is empty; give at least one message")
    messages = []
    for message in chat:
        if not isinstance(message, Mapping):
            raise TypeError(
                'a message must be a dict, {"role": …, "content": …}, got '
                f"{type(message).__name__} {message!r:.60}"
            )
        # Interfaces of servers write content=None; templates would write the word "None".
        kept = {name: value for name, value in message.items() if value is not None}
        thoughts = next((kept[name] for name in _THOUGHTS if name in kept), None)
        if thoughts is not None:
            kept = {"thinking": thoughts, **kept, "reasoning_content": thoughts}
        messages.append(kept)
    return messages


def render_chat(
    template: str,
    messages: list[Message],
    variables: Mapping[str, Any],
    *,
    tools: Sequence[Any] | None = None,
    documents: Sequence[Any] | None = None,
    add_generation_prompt: bool = False,
    continued: str | None = None,
    find_generation: bool = False,
) -> RenderedChat:
    """Return the text of a conversation.

    Args:
        template: in Jinja's language.
        messages: with `role` and `content`.
        variables: special tokens, and what else the template asks for.
        tools: JSON schemas.
        documents: dicts with `title` and `text`.
        add_generation_prompt: end with the beginning of an answer.
        continued: the entry of the last message that is left open, such as "content".
        find_generation: find what the assistant said.

    Raises:
        ChatTemplateError: the template fails, refuses the conversation, or leaves out what is to
            be continued.
        ValueError: there is nothing to continue.
        TypeError: a tool or document is no dict.
    """
    _check_dicts("tools", tools, "JSON schemas, as transformers.utils.get_json_schema makes them")
    _check_dicts("documents", documents, 'such as {"title": …, "text": …}')
    final = ""
    if continued is not None:
        messages, final = _left_open(template, messages, continued)
    given = {
        "messages": messages,
        "tools": tools,
        "documents": documents,
        "add_generation_prompt": add_generation_prompt,
    }
    for name in given.keys() & variables.keys():
        raise TypeError(f"{name} is an argument of its own, not a variable of the template")
    if find_generation and not re.search(r"{%[-+]?\s*generation\b", template):
        warnings.warn(
            "the chat template doesn't mark what the assistant says with {% generation %}, so the "
            "mask is all 0; pass chat_template=… with one that does",
            stacklevel=3,
        )
    text, spans = render_template(template, {**variables, **given}, find_generation=find_generation)
    return RenderedChat(text if continued is None else _up_to_here(text, final), spans)


def generated_mask(encoding: BatchEncoding, chats: Sequence[RenderedChat]) -> list[list[int]]:
    """Return 1 for each token of what the assistant said, else 0; a list for each conversation.

    Raises:
        ValueError: some have several rows.
    """
    if "overflow_to_sample_mapping" in encoding:
        raise ValueError(
            "return_assistant_tokens_mask doesn't go with return_overflowing_tokens; choose one"
        )
    masks = []
    for row, chat in enumerate(chats):
        spans = (encoding.token_to_chars(row, i) for i in range(len(encoding.tokens(row))))
        masks.append([int(span is not None and _meets(span, chat.generated)) for span in spans])
    return masks


def _meets(span: tuple[int, int], others: list[tuple[int, int]]) -> bool:
    return any(span[0] < end and start < span[1] for start, end in others)


def _check_dicts(name: str, values: Sequence[Any] | None, meaning: str) -> None:
    for value in values or ():
        if not isinstance(value, Mapping):
            raise TypeError(
                f"{name} must be a list of dicts, {meaning}; got {type(value).__name__} "
                f"{value!r:.60}"
            )


def _left_open(template: str, messages: list[Message], name: str) -> tuple[list[Message], str]:
    """Return the messages with a mark at the end of the last one, and what is before the mark."""
    last = dict(messages[-1])
    final = last.get(name)
    if final is None:
        raise ValueError(
            f"continue_final_message: the last message has no {name!r}, only {', '.join(last)}"
        )
    names = [one for one in _THOUGHTS if last.get(one) == final] if name in _THOUGHTS else [name]
    if not any(one in template for one in names):
        raise ChatTemplateError(
            f"continue_final_message: the chat template never reads {name!r} of a message"
        )
    if isinstance(final, str):
        last |= {one: final + _HERE for one in names}
    else:
        last[name], final = _block_left_open(final)
    return [*messages[:-1], last], final


def _block_left_open(blocks: Any) -> tuple[list[Any], str]:
    """The same for a content of several blocks, such as {"type": "text", "text": …}."""
    marked = list(blocks) if isinstance(blocks, (list, tuple)) else []
    for index in reversed(range(len(marked))):
        if isinstance(marked[index], Mapping) and isinstance(marked[index].get("text"), str):
            final: str = marked[index]["text"]
            marked[index] = {**marked[index], "text": final + _HERE}
            return marked, final
    raise ValueError(f"continue_final_message: the last message has no text, {blocks!r:.60}")


def _up_to_here(text: str, final: str) -> str:
    place = text.rfind(_HERE.rstrip())
    if place < 0 or final.strip() not in text:
        raise ChatTemplateError(
            "continue_final_message: the chat template doesn't write the whole last message, so "
            f"there is no place to go on from; the message: {final!r:.60}"
        )
    kept = text[:place]
    return kept if text.startswith(_HERE, place) else kept.rstrip()
