"""Stacks of blocks: encoder, decoder, and both together."""

from __future__ import annotations

from collections.abc import Sequence

from glassformer.nn.attention import LayerCache, MultiheadAttention
from glassformer.nn.block import TransformerBlock
from glassformer.nn.feed_forward import FeedForward
from glassformer.nn.module import Module
from glassformer.nn.norm import LayerNorm
from glassformer.tensor import Tensor


class TransformerEncoder(Module):
    """Blocks in a row, and a norm at the end if there is one (pre-norm stacks need it)."""

    blocks: list[TransformerBlock]
    norm: Module | None

    def __init__(self, blocks: Sequence[TransformerBlock], norm: Module | None = None) -> None:
        self.blocks = list(blocks)
        self.norm = norm

    def forward(
        self, x: Tensor, *, padding_mask: Tensor | None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        """Encode x (B, T, C); the masks are those of `TransformerBlock.forward`."""
        for block in self.blocks:
            x = block(x, padding_mask=padding_mask, attn_mask=attn_mask)
        return x if self.norm is None else self.norm(x)


class TransformerDecoder(Module):
    """Blocks with cross-attention in a row, and a norm at the end if there is one."""

    blocks: list[TransformerBlock]
    norm: Module | None

    def __init__(self, blocks: Sequence[TransformerBlock], norm: Module | None = None) -> None:
        self.blocks = list(blocks)
        self.norm = norm

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        *,
        padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        memory_padding_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: Sequence[LayerCache] | None = None,
    ) -> Tensor:
        """Decode x (B, T, C) with a look at `memory` (B, S, C).

        The masks are those of `TransformerBlock.forward`; `cache` holds one entry for each block.
        """
        for i, block in enumerate(self.blocks):
            x = block(
                x,
                memory,
                padding_mask=padding_mask,
                attn_mask=attn_mask,
                memory_padding_mask=memory_padding_mask,
                memory_mask=memory_mask,
                cache=None if cache is None else cache[i],
            )
        return x if self.norm is None else self.norm(x)


class Transformer(Module):
    """The encoder-decoder of Vaswani et al. 2017, "Attention Is All You Need", section 3.1.

    It maps vectors to vectors; embeddings, positions and the projection to a vocabulary stand
    around it. Defaults are the paper's base model (table 3). The decoder's self-attention is
    causal. Pre-norm stacks (`norm_first`) end in a norm of their own, post-norm ones don't.
    """

    encoder: TransformerEncoder
    decoder: TransformerDecoder

    def __init__(
        self,
        embed_dim: int = 512,
        num_heads: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        feed_forward_dim: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        norm_first: bool = False,
    ) -> None:
        def block(causal: bool, cross: bool) -> TransformerBlock:
            return TransformerBlock(
                MultiheadAttention(embed_dim, num_heads, dropout, causal=causal),
                FeedForward(embed_dim, feed_forward_dim, activation, dropout),
                MultiheadAttention(embed_dim, num_heads, dropout) if cross else None,
                dropout=dropout,
                norm_first=norm_first,
            )

        def last_norm() -> Module | None:
            return LayerNorm(embed_dim) if norm_first else None

        self.encoder = TransformerEncoder(
            [block(causal=False, cross=False) for _ in range(num_encoder_layers)], last_norm()
        )
        self.decoder = TransformerDecoder(
            [block(causal=True, cross=True) for _ in range(num_decoder_layers)], last_norm()
        )

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        *,
        source_padding_mask: Tensor | None = None,
        target_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Encode source (B, S, C), and return for each position of target (B, T, C) a vector.

        Position t of the result depends on the whole source and on target[:, :t + 1]. The padding
        masks are bool, (B, S) and (B, T), True where there is a real token.
        """
        memory = self.encoder(source, padding_mask=source_padding_mask)
        output: Tensor = self.decoder(
            target,
            memory,
            padding_mask=target_padding_mask,
            memory_padding_mask=source_padding_mask,
        )
        return output
