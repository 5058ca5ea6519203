"""Judging images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from glassformer.pipelines.base import Item, Pipeline, Settings, evaluating
from glassformer.pipelines.scores import check_top_k, function_for, labelled


@dataclass(frozen=True, kw_only=True)
class ImageClassificationSettings(Settings):
    """Settings of `ImageClassificationPipeline`.

    Args:
        top_k: how many labels to return, None for all.
        function_to_apply: "softmax", "sigmoid" or "none"; default: what the config calls for.
    """

    top_k: int | None = 5
    function_to_apply: str | None = None

    def __post_init__(self) -> None:
        check_top_k(self.top_k)


class ImageClassificationPipeline(Pipeline):
    """An image gives [{"label": …, "score": …}, …], best first.

    An image is a path, a picture of Pillow's, or an array (height, width, channels); in place of
    the tokenizer stands what `AutoImageProcessor` loads.
    """

    settings_class = ImageClassificationSettings

    def settings(self, given: dict[str, Any]) -> Any:  # noqa: D102
        settings = super().settings(given)
        function_for(self.model.config, settings.function_to_apply)
        return settings

    def is_single(self, inputs: Any) -> bool:  # noqa: D102
        # An array, a picture and a path have none of these; a list or a generator has one.
        return not isinstance(inputs, (list, tuple, Iterator))

    def _stream(self, inputs: Iterable[Any], batch_size: int, settings: Any) -> Iterator[Any]:
        source = iter(inputs)
        while images := list(islice(source, batch_size)):
            pixels = self.tokenizer(images, return_tensors="gf")["pixel_values"]
            with evaluating(self.model):
                logits = self.model(pixels.to(self.device)).logits
            for image, row in zip(images, logits.to(logits.dtype.wide).cpu().numpy(), strict=True):
                yield self.finish(Item(image, [], outputs=[row]), settings)

    def finish(self, item: Item, settings: Any) -> Any:  # noqa: D102
        (logits,) = item.outputs
        return labelled(logits, self.model.config, settings.function_to_apply, settings.top_k)
