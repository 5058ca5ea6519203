"""MultiheadAttention: several attentions side by side, each in its own subspace."""

from __future__ import annotations

from typing import Any, Protocol

from glassformer.nn import functional as F
from glassformer.nn.init import xavier_uniform_, zeros_
from glassformer.nn.linear import Linear
from glassformer.nn.module import Module
from glassformer.nn.positions import AttentionPositions
from glassformer.ops.creation import empty
from glassformer.primitive import Primitive
from glassformer.tensor import Parameter, Tensor


def _heads_apart(xp: Any, x: Any, sizes: tuple[int, ...]) -> Any:
    """(B, T, heads · D) -> for each size a view (B, size, T, D)."""
    batch, length, channels = x.shape
    count = sum(sizes)
    heads = xp.transpose(xp.reshape(x, (batch, length, count, channels // count)), (0, 2, 1, 3))
    parts, start = [], 0
    for size in sizes:
        parts.append(xp.getitem(heads, (slice(None), slice(start, start + size))))
        start += size
    return tuple(parts)


def _heads_together(xp: Any, *parts: Any) -> Any:
    """Several (B, h, T, D) -> (B, T, sum of h · D); a view of one that lies in memory like that."""
    batch, _, length, dim = parts[0].shape
    rows = [xp.transpose(part, (0, 2, 1, 3)) for part in parts]  # (B, T, h, D)
    joined = rows[0] if len(rows) == 1 else xp.concatenate(rows, 2)
    return xp.reshape(joined, (batch, length, joined.shape[2] * dim))


# Reshape, split and transpose in one node, and its inverse: each is the other's derivative.
_split_heads = Primitive("split_heads", _heads_apart, view=True)
_join_heads = Primitive("join_heads", _heads_together, view=True)
_split_heads.defvjp(
    lambda g, _out, _x, sizes: _join_heads(*(g if isinstance(g, tuple) else (g,))),
)
_join_heads.defvjp_each(
    lambda i, g, _out, *_parts: _split_heads(g, sizes=tuple(p.shape[1] for p in _parts))[i]
)


class LayerCache(Protocol):
    """The keys and values of one layer so far, for generating token by token."""

    length: int  # positions held

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, Hkv, T, D) along T, and return everything held."""
        ...


class MultiheadAttention(Module):
    """concat(head₁ … head_H) W_out, head_i = attention(query W_i^Q, key W_i^K, value W_i^V).

    Vaswani et al. 2017, "Attention Is All You Need", section 3.2.2. The parameters have the names
    and the layout of `torch.nn.MultiheadAttention`: the three input projections are one matrix, so
    that self-attention is one product.

    Args:
        embed_dim: channels C of query, key, value and output.
        num_heads: H; must divide `embed_dim`.
        dropout: probability of dropping an attention weight while training.
        bias: have biases in the projections.
        num_key_value_heads: fewer heads for keys and values, shared by groups of query heads
            (Ainslie et al. 2023, "GQA", section 2.2); must divide `num_heads`, the default.
        causal: a position sees itself and earlier ones only. Self-attention alone.
        window: (left, right), how many positions before and after itself a position may see; None
            is no limit.
        softcap: limit scores to (-softcap, softcap) by softcap·tanh(score / softcap).
        positions: rotary, ALiBi or T5 positions; may be shared between layers.
    """

    embed_dim: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    dropout: float
    causal: bool
    window: tuple[int | None, int | None] | None
    softcap: float | None
    in_proj_weight: Parameter  # ((H + 2 Hkv) D, C): query's rows, then key's, then value's
    in_proj_bias: Parameter | None  # ((H + 2 Hkv) D,)
    out_proj: Linear
    positions: AttentionPositions | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        num_key_value_heads: int | None = None,
        causal: bool = False,
        window: tuple[int | None, int | None] | None = None,
        softcap: float | None = None,
        positions: AttentionPositions | None = None,
    ) -> None:
        shared_heads = num_heads if num_key_value_heads is None else num_key_value_heads
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide embed_dim={embed_dim}")
        if shared_heads < 1 or num_heads % shared_heads:
            raise ValueError(
                f"num_key_value_heads={shared_heads} must divide num_heads={num_heads}"
            )
        F.check_probability(dropout)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_key_value_heads = shared_heads
        self.head_dim = embed_dim // num_heads
        self.dropout = dropout
        self.causal = causal
        self.window = window
        self.softcap = softcap
        rows = (num_heads + 2 * shared_heads) * self.head_dim
        self.in_proj_weight = Parameter(empty(rows, embed_dim))
        self.in_proj_bias = Parameter(empty(rows)) if bias else None
        self.out_proj = Linear(embed_dim, embed_dim, bias)
        self.positions = positions
        xavier_uniform_(self.in_proj_weight)
        if self.in_proj_bias is not None and self.out_proj.bias is not None:
            zeros_(self.in_proj_bias)
            zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Attend from `query` (B, Tq, C) to `key` and `value` (B, Tk, C); returns (B, Tq, C).

        Args:
            query: what asks.
            key: what is asked; None for `query` itself.
            value: what is answered; None for `key`.
            key_padding_mask: bool (B, Tk), True where a key is a real token. (Bool masks here are
                those of `scaled_dot_product_attention`: True takes part. torch.nn's mean the
                opposite.)
            attn_mask: broadcastable to (B, H, Tq, Tk); bool, True takes part, or float, added to
                the scores.
            cache: earlier keys and values of this layer; the new ones are appended. Tk then counts
                both, and the queries are the last Tq of these positions.

        Raises:
            TypeError: a mask is of integers.
            ValueError: shapes don't fit; or `key` is given to a causal layer or with a cache.
        """
        if key is None or (key is query and (value is None or value is query)):
            if key is None and value is not None:
                raise ValueError("value is given but key is not; pass both, or neither")
            q, k, v = self._project_one(query)
        elif self.causal or cache is not None:
            raise ValueError(
                "key is given: causal order and a cache belong to self-attention alone"
            )
        else:
            q, k, v = self._project_each(query, key, key if value is None else value)
        if self.positions is not None:
            q, k = self.positions.rotate(q, k, 0 if cache is None else cache.length)
        if cache is not None:
            k, v = cache.update(k, v)
        mask, bias = self._masks(q, k, key_padding_mask, attn_mask)
        heads: Tensor = F.attention(
            q,
            k,
            v,
            mask,
            bias,
            causal="bottom_right" if self.causal else None,
            window=self.window,
            softcap=self.softcap,
            dropout_p=self.dropout if self.training else 0.0,
        )  # (B, H, Tq, D)
        output: Tensor = self.out_proj(_join_heads(heads))  # (B, Tq, C)
        return output

    def _project_one(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project (B, T, C) to query (B, H, T, D), key and value (B, Hkv, T, D) in one product."""
        self._check_input("query", x)
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        shared = self.num_key_value_heads
        q, k, v = _split_heads(projected, sizes=(self.num_heads, shared, shared))
        return q, k, v

    def _project_each(
        self, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Project each input by its rows of the matrix; key and value at once if they are one."""
        shared = self.num_key_value_heads
        inputs: list[tuple[str, Tensor, tuple[int, ...]]] = [("query", query, (self.num_heads,))]
        if value is key:
            inputs += [("key", key, (shared, shared))]
        else:
            inputs += [("key", key, (shared,)), ("value", value, (shared,))]
        rows = [sum(sizes) * self.head_dim for _, _, sizes in inputs]
        weights = self.in_proj_weight.split(rows)
        bias = self.in_proj_bias
        biases = [None] * len(rows) if bias is None else bias.split(rows)
        heads: list[Tensor] = []
        for (name, x, sizes), weight, part in zip(inputs, weights, biases, strict=True):
            self._check_input(name, x)
            heads += _split_heads(F.linear(x, weight, part), sizes=sizes)
        q, k, v = heads
        return q, k, v

    def _check_input(self, name: str, x: Tensor) -> None:
        if x.ndim != 3 or x.shape[-1] != self.embed_dim:
            raise ValueError(f"{name} must be (batch, length, {self.embed_dim}), got {x.shape}")

    def _masks(
        self, q: Tensor, k: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return what may be seen (bool) and what is added to the scores."""
        mask, bias = F.split_mask(attn_mask)
        if key_padding_mask is not None:
            F.check_bool("key_padding_mask", key_padding_mask)
            if key_padding_mask.shape != (k.shape[0], k.shape[2]):
                raise ValueError(
                    f"key_padding_mask is {key_padding_mask.shape}, but there are "
                    f"(batch, keys) = {(k.shape[0], k.shape[2])}"
                )
            real = key_padding_mask[:, None, None, :]  # (B, 1, 1, Tk)
            mask = real if mask is None else mask & real
        if self.positions is not None:
            own = self.positions.bias(q.shape[2], k.shape[2], q.dtype, q.device)
            bias = own if bias is None or own is None else bias + own
        return mask, bias

    def extra_repr(self) -> str:  # noqa: D102
        shared = self.num_key_value_heads
        groups = "" if shared == self.num_heads else f", num_key_value_heads={shared}"
        causal = ", causal" if self.causal else ""
        return f"{self.embed_dim}, num_heads={self.num_heads}{groups}{causal}"
