"""`output_attentions=True`, of any model: the weights that its layers attended with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from glassformer.models.outputs import Attentions
from glassformer.nn import Module, MultiheadAttention, watch_attention
from glassformer.tensor import Tensor

Seen = Sequence[tuple[MultiheadAttention, Tensor]]


def call_with_attentions(base_model: Module, call: Callable[[], Any]) -> Any:
    """Return the output of `call`, which runs `base_model`, with the attention weights in it.

    They are where Hugging Face has them: `attentions`, and of an encoder-decoder
    `encoder_attentions`, `decoder_attentions` and `cross_attentions`.
    """
    with watch_attention() as seen:
        output = call()
    roles = {id(module): _role(name) for name, module in base_model.named_modules()}

    def of(role: str) -> Attentions:
        return tuple(weights for layer, weights in seen if roles[id(layer)] == role) or None

    if hasattr(output, "cross_attentions"):
        return replace(
            output,
            encoder_attentions=of("encoder"),
            decoder_attentions=of("decoder"),
            cross_attentions=of("cross"),
        )
    return replace(output, attentions=of("decoder") or of("encoder"))


def _role(name: str) -> str:
    """Tell what a layer of that name does; in a model of one stack, what a decoder's does."""
    if name.endswith("cross_attn"):
        return "cross"
    return "encoder" if name.startswith("encoder.") else "decoder"
