"""Tokenizers from the files that came before `tokenizer.json`, and tokens added to them later."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glassformer.data.tokenizer_families import SPECIAL_TOKEN_NAMES, TokenizerSettings
from glassformer.data.tokenizer_files import (
    TokenizerError,
    read_json,
    token_content,
    tokenizers_package,
)

_WORDPIECE = ("bert", "distilbert")
_BYTE_LEVEL = ("gpt2", "roberta")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def build_backend(
    folder: Path,
    family: str,
    config: Mapping[str, Any],
    settings: TokenizerSettings,
    added: Any,
) -> Any:
    """Return the `tokenizers.Tokenizer` of `vocab.txt`, or of `vocab.json` and `merges.txt`.

    Raises:
        TokenizerError: those files are missing, or of a family that needs more than them.
    """
    if (folder / "vocab.txt").is_file() and family in _WORDPIECE:
        return _wordpiece(folder, config, settings, added)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        if family in _BYTE_LEVEL:
            return _byte_level(folder, family, config, settings, added)
        if not family:
            raise TokenizerError(
                f"{folder}: vocab.json and merges.txt don't say which model they are for; "
                'name it in config.json, such as {"model_type": "gpt2"} or "roberta"'
            )
    elif not (folder / "vocab.txt").is_file():
        raise TokenizerError(
            f"{folder} holds no tokenizer: there is no tokenizer.json, no vocab.txt and no "
            "vocab.json with merges.txt; get tokenizer.json from where the model came from"
        )
    raise TokenizerError(
        f"{folder}: a tokenizer of the family {family!r} needs tokenizer.json (from its vocabulary "
        "files alone glassformer reads BERT's, GPT-2's and RoBERTa's); make it with transformers: "
        "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
    )


def legacy_added(folder: Path, tokens: Mapping[str, Any]) -> dict[str, Any]:
    """Return `added_tokens.json` (token: id) in the newer form, id: description."""
    path = folder / "added_tokens.json"
    for token, index in tokens.items():
        if isinstance(index, bool) or not isinstance(index, int):
            raise TokenizerError(f"{path}: the id of {token!r} must be a number, got {index!r}")
    return {str(index): {"content": token} for token, index in tokens.items()}


def add_listed(
    backend: Any, added: Any, config: Mapping[str, Any], settings: TokenizerSettings
) -> None:
    """Add the tokens that a folder lists and its vocabulary lacks; mark the special ones.

    Args:
        backend: the `tokenizers.Tokenizer`.
        added: id: description, as in `added_tokens_decoder`.
        config: whose special tokens may say how they strip the spaces around them.
        settings: the special tokens.

    Raises:
        TokenizerError: a description is unusable, or an id isn't the one that the token gets.
    """
    special = [*settings.special_tokens.values(), *settings.extra_special_tokens]
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for index, description in _in_order(added):
        content = token_content("added_tokens", index, description)
        if content not in known:
            _add(backend, {"special": content in special, **description})
        if backend.token_to_id(content) != int(index):
            raise TokenizerError(
                f"the added token {content!r} has id {index} in the folder's files, but the "
                f"vocabulary gives it {backend.token_to_id(content)}; get the files of one model"
            )
        known.add(content)
    described = {name: value for name in SPECIAL_TOKEN_NAMES if (value := config.get(name))}
    for name, content in settings.special_tokens.items():
        if content not in known:
            value = described.get(name)
            flags = value if isinstance(value, Mapping) else {"lstrip": content == "<mask>"}
            _add(backend, {**flags, "content": content, "special": True})
            known.add(content)
    for content in settings.extra_special_tokens:
        if content not in known:
            _add(backend, {"content": content, "special": True})


def _in_order(added: Any) -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(added, dict) or not all(
        index.isascii() and index.isdigit() and isinstance(token, dict)
        for index, token in added.items()
    ):
        raise TokenizerError("added_tokens_decoder must map ids to descriptions of tokens")
    return sorted(added.items(), key=lambda item: int(item[0]))


def _add(backend: Any, description: Mapping[str, Any]) -> None:
    flags = {name: bool(description[name]) for name in _FLAGS if name in description}
    flags.setdefault("normalized", not flags.get("special", False))
    token = tokenizers_package().AddedToken(description["content"], **flags)
    (backend.add_special_tokens if flags.get("special") else backend.add_tokens)([token])


def _wordpiece(
    folder: Path, config: Mapping[str, Any], settings: TokenizerSettings, added: Any
) -> Any:
    """BERT's: lower case, accents and Chinese characters as the configuration says."""
    package = tokenizers_package()
    names = settings.special_tokens
    for name in ("unk_token", "cls_token", "sep_token"):
        names.setdefault(name, f"[{name[:3].upper()}]")
    vocabulary = package.models.WordPiece.read_file(str(folder / "vocab.txt"))
    backend = package.Tokenizer(package.models.WordPiece(vocabulary, unk_token=names["unk_token"]))
    backend.normalizer = package.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
        strip_accents=config.get("strip_accents"),
        lowercase=bool(config.get("do_lower_case", True)),
    )
    backend.pre_tokenizer = package.pre_tokenizers.BertPreTokenizer()
    backend.decoder = package.decoders.WordPiece(prefix="##")
    add_listed(backend, added, config, settings)  # the template below needs their ids
    backend.post_processor = bert_template(backend, names["cls_token"], names["sep_token"])
    return backend


