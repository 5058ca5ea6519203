"""What layers compute, as functions with PyTorch's names and arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from glassformer.dtypes import bool_
from glassformer.fused.activation import gelu as fused_gelu
from glassformer.fused.activation import silu as fused_silu
from glassformer.fused.activation import swiglu as fused_swiglu
from glassformer.fused.attention import attention as fused_attention
from glassformer.fused.attention import attention_weights
from glassformer.fused.loss import cross_entropy as fused_cross_entropy
from glassformer.fused.norm import layer_norm as fused_layer_norm
from glassformer.fused.norm import rms_norm as fused_rms_norm
from glassformer.fused.rotary import rotary_embedding as fused_rotary_embedding
from glassformer.fused.softmax import log_softmax as fused_log_softmax
from glassformer.fused.softmax import softmax as fused_softmax
from glassformer.ops.convolution import conv1d, conv2d
from glassformer.ops.elementwise import relu
from glassformer.ops.indexing import embedding, one_hot
from glassformer.ops.linalg import linear
from glassformer.ops.shape import pad
from glassformer.primitive import Primitive
from glassformer.random import Generator, as_generator
from glassformer.tensor import Tensor, tensor

__all__ = [
    "alibi_bias",
    "attention",
    "attention_weights",
    "conv1d",
    "conv2d",
    "cross_entropy",
    "dropout",
    "embedding",
    "gelu",
    "layer_norm",
    "linear",
    "log_softmax",
    "one_hot",
    "pad",
    "relu",
    "rms_norm",
    "rotary_embedding",
    "scaled_dot_product_attention",
    "silu",
    "softmax",
    "swiglu",
]

Causal = Literal["top_left", "bottom_right"]

# One node. Selection rather than multiplication by a mask: a dropped inf or NaN leaves no trace.
_dropout = Primitive("dropout", lambda xp, x, keep, scale: xp.where(keep, x * scale, 0))
_dropout.defvjp(lambda g, _out, _x, keep, scale: _dropout(g, keep, scale=scale), None)


def dropout(
    input: Tensor, p: float = 0.5, training: bool = True, generator: Generator | None = None
) -> Tensor:
    """Zero each element with probability `p`, and multiply the others by 1/(1 - p).

    With p = 0, or when not training, `input` itself is returned.

    Raises:
        ValueError: `p` is outside [0, 1].
    """
    check_probability(p)
    if p == 0 or not training:
        return input
    drawn = as_generator(generator).numpy.random(input.shape, dtype=np.float32)
    keep = Tensor(drawn >= p, input.device)
    scale = 0.0 if p == 1 else 1 / (1 - p)
    dropped: Tensor = _dropout(input, keep, scale=scale)
    return dropped


def softmax(input: Tensor, dim: int = -1) -> Tensor:
    """Return exp(x) / Σ exp(x) along `dim`; NaN where all are -inf."""
    out: Tensor = fused_softmax(input, dim=dim)
    return out


def log_softmax(input: Tensor, dim: int = -1) -> Tensor:
    """Return x - log Σ exp(x) along `dim`."""
    out: Tensor = fused_log_softmax(input, dim=dim)
    return out


def gelu(input: Tensor, approximate: Literal["none", "tanh"] = "none") -> Tensor:
    """Return x · Φ(x), Φ the normal distribution function, or its approximation by tanh.

    Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", section 2.
    """
    out: Tensor = fused_gelu(input, approximate=approximate)
    return out


def silu(input: Tensor) -> Tensor:
    """Return x · sigmoid(x)."""
    out: Tensor = fused_silu(input)
    return out


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) · up. Shazeer 2020, "GLU Variants Improve Transformer", section 2."""
    out: Tensor = fused_swiglu(gate, up)
    return out


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return (x - mean) / √(var + eps) · weight + bias over the last dimensions.

    Raises:
        ValueError: the input doesn't end in `normalized_shape`.
    """
    joined = _over_one_dim("layer_norm", input, normalized_shape, weight, bias)
    out: Tensor = fused_layer_norm(*joined, eps=eps)
    return out if len(normalized_shape) == 1 else out.reshape(input.shape)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Return x / √(mean(x²) + eps) · weight over the last dimensions.

    `eps` is by default the spacing of the dtype's numbers at 1.

    Raises:
        ValueError: the input doesn't end in `normalized_shape`.
    """
    joined = _over_one_dim("rms_norm", input, normalized_shape, weight)
    if eps is None:
        eps = input.dtype.eps
    out: Tensor = fused_rms_norm(*joined, eps=eps)
    return out if len(normalized_shape) == 1 else out.reshape(input.shape)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum", "none"] = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return -log softmax(input)[target], averaged, summed, or one for each target.

    Args:
        input: logits (N, V), (N, V, d...) or (V,).
        target: classes (N,), (N, d...) or (), integers in [0, V) or `ignore_index`.
        weight: (V,), how much each class counts.
        ignore_index: targets of this value don't count.
        reduction: "mean" (over the weights of targets that count), "sum" or "none".
        label_smoothing: this share of the target is spread evenly over all classes.

    Raises:
        IndexError: a target is out of range.
        ValueError: shapes or options don't fit together.
    """
    out: Tensor = fused_cross_entropy(
        input,
        target,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    return out


def rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + D/2]) of x (B, H, T, D) by angles with cos and sin (T, D/2).

    Su et al. 2021, "RoFormer", section 3.4.2.
    """
    out: Tensor = fused_rotary_embedding(x, cos, sin)
    return out


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return softmax(query keyᵀ · scale + mask) value, with the arguments of PyTorch's function.

    Vaswani et al. 2017, "Attention Is All You Need", section 3.2.1.

    Args:
        query: (B, H, Tq, D); dimensions before Tq may be left out, as in key and value.
        key: (B, Hkv, Tk, D).
        value: (B, Hkv, Tk, Dv).
        attn_mask: broadcastable to (B, H, Tq, Tk): bool, True takes part; or float, added.
        dropout_p: probability of dropping a weight (there is no training flag here).
        is_causal: query i sees keys 0 … i. Together with `attn_mask`, both hold.
        scale: by default 1/√D.
        enable_gqa: fewer heads in key and value than in query are shared by groups.

    Returns:
        (B, H, Tq, Dv); 0 for a query that sees no key.

    Raises:
        TypeError: the mask is of integers.
        ValueError: shapes don't fit, or heads differ without `enable_gqa`.
    """
    operands = (query, key, value)
    ndim = query.ndim
    if any(x.ndim != ndim for x in operands) or not 2 <= ndim <= 4:
        shapes = ", ".join(str(x.shape) for x in operands)
        raise ValueError(f"query, key and value must all have 2, 3 or 4 dimensions, got {shapes}")
    query, key, value = (x.reshape((1,) * (4 - ndim) + x.shape) for x in operands)
    if not enable_gqa and key.shape[1] not in (1, query.shape[1]):
        raise ValueError(
            f"query has {query.shape[1]} heads but key has {key.shape[1]}; pass enable_gqa=True "
            f"to share them (query {query.shape}, key {key.shape})"
        )
    mask, bias = split_mask(attn_mask)
    if attn_mask is not None:
        _check_fits(attn_mask, query, (*query.shape[:3], key.shape[2]))
    out: Tensor = attention(
        query,
        key,
        value,
        mask,
        bias,
        causal="top_left" if is_causal else None,
        scale=scale,
        dropout_p=dropout_p,
    )
    return out.reshape(out.shape[4 - ndim :])


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    causal: Causal | None = None,
    window: tuple[int | None, int | None] | None = None,
    alibi_slopes: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout_p: float = 0.0,
    generator: Generator | None = None,
    return_lse: bool = False,
) -> Any:
    """Attend with everything the engine has; see `scaled_dot_product_attention` for the plain form.

    The scores are query keyᵀ · scale, then softcap·tanh(scores / softcap), then + bias.

    Args:
        query: (B, H, Tq, D).
        key: (B, Hkv, Tk, D); Hkv divides H, and groups of query heads share a key head.
        value: (B, Hkv, Tk, Dv).
        mask: bool, broadcastable to (B, H, Tq, Tk); True takes part.
        bias: added to the scores; differentiable, broadcastable to (B, H, Tq, Tk).
        causal: "top_left": query i sees keys up to i. "bottom_right": the last query sees all
            keys, as when earlier keys come from a cache.
        window: (left, right), how far a query sees to either side; None is no limit.
        alibi_slopes: (H,); adds -slope·|i - j| to the scores, positions aligned as `causal` says,
            at the bottom right where it doesn't.
        scale: by default 1/√D.
        softcap: limit of the scores.
        dropout_p: probability of dropping a weight.
        generator: draws what is dropped.
        return_lse: return (output, lse), the log of the softmax's denominators (B, H, Tq), too.

    Returns:
        (B, H, Tq, Dv), 0 for a query that sees no key.

    Raises:
        TypeError: the mask is not bool.
        ValueError: shapes or settings don't fit.
    """
    if alibi_slopes is not None:
        offset = 0 if causal == "top_left" else None
        alibi = alibi_bias(alibi_slopes, query.shape[2], key.shape[2], offset)
        bias = alibi if bias is None else bias + alibi
    return fused_attention(
        query,
        key,
        value,
        mask,
        bias,
        causal=causal,
        window=window,
        scale=scale,
        softcap=softcap,
        dropout_p=dropout_p,
        seed=None if generator is None else generator.seed(),
        return_lse=return_lse,
    )


def alibi_bias(
    slopes: Tensor, query_length: int, key_length: int, offset: int | None = None
) -> Tensor:
    """Return -slope·|i - j| for every head, query and key: (1, H, Tq, Tk).

    `offset` is the position of the first query; by default the last query is at the last key.
    """
    relative = relative_positions(query_length, key_length, offset)
    distance = tensor(np.abs(relative), dtype=slopes.dtype, device=slopes.device)
    return slopes.reshape(1, -1, 1, 1) * -distance


def relative_positions(
    query_length: int, key_length: int, offset: int | None = None
) -> npt.NDArray[np.int64]:
    """Return the key's position minus the query's, (Tq, Tk); `offset` as in `alibi_bias`."""
    first = key_length - query_length if offset is None else offset
    queries = np.arange(first, first + query_length)
    return np.arange(key_length)[None, :] - queries[:, None]


def split_mask(attn_mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return a mask as (bool mask, None) or (None, float bias): PyTorch has one name for both."""
    if attn_mask is None:
        return None, None
    if attn_mask.dtype.is_floating_point:
        return None, attn_mask
    check_bool("attn_mask", attn_mask)
    return attn_mask, None


