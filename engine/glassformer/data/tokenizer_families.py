"""What a tokenizer's folder leaves unsaid: the special tokens and inputs of each model family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from glassformer.data.chat_template import Templates

# The order in which the named special tokens are listed and, where a vocabulary lacks them, added.
SPECIAL_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)

VERY_LARGE = int(1e30)  # the model_max_length of a tokenizer that knows no limit


@dataclass
class TokenizerSettings:
    """What a tokenizer knows beside its vocabulary; the names are Hugging Face's."""

    special_tokens: dict[str, str] = field(default_factory=dict)
    extra_special_tokens: list[str] = field(default_factory=list)
    model_input_names: list[str] = field(default_factory=lambda: ["input_ids", "attention_mask"])
    model_max_length: int = VERY_LARGE
    padding_side: str = "right"
    truncation_side: str = "right"
    clean_up_tokenization_spaces: bool = False
    chat_template: Templates = None


@dataclass(frozen=True)
class Family:
    """The defaults of the models that share a tokenizer.

    Args:
        special_tokens: by name (`pad_token`, ...).
        token_type_ids: whether the models take them.
    """

    special_tokens: Mapping[str, str] = field(default_factory=dict)
    token_type_ids: bool = False


def _tokens(**names: str) -> dict[str, str]:
    return {f"{name}_token": token for name, token in names.items()}


_BERT = _tokens(unk="[UNK]", sep="[SEP]", pad="[PAD]", cls="[CLS]", mask="[MASK]")
_ROBERTA = _tokens(
    bos="<s>", eos="</s>", unk="<unk>", sep="</s>", pad="<pad>", cls="<s>", mask="<mask>"
)
_GPT = _tokens(bos="<|endoftext|>", eos="<|endoftext|>", unk="<|endoftext|>")
_ENDS = {"bos_token": "[CLS]", "eos_token": "[SEP]"}

GENERIC = Family()
FAMILIES = {
    "bert": Family(_BERT, token_type_ids=True),
    "distilbert": Family(_BERT),
    "deberta": Family({**_BERT, **_ENDS}, token_type_ids=True),
    "albert": Family({**_BERT, **_ENDS, "unk_token": "<unk>", "pad_token": "<pad>"}),
    "mpnet": Family({**_ROBERTA, "unk_token": "[UNK]"}),
    "roberta": Family(_ROBERTA),
    "gpt2": Family(_GPT),
    "gptneox": Family({**_GPT, "pad_token": "<|padding|>"}),
    "t5": Family(_tokens(eos="</s>", unk="<unk>", pad="<pad>")),
    "marian": Family(_tokens(eos="</s>", unk="<unk>", pad="<pad>")),
    "llama": Family(_tokens(bos="<s>", eos="</s>", unk="<unk>")),
}
_SAME_AS = {
    "bart": "roberta",
    "camembert": "roberta",
    "convbert": "bert",
    "debertav2": "deberta",
    "electra": "bert",
    "gptneo": "gpt2",
    "longformer": "roberta",
    "megatronbert": "bert",
    "mobilebert": "bert",
    "mt5": "t5",
    "nomicbert": "bert",
    "opt": "gpt2",
    "xlmroberta": "roberta",
}


def family_name(name: str) -> str:
    """Return the family of a model type (`gpt_neox`) or tokenizer class (`GPTNeoXTokenizerFast`).

    A name that is in no family comes back in the same short spelling.
    """
    short = name.removesuffix("Fast").removesuffix("Tokenizer").lower()
    short = short.replace("_", "").replace("-", "")
    return _SAME_AS.get(short, short)
