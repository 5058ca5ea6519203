"""PretrainedConfig: what a model's config.json says, as a dataclass with its field names."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_type_hints

from glassformer.durable import was_cut_short, write_file
from glassformer.models.safetensors_file import Weights
from glassformer.models.safetensors_header import MAX_HEADER, WeightsError, parse_json, shown
from glassformer.models.settings import check_against, check_setting

Self = TypeVar("Self", bound="PretrainedConfig")

CONFIG_FILE = "config.json"
MAX_LABELS = 1_000_000

# Arguments of transformers' from_pretrained: what is always so here, and what to do for the others.
ALWAYS_SO = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
_IN_TRANSFORMERS = {
    "attn_implementation": "attention chooses its kernel by itself",
    "cache_dir": "give the folder of the model itself",
    "device": "for a GPU use model.to('cuda')",
    "device_map": "for a GPU use model.to('cuda')",
    "force_download": "nothing is ever downloaded",
    "load_in_4bit": "dtype='bfloat16' holds half the bytes",
    "load_in_8bit": "dtype='bfloat16' holds half the bytes",
    "local_files_only": "nothing is ever downloaded",
    "low_cpu_mem_usage": "weights are mapped from the file anyhow",
    "output_attentions": "ask at the call: model(..., output_attentions=True)",
    "output_hidden_states": "ask at the call: model(..., output_hidden_states=True)",
    "quantization_config": "dtype='bfloat16' holds half the bytes",
    "revision": "give the folder of that revision",
    "token": "nothing is ever downloaded",
    "trust_remote_code": "code of a model's folder is never run",
    "use_safetensors": "nothing else is ever read",
}


class ConfigError(WeightsError, TypeError):
    """A model's folder has a setting that no model can have, of a wrong type or out of range."""


