"""Layers: modules that hold parameters, and `functional` for what they compute."""

from glassformer.nn import functional, init
from glassformer.nn.attention import LayerCache, MultiheadAttention
from glassformer.nn.block import TransformerBlock
from glassformer.nn.conv import Conv1d, Conv2d
from glassformer.nn.dropout import Dropout
from glassformer.nn.embedding import Embedding
from glassformer.nn.feed_forward import FeedForward
from glassformer.nn.linear import Linear
from glassformer.nn.module import Module
from glassformer.nn.norm import LayerNorm, RMSNorm
from glassformer.nn.positions import (
    ALiBiPositions,
    AttentionPositions,
    LearnedPositions,
    RotaryPositions,
    SinusoidalPositions,
    T5Positions,
)
from glassformer.nn.transformer import Transformer, TransformerDecoder, TransformerEncoder
from glassformer.nn.watch import watch_attention
from glassformer.tensor import Parameter

__all__ = [
    "ALiBiPositions",
    "AttentionPositions",
    "Conv1d",
    "Conv2d",
    "Dropout",
    "Embedding",
    "FeedForward",
    "LayerCache",
    "LayerNorm",
    "LearnedPositions",
    "Linear",
    "Module",
    "MultiheadAttention",
    "Parameter",
    "RMSNorm",
    "RotaryPositions",
    "SinusoidalPositions",
    "T5Positions",
    "Transformer",
    "TransformerBlock",
    "TransformerDecoder",
    "TransformerEncoder",
    "functional",
    "init",
    "watch_attention",
]
