"""The attention calls whose kernels are compiled ahead of time, forward and backward."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from glassformer_kernels.aot_compile import Sample
from glassformer_kernels.attention.backward import backward
from glassformer_kernels.attention.decode import decode
from glassformer_kernels.attention.forward import forward
from glassformer_kernels.attention.problem import Problem

_BATCH, _HEADS, _LENGTH = 2, 16, 4096
_CAUSAL = {"right": 0}
_EVERYTHING: dict[str, Any] = {
    "kv_heads": 4,
    "mask": True,
    "bias": True,
    "alibi": True,
    "sinks": True,
    "softcap": 30.0,
    "dropout_p": 0.1,
    "left": 1024,
    "right": 0,
}


def _problem(
    dtype: torch.dtype,
    head_dim: int,
    value_dim: int | None = None,
    kv_heads: int = _HEADS,
    mask: bool = False,
    bias: bool = False,
    alibi: bool = False,
    sinks: bool = False,
    packed: bool = False,
    **options: Any,
) -> Problem:
    def heads(count: int, dim: int) -> torch.Tensor:
        # A packed batch is one long row of tokens.
        leading = (_BATCH * _LENGTH, count) if packed else (_BATCH, count, _LENGTH)
        return torch.empty((*leading, dim), dtype=dtype, device="meta")

    def per_pair(dtype: torch.dtype) -> torch.Tensor:
        return torch.empty((1, 1, _LENGTH, _LENGTH), dtype=dtype, device="meta").expand(
            _BATCH, _HEADS, _LENGTH, _LENGTH
        )

    def numbers(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    starts = numbers(_BATCH + 1, dtype=torch.int32) if packed else None
    plain = Problem(
        query=heads(_HEADS, head_dim),
        key=heads(kv_heads, head_dim),
        value=heads(kv_heads, value_dim or head_dim),
        mask=per_pair(torch.bool) if mask else None,
        bias=per_pair(dtype) if bias else None,
        alibi_slopes=numbers(_BATCH, _HEADS, dtype=torch.float32) if alibi else None,
        sinks=numbers(_HEADS, dtype=torch.float32) if sinks else None,
        cu_seqlens_q=starts,
        cu_seqlens_k=starts,
        max_q=_LENGTH,
        max_k=_LENGTH,
        left=None,
        right=None,
        bottom_right=False,
        scale=head_dim**-0.5,
        softcap=None,
        dropout_p=0.0,
        seed=0,
    )
    return replace(plain, **options)


def _attention(dtype: torch.dtype, head_dim: int, **options: Any) -> None:
    x = _problem(dtype, head_dim, **options)
    out, lse = forward(x)
    bias = None if x.bias is None else (1, 1, _LENGTH)  # one for all batches and heads
    backward(x, out, lse, out, None, bias_shape=bias, sinks=x.sinks is not None)


def _decode(
    dtype: torch.dtype, head_dim: int, kv_heads: int, paged: bool = False, **options: Any
) -> None:
    pages, page_size = 1024, 64
    cache = (pages, kv_heads, page_size) if paged else (_BATCH, kv_heads, _LENGTH)
    key = torch.empty((*cache, head_dim), dtype=dtype, device="meta")
    x = _problem(
        dtype,
        head_dim,
        query=torch.empty((_BATCH, _HEADS, 1, head_dim), dtype=dtype, device="meta"),
        key=key,
        value=key,
        max_q=1,
        bottom_right=True,
        **options,
    )
    lengths = torch.empty((_BATCH,), dtype=torch.int32, device="meta")
    table = torch.empty((_BATCH, _LENGTH // page_size), dtype=torch.int32, device="meta")
    decode(x, lengths, table if paged else None)


def _sample(name: str, head_dim: int, **options: Any) -> Sample:
    call = partial(_attention, head_dim=head_dim, **options)
    return Sample(f"attention d{head_dim}{name}", call, guarded=head_dim in (64, 128))


ATTENTION = (
    *(
        _sample(name, head_dim, **options)
        for head_dim in (64, 128, 256, 80)
        for name, options in ((" full", {}), (" causal", _CAUSAL))
    ),
    _sample(" value 64", 128, value_dim=64),
    _sample(" causal, 4 key heads", 128, kv_heads=4, **_CAUSAL),
    _sample(" window", 128, left=1024, right=0),
    _sample(" mask", 64, mask=True),
    _sample(" mask", 128, mask=True),
    _sample(" bias", 64, bias=True),
    _sample(" bias", 128, bias=True),
    _sample(" alibi, causal", 128, alibi=True, **_CAUSAL),
    _sample(" softcap, causal", 128, softcap=30.0, **_CAUSAL),
    _sample(" dropout, causal", 64, dropout_p=0.1, **_CAUSAL),
    _sample(" sinks, causal", 64, sinks=True, **_CAUSAL),
    _sample(" everything", 64, **_EVERYTHING),
    _sample(" everything", 128, **_EVERYTHING),
    _sample(" packed", 128, packed=True),
    _sample(" packed, causal", 128, packed=True, **_CAUSAL),
    *(
        Sample(f"decode d{head_dim}{name}", partial(_decode, head_dim=head_dim, **options))
        for head_dim in (64, 128)
        for name, options in (
            ("", {"kv_heads": _HEADS}),
            (", 4 key heads", {"kv_heads": 4}),
            (" paged, 4 key heads", {"kv_heads": 4, "paged": True}),
        )
    ),
    Sample("decode d256", partial(_decode, head_dim=256, kv_heads=_HEADS)),
    Sample("decode d128 window", partial(_decode, head_dim=128, kv_heads=4, left=1024, right=0)),
)
