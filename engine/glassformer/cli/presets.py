"""Model sizes to train from the command line, each with settings that suit it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """A model and how to train it.

    Attributes:
        n_layer: blocks.
        n_head: attention heads.
        n_embd: channels.
        block_size: tokens in a window.
        batch_size: windows in a batch.
        learning_rate: the peak; it ends at a tenth.
        dropout: probability of dropping.
        steps: optimizer steps.
    """

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    batch_size: int
    learning_rate: float
    dropout: float
    steps: int


PRESETS = {
    "tiny": Preset(2, 2, 32, 32, 16, 3e-3, 0.0, 300),
    "small": Preset(4, 4, 128, 64, 12, 1e-3, 0.0, 2000),
    "medium": Preset(6, 6, 384, 256, 16, 1e-3, 0.1, 2000),
}

DESCRIPTIONS = {
    "tiny": "a few seconds, to see that everything works",
    "small": "about two minutes on two cores",
    "medium": "over an hour on two cores",
}
