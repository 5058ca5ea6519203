"""Our own Triton kernels, called from PyTorch."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import torch

from glassformer_bench.problem import OPS, Problem
from glassformer_bench.providers.base import Call, TorchProvider


def is_interpreted() -> bool:
    """Tell whether Triton interprets its kernels, slowly, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


class TritonKernels(TorchProvider):
    """`glassformer_kernels`."""

    name = "triton"
    about = "the Triton kernels of glassformer_kernels"
    install = "pip install 'glassformer[gpu]'"
    ops = OPS

    def missing(self, device: str) -> str | None:
        """Need Triton, and a GPU or its interpreter."""
        if find_spec("triton") is None:
            return f"Triton is not installed: {self.install} (Linux)"
        if device == "cpu" and not is_interpreted():
            return "Triton compiles for a GPU; TRITON_INTERPRET=1 runs its interpreter, for checks"
        if device == "cuda" and is_interpreted():
            return "TRITON_INTERPRET is set, which keeps Triton from the GPU; unset it"
        return None

    def unsupported(self, problem: Problem) -> list[str]:
        """Heads are at most 256 wide; the interpreter doesn't multiply bf16."""
        if is_interpreted() and problem.dtype == "bf16":
            return ["Triton's interpreter can't multiply bf16; use --dtype fp16 for a check"]
        if problem.is_attention and problem.head_dim > 256:
            return [f"head_dim is at most 256, got {problem.head_dim}"]
        return []

    def kernel(self, problem: Problem) -> str | None:
        """Say where it is interpreted: such a time means nothing."""
        return "interpreted" if is_interpreted() else None

    def prepare(self, problem: Problem, device: torch.device) -> Call:
        """Return the public operation."""
        import glassformer_kernels as gk

        masks: dict[str, Any] = {"window": problem.window, "scale": problem.scale}
        if problem.op == "decode":
            lengths = torch.full(
                (problem.batch,), problem.seqlen_k, dtype=torch.int32, device=device
            )
            return lambda q, k, v: gk.attention(q, k, v, key_lengths=lengths, **masks)
        if problem.op == "attention":
            return lambda q, k, v: gk.attention(q, k, v, causal=problem.causal, **masks)
        if problem.op == "softmax":
            return lambda x: gk.softmax(x, -1)
        if problem.op == "layer_norm":
            return lambda x, w, b: gk.layer_norm(x, x.shape[-1], w, b)
        # The targets are known to be in range: looking at them would wait for the GPU.
        return lambda x, t: gk.cross_entropy(x, t, reduction="none", check_targets=False)
