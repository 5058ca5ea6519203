"""What is asked of attention's arguments before anything is launched, said in words."""

from __future__ import annotations

import math

import torch

from glassformer_kernels.checks import (
    check_bool,
    check_broadcasts,
    check_causal,
    check_devices,
    check_floats,
    check_product,
    check_tensors,
)

MAX_HEAD_DIM = 256


def check_operands(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: bool, paged: bool
) -> None:
    """Raise TypeError or ValueError unless query, key and value fit together."""
    check_floats("attention", query=query, key=key, value=value)
    check_product("attention", query)
    check_devices("attention", query=query, key=key, value=value)
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    dims, layout = (3, "(total, heads, head_dim)") if packed else (4, "(B, heads, T, head_dim)")
    if not query.ndim == key.ndim == value.ndim == dims:
        kind = "packed sequences are" if packed else "attention takes"
        raise ValueError(f"{kind} {layout} tensors: {shapes}")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"query has head_dim {query.shape[-1]} but key has {key.shape[-1]}; both must match "
            f"({shapes})"
        )
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(f"key and value must agree but for head_dim ({shapes})")
    if not packed and not paged and query.shape[0] != key.shape[0]:
        raise ValueError(f"query and key must have equal batch ({shapes})")
    heads, kv_heads = query.shape[1], key.shape[1]
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(
            f"{heads} query heads can't share {kv_heads} key heads; the first must be a multiple "
            f"of the second ({shapes})"
        )
    for name, size in (("head_dim", query.shape[-1]), ("value head_dim", value.shape[-1])):
        if not 1 <= size <= MAX_HEAD_DIM:
            raise ValueError(f"{name} must be from 1 to {MAX_HEAD_DIM}, got {size} ({shapes})")


def check_extras(
    query: torch.Tensor,
    full: tuple[int, int, int, int],
    mask: torch.Tensor | None,
    bias: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
) -> None:
    """Raise TypeError or ValueError unless what is added to the scores (`full`) fits them."""
    batch, heads = full[:2]
    check_bool("attention", "mask", mask)
    check_floats("attention", bias=bias)
    check_broadcasts("attention", "mask", mask, full)
    check_broadcasts("attention", "bias", bias, full)
    check_devices("attention", query=query, mask=mask, bias=bias, alibi_slopes=alibi_slopes)
    check_devices("attention", query=query, sinks=sinks)
    if alibi_slopes is not None:
        if tuple(alibi_slopes.shape) not in ((heads,), (batch, heads)):
            raise ValueError(
                f"alibi_slopes must be ({heads},) or ({batch}, {heads}), one per head or per batch "
                f"and head, got {tuple(alibi_slopes.shape)}"
            )
        if alibi_slopes.requires_grad:
            raise ValueError(
                "alibi_slopes get no gradient here; to learn them pass the bias they make, "
                "-slope · |i - j|, as bias"
            )
    if sinks is not None and tuple(sinks.shape) != (heads,):
        raise ValueError(f"sinks must be ({heads},), one per head, got {tuple(sinks.shape)}")


def check_settings(causal: str | None, softcap: float | None, dropout_p: float) -> None:
    """Raise ValueError unless the settings are in their ranges."""
    check_causal("attention", causal)
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap must be positive and finite, got {softcap}; None for no cap")
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"dropout_p must be in [0, 1], got {dropout_p}")


def check_packed(
    cu_seqlens_q: torch.Tensor | None,
    cu_seqlens_k: torch.Tensor | None,
    query: torch.Tensor,
    **others: torch.Tensor | None,
) -> None:
    """Raise unless the cumulative lengths come together, as int32, and nothing per pair with them.

    Their values are on the GPU and stay unchecked: they must rise from 0 to the total.
    """
    if cu_seqlens_q is None or cu_seqlens_k is None:
        raise ValueError("packed sequences need both cu_seqlens_q and cu_seqlens_k")
    check_tensors("attention", cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)
    for name, cu in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        if cu.dtype is not torch.int32 or cu.ndim != 1 or cu.shape[0] < 2:
            raise ValueError(
                f"{name} must be int32 of shape (sequences + 1,), got {tuple(cu.shape)} {cu.dtype}"
            )
    if cu_seqlens_q.shape != cu_seqlens_k.shape:
        raise ValueError(
            f"cu_seqlens_q {tuple(cu_seqlens_q.shape)} and cu_seqlens_k "
            f"{tuple(cu_seqlens_k.shape)} must tell of equally many sequences"
        )
    check_devices("attention", query=query, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)
    given = [name for name, x in others.items() if x is not None]
    if given:
        raise ValueError(
            f"packed sequences (cu_seqlens_q) can't be combined with {' or '.join(given)}: it has "
            "a place for each pair of a rectangle, and packed sequences have no rectangle"
        )


def check_cache(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_lengths: torch.Tensor | None,
    block_table: torch.Tensor | None,
    causal: str | None,
    dropout_p: float,
    **others: torch.Tensor | None,
) -> None:
    """Raise unless the arguments describe decoding over a cache.

    The values of lengths and table are on the GPU and stay unchecked: lengths must be at most the
    cache's, and pages must exist.
    """
    batch = query.shape[0]
    check_tensors("attention", key_lengths=key_lengths, block_table=block_table)
    for name, x, dims in (("key_lengths", key_lengths, 1), ("block_table", block_table, 2)):
        if x is None:
            continue
        if x.dtype is not torch.int32 or x.ndim != dims or x.shape[0] != batch:
            shape = f"({batch},)" if dims == 1 else f"({batch}, pages)"
            raise ValueError(f"{name} must be int32 {shape}, got {tuple(x.shape)} {x.dtype}")
    if block_table is not None and key_lengths is None:
        raise ValueError("block_table needs key_lengths: how many keys each sequence has")
    check_devices("attention", query=query, key_lengths=key_lengths, block_table=block_table)
    reasons = [f"{name} is given" for name, x in others.items() if x is not None]
    if dropout_p > 0:
        reasons.append(f"dropout_p is {dropout_p}")
    if causal == "top_left":
        reasons.append("causal is 'top_left', and a cache is aligned at its end: 'bottom_right'")
    if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
        reasons.append("a gradient is wanted; call it under torch.no_grad()")
    if reasons:
        raise ValueError(f"attention over a cache can't serve this: {'; '.join(reasons)}")


def limits(
    causal: str | None, window: tuple[int | None, int | None] | None
) -> tuple[int | None, int | None]:
    """Return how far a query sees to the left and to the right; None is no limit."""
    window = (None, None) if window is None else window
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise TypeError(
            "attention: window must be a pair (left, right), how many keys a query sees before and "
            f"after its position, got {window!r}; (4, 0) shows 4 before it and none after"
        )
    left, right = (None if n is None or n == -1 else n for n in window)
    if (left is not None and left < 0) or (right is not None and right < 0):
        raise ValueError(f"window {window}: left and right count keys; use None for no limit")
    if causal is not None:
        right = 0
    return left, right
