"""Auto classes: the right class for a folder, by the `model_type` in its config.json.

    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)

A family's module is imported when one of its models is asked for.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

from glassformer.models.config import CONFIG_FILE, PretrainedConfig, read_config
from glassformer.models.pretrained import PretrainedModel
from glassformer.models.safetensors_header import WeightsError, shown
from glassformer.random import Generator


class _Family(NamedTuple):
    module: str
    prefix: str  # of its classes' names


_FAMILIES = {
    "albert": _Family("albert", "Albert"),
    "bart": _Family("bart", "Bart"),
    "bert": _Family("bert", "Bert"),
    "camembert": _Family("camembert", "Camembert"),
    "distilbert": _Family("distilbert", "DistilBert"),
    "gpt2": _Family("gpt2", "GPT2"),
    "llama": _Family("llama", "Llama"),
    "marian": _Family("marian", "Marian"),
    "mistral": _Family("llama", "Mistral"),
    "qwen2": _Family("llama", "Qwen2"),
    "roberta": _Family("roberta", "Roberta"),
    "t5": _Family("t5", "T5"),
    "vit": _Family("vit", "ViT"),
    "xlm-roberta": _Family("xlm_roberta", "XLMRoberta"),
}


class AutoConfig:
    """Reads the config of any family."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, **overrides: Any) -> PretrainedConfig:
        """Return the config in a folder, some settings replaced.

        Raises:
            WeightsError: the file is missing or damaged, or names no family that is known.
            ConfigError: a setting is wrong; it is a WeightsError and a TypeError.
        """
        settings = read_config(folder)
        kind = settings.get("model_type")
        if not isinstance(kind, str) or kind not in _FAMILIES:
            raise WeightsError(
                f"{Path(folder) / CONFIG_FILE} has model_type {shown(kind)}; known are "
                f"{', '.join(sorted(_FAMILIES))}"
            )
        config_class: type[PretrainedConfig] = getattr(
            _module(kind), f"{_FAMILIES[kind].prefix}Config"
        )
        return config_class.of_file(Path(folder) / CONFIG_FILE, settings, **overrides)


class _AutoModel:
    """What the auto classes share: the ends of the names of the classes they choose from."""

    endings: ClassVar[tuple[str, ...]]

    @classmethod
    def from_pretrained(cls, folder: str | Path, **settings: Any) -> Any:
        """Load a folder; see `PretrainedModel.from_pretrained`.

        Raises:
            WeightsError: the family is unknown or has no such model, a setting is wrong, or the
                weights don't fit.
        """
        config = settings.get("config")
        if config is None:
            config = AutoConfig.from_pretrained(folder)
        return cls._class_for(config).from_pretrained(folder, **settings)

    @classmethod
    def from_config(cls, config: PretrainedConfig, generator: Generator | None = None) -> Any:
        """Return a fresh model of this shape."""
        return cls._class_for(config)(config, generator)

    @classmethod
    def has(cls, config: PretrainedConfig) -> bool:
        """Whether the config's family has such a model."""
        return cls._found(config.model_type) is not None

    @classmethod
    def check(cls, model: PretrainedModel) -> None:
        """Check that a model has the head that this class chooses.

        Raises:
            TypeError: it has another; the message names the class that is needed.
            WeightsError: its family has none such.
        """
        if model.config.model_type in _FAMILIES:
            needed = cls._class_for(model.config)
            if not isinstance(model, needed):
                raise TypeError(f"needs a {needed.__name__}, got a {type(model).__name__}")

    @classmethod
    def _class_for(cls, config: PretrainedConfig) -> type[PretrainedModel]:
        if not isinstance(config, PretrainedConfig):
            raise TypeError(
                f"{cls.__name__} takes a config, got {shown(config)}; AutoConfig.from_pretrained("
                "folder) reads one"
            )
        found = cls._found(config.model_type)
        if found is None:
            having = [kind for kind in sorted(_FAMILIES) if cls._found(kind) is not None]
            raise WeightsError(
                f"{cls.__name__}: there is none of model_type {config.model_type!r}; there are of "
                f"{', '.join(having)}"
            )
        return found

    @classmethod
    def _found(cls, kind: str) -> type[PretrainedModel] | None:
        if kind not in _FAMILIES:
            return None
        names = [f"{_FAMILIES[kind].prefix}{ending}" for ending in cls.endings]
        found = [getattr(_module(kind), name, None) for name in names]
        return next((one for one in found if one is not None), None)


def _module(kind: str) -> ModuleType:
    return import_module(f"glassformer.models.{_FAMILIES[kind].module}")


class AutoModel(_AutoModel):
    """Chooses a bare model: hidden states, no head."""

    endings = ("Model",)


class AutoModelForPreTraining(_AutoModel):
    """Chooses a model with the heads of its family's pre-training."""

    endings = ("ForPreTraining", "ForMaskedLM", "ForCausalLM", "LMHeadModel")


class AutoModelForMaskedLM(_AutoModel):
    """Chooses a model that fills in masked tokens."""

    endings = ("ForMaskedLM",)


class AutoModelForCausalLM(_AutoModel):
    """Chooses a model that predicts the next token."""

    endings = ("ForCausalLM", "LMHeadModel")


class AutoModelForSeq2SeqLM(_AutoModel):
    """Chooses an encoder-decoder: translation, summarisation."""

    endings = ("ForConditionalGeneration", "MTModel")


class AutoModelForSequenceClassification(_AutoModel):
    """Chooses a model that judges whole inputs."""

    endings = ("ForSequenceClassification",)


class AutoModelForTokenClassification(_AutoModel):
    """Chooses a model that judges every token."""

    endings = ("ForTokenClassification",)


class AutoModelForQuestionAnswering(_AutoModel):
    """Chooses a model that finds answers in a text."""

    endings = ("ForQuestionAnswering",)


class AutoModelForImageClassification(_AutoModel):
    """Chooses a model that judges images."""

    endings = ("ForImageClassification",)
