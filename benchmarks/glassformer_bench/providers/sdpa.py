"""PyTorch's scaled_dot_product_attention: its own choice, and each of its backends."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from glassformer_bench.problem import Problem
from glassformer_bench.providers.base import Call, TorchProvider, needs_gpu
from glassformer_bench.truth import has_blind_queries, visible


class Sdpa(TorchProvider):
    """The backend that PyTorch chooses."""

    name = "sdpa"
    about = "torch.nn.functional.scaled_dot_product_attention, PyTorch's choice of backend"
    install = "pip install torch"
    ops = ("attention", "decode")
    backend: SDPBackend | None = None

    def unsupported(self, problem: Problem) -> list[str]:
        """Leave out what PyTorch's backends don't agree about."""
        if has_blind_queries(problem):
            return ["some queries see no key, of which PyTorch's backends make different results"]
        return []

    def prepare(self, problem: Problem, device: torch.device) -> Call:
        """Return the call; masks that `is_causal` can't say are made beforehand."""
        is_causal = problem.causal == "top_left" and problem.window is None
        mask = None if is_causal else visible(problem, device)
        gqa = problem.heads != problem.kv_heads

        def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                is_causal=is_causal,
                scale=problem.scale,
                enable_gqa=gqa,
            )

        if self.backend is None:
            return attend
        backend = self.backend

        def forced(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            with sdpa_kernel(backend):
                return attend(query, key, value)

        return forced

    def needs_mask(self, problem: Problem) -> bool:
        """Tell whether a mask must be passed."""
        return problem.window is not None or problem.causal == "bottom_right"


class SdpaMath(Sdpa):
    """The composite in C++."""

    name = "sdpa-math"
    about = "scaled_dot_product_attention, math backend"
    backend = SDPBackend.MATH


class SdpaFlash(Sdpa):
    """FlashAttention as PyTorch ships it; on the CPU a kernel of that name."""

    name = "sdpa-flash"
    about = "scaled_dot_product_attention, flash backend"
    backend = SDPBackend.FLASH_ATTENTION

    def unsupported(self, problem: Problem) -> list[str]:
        """On a GPU: half precision, and no mask but causal."""
        reasons = super().unsupported(problem)
        if problem.device == "cuda" and problem.dtype == "fp32":
            reasons.append("the flash backend takes fp16 and bf16 alone")
        if problem.device == "cuda" and self.needs_mask(problem):
            reasons.append("the flash backend takes no mask, which this window or alignment needs")
        return reasons


class SdpaCudnn(Sdpa):
    """cuDNN's attention."""

    name = "sdpa-cudnn"
    about = "scaled_dot_product_attention, cuDNN backend"
    backend = SDPBackend.CUDNN_ATTENTION

    def missing(self, device: str) -> str | None:
        """It is a GPU's."""
        return needs_gpu(device)

    def unsupported(self, problem: Problem) -> list[str]:
        """Half precision alone."""
        reasons = super().unsupported(problem)
        if problem.dtype == "fp32":
            reasons.append("the cuDNN backend takes fp16 and bf16 alone")
        return reasons
