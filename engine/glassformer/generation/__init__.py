"""Text generation: the KV cache, the rules of what may follow, greedy, sampling and beam search."""

from glassformer.generation.cache import KVCache
from glassformer.generation.config import GenerationConfig
from glassformer.generation.generate import generate, stream_generate

__all__ = ["GenerationConfig", "KVCache", "generate", "stream_generate"]
