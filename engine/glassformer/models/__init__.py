"""Models, one family a file, each with a dataclass config.

`AutoModel…from_pretrained(folder)` loads what the Hugging Face hub serves. A family is imported
when one of its classes is first named.
"""

from importlib import import_module
from typing import Any

from glassformer.models.gpt import GPT, GPTConfig
from glassformer.models.outputs import CausalLMOutput

_ENCODER_HEADS = (
    "ForMaskedLM",
    "ForQuestionAnswering",
    "ForSequenceClassification",
    "ForTokenClassification",
)
_FAMILIES = {  # module: prefix of the names of its classes, and the rest of them
    "albert": ("Albert", "ForPreTraining", *_ENCODER_HEADS),
    "bart": ("Bart", "ForConditionalGeneration", "ForSequenceClassification"),
    "bert": ("Bert", "ForPreTraining", *_ENCODER_HEADS),
    "camembert": ("Camembert", *_ENCODER_HEADS),
    "distilbert": ("DistilBert", *_ENCODER_HEADS),
    "gpt2": ("GPT2", "LMHeadModel", "ForSequenceClassification"),
    "marian": ("Marian", "MTModel"),
    "roberta": ("Roberta", *_ENCODER_HEADS),
    "t5": ("T5", "EncoderModel", "ForConditionalGeneration"),
    "vit": ("ViT", "ForImageClassification"),
    "xlm_roberta": ("XLMRoberta", *_ENCODER_HEADS),
}
_MODULES = {
    f"{prefix}{ending}": module
    for module, (prefix, *endings) in _FAMILIES.items()
    for ending in ("Config", "Model", *endings)
}
_MODULES |= {
    f"{prefix}{ending}": "llama"
    for prefix in ("Llama", "Mistral", "Qwen2")
    for ending in ("Config", "Model", "ForCausalLM", "ForSequenceClassification")
}
_MODULES |= {
    "AutoConfig": "auto",
    "AutoModel": "auto",
    "AutoModelForCausalLM": "auto",
    "AutoModelForImageClassification": "auto",
    "AutoModelForMaskedLM": "auto",
    "AutoModelForPreTraining": "auto",
    "AutoModelForQuestionAnswering": "auto",
    "AutoModelForSeq2SeqLM": "auto",
    "AutoModelForSequenceClassification": "auto",
    "AutoModelForTokenClassification": "auto",
    "ConfigError": "config",
    "LoraConfig": "lora",
    "PretrainedConfig": "config",
    "PretrainedModel": "pretrained",
    "WeightsError": "safetensors_file",
    "add_lora": "lora",
    "load_lora": "lora",
    "merge_lora": "lora",
    "save_lora": "lora",
}

__all__ = ["GPT", "CausalLMOutput", "GPTConfig", *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"glassformer.models.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
