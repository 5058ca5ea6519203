"""GenerativeModel: a model that writes, and what its folder says about how."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from glassformer.models.config import read_json_object
from glassformer.models.pretrained import PretrainedModel
from glassformer.tensor import Tensor

Self = TypeVar("Self", bound="GenerativeModel")

GENERATION_FILE = "generation_config.json"


class GenerativeModel(PretrainedModel):
    """The base class of models that write.

    Attributes:
        generation_settings: what the folder's generation_config.json says; None without the file.
    """

    generation_settings: dict[str, Any] | None = None

    def generate(
        self, input_ids: Any, max_new_tokens: int | None = None, **settings: Any
    ) -> Tensor:
        """Continue, or answer, `input_ids` (B, T); `glassformer.generation.generate` tells how."""
        # By name, when it is needed: generation stands above models, and imports nothing upwards.
        found: Tensor = import_module("glassformer.generation").generate(
            self, input_ids, max_new_tokens, **settings
        )
        return found

    @classmethod
    def from_pretrained(cls: type[Self], folder: str | Path, **settings: Any) -> Self:
        """Load a folder, as `PretrainedModel.from_pretrained`, with its settings for generation.

        Raises:
            WeightsError: as there, and where generation_config.json is damaged, or wrong.
        """
        path = Path(folder) / GENERATION_FILE
        told = read_json_object(path) if path.exists() else None
        if told:
            import_module("glassformer.generation.config").check_file(path, told)
        model = super().from_pretrained(folder, **settings)
        model.generation_settings = told
        return model

    def small_files(self) -> dict[str, bytes | None]:
        """Return `PretrainedModel.small_files`, with what the settings are."""
        files = super().small_files()
        files[GENERATION_FILE] = None
        if self.generation_settings is not None:
            text = json.dumps(self.generation_settings, indent=2, sort_keys=True, allow_nan=False)
            files[GENERATION_FILE] = f"{text}\n".encode()
        return files
