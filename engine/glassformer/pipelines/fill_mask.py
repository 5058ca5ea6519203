"""Filling in masked tokens."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from glassformer.pipelines.base import Array, Item, Pipeline, Settings
from glassformer.pipelines.scores import check_top_k, softmax
from glassformer.tensor import Tensor


@dataclass(frozen=True, kw_only=True)
class FillMaskSettings(Settings):
    """Settings of `FillMaskPipeline`.

    Args:
        top_k: how many tokens to propose for each mask.
        targets: propose only these; one that isn't a token stands for its first token.
    """

    top_k: int = 5
    targets: str | list[str] | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_top_k(self.top_k)


class FillMaskPipeline(Pipeline):
    """A text with a mask gives [{"score", "token", "token_str", "sequence"}, …], best first.

    A text with several masks gives such a list for each; in `sequence` the others stay masked.
    """

    settings_class = FillMaskSettings

    def encode(self, inputs: list[Any], settings: Any) -> list[Item]:  # noqa: D102
        mask, mask_id = self.tokenizer.mask_token, self.tokenizer.mask_token_id
        if mask_id is None:
            raise ValueError("fill-mask: this tokenizer has no mask_token")
        items = super().encode(inputs, settings)
        for item in items:
            ids = np.asarray(item.rows[0]["input_ids"])
            item.notes = [np.nonzero(ids == mask_id)[0]]
            if not len(item.notes[0]):
                raise ValueError(
                    f"fill-mask: there is no {mask} in {item.source!r:.80}, or only after the "
                    f"{self.limit(settings)} tokens that are read; write {mask} where a word is "
                    "to be found"
                )
        return items

    def forward(self, batch: dict[str, Tensor], settings: Any) -> list[Any]:  # noqa: D102
        ids = batch["input_ids"].cpu().numpy()
        logits = self.model(**batch).logits  # (B, T, V)
        array = logits.to(logits.dtype.wide).cpu().numpy()
        masked = ids == self.tokenizer.mask_token_id
        return [row[positions] for row, positions in zip(array, masked, strict=True)]

    def finish(self, item: Item, settings: Any) -> Any:  # noqa: D102
        targets = self.targets(settings.targets)
        ids = np.asarray(item.rows[0]["input_ids"])
        (positions,), (logits,) = item.notes, item.outputs
        found = [
            self._proposals(ids, position, shares, targets, settings.top_k, len(positions) == 1)
            for position, shares in zip(positions, softmax(logits), strict=True)
        ]
        return found[0] if len(found) == 1 else found

    def _proposals(
        self, ids: Array, position: int, shares: Array, targets: Array | None, top_k: int, one: bool
    ) -> list[dict[str, Any]]:
        tokens = np.arange(len(shares)) if targets is None else targets
        best = tokens[np.argsort(-shares[tokens], kind="stable")[:top_k]]
        proposals = []
        for token in best.tolist():
            filled = ids.copy()
            filled[position] = token
            proposals.append(
                {
                    "score": float(shares[token]),
                    "token": token,
                    "token_str": self.tokenizer.decode([token]),
                    "sequence": self.tokenizer.decode(filled, skip_special_tokens=one),
                }
            )
        return proposals

    def targets(self, words: Any) -> Array | None:
        """Return the ids of targets, each once; None for none.

        Raises:
            ValueError: none of them is a token or begins with one.
        """
        if words is None:
            return None
        ids: list[int] = []
        for word in [words] if isinstance(words, str) else words:
            index = self.tokenizer.backend.token_to_id(word)
            if index is None:
                pieces = self.tokenizer.encode(word, add_special_tokens=False)
                if not pieces:
                    warnings.warn(f"fill-mask: the target {word!r} has no tokens", stacklevel=2)
                    continue
                index = pieces[0]
                shown = self.tokenizer.convert_ids_to_tokens(index)
                warnings.warn(
                    f"fill-mask: the target {word!r} is no single token; {shown!r} stands for it",
                    stacklevel=2,
                )
            ids.append(index)
        if not ids:
            raise ValueError(f"fill-mask: none of the targets {words!r} is a token")
        return np.array(sorted(set(ids)))
