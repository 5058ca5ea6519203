"""Compare results with float64, and decide how much error is allowed.

A result passes if its largest and its mean error are at most twice (for gradients three times)
those of plain PyTorch in the same precision on the same inputs, plus a floor of a few roundings of
the largest and of the mean magnitude, and in attention one more of the scores: a luckily exact
yardstick must not condemn anyone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from glassformer_bench.inputs import TORCH_DTYPES, Inputs
from glassformer_bench.problem import Problem
from glassformer_bench.truth import Results, eager, truth

FORWARD_FACTOR, GRADIENT_FACTOR = 2.0, 3.0
# Roundings of the magnitude. float32 sums of hundreds of terms differ by several from order to
# order; the half precisions are summed in float32 and differ by the rounding of the result.
FLOOR = {"fp32": 8.0, "fp16": 1.0, "bf16": 1.0}


@dataclass(frozen=True)
class Error:
    """How far a result is from the truth, and how far it may be."""

    max: float
    mean: float
    allowed_max: float
    allowed_mean: float

    @property
    def passes(self) -> bool:
        """Whether it is near enough. NaN isn't."""
        return self.max <= self.allowed_max and self.mean <= self.allowed_mean

    def to_dict(self) -> dict[str, float]:
        """Return the four numbers by name."""
        return dict(vars(self))


class Oracle:
    """A set of inputs with its right answer, computed once for all providers.

    `inputs` are handed out as copies: what a kernel does to them stays with the kernel.
    """

    def __init__(self, problem: Problem, inputs: Inputs) -> None:
        self.problem = problem
        self._inputs = inputs
        self.truth = truth(problem, inputs)
        floor = FLOOR[problem.dtype] * torch.finfo(self.dtype).eps + score_rounding(problem, inputs)
        self.allowed = {
            name: _allowance(name, x, self.truth[name], floor)
            for name, x in eager(problem, inputs).items()
        }

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the operands, and so of every result."""
        return TORCH_DTYPES[self.problem.dtype]

    def inputs(self) -> Inputs:
        """Return a copy of the inputs."""
        return self._inputs.clone()

    def changed(self, inputs: Inputs) -> list[str]:
        """Return the names of the inputs that are no longer what they were, to the bit."""
        return [
            name
            for (name, x), (_, original) in zip(
                inputs.tensors(), self._inputs.tensors(), strict=True
            )
            if not torch.equal(x.detach(), original)
        ]

    def errors(self, results: Results) -> dict[str, Error]:
        """Compare results of these inputs."""
        return compare(results, self.truth, self.allowed)


def compare(
    results: Results, right: Results, allowed: Mapping[str, tuple[float, float]]
) -> dict[str, Error]:
    """Return the error of each result, given the allowance (largest, mean) of each."""
    return {name: Error(*distance(results[name], right[name]), *allowed[name]) for name in right}


def distance(result: torch.Tensor, right: torch.Tensor) -> tuple[float, float]:
    """Return the largest and the mean error; NaN where the result is not finite but should be."""
    if not bool(torch.isfinite(result).all()):
        return float("nan"), float("nan")
    error = (result.detach().to(torch.float64) - right).abs()
    return float(error.max()), float(error.mean())


def form_faults(name: str, x: Any, like: torch.Tensor, dtype: torch.dtype) -> list[str]:
    """Return what is wrong about a result's type, shape, dtype and device, in words."""
    if type(x) not in (torch.Tensor, torch.nn.Parameter):
        return [f"{name} is a {type(x).__name__}, not a torch.Tensor: nothing says it is computed"]
    faults = []
    if x.shape != like.shape:
        faults.append(f"{name} has shape {tuple(x.shape)}, not {tuple(like.shape)}")
    if x.dtype != dtype:
        faults.append(f"{name} is {x.dtype}, not {dtype}")
    if x.device.type != like.device.type:
        faults.append(f"{name} is on {x.device}, not {like.device}")
    return faults


def error_faults(errors: Mapping[str, Error]) -> list[str]:
    """Return which results are too far from the truth, in words."""
    faults = []
    for name, error in errors.items():
        if error.max != error.max:
            faults.append(f"{name} holds NaN or infinity where the answer is finite")
        elif not error.passes:
            which = "max" if error.max > error.allowed_max else "mean"
            is_max = which == "max"
            found, allowed = (
                (error.max, error.allowed_max) if is_max else (error.mean, error.allowed_mean)
            )
            faults.append(f"{name}: {which} error {found:.2e}, allowed {allowed:.2e}")
    return faults


def score_rounding(problem: Problem, inputs: Inputs) -> float:
    """Return how far one rounding in float32 moves attention's weights, relatively; else 0.

    The sum of products q·k rounds at eps ‖q‖‖k‖, and softmax makes of an absolute error of a score
    a relative one of its weight. With outliers that is hundreds of roundings of the result, and how
    many of them the yardstick shows is luck.
    """
    if not problem.is_attention:
        return 0.0
    query, key = (
        float(inputs.operands[name].float().norm(dim=-1).max()) for name in ("query", "key")
    )
    return float(torch.finfo(torch.float32).eps * query * key * problem.scale)


def _allowance(
    name: str, found: torch.Tensor, right: torch.Tensor, floor: float
) -> tuple[float, float]:
    factor = FORWARD_FACTOR if name == "out" else GRADIENT_FACTOR
    largest, mean = distance(found, right)
    if largest != largest:  # eager overflows: what rounding the truth allows is all there is
        largest = mean = 0.0
    magnitude = right.abs()
    return (
        factor * largest + floor * float(magnitude.max()),
        factor * mean + floor * float(magnitude.mean()),
    )
