"""MultiheadAttention: several attentions side by side, each in its own subspace."""

from __future__ import annotations

from typing import Any, Protocol

from glassformer.nn import functional as F
from glassformer.nn.init import xavier_uniform_, zeros_
from glassformer.nn.linear import Linear
from glassformer.nn.lora import LoraAdapter
from glassformer.nn.module import Module
from glassformer.nn.positions import AttentionPositions
from glassformer.nn.watch import watching
from glassformer.ops.creation import empty
from glassformer.primitive import Primitive
from glassformer.rematerialisation import outside_checkpoint
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
    memory: tuple[Tensor, Tensor] | None  # those of cross-attention, projected once for all steps

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
        head_dim: D, by default embed_dim / num_heads.
        scale: of the scores, by default 1/√D.
        out_bias: have a bias in the output projection; `bias` unless told.
    """

    embed_dim: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    dropout: float
    causal: bool
    window: tuple[int | None, int | None] | None
    softcap: float | None
    scale: float | None
    in_proj_weight: Parameter  # ((H + 2 Hkv) D, C): query's rows, then key's, then value's
    in_proj_bias: Parameter | None  # ((H + 2 Hkv) D,)
    out_proj: Linear
    positions: AttentionPositions | None
    adapter: LoraAdapter | None = None  # updates of the input projections; see `nn/lora.py`

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
        head_dim: int | None = None,
        scale: float | None = None,
        out_bias: bool | None = None,
    ) -> None:
        shared_heads = num_heads if num_key_value_heads is None else num_key_value_heads
        if num_heads < 1 or head_dim is None and embed_dim % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide embed_dim={embed_dim}")
        if shared_heads < 1 or num_heads % shared_heads:
            raise ValueError(
                f"num_key_value_heads={shared_heads} must divide num_heads={num_heads}"
            )
        F.check_probability(dropout)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_key_value_heads = shared_heads
        self.head_dim = embed_dim // num_heads if head_dim is None else head_dim
        self.dropout = dropout
        self.causal = causal
        self.window = window
        self.softcap = softcap
        self.scale = scale
        rows = (num_heads + 2 * shared_heads) * self.head_dim
        self.in_proj_weight = Parameter(empty(rows, embed_dim))
        self.in_proj_bias = Parameter(empty(rows)) if bias else None
        self.out_proj = Linear(
            num_heads * self.head_dim, embed_dim, bias if out_bias is None else out_bias
        )
        self.positions = positions
        xavier_uniform_(self.in_proj_weight)
        for start in (self.in_proj_bias, self.out_proj.bias):
            if start is not None:
                zeros_(start)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        cache: LayerCache | None = None,
        projected: tuple[Tensor, Tensor] | None = None,
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
            projected: in place of `key` and `value`, what `project_memory` made of them.

        Raises:
            TypeError: a mask is of integers.
            ValueError: shapes don't fit; or `key` is given to a causal layer or with a cache.
        """
        if projected is not None:
            (q,) = self._project_parts("query", query, slice(0, 1))
            k, v = projected
        elif key is None or (key is query and (value is None or value is query)):
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
        scoring: dict[str, Any] = {
            "causal": "bottom_right" if self.causal else None,
            "window": self.window,
            "softcap": self.softcap,
            "scale": self.scale,
        }
        if watching.seen:
            with outside_checkpoint() as again:  # nobody may be watching in backward
                if not again:
                    weights = F.attention_weights(q, k, mask, bias, **scoring)
                    for seen in watching.seen:
                        seen.append((self, weights))
        dropout_p = self.dropout if self.training else 0.0
        heads: Tensor = F.attention(q, k, v, mask, bias, **scoring, dropout_p=dropout_p)
        output: Tensor = self.out_proj(_join_heads(heads))  # (B, H, Tq, D) -> (B, Tq, C)
        return output

    def project_memory(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, Hkv, S, D) of `memory` (B, S, C), for any number of queries.

        Attention to them is `layer(query, projected=layer.project_memory(memory))`.
        """
        key, value = self._project_parts("memory", memory, slice(1, 3))
        return key, value

    def _project_one(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project (B, T, C) to query (B, H, T, D), key and value (B, Hkv, T, D) in one product."""
        self._check_input("query", x)
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        if self.adapter is not None:
            projected = projected + self.adapter(x)
        shared = self.num_key_value_heads
        q, k, v = _split_heads(projected, sizes=(self.num_heads, shared, shared))
        return q, k, v

    def _project_each(
        self, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Project each input by its rows of the matrix; key and value at once if they are one."""
        (q,) = self._project_parts("query", query, slice(0, 1))
        if value is key:
            k, v = self._project_parts("key", key, slice(1, 3))
        else:
            (k,) = self._project_parts("key", key, slice(1, 2))
            (v,) = self._project_parts("value", value, slice(2, 3))
        return q, k, v

    def _project_parts(self, name: str, x: Tensor, parts: slice) -> tuple[Tensor, ...]:
        """Project (B, T, C) to some of query, key and value, (B, heads, T, D) each."""
        self._check_input(name, x)
        sizes = (self.num_heads, self.num_key_value_heads, self.num_key_value_heads)
        start, stop = (sum(sizes[:end]) * self.head_dim for end in (parts.start, parts.stop))
        bias = None if self.in_proj_bias is None else self.in_proj_bias[start:stop]
        projected = F.linear(x, self.in_proj_weight[start:stop], bias)
        if self.adapter is not None:
            projected = projected + self.adapter(x, parts)
        return tuple(_split_heads(projected, sizes=sizes[parts]))

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