def bert_template(backend: Any, cls: str, sep: str) -> Any:
    """Return the post-processor that makes `[CLS] A [SEP]` and `[CLS] A [SEP] B [SEP]`."""
    return tokenizers_package().processors.TemplateProcessing(
        single=[f"{cls}:0", "$A:0", f"{sep}:0"],
        pair=[f"{cls}:0", "$A:0", f"{sep}:0", "$B:1", f"{sep}:1"],
        special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys([cls, sep])],
    )


def _byte_level(
    folder: Path,
    family: str,
    config: Mapping[str, Any],
    settings: TokenizerSettings,
    added: Any,
) -> Any:
    """GPT-2's byte-level BPE, and RoBERTa's: `<s> A </s>` and `<s> A </s></s> B </s>`."""
    package = tokenizers_package()
    vocabulary = read_json(folder / "vocab.json")
    if not isinstance(vocabulary, dict) or not all(
        type(index) is int and 0 <= index < 2**31 for index in vocabulary.values()
    ):
        raise TokenizerError(f"{folder / 'vocab.json'}: must map tokens to ids; get the file again")
    vocabulary, merges = package.models.BPE.read_file(
        str(folder / "vocab.json"), str(folder / "merges.txt")
    )
    backend = package.Tokenizer(
        package.models.BPE(
            vocab=vocabulary, merges=merges, continuing_subword_prefix="", end_of_word_suffix=""
        )
    )
    prefix_space = bool(config.get("add_prefix_space", False))
    backend.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = package.decoders.ByteLevel()
    add_listed(backend, added, config, settings)  # the templates below need their ids
    names = settings.special_tokens
    if family == "roberta":
        sep, cls = names["sep_token"], names["cls_token"]
        backend.post_processor = package.processors.RobertaProcessing(
            (sep, backend.token_to_id(sep)),
            (cls, backend.token_to_id(cls)),
            trim_offsets=bool(config.get("trim_offsets", True)),
            add_prefix_space=prefix_space,
        )
    else:
        backend.post_processor = _ends_template(backend, config, names)
    return backend


def _ends_template(backend: Any, config: Mapping[str, Any], names: Mapping[str, str]) -> Any:
    """The text as it is, or between the start and end tokens if the configuration asks for them."""
    bos = [names["bos_token"]] if config.get("add_bos_token") and "bos_token" in names else []
    eos = [names["eos_token"]] if config.get("add_eos_token") and "eos_token" in names else []

    def around(text: str, type_id: int) -> list[str]:
        return [f"{token}:{type_id}" for token in (*bos, text, *eos)]

    return tokenizers_package().processors.TemplateProcessing(
        single=around("$A", 0),
        pair=around("$A", 0) + around("$B", 1),
        special_tokens=[
            (token, backend.token_to_id(token)) for token in dict.fromkeys([*bos, *eos])
        ],
    )
