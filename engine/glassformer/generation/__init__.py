"""Text generation: the KV cache, the rules of sampling, the loop."""

from glassformer.generation.cache import KVCache
from glassformer.generation.generate import generate, stream_generate
from glassformer.generation.sampling import GenerationConfig

__all__ = ["GenerationConfig", "KVCache", "generate", "stream_generate"]
