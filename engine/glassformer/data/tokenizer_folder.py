"""A tokenizer's folder, as the Hugging Face hub serves it: reading and writing.

Everything in a folder is checked before it is used: it may come from anywhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glassformer.data.chat_template_files import (
    checked_templates,
    remove_other_templates,
    template_files,
    templates_in,
)
from glassformer.data.tokenizer_families import (
    FAMILIES,
    GENERIC,
    SPECIAL_TOKEN_NAMES,
    VERY_LARGE,
    TokenizerSettings,
    family_name,
)
from glassformer.data.tokenizer_files import (
    TokenizerError,
    is_package_error,
    one_line,
    read_object,
    read_text,
    token_content,
    tokenizers_package,
    write_whole,
)
from glassformer.data.tokenizer_vocabulary import add_listed, build_backend, legacy_added

_SENTENCEPIECE = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "spm.model")


def read_tokenizer(
    folder: str | os.PathLike[str], overrides: Mapping[str, Any]
) -> tuple[Any, TokenizerSettings]:
    """Return the `tokenizers.Tokenizer` of a folder, and its settings.

    Args:
        folder: with `tokenizer.json`, `vocab.txt`, or `vocab.json` and `merges.txt`.
        overrides: settings that replace those of `tokenizer_config.json`.

    Raises:
        TokenizerError: nothing usable there.
    """
    package = tokenizers_package()
    folder = Path(folder)
    if not folder.is_dir():
        raise TokenizerError(
            f"{folder} is not a folder; give the folder of a model as the Hugging Face hub serves "
            "it (config.json, tokenizer.json). Nothing is ever downloaded"
        )
    config = read_object(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:  # newer folders have everything in one file
        config |= read_object(folder / "special_tokens_map.json")
        added = legacy_added(folder, read_object(folder / "added_tokens.json"))
    else:
        added = config["added_tokens_decoder"]
    templates = templates_in(folder)
    if templates is not None:
        config["chat_template"] = templates
    config |= overrides
    name = _family(folder, config)
    family = FAMILIES.get(name, GENERIC)
    settings = _settings(folder, {**family.special_tokens, **config}, family.token_type_ids)
    try:
        if (folder / "tokenizer.json").is_file():
            backend = package.Tokenizer.from_str(read_text(folder / "tokenizer.json"))
            _apply(backend, config)
            add_listed(backend, added, config, settings)
        elif (found := _sentencepiece(folder)) is not None:
            raise TokenizerError(found)
        else:
            backend = build_backend(folder, name, config, settings, added)
    except TokenizerError:
        raise
    except BaseException as error:  # the package has no error class of its own, and may panic
        if not is_package_error(error):
            raise
        raise TokenizerError(f"{folder}: not a usable tokenizer ({one_line(error)})") from error
    _adopt_limits(backend, config, settings)
    # What a training script left in the file, such as padding to 128, is no wish of the caller.
    backend.no_truncation()
    backend.no_padding()
    return backend, settings


def write_tokenizer(
    folder: str | os.PathLike[str], backend: Any, settings: TokenizerSettings
) -> list[Path]:
    """Write `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`, chat templates.

    Each file is complete at any instant: its old content or the new.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    backend.no_truncation()
    backend.no_padding()
    config: dict[str, Any] = {
        "added_tokens_decoder": {
            str(index): token.__getstate__()
            for index, token in sorted(backend.get_added_tokens_decoder().items())
        },
        **settings.special_tokens,
        "clean_up_tokenization_spaces": settings.clean_up_tokenization_spaces,
        "model_input_names": settings.model_input_names,
        "model_max_length": settings.model_max_length,
        "padding_side": settings.padding_side,
        "truncation_side": settings.truncation_side,
        # The class that takes tokenizer.json as it is; others rebuild it by their defaults.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    tokens: dict[str, Any] = dict(settings.special_tokens)
    if settings.extra_special_tokens:
        tokens["additional_special_tokens"] = settings.extra_special_tokens
    templates = template_files(settings.chat_template)
    contents = {
        "tokenizer.json": backend.to_str(pretty=True),
        "tokenizer_config.json": json.dumps({**config, **tokens}, indent=2, ensure_ascii=False),
        "special_tokens_map.json": json.dumps(tokens, indent=2, ensure_ascii=False),
        **templates,
    }
    for name, text in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_whole(folder / name, text.encode())
    remove_other_templates(folder, templates)
    return [folder / name for name in contents]


def _family(folder: Path, config: Mapping[str, Any]) -> str:
    """The family's name: by the tokenizer's class, or else the model's type."""
    model = read_object(folder / "config.json")
    names = (config.get("tokenizer_class"), model.get("tokenizer_class"), model.get("model_type"))
    named = next((family_name(name) for name in names if name and isinstance(name, str)), "")
    bare = not named and not (folder / "tokenizer.json").is_file()
    return "bert" if bare and (folder / "vocab.txt").is_file() else named


def _settings(folder: Path, config: Mapping[str, Any], type_ids: bool) -> TokenizerSettings:
    path = folder / "tokenizer_config.json"
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    if not type_ids:
        inputs.remove("token_type_ids")
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if isinstance(extra, Mapping):  # names for tokens, as multimodal models have them
        extra = list(extra.values())
    settings = TokenizerSettings(
        special_tokens={
            name: token_content(path, name, config[name])
            for name in SPECIAL_TOKEN_NAMES
            if config.get(name) is not None
        },
        extra_special_tokens=[
            token_content(path, "extra_special_tokens", token)
            for token in _expected(path, "extra_special_tokens", extra, list)
        ],
        model_input_names=_expected(
            path, "model_input_names", config.get("model_input_names", inputs), list
        ),
        padding_side=config.get("padding_side", "right"),
        truncation_side=config.get("truncation_side", "right"),
        clean_up_tokenization_spaces=bool(config.get("clean_up_tokenization_spaces", False)),
        chat_template=checked_templates(path, config.get("chat_template")),
    )
    for name in ("padding_side", "truncation_side"):
        if getattr(settings, name) not in ("left", "right"):
            raise TokenizerError(
                f"{path}: {name} must be 'left' or 'right', got {getattr(settings, name)!r}"
            )
    length = config.get("model_max_length", config.get("max_len"))
    if length is not None:
        length = _expected(path, "model_max_length", length, (int, float))
        settings.model_max_length = int(min(max(length, 0), VERY_LARGE)) or VERY_LARGE
    return settings


def _expected(path: Path, name: str, value: Any, kind: type | tuple[type, ...]) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool) or value != value:
        raise TokenizerError(f"{path}: {name} has an unusable value, {value!r:.80}")
    return value


