"""Plain PyTorch, as one would write it, and the same through torch.compile."""

from __future__ import annotations

import shutil

import torch

from glassformer_bench.problem import OPS, Problem
from glassformer_bench.providers.base import Call, TorchProvider
from glassformer_bench.truth import composite_attention, has_blind_queries, row_operation, visible


class Eager(TorchProvider):
    """Composite attention, and PyTorch's softmax, layer norm and cross-entropy: the yardstick."""

    name = "eager"
    about = "plain PyTorch: composite attention, its own softmax, layer_norm, cross_entropy"
    install = "pip install torch"
    ops = OPS

    def prepare(self, problem: Problem, device: torch.device) -> Call:
        """Return the function; the mask is made beforehand."""
        if not problem.is_attention:
            return lambda *operands: row_operation(problem, list(operands))
        seen = visible(problem, device)
        has_blind = has_blind_queries(problem)
        groups = problem.heads // problem.kv_heads

        def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            if groups > 1:
                key = key.repeat_interleave(groups, 1)
                value = value.repeat_interleave(groups, 1)
            return composite_attention(query, key, value, seen, problem.scale, has_blind)

        return attend


class Compile(Eager):
    """The functions of `Eager`, compiled."""

    name = "compile"
    about = "torch.compile of plain PyTorch"
    install = "pip install torch, and a C++ compiler on the CPU"

    def missing(self, device: str) -> str | None:
        """On the CPU, Inductor needs a C++ compiler."""
        if device == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
            return "torch.compile on the CPU needs a C++ compiler; none is on the PATH"
        return None

    def prepare(self, problem: Problem, device: torch.device) -> Call:
        """Compile for these shapes; the first call, which isn't timed, pays for it."""
        torch._dynamo.reset()
        function = super().prepare(problem, device)
        compiled: Call = torch.compile(function, dynamic=False, fullgraph=True)
        return compiled
