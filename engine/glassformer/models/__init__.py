"""Models, one family a file, each with a dataclass config."""

from glassformer.models.gpt import GPT, GPTConfig
from glassformer.models.outputs import CausalLMOutput

__all__ = ["GPT", "CausalLMOutput", "GPTConfig"]