def _apply(backend: Any, config: Mapping[str, Any]) -> None:
    """Let the settings of `tokenizer_config.json` win over those in `tokenizer.json`."""
    parts = {
        "normalizer": {
            "do_lower_case": "lowercase",
            "strip_accents": "strip_accents",
            "tokenize_chinese_chars": "handle_chinese_chars",
        },
        "pre_tokenizer": {"add_prefix_space": "add_prefix_space"},
    }
    for part, names in parts.items():
        owner = getattr(backend, part)
        if type(owner).__name__ not in ("BertNormalizer", "ByteLevel"):
            continue
        for name, attribute in names.items():
            if name in config and isinstance(config[name], (bool, type(None))):
                setattr(owner, attribute, config[name])


def _adopt_limits(backend: Any, config: Mapping[str, Any], settings: TokenizerSettings) -> None:
    """Take the pad token and the sides from `tokenizer.json` where nothing else names them."""
    if backend.padding is not None:
        token = backend.padding["pad_token"]
        if config.get("pad_token") is None and backend.token_to_id(token) is not None:
            settings.special_tokens.setdefault("pad_token", token)
        settings.padding_side = config.get("padding_side", backend.padding["direction"])
    if backend.truncation is not None:
        settings.truncation_side = config.get("truncation_side", backend.truncation["direction"])


def _sentencepiece(folder: Path) -> str | None:
    """What to do about a folder that has only SentencePiece's own file, None if it has none."""
    if (folder / "source.spm").is_file():
        return (
            f"{folder} has Marian's source.spm and vocab.json but no tokenizer.json, which is what "
            "glassformer reads, and transformers has no converter for Marian: take tokenizer.json "
            "from a converted copy of the model (Xenova/opus-mt-... on the hub), or make input_ids "
            "with transformers.MarianTokenizer"
        )
    for name in _SENTENCEPIECE:
        if (folder / name).is_file():
            return (
                f"{folder} has {name} but no tokenizer.json, which is what glassformer reads: make "
                "it once with pip install transformers sentencepiece protobuf, then "
                f"transformers.AutoTokenizer.from_pretrained({str(folder)!r})"
                f".save_pretrained({str(folder)!r})"
            )
    return None
