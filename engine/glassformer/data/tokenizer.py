"""Text to ids and back, with the names and results of Hugging Face's tokenizers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glassformer.data.batch_encoding import BatchEncoding, as_tensors
from glassformer.data.chat_template import (
    Templates,
    check_chat_options,
    chosen_template,
    conversations_of,
    generated_mask,
    render_chat,
)
from glassformer.data.tokenizer_call import Limits, encode_all, rows_of, single_and_pairs
from glassformer.data.tokenizer_families import TokenizerSettings
from glassformer.data.tokenizer_folder import read_tokenizer, write_tokenizer
from glassformer.data.tokenizer_tokens import TokenTable, id_list
from glassformer.tensor import Tensor

_SPACED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


class AutoTokenizer:
    """Loads the tokenizer of any model's folder."""

    @staticmethod
    def from_pretrained(folder: str | os.PathLike[str], **settings: Any) -> Tokenizer:
        """Return the tokenizer of a folder. Nothing is ever downloaded.

        It is `tokenizer.json` with `tokenizer_config.json`, or, where that is missing, BERT's
        `vocab.txt`, or the `vocab.json` and `merges.txt` of GPT-2 and RoBERTa (`config.json` says
        which). Truncation and padding written in `tokenizer.json` have no effect on calls.

        Args:
            folder: as the hub serves it.
            settings: replace those of `tokenizer_config.json`, such as `padding_side="left"`,
                `model_max_length=128`, `do_lower_case=False` or `add_prefix_space=True`.

        Raises:
            TokenizerError: a ValueError; the folder holds nothing usable.
            ImportError: the `tokenizers` package (extra `[hub]`) isn't installed.
        """
        return Tokenizer(*read_tokenizer(folder, settings))


