"""TransformerBlock: attention and feed-forward, each with a residual connection and a norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from glassformer.nn.attention import LayerCache, MultiheadAttention
from glassformer.nn.dropout import Dropout
from glassformer.nn.feed_forward import FeedForward
from glassformer.nn.module import Module
from glassformer.nn.norm import LayerNorm
from glassformer.tensor import Tensor


class TransformerBlock(Module):
    """One layer of a Transformer, put together from its parts.

    Post-norm, as in Vaswani et al. 2017, section 3.1: x = norm(x + dropout(part(x))).
    Pre-norm, as in GPT-2: x = x + dropout(part(norm(x))); Xiong et al. 2020, "On Layer
    Normalization in the Transformer Architecture", figure 1.

        TransformerBlock(MultiheadAttention(512, 8), FeedForward(512, 2048), dropout=0.1)

    Args:
        self_attn: attention of x to itself.
        feed_forward: what follows it.
        cross_attn: attention of x to `memory`, in between: the decoder layer of the paper.
        dropout: on what each part adds to x.
        norm_first: pre-norm rather than post-norm.
        norm: makes a norm of so many channels; `LayerNorm` or `RMSNorm`, say.
    """

    norm_first: bool
    self_attn_norm: Module
    self_attn: MultiheadAttention
    cross_attn_norm: Module | None
    cross_attn: MultiheadAttention | None
    feed_forward_norm: Module
    feed_forward: FeedForward
    dropout: Dropout

    def __init__(
        self,
        self_attn: MultiheadAttention,
        feed_forward: FeedForward,
        cross_attn: MultiheadAttention | None = None,
        *,
        dropout: float = 0.0,
        norm_first: bool = False,
        norm: Callable[[int], Module] = LayerNorm,
    ) -> None:
        channels = self_attn.embed_dim
        self.norm_first = norm_first
        self.self_attn_norm = norm(channels)
        self.self_attn = self_attn
        self.cross_attn_norm = None if cross_attn is None else norm(channels)
        self.cross_attn = cross_attn
        self.feed_forward_norm = norm(channels)
        self.feed_forward = feed_forward
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        memory_padding_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Transform x: (B, T, C) -> (B, T, C).

        Args:
            x: the sequence.
            memory: (B, S, C), what cross-attention looks at; needed if and only if there is one.
            padding_mask: bool (B, T), True where x is a real token.
            attn_mask: what may see what in x; see `MultiheadAttention.forward`.
            memory_padding_mask: bool (B, S), True where `memory` is a real token.
            memory_mask: as `attn_mask`, from x to `memory`.
            cache: earlier keys and values of the self-attention, and `memory`'s, which are
                projected at the first step and read from here at the next ones.

        Raises:
            ValueError: `memory` is given without cross-attention, or missing with it.
        """
        if (self.cross_attn is None) != (memory is None):
            wrong = "has cross-attention and needs" if memory is None else "can't attend to"
            raise ValueError(f"this block {wrong} a memory")

        def attend(x: Tensor) -> Any:
            return self.self_attn(
                x, key_padding_mask=padding_mask, attn_mask=attn_mask, cache=cache
            )

        x = self._add(x, self.self_attn_norm, attend)
        if self.cross_attn is not None and self.cross_attn_norm is not None:
            cross_attn = self.cross_attn
            projected = None
            if cache is not None and memory is not None:
                if cache.memory is None:
                    cache.memory = cross_attn.project_memory(memory)
                projected = cache.memory

            def attend_memory(x: Tensor) -> Any:
                return cross_attn(
                    x,
                    None if projected else memory,
                    key_padding_mask=memory_padding_mask,
                    attn_mask=memory_mask,
                    projected=projected,
                )

            x = self._add(x, self.cross_attn_norm, attend_memory)
        return self._add(x, self.feed_forward_norm, self.feed_forward)

    def _add(self, x: Tensor, norm: Module, part: Callable[[Tensor], Any]) -> Tensor:
        """Add what a part of the block has to say about x, with the norm before or after."""
        if self.norm_first:
            added: Tensor = x + self.dropout(part(norm(x)))
            return added
        normed: Tensor = norm(x + self.dropout(part(x)))
        return normed

    def extra_repr(self) -> str:  # noqa: D102
        return "pre-norm" if self.norm_first else "post-norm"
