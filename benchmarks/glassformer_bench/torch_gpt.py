"""The engine's GPT in plain PyTorch, as one would write it: the contender of the suites."""

from __future__ import annotations

import torch
from torch.nn import functional as F

import glassformer as gf
from glassformer.models.gpt import GPT, GPTConfig

Pairs = list[tuple[gf.Tensor, torch.Tensor]]


class TorchGPT(torch.nn.Module):
    """Pre-norm causal blocks over token and position embeddings; the output weights are tied."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        c = config.n_embd
        self.heads, self.length = config.n_head, config.n_positions
        self.tokens = torch.nn.Embedding(config.vocab_size, c)
        self.positions = torch.nn.Embedding(config.n_positions, c)
        self.blocks = torch.nn.ModuleList(
            torch.nn.ModuleDict(
                {
                    "norm1": torch.nn.LayerNorm(c),
                    "qkv": torch.nn.Linear(c, 3 * c),
                    "out": torch.nn.Linear(c, c),
                    "norm2": torch.nn.LayerNorm(c),
                    "up": torch.nn.Linear(c, 4 * c),
                    "down": torch.nn.Linear(4 * c, c),
                }
            )
            for _ in range(config.n_layer)
        )
        self.norm = torch.nn.LayerNorm(c)

    def forward(
        self, ids: torch.Tensor, cache: torch.Tensor | None = None, past: int = 0
    ) -> torch.Tensor:
        """Return the logits (B, T, V) of `ids` (B, T), which follow `past` tokens in the cache.

        `cache` is (layers, 2, B, H, longest, D); the new keys and values are written into it.
        """
        b, t = ids.shape
        x = self.tokens(ids) + self.positions.weight[past : past + t]  # (B, T, C)
        for i, block in enumerate(self.blocks):
            q, k, v = block["qkv"](block["norm1"](x)).chunk(3, dim=-1)
            q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in (q, k, v))
            if cache is not None:
                for kept, new in zip(cache[i], (k, v), strict=True):
                    kept[:, :, past : past + t] = new
                k, v = cache[i][:, :, :, : past + t]
            y = F.scaled_dot_product_attention(q, k, v, is_causal=t > 1)
            x = x + block["out"](y.transpose(1, 2).reshape(b, t, -1))
            hidden = F.gelu(block["up"](block["norm2"](x)), approximate="tanh")
            x = x + block["down"](hidden)
        return self.norm(x) @ self.tokens.weight.T

    def loss(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy of `targets` (B, T)."""
        return F.cross_entropy(self(ids).flatten(0, 1), targets.flatten())

    @torch.inference_mode()
    def generate(self, ids: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
        """Continue `ids` (B, T) by the likeliest token, again and again, with a cache.

        The cache is allocated once, at its full length: nothing is copied when it grows.
        """
        b, t = ids.shape
        width = self.norm.weight.shape[0] // self.heads
        cache = torch.empty(len(self.blocks), 2, b, self.heads, t + max_new_tokens, width)
        out, new = [ids], ids
        for _ in range(max_new_tokens):
            past = sum(x.shape[1] for x in out) - new.shape[1]
            new = self(new, cache, past)[:, -1].argmax(-1, keepdim=True)  # (B, 1)
            out.append(new)
        return torch.cat(out, dim=1)


def twins(config: GPTConfig) -> tuple[GPT, TorchGPT, Pairs]:
    """Return the engine's model, PyTorch's with the same weights, and their parameters in pairs.

    Raises:
        RuntimeError: the models differ.
    """
    gf.manual_seed(0)
    ours, theirs = GPT(config), TorchGPT(config)
    pairs: Pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    with torch.no_grad():
        for mine, other in pairs:
            if mine.shape != tuple(other.shape):
                raise RuntimeError(f"a parameter is {mine.shape} here, {tuple(other.shape)} there")
            other.copy_(torch.from_numpy(mine.detach().numpy()))
    return ours, theirs, pairs