class Tokenizer(TokenTable):
    """A vocabulary and the rules that cut text into its tokens. Made by `AutoTokenizer`.

    Args:
        backend: a `tokenizers.Tokenizer`.
        settings: special tokens, sides, lengths.
    """

    def __init__(self, backend: Any, settings: TokenizerSettings) -> None:
        super().__init__(backend, settings)
        self.padding_side = settings.padding_side
        self.truncation_side = settings.truncation_side
        self.model_max_length = settings.model_max_length
        self.chat_template: Templates = settings.chat_template

    def __call__(
        self,
        text: Any,
        text_pair: Any = None,
        *,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        add_special_tokens: bool = True,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
    ) -> BatchEncoding:
        """Return `input_ids`, `attention_mask` and what else is asked for.

        Args:
            text: one text, or a list of them; an item of a list may be a pair (text, text).
                With `is_split_into_words`, a list of words, or a list of such lists.
            text_pair: the second text of each pair, such as the passage of a question.
            padding: True or "longest" to the longest row, "max_length" to `max_length`.
            truncation: True or "longest_first" cuts the longer text of a pair token by token,
                "only_first" and "only_second" one of the two. Giving `max_length` alone means True.
            max_length: special tokens included; default: the model's. A tokenizer that knows no
                limit of its model then neither truncates nor pads.
            stride: how many tokens a row shares with the overflow after it.
            add_special_tokens: whether to put in [CLS], [SEP], </s>, as the model expects.
            is_split_into_words: the texts come as lists of words.
            pad_to_multiple_of: round the padded length up to a multiple of this.
            return_tensors: "gf" for glassformer tensors (B, T), "np" for NumPy arrays; lists if
                None. A single text then is a batch of one.
            return_token_type_ids: 0 for the text and 1 for the pair; default: if the model uses it.
            return_attention_mask: 1 for tokens, 0 for padding.
            return_overflowing_tokens: what truncation cuts off becomes rows of its own;
                `overflow_to_sample_mapping` says which text each row is from.
            return_special_tokens_mask: 1 for special tokens, 0 for those of the text.
            return_offsets_mapping: (start, end) of each token in its text.

        Raises:
            ValueError: the arguments don't fit each other or the texts.
            TypeError: the texts are of another type.
        """
        batched, inputs = single_and_pairs(text, text_pair, is_split_into_words)
        limits = Limits(padding, truncation, max_length, stride, pad_to_multiple_of).resolved(
            self.model_max_length
        )
        encodings = encode_all(
            self, inputs, limits, add_special_tokens=add_special_tokens, words=is_split_into_words
        )
        uses = self.settings.model_input_names
        wanted = {
            "input_ids": True,
            "token_type_ids": _default(return_token_type_ids, "token_type_ids" in uses),
            "attention_mask": _default(return_attention_mask, "attention_mask" in uses),
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
        }
        names = [name for name, flag in wanted.items() if flag]
        data, rows = rows_of(encodings, names, return_overflowing_tokens)
        if not batched and return_tensors is None and not return_overflowing_tokens:
            data = {name: value[0] for name, value in data.items()}
        return BatchEncoding(as_tensors(data, return_tensors), rows)

    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> list[int]:
        """Return the ids of one text or pair; the options are those of the call."""
        ids: list[int] = self(text, text_pair, **options)["input_ids"]
        return ids

    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[str]:
        """Return the tokens of a text as strings."""
        return self(text, add_special_tokens=add_special_tokens).tokens()

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """Return the text of ids (T,), in which spaces may differ from what was encoded.

        Ids beyond the vocabulary are left out, as models may have more rows than tokens.

        Args:
            token_ids: a list, an array or a tensor, or one id.
            skip_special_tokens: leave them out.
            clean_up_tokenization_spaces: remove the spaces before punctuation; default: as the
                folder says. Has no effect on BPE, whose spaces are those of the text.

        Raises:
            ValueError: more than one row, or ids below 0 (-100 marks ignored labels).
        """
        text: str = self.backend.decode(id_list(token_ids), skip_special_tokens=skip_special_tokens)
        clean = _default(clean_up_tokenization_spaces, self.settings.clean_up_tokenization_spaces)
        if clean and type(self.backend.model).__name__ != "BPE":
            for spaced in _SPACED:
                text = text.replace(spaced, spaced.strip())
        return text

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """Return the text of each row of ids (B, T), or of rows of different lengths."""
        return [
            self.decode(row, skip_special_tokens, clean_up_tokenization_spaces)
            for row in (sequences.numpy() if isinstance(sequences, Tensor) else sequences)
        ]

    def pad(
        self,
        encodings: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        """Return encodings made one by one, or a batch with rows of different lengths, padded.

        `input_ids` get the pad token, `attention_mask` and `token_type_ids` 0,
        `special_tokens_mask` 1; other entries stay (`PaddingCollator` pads labels too).
        """
        if not isinstance(encodings, Mapping):
            names = encodings[0] if encodings else ()
            encodings = {name: [row[name] for row in encodings] for name in names}
        data = {name: _lists(value) for name, value in encodings.items()}
        if "input_ids" not in data:
            raise ValueError(f"pad needs input_ids, got {', '.join(data) or 'nothing'}")
        single = bool(data["input_ids"]) and not isinstance(data["input_ids"][0], list)
        if single:
            data = {name: [value] for name, value in data.items()}
        uses = self.settings.model_input_names
        if _default(return_attention_mask, "attention_mask" in uses):
            data.setdefault("attention_mask", [[1] * len(row) for row in data["input_ids"]])
        limits = Limits(padding, False, max_length, 0, pad_to_multiple_of)
        length = limits.resolved(self.model_max_length).padded_length(data["input_ids"])
        fills = {"attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}
        if length is not None:
            fills["input_ids"] = self.required_pad_token()[1]
        for name, fill in fills.items():
            if length is not None and name in data:
                data[name] = [self._filled(row, fill, length) for row in data[name]]
        if single:
            data = {name: value[0] for name, value in data.items()}
        return BatchEncoding(as_tensors(data, return_tensors))

    def _filled(self, row: list[int], fill: int, length: int) -> list[int]:
        filling = [fill] * (length - len(row))
        return row + filling if self.padding_side == "right" else filling + row

    def apply_chat_template(
        self,
        conversation: Any,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        *,
        padding: bool | str = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **variables: Any,
    ) -> Any:
        """Return a conversation as the model was trained to read it, as ids or text.

        Args:
            conversation: messages `{"role": "user", "content": "Hi"}`, or a list of such lists.
            tools: functions that the model may call, as JSON schemas.
            documents: that it may read, such as `{"title": …, "text": …}`.
            chat_template: a template, or the name of one of `tokenizer.chat_template`'s.
            add_generation_prompt: end with the beginning of the assistant's answer.
            continue_final_message: leave the last message open, for the model to go on with; a str
                names the entry of it that is meant, instead of "content".
            tokenize: False gives the text, or a list of texts.
            padding, truncation, max_length, return_tensors: as in the tokenizer's call.
            return_dict: False gives `input_ids` alone.
            return_assistant_tokens_mask: add `assistant_masks`, 1 for what the assistant said, for
                templates that mark it with `{% generation %}`.
            tokenizer_kwargs: more arguments of the tokenizer's call.
            variables: what the template asks for besides, such as `enable_thinking=False`; they
                come before special tokens of the same name.

        Raises:
            ChatTemplateError: a ValueError; there is no template, it refuses the conversation, or
                it fails. Templates run in a sandbox.
            ImportError: the `jinja2` package (extra `[hub]`) isn't installed.
            ValueError, TypeError: the arguments don't fit each other or the template.
        """
        masks, ids = return_assistant_tokens_mask, tokenize and return_dict
        check_chat_options(add_generation_prompt, continue_final_message, masks, ids, variables)
        continued = "content" if continue_final_message is True else continue_final_message or None
        template = chosen_template(self.chat_template, chat_template, tools is not None)
        several, conversations = conversations_of(conversation)
        chats = [
            render_chat(
                template,
                messages,
                {**self.special_tokens_map, **variables},
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
                continued=continued,
                find_generation=masks,
            )
            for messages in conversations
        ]
        texts = [chat.text for chat in chats]
        if not tokenize:
            return texts if several else texts[0]
        encoding = self(
            texts if several else texts[0],
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            add_special_tokens=False,
            return_tensors=return_tensors,
            **(tokenizer_kwargs or {}),
        )
        if masks:
            mask = generated_mask(encoding, chats)
            listed = mask if several or return_tensors else mask[0]
            encoding |= as_tensors({"assistant_masks": listed}, return_tensors)
        return encoding if return_dict else encoding["input_ids"]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the files that `AutoTokenizer` and Hugging Face's read back; return their paths.

        Each file is replaced at once, when its new content is on the disk.
        """
        self.settings.padding_side = self.padding_side
        self.settings.truncation_side = self.truncation_side
        self.settings.model_max_length = self.model_max_length
        self.settings.chat_template = self.chat_template
        return write_tokenizer(folder, self.backend, self.settings)

    def __repr__(self) -> str:
        return (
            f"Tokenizer({type(self.backend.model).__name__}, {len(self)} tokens, "
            f"model_max_length={self.model_max_length}, {self.special_tokens_map})"
        )


def _default(value: bool | None, default: bool) -> bool:
    return default if value is None else value


def _lists(value: Any) -> Any:
    """Arrays and tensors as lists, inside a list too."""
    if isinstance(value, Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value
