"""Text generation: the KV cache, the rules of what may follow, greedy, sampling and beam search."""

from glassformer.generation.cache import KVCache
from glassformer.generation.config import GenerationConfig
from glassformer.generation.generate import generate, stream_generate
from glassformer.generation.streaming import Streamer, TextStreamer

__all__ = [
    "GenerationConfig",
    "KVCache",
    "Streamer",
    "TextStreamer",
    "generate",
    "stream_generate",
]
