"""A provider is one small class: what it supports, how to prepare, how to call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from glassformer_bench.inputs import Inputs
from glassformer_bench.problem import Problem
from glassformer_bench.truth import Results

Call = Callable[..., Any]


@dataclass
class Bound:
    """A provider's kernel with its operands: what the timers call.

    Attributes:
        forward: returns the result, of whatever type the provider has.
        backward: takes that result, returns the gradients in the order of the operands that have
            one.
        results: turns a result and gradients into torch tensors. Not timed.
        kernel: names what served the last call, where the provider chooses among several.
    """

    forward: Callable[[], Any]
    backward: Callable[[Any], tuple[Any, ...]]
    results: Callable[[Any, tuple[Any, ...]], dict[str, Any]]
    kernel: Callable[[], str | None] = lambda: None


class Provider:
    """A way to compute the operations.

    Attributes:
        name: how `--provider` calls it.
        about: what it is, in a few words.
        install: the line that installs it.
        ops: the operations it has.
    """

    name = ""
    about = ""
    install = ""
    ops: tuple[str, ...] = ()

    def missing(self, device: str) -> str | None:
        """Return why it can't be used here at all, None if it can."""
        return None

    def unsupported(self, problem: Problem) -> list[str]:
        """Return why it can't serve a problem, in words; nothing if it can."""
        return []

    def bind(self, problem: Problem, inputs: Inputs) -> Bound:
        """Prepare to compute the problem on these inputs, whose memory is shared, not copied."""
        raise NotImplementedError

    def reasons(self, problem: Problem) -> list[str]:
        """Return everything against serving a problem here."""
        missing = self.missing(problem.device)
        if missing:
            return [missing]
        if problem.op not in self.ops:
            return [f"{self.name} has no {problem.op}"]
        return self.unsupported(problem)


class TorchProvider(Provider):
    """A provider whose operands and results are torch tensors, differentiated by autograd."""

    def prepare(self, problem: Problem, device: torch.device) -> Call:
        """Return the function of the operands, in their order, that computes the result."""
        raise NotImplementedError

    def kernel(self, problem: Problem) -> str | None:
        """Name what serves the problem, where there is a choice."""
        return None

    def bind(self, problem: Problem, inputs: Inputs) -> Bound:
        """Make the operands leaves where gradients are wanted."""
        names = inputs.differentiable
        operands = [
            x.detach().requires_grad_(problem.needs_backward) if name in names else x
            for name, x in inputs.operands.items()
        ]
        leaves = [x for x in operands if x.is_floating_point()]
        function = self.prepare(problem, leaves[0].device)
        d_out = inputs.d_out

        def backward(out: Any) -> tuple[Any, ...]:
            grads: tuple[Any, ...] = torch.autograd.grad(out, leaves, d_out)
            return grads

        def results(out: Any, grads: tuple[Any, ...]) -> Results:
            found = {"out": out}
            found |= {f"d_{name}": g for name, g in zip(names, grads, strict=False)}
            return found

        return Bound(lambda: function(*operands), backward, results, lambda: self.kernel(problem))


def needs_gpu(device: str) -> str | None:
    """Return the reason of a provider that runs on a GPU alone."""
    return None if device == "cuda" else "it needs a CUDA GPU, this run is on the CPU"
