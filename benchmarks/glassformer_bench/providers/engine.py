"""The engine's own operations: the reference that defines each, and its fused kernels."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch

import glassformer as gf
from glassformer_bench.inputs import Inputs
from glassformer_bench.problem import OPS, Problem
from glassformer_bench.providers.base import Bound, Provider

_FUSED = {
    "attention": "scaled_dot_product_attention",
    "decode": "scaled_dot_product_attention",
    "softmax": "softmax",
    "layer_norm": "layer_norm",
    "cross_entropy": "cross_entropy",
}


def operation(problem: Problem) -> Callable[..., gf.Tensor]:
    """Return the engine's function of a problem's operands."""
    if problem.is_attention:
        causal = cast("gf.nn.functional.Causal | None", problem.causal)
        left, right = (None if n == -1 else n for n in problem.window or (-1, -1))
        window = None if problem.window is None else (left, right)
        return lambda q, k, v: gf.nn.functional.attention(
            q, k, v, causal=causal, window=window, scale=problem.scale
        )
    if problem.op == "softmax":
        return lambda x: gf.nn.functional.softmax(x, -1)
    if problem.op == "layer_norm":
        return lambda x, w, b: gf.nn.functional.layer_norm(x, x.shape[-1:], w, b)
    return lambda x, target: gf.nn.functional.cross_entropy(x, target, reduction="none")


def as_engine(x: torch.Tensor) -> gf.Tensor:
    """Return an engine tensor that shares the memory."""
    return gf.from_numpy(x.numpy()) if x.device.type == "cpu" else gf.from_dlpack(x)


def as_torch(x: Any) -> Any:
    """Return a torch tensor that shares the memory; anything else as it is."""
    if not isinstance(x, gf.Tensor):
        return x
    return torch.from_numpy(x.array) if x.device.type == "cpu" else x.array


class Engine(Provider):
    """Common to both: operands shared with the engine, gradients by its own autograd."""

    install = "pip install glassformer"
    ops = OPS

    def forced(self, problem: Problem) -> AbstractContextManager[None]:
        """Return the context in which calls are made."""
        return nullcontext()

    def unsupported(self, problem: Problem) -> list[str]:
        """NumPy has no bfloat16."""
        if problem.dtype == "bf16" and problem.device == "cpu":
            return ["NumPy has no bf16; use --dtype fp32"]
        return []

    def bind(self, problem: Problem, inputs: Inputs) -> Bound:
        """Share the operands' memory with engine tensors."""
        names = inputs.differentiable
        tensors = {name: as_engine(x) for name, x in inputs.operands.items()}
        leaves = [tensors[name] for name in names]
        for leaf in leaves:
            leaf.requires_grad_(problem.needs_backward)
        d_out = None if inputs.d_out is None else as_engine(inputs.d_out)
        function = operation(problem)
        operands = list(tensors.values())

        def forward() -> gf.Tensor:
            with self.forced(problem):
                return function(*operands)

        def backward(out: gf.Tensor) -> tuple[gf.Tensor | None, ...]:
            with self.forced(problem):
                return gf.grad(out, leaves, d_out)

        def results(out: Any, grads: tuple[Any, ...]) -> dict[str, Any]:
            found = {"out": as_torch(out)}
            found |= {f"d_{n}": as_torch(g) for n, g in zip(names, grads, strict=False)}
            return found

        kernel = lambda: gf.fused.last_kernel(_FUSED[problem.op])  # noqa: E731
        return Bound(forward, backward, results, kernel)


class EngineReference(Engine):
    """The composite reference: what defines the operation, in the engine's Tensor operations."""

    name = "engine-reference"
    about = "the engine's definition of each operation, composed of Tensor operations"

    def forced(self, problem: Problem) -> AbstractContextManager[None]:
        """Force the reference."""
        return gf.fused.use(**{_FUSED[problem.op]: "reference"})


class EngineFused(Engine):
    """The kernel that the engine would take: NumPy's on the CPU, Triton's on a GPU."""

    name = "engine-fused"
    about = "the kernel the engine takes by itself: NumPy on the CPU, Triton on a GPU"

    def unsupported(self, problem: Problem) -> list[str]:
        """Refuse where dispatch would fall back to the reference, with the kernels' reasons."""
        reasons = super().unsupported(problem)
        if reasons:
            return reasons
        found = gf.fused.registry.get(_FUSED[problem.op])
        gf.fused.registry.load_kernels(problem.device)
        if not any(kernel.device == problem.device for kernel in found.kernels):
            return [f"the engine has no fused {problem.op} for {problem.device}"]
        return []

    def bind(self, problem: Problem, inputs: Inputs) -> Bound:
        """Bind, and call once to see which kernel serves."""
        bound = super().bind(problem, inputs)
        bound.forward()
        if bound.kernel() == "reference":
            raise NotImplementedError(f"no fused kernel of the engine serves {problem.label()}")
        return bound
