"""Triton kernels for Transformers on torch tensors: attention, softmax, norms, losses and more.

    import glassformer_kernels as gk
    out = gk.scaled_dot_product_attention(query, key, value, is_causal=True)

Every function is a custom operator of PyTorch with a gradient, for float32, float16 and bfloat16,
and works under `torch.compile`. They run on CUDA devices (NVIDIA from Ampere on, AMD CDNA3); with
TRITON_INTERPRET=1 in the environment, slowly, on CPU tensors (but no products of bfloat16, which
Triton's interpreter gets wrong). The kernels themselves are in the
modules beside this one, the operators in `ops`, the engine's registration in `register`.
"""

from glassformer_kernels import tuning
from glassformer_kernels.launch import Config, use_config
from glassformer_kernels.ops.activation import gelu, silu, swiglu
from glassformer_kernels.ops.attention import attention, scaled_dot_product_attention
from glassformer_kernels.ops.attention_cache import merge_attention
from glassformer_kernels.ops.cross_entropy import cross_entropy
from glassformer_kernels.ops.linear_cross_entropy import linear_cross_entropy
from glassformer_kernels.ops.norm import layer_norm, rms_norm
from glassformer_kernels.ops.optimizer_step import adamw_step_
from glassformer_kernels.ops.rotary import rotary_embedding, rotary_embedding_
from glassformer_kernels.ops.softmax import log_softmax, log_softmax_, softmax, softmax_
from glassformer_kernels.tuning import autotune

__all__ = [
    "Config",
    "adamw_step_",
    "attention",
    "autotune",
    "cross_entropy",
    "gelu",
    "layer_norm",
    "linear_cross_entropy",
    "log_softmax",
    "log_softmax_",
    "merge_attention",
    "rms_norm",
    "rotary_embedding",
    "rotary_embedding_",
    "scaled_dot_product_attention",
    "silu",
    "softmax",
    "softmax_",
    "swiglu",
    "tuning",
    "use_config",
]
