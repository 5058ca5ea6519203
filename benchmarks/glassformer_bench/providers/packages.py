"""Attention of other packages: FlexAttention, flash-attn, xFormers."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from glassformer_bench.problem import Problem
from glassformer_bench.providers.base import Call, TorchProvider, needs_gpu
from glassformer_bench.providers.torch_eager import Compile
from glassformer_bench.truth import has_blind_queries


class Flex(TorchProvider):
    """PyTorch's FlexAttention, compiled, with a block mask."""

    name = "flex"
    about = "torch.nn.attention.flex_attention, compiled"
    install = "pip install torch"
    ops = ("attention", "decode")

    def missing(self, device: str) -> str | None:
        """It is compiled; so it needs what torch.compile needs."""
        return Compile().missing(device)

    def unsupported(self, problem: Problem) -> list[str]:
        """On the CPU it has no backward."""
        if problem.device == "cpu" and problem.needs_backward:
            return ["FlexAttention has no backward on the CPU; use --mode fwd"]
        return []

    def prepare(self, problem: Problem, device: torch.device) -> Call:
        """Make the block mask, and compile."""
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        block_mask = None
        if problem.causal is not None or problem.window is not None:
            mask = _mask_of_indices(problem)
            block_mask = create_block_mask(
                mask, None, None, problem.seqlen, problem.seqlen_k, device=str(device)
            )
        torch._dynamo.reset()
        compiled: Any = torch.compile(flex_attention, dynamic=False, fullgraph=True)
        gqa = problem.heads != problem.kv_heads
        return lambda q, k, v: compiled(
            q, k, v, block_mask=block_mask, scale=problem.scale, enable_gqa=gqa
        )


def _mask_of_indices(problem: Problem) -> Any:
    offset = 0 if problem.causal == "top_left" else problem.seqlen_k - problem.seqlen
    left, right = problem.window or (-1, -1)
    is_causal = problem.causal is not None

    def mask(b: Any, h: Any, query: Any, key: Any) -> Any:
        position = query + offset
        seen = key >= 0
        if is_causal:
            seen = seen & (key <= position)
        if left >= 0:
            seen = seen & (key >= position - left)
        if right >= 0:
            seen = seen & (key <= position + right)
        return seen

    return mask


class FlashAttn(TorchProvider):
    """Dao's package. Its layout is (B, T, H, D); causal is aligned to the bottom right."""

    name = "flash_attn"
    about = "the flash-attn package (FlashAttention-2)"
    install = "pip install flash-attn --no-build-isolation"
    ops = ("attention", "decode")

    def missing(self, device: str) -> str | None:
        """Need the package and a GPU."""
        if find_spec("flash_attn") is None:
            return f"flash_attn is not installed: {self.install}"
        return needs_gpu(device)

    def unsupported(self, problem: Problem) -> list[str]:
        """Half precision; causal as with a cache."""
        reasons = _half_precision(problem, "flash_attn")
        if problem.causal == "top_left" and problem.seqlen != problem.seqlen_k:
            reasons.append("flash_attn aligns causal to the bottom right where lengths differ")
        return reasons

    def prepare(self, problem: Problem, device: torch.device) -> Call:
        """Call on transposed views."""
        from flash_attn import flash_attn_func

        window = problem.window or (-1, -1)
        causal = problem.causal is not None
        return lambda q, k, v: flash_attn_func(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            causal=causal,
            window_size=window,
            softmax_scale=problem.scale,
        ).transpose(1, 2)


class Xformers(TorchProvider):
    """xFormers' memory-efficient attention. Its layout is (B, T, H, D)."""

    name = "xformers"
    about = "xformers.ops.memory_efficient_attention"
    install = "pip install xformers"
    ops = ("attention", "decode")

    def missing(self, device: str) -> str | None:
        """Need the package and a GPU."""
        if find_spec("xformers") is None:
            return f"xformers is not installed: {self.install}"
        return needs_gpu(device)

    def unsupported(self, problem: Problem) -> list[str]:
        """No shared keys, no windows, causal from the top left."""
        reasons = []
        if problem.heads != problem.kv_heads:
            reasons.append("key heads shared by query heads aren't passed to xformers here")
        if problem.window is not None:
            reasons.append("windows aren't passed to xformers here")
        if has_blind_queries(problem):
            reasons.append("some queries see no key")
        return reasons

    def prepare(self, problem: Problem, device: torch.device) -> Call:
        """Call on transposed views."""
        from xformers import ops

        bias = {
            None: lambda: None,
            "top_left": ops.LowerTriangularMask,
            "bottom_right": ops.fmha.attn_bias.LowerTriangularFromBottomRightMask,
        }[problem.causal]()
        return lambda q, k, v: ops.memory_efficient_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_bias=bias,
            scale=problem.scale,
        ).transpose(1, 2)


def _half_precision(problem: Problem, name: str) -> list[str]:
    return [f"{name} takes fp16 and bf16 alone"] if problem.dtype == "fp32" else []