@dataclass(kw_only=True)
class PretrainedConfig:
    """The settings every family has. A family's own class adds the shape of its models.

    Fields have the names and defaults of Hugging Face's; what a file says beyond them is kept in
    `extra` and written back.

    Attributes:
        architectures: names of the classes the weights belong to.
        id2label: the name of each class that a classifier tells apart.
        problem_type: "regression", "single_label_classification" or "multi_label_classification";
            None leaves it to the labels.
        tie_word_embeddings: the output projection is the token embedding.
        initializer_range: standard deviation of fresh weights.
        dtype: the element type of the stored weights.
    """

    model_type: ClassVar[str] = ""

    architectures: list[str] | None = None
    id2label: dict[int, str] = field(default_factory=lambda: {0: "LABEL_0", 1: "LABEL_1"})
    problem_type: str | None = None
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    dtype: str | None = None
    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def num_labels(self) -> int:
        """The number of classes."""
        return len(self.id2label)

    @property
    def label2id(self) -> dict[str, int]:
        """The class of each label's name."""
        return {label: index for index, label in self.id2label.items()}

    @classmethod
    def from_dict(cls: type[Self], settings: Mapping[str, Any], **overrides: Any) -> Self:
        """Return the config that `settings` spell out, some of them replaced.

        `num_labels=n` makes n labels without names, unless there are n already.

        Raises:
            TypeError: a setting has a type that its field can't have, or an override stands for
                nothing in `settings` or in the class.
            ValueError: a setting is out of range, or settings contradict each other.
        """
        merged = {**settings, **overrides}
        merged.pop("model_type", None)
        if "torch_dtype" in overrides or "dtype" not in merged:
            merged["dtype"] = merged.pop("torch_dtype", None)
        _settle_labels(merged, overrides)
        known = {f.name for f in fields(cls)}
        _check_overrides(overrides, cls, settings)
        own = {name: value for name, value in merged.items() if name in known - {"extra"}}
        _check(cls, own)
        extra = {name: value for name, value in merged.items() if name not in known}
        return cls(**own, extra=extra)

    @classmethod
    def from_pretrained(cls: type[Self], folder: str | Path, **overrides: Any) -> Self:
        """Read `config.json` of a model's folder.

        Raises:
            WeightsError: it is missing, no JSON object, or of another family.
            ConfigError: a setting is wrong, see `from_dict`; it is a WeightsError and a TypeError.
        """
        settings = read_config(folder)
        found = settings.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise WeightsError(
                f"{Path(folder) / CONFIG_FILE} is of model_type {shown(found)}, but {cls.__name__} "
                f"is of {cls.model_type!r}; use AutoConfig, or the class of that family"
            )
        return cls.of_file(Path(folder) / CONFIG_FILE, settings, **overrides)

    @classmethod
    def of_file(cls: type[Self], path: Path, settings: Mapping[str, Any], **overrides: Any) -> Self:
        """Return `from_dict` of what a file says, which is named in errors.

        Raises:
            ConfigError: a setting is wrong.
        """
        overrides = cls.own_overrides(overrides)
        try:
            _check_overrides(overrides, cls, settings)
        except TypeError as error:  # the caller's, not the file's
            raise ConfigError(str(error)) from None
        try:
            return cls.from_dict(settings, **overrides)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}: {error}") from error

    @classmethod
    def own_overrides(cls, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings without Hugging Face's that ask for what is always so here."""
        return {
            name: value
            for name, value in overrides.items()
            if name not in ALWAYS_SO or value is not ALWAYS_SO[name]
        }

    def check(self) -> None:
        """Raise TypeError or ValueError if a setting is of a wrong type or out of range."""
        _check(type(self), self._own())

    def check_against(self, weights: Weights) -> None:
        """Check that a checkpoint may be of a model of this size, before the model is built.

        Raises:
            ConfigError: it is far too small for that.
        """
        shapes = map(weights.shape, weights)
        try:
            check_against(self._own(), get_type_hints(type(self)), shapes)
        except ValueError as error:
            raise ConfigError(
                f"{weights.path}: {error}; the config belongs to other weights"
            ) from error

    def _own(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as config.json has them."""
        named = {"model_type": self.model_type, "label2id": self.label2id}
        return {**self.extra, **self._own(), **named}

    def to_json(self) -> bytes:
        """Return the content of config.json.

        Raises:
            ValueError: a setting is no JSON.
        """
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True, allow_nan=False)
        return f"{text}\n".encode()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json`; at any instant the old one or the new one is there, whole."""
        content = self.to_json()
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_file(Path(folder) / CONFIG_FILE, content)

    def check_divides(self, divisor: str, whole: str) -> None:
        """Raise ValueError unless one setting divides another."""
        small, large = getattr(self, divisor), getattr(self, whole)
        if small < 1 or large % small:
            raise ValueError(f"{divisor}={small} must divide {whole}={large}")


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return the JSON object in a folder's `config.json`.

    Raises:
        WeightsError: the folder or the file is missing, or holds anything else.
    """
    return read_json_object(Path(folder) / CONFIG_FILE)


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a model's folder.

    Raises:
        WeightsError: the file is missing, or holds anything else.
    """
    try:
        if not path.exists():
            raise FileNotFoundError
        if not path.is_file():  # a pipe would block for ever
            raise WeightsError(f"{path}: not a file; put the file of that name in its place")
        if path.stat().st_size > MAX_HEADER:
            raise WeightsError(f"{path}: larger than {MAX_HEADER} bytes; get the file again")
        value = parse_json(path.read_bytes().decode("utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        raise WeightsError(
            f"{path}: {_whats_missing(path)}; give the folder of a model as the Hugging "
            "Face hub serves it (config.json, model.safetensors, tokenizer.json). Nothing is ever "
            "downloaded"
        ) from None
    except OSError as error:
        raise WeightsError(
            f"{path}: cannot be read ({error.strerror}); check its permissions"
        ) from error
    except WeightsError:
        raise
    except ValueError as error:
        raise WeightsError(f"{path}: not valid JSON ({error}); get the file again") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: not a JSON object but {type(value).__name__}")
    return value


def _whats_missing(path: Path) -> str:
    if was_cut_short(path):
        return "the file is missing: the model is being saved, or that was cut short; save it again"
    if path.parent.is_dir():
        return "the file is missing"
    return "that is a file, not a folder" if path.parent.exists() else "the folder does not exist"


def _check_overrides(
    overrides: Mapping[str, Any], cls: type[PretrainedConfig], settings: Mapping[str, Any]
) -> None:
    """Raise TypeError for a setting that is misspelt: left alone, it would change nothing."""
    names = {f.name for f in fields(cls)} | settings.keys()
    names |= {"num_labels", "label2id", "torch_dtype"}
    for name in overrides.keys() - names:
        if name in _IN_TRANSFORMERS:
            raise TypeError(
                f"{name}={shown(overrides[name])}: not a setting of {cls.__name__}; "
                f"{_IN_TRANSFORMERS[name]}"
            )
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise TypeError(f"there is no setting {name!r}{hint}")


def _settle_labels(merged: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Leave one description of the labels, `id2label` with int keys, in the settings."""
    count = merged.pop("num_labels", None)
    label2id = merged.pop("label2id", None)
    if merged.get("id2label", 0) is None:
        del merged["id2label"]
    if "label2id" in overrides and "id2label" not in overrides:
        if not isinstance(label2id, Mapping):
            raise TypeError(f"label2id must map names to numbers, got {shown(label2id)}")
        merged["id2label"] = {index: name for name, index in label2id.items()}
    if isinstance(merged.get("id2label"), Mapping):
        merged["id2label"] = _numbered(merged["id2label"])
    if count is None:
        return
    if type(count) is not int or not 0 <= count <= MAX_LABELS:
        raise ValueError(
            f"num_labels must be a whole number from 0 to {MAX_LABELS}, got {shown(count)}"
        )
    if len(merged.get("id2label") or ()) != count:
        merged["id2label"] = {index: f"LABEL_{index}" for index in range(count)}


def _numbered(labels: Mapping[Any, Any]) -> dict[int, Any]:
    """Return labels by their numbers, in their order; JSON has the numbers as strings."""
    try:
        numbers = [int(index) for index in labels]
    except (TypeError, ValueError):
        raise ValueError(
            f"id2label must map whole numbers to names, got {shown(dict(labels))}"
        ) from None
    if sorted(numbers) != list(range(len(labels))):
        raise ValueError(
            f"id2label must number classes from 0, each once, got {shown(dict(labels))}"
        )
    return dict(sorted(zip(numbers, labels.values(), strict=True), key=lambda item: item[0]))


def _check(cls: type[PretrainedConfig], settings: Mapping[str, Any]) -> None:
    hints = get_type_hints(cls)
    for name, value in settings.items():
        check_setting(name, value, hints[name])