def check_bool(name: str, mask: Tensor) -> None:
    """Raise TypeError unless the mask is bool: whether a 1 would show or hide can't be guessed."""
    if mask.dtype is not bool_:
        raise TypeError(
            f"{name} must be bool (True takes part), got {mask.dtype}; convert one of 1 and 0 with "
            f"{name} != 0, one of 0 and -inf with {name} == 0"
        )


def _check_fits(attn_mask: Tensor, query: Tensor, full: tuple[int, ...]) -> None:
    """Raise unless an attn_mask fits the scores, with the name it has in PyTorch's signature."""
    pairs = zip(reversed(attn_mask.shape), reversed(full), strict=False)
    if attn_mask.ndim > 4 or not all(n in (1, m) for n, m in pairs):
        raise ValueError(
            f"attn_mask {attn_mask.shape} can't be broadcast to (B, H, Tq, Tk) = {full}"
        )
    if attn_mask.dtype not in (bool_, query.dtype):
        raise TypeError(
            f"attn_mask must be bool, or of the query's dtype {query.dtype} to be added; got "
            f"{attn_mask.dtype}"
        )


def check_probability(p: float) -> None:
    """Raise ValueError unless `p` is in [0, 1]."""
    if not 0 <= p <= 1:
        raise ValueError(f"a dropout probability must be in [0, 1], got {p!r}")


def _over_one_dim(
    name: str, input: Tensor, normalized_shape: Sequence[int], *affine: Tensor | None
) -> list[Any]:
    """Check the shapes of a norm, and join the normalised dimensions into one."""
    shape = tuple(normalized_shape)
    if not shape or input.shape[-len(shape) :] != shape:
        raise ValueError(f"{name}: input {input.shape} doesn't end in normalized_shape {shape}")
    for part in affine:
        if part is not None and part.shape != shape:
            raise ValueError(f"{name}: weight and bias must be {shape}, got {part.shape}")
    if len(shape) == 1:
        return [input, *affine]
    return [
        input.flatten(input.ndim - len(shape)),
        *(None if part is None else part.flatten() for part in affine),
    ]
