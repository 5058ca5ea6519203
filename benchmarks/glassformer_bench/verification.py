"""Is the answer right? Asked before anything is timed, of the timed calls themselves, and after.

Before: two calls with the same inputs, then one with new numbers in the same memory. Each result is
compared with float64; inputs must be untouched, and earlier results must stay what they were. The
clocks then change the inputs before every call, so that the last timed result can be checked, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from glassformer_bench.checking import Error, Oracle, error_faults, form_faults
from glassformer_bench.inputs import Inputs
from glassformer_bench.problem import Problem
from glassformer_bench.providers.base import Bound, Provider

_POISON_COPIES = 3


@dataclass
class Verdict:
    """What is wrong, in words (nothing if all is right), and the largest errors that were seen."""

    faults: list[str] = field(default_factory=list)
    errors: dict[str, Error] = field(default_factory=dict)

    def add(self, when: str, faults: list[str]) -> None:
        """Note faults; the same one is told once, of the first time."""
        known = {fault.partition(" (")[0] for fault in self.faults}
        self.faults += [f"{fault} ({when})" for fault in faults if fault not in known]

    def merge(self, errors: dict[str, Error]) -> None:
        """Keep the worse of what is known and `errors`."""
        for name, error in errors.items():
            known = self.errors.get(name)
            if known is None or not _excess(error) <= _excess(known):
                self.errors[name] = error


def compute(problem: Problem, bound: Bound) -> dict[str, Any]:
    """Return the result and, where the mode asks for them, the gradients."""
    out = bound.forward()
    if not problem.needs_backward:
        return bound.results(out, ())
    if isinstance(out, torch.Tensor) and not out.requires_grad:
        raise NotImplementedError(
            "its result carries no gradient: give the kernel a torch.autograd.Function, or use "
            "--mode fwd"
        )
    return bound.results(out, bound.backward(out))


def verify(problem: Problem, provider: Provider, first: Oracle, second: Oracle) -> Verdict:
    """Check a provider on two sets of inputs."""
    verdict = Verdict()
    inputs = first.inputs()
    bound = provider.bind(problem, inputs)
    kept: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    for when, oracle in (
        ("first call", first),
        ("second call, same inputs", first),
        ("new inputs in the same memory", second),
    ):
        if oracle is second:
            inputs.copy_(second.inputs())
        poison(first.truth, inputs)
        results = compute(problem, bound)
        if not _check(verdict, when, results, oracle):
            return verdict
        changed = oracle.changed(inputs)
        verdict.add(when, [f"it changed its input {name}" for name in changed])
        if changed:
            return verdict
        kept = kept or [(name, x, x.detach().clone()) for name, x in results.items()]
    for name, x, copy in kept:
        if not _same(x.detach(), copy):
            verdict.add("later", [f"{name} of an earlier call changed when it was called again"])
    if problem.device == "cuda" and not verdict.faults:
        verdict.add("busy stream", _beside_the_stream(problem, provider, first, second))
    return verdict


def check_timed(
    problem: Problem, inputs: Inputs, results: dict[str, Any], verdict: Verdict
) -> None:
    """Check the result of the last timed call, of the inputs as they are now."""
    _check(verdict, "timed call", results, Oracle(problem, inputs))


def check_after(problem: Problem, bound: Bound, inputs: Inputs, verdict: Verdict) -> None:
    """Call once more after timing: the inputs must stay as they are."""
    before = inputs.clone()
    compute(problem, bound)
    for (name, x), (_, original) in zip(inputs.tensors(), before.tensors(), strict=True):
        if not torch.equal(x, original):
            verdict.add("after timing", [f"it changed its input {name}"])


def poison(like: dict[str, torch.Tensor], inputs: Inputs) -> None:
    """Leave NaN in memory that is free, where a kernel may get its result's from."""
    operand = next(iter(inputs.operands.values()))
    blocks = [
        torch.full_like(x, float("nan"), dtype=operand.dtype)
        for x in like.values()
        for _ in range(_POISON_COPIES)
    ]
    del blocks


def _check(verdict: Verdict, when: str, results: dict[str, Any], oracle: Oracle) -> bool:
    """Check form and numbers; return whether it makes sense to go on."""
    if not _forms(verdict, when, results, oracle.truth, oracle.dtype):
        return False
    errors = oracle.errors(results)
    verdict.add(when, error_faults(errors))
    verdict.merge(errors)
    return not verdict.faults


def _forms(
    verdict: Verdict,
    when: str,
    results: dict[str, Any],
    right: dict[str, torch.Tensor],
    dtype: torch.dtype,
) -> bool:
    faults = []
    for name, expected in right.items():
        faults += form_faults(name, results.get(name), expected, dtype)
    verdict.add(when, faults)
    return not faults


def _beside_the_stream(
    problem: Problem, provider: Provider, first: Oracle, second: Oracle
) -> list[str]:
    from glassformer_bench.cuda_timing import stream_faults

    inputs, others = first.inputs(), second.inputs()
    bound = provider.bind(problem, inputs)
    bound.forward()

    def call() -> torch.Tensor:
        out: torch.Tensor = bound.results(bound.forward(), ())["out"]
        return out

    return stream_faults(lambda: inputs.copy_(others), call)


def _excess(error: Error) -> float:
    return error.max / error.allowed_max if error.allowed_max > 0 else error.max


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())
