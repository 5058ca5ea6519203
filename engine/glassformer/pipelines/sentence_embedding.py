"""One vector for each text, as sentence-transformers makes it."""

from __future__ import annotations

from dataclasses import dataclass
from json import loads
from pathlib import Path
from typing import Any

import numpy as np

from glassformer.models.config import read_json_object
from glassformer.models.safetensors_file import WeightsError
from glassformer.pipelines.base import Array, Item, Pipeline, Settings
from glassformer.tensor import Tensor

POOLINGS = ("cls", "max", "mean")  # the order in which sentence-transformers joins several

_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
}


@dataclass(frozen=True, kw_only=True)
class SentenceEmbeddingSettings(Settings):
    """Settings of `SentenceEmbeddingPipeline`; the defaults are what the folder says.

    Args:
        pooling: "mean" or "max" over the tokens, "cls" the first one, or several of these.
        normalize: divide each vector by its length.
        do_lower_case: lower the texts' case first.
    """

    pooling: str | tuple[str, ...] = "mean"
    normalize: bool = False
    do_lower_case: bool = False

    def __post_init__(self) -> None:
        for one in self.poolings:
            if one not in POOLINGS:
                raise ValueError(f"pooling must be of {', '.join(POOLINGS)}, got {one!r}")

    @property
    def poolings(self) -> tuple[str, ...]:
        """The ways of pooling, in the order in which their vectors are joined."""
        return (self.pooling,) if isinstance(self.pooling, str) else self.pooling


class SentenceEmbeddingPipeline(Pipeline):
    """A text gives a vector (C,), a list of texts a matrix (N, C), as NumPy arrays.

    Reimers and Gurevych 2019, "Sentence-BERT", section 3: the tokens' states pooled over the text.
    """

    settings_class = SentenceEmbeddingSettings
    warns_of_truncation = False

    def together(self, answers: list[Any]) -> Any:  # noqa: D102
        width = getattr(self.model.config, "hidden_size", 0)
        return np.stack(answers) if answers else np.zeros((0, width), np.float32)

    def encode(self, inputs: list[Any], settings: Any) -> list[Item]:  # noqa: D102
        lowers = settings.do_lower_case
        texts = [one.lower() if lowers and isinstance(one, str) else one for one in inputs]
        return super().encode(texts, settings)

    def forward(self, batch: dict[str, Tensor], settings: Any) -> list[Any]:  # noqa: D102
        states = self.model(**batch).last_hidden_state
        rows = self.unpadded(states, batch["attention_mask"])
        return [_pooled(row, settings) for row in rows]

    def finish(self, item: Item, settings: Any) -> Any:  # noqa: D102
        return item.outputs[0]


def _pooled(states: Array, settings: SentenceEmbeddingSettings) -> Array:
    """(T, C) -> (C,), or several times C."""
    ways = {"cls": lambda x: x[0], "max": lambda x: x.max(0), "mean": lambda x: x.mean(0)}
    vector: Array = np.concatenate([ways[one](states) for one in settings.poolings])
    return vector / max(np.linalg.norm(vector), 1e-12) if settings.normalize else vector


def folder_settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return where the model of a sentence-transformers folder is, and its settings.

    A folder without `modules.json` is the model itself, with mean pooling.

    Raises:
        WeightsError: a file is damaged, or asks for what isn't supported.
    """
    found: dict[str, Any] = {}
    model = folder
    for kind, path in _modules(folder):
        if kind == "Transformer":
            model = path
        elif kind == "Pooling":
            found["pooling"] = _pooling_of(path / "config.json")
        elif kind == "Normalize":
            found["normalize"] = True
        else:
            raise WeightsError(
                f"{folder / 'modules.json'} has a module {kind!r}; supported are Transformer, "
                "Pooling and Normalize"
            )
    limits = model / "sentence_bert_config.json"
    if limits.is_file():
        said = read_json_object(limits)
        found["max_length"] = said.get("max_seq_length")
        found["do_lower_case"] = bool(said.get("do_lower_case"))
    return model, found


def _pooling_of(path: Path) -> tuple[str, ...]:
    said = read_json_object(path)
    flags = {name for name, value in said.items() if name.startswith("pooling_mode_") and value}
    unknown = flags - set(_FLAGS.values())
    if unknown:
        raise WeightsError(
            f"{path} asks for {', '.join(sorted(unknown))}; supported are "
            f"{', '.join(_FLAGS.values())}"
        )
    return tuple(one for one in POOLINGS if _FLAGS[one] in flags) or ("mean",)


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Return the kind and folder of each step in `modules.json`, in order; none without it."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    try:
        listed = loads(path.read_bytes())
        return [(one["type"].rpartition(".")[2], folder / one["path"]) for one in listed]
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path}: not a list of modules ({type(error).__name__}: {error}); get the file again"
        ) from error
