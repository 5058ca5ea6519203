"""A tiny config of every family, for tests that treat all alike."""

from glassformer.models import auto

ENCODER = {
    "vocab_size": 40,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 24,
}
LLAMA = {**ENCODER, "num_attention_heads": 2, "num_key_value_heads": 1}
BART = {
    "vocab_size": 40,
    "d_model": 12,
    "encoder_layers": 1,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 20,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 20,
    "max_position_embeddings": 24,
}
SHAPES = {
    "albert": {**ENCODER, "embedding_size": 8},
    "bart": BART,
    "bert": ENCODER,
    "camembert": ENCODER,
    "distilbert": {
        "vocab_size": 40,
        "dim": 12,
        "n_layers": 2,
        "n_heads": 3,
        "hidden_dim": 20,
        "max_position_embeddings": 24,
    },
    "gpt2": {"vocab_size": 40, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": 24},
    "llama": LLAMA,
    "marian": {**BART, "pad_token_id": 39, "decoder_start_token_id": 39},
    "mistral": {**LLAMA, "sliding_window": 5},
    "qwen2": LLAMA,
    "roberta": ENCODER,
    "t5": {
        "vocab_size": 40,
        "d_model": 12,
        "d_kv": 4,
        "d_ff": 20,
        "num_layers": 2,
        "num_heads": 3,
        "decoder_start_token_id": 0,
    },
    "vit": {
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 20,
        "image_size": 8,
        "patch_size": 4,
    },
    "xlm-roberta": ENCODER,
}


def config_of(kind, **settings):
    """Return the tiny config of a family, some settings replaced."""
    config_class = getattr(auto._module(kind), f"{auto._FAMILIES[kind].prefix}Config")
    return config_class.from_dict({**SHAPES[kind], **settings})
