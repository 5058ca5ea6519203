"""Random operands of a problem: never zeros, never the same ones for two phases of a benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from glassformer_bench.problem import Problem

TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_OUTLIER_SHARE, _OUTLIER_FACTOR = 1 / 256, 30.0


@dataclass
class Inputs:
    """The operands by name, in the order of the call, and the gradient that backward starts from.

    Attributes:
        operands: query, key and value; or x; or x, weight and bias; or logits and target.
        d_out: of the result's shape, where gradients are computed.
    """

    operands: dict[str, torch.Tensor]
    d_out: torch.Tensor | None

    @property
    def differentiable(self) -> list[str]:
        """Names of the operands that get gradients."""
        return [name for name, x in self.operands.items() if x.is_floating_point()]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every tensor with its name."""
        yield from self.operands.items()
        if self.d_out is not None:
            yield "d_out", self.d_out

    def clone(self) -> Inputs:
        """Return a copy that shares no memory."""
        copies = {name: x.clone() for name, x in self.operands.items()}
        return Inputs(copies, None if self.d_out is None else self.d_out.clone())

    def copy_(self, other: Inputs) -> None:
        """Take over another's numbers, in the memory that is here."""
        for (_, mine), (_, theirs) in zip(self.tensors(), other.tensors(), strict=True):
            mine.copy_(theirs)


class Source:
    """Where numbers come from: one generator, so that no two phases see the same ones."""

    def __init__(self, problem: Problem, stream: int) -> None:
        self.problem = problem
        self.device = torch.device(problem.device)
        self.dtype = TORCH_DTYPES[problem.dtype]
        self.generator = torch.Generator(self.device).manual_seed(1_000_003 * stream + problem.seed)

    def draw(self, *shape: int) -> torch.Tensor:
        """Return numbers of the problem's distribution, rounded to its dtype."""
        options = {"generator": self.generator, "device": self.device}
        if self.problem.data == "uniform":
            x = torch.rand(shape, **options) * 2 - 1
        else:
            x = torch.randn(shape, **options)
        if self.problem.data == "outlier":
            x = torch.where(torch.rand(shape, **options) < _OUTLIER_SHARE, x * _OUTLIER_FACTOR, x)
        return x.to(self.dtype)

    def inputs(self) -> Inputs:
        """Return one set of operands."""
        p = self.problem
        rows, channels = p.batch * p.seqlen, p.heads * p.head_dim
        if p.is_attention:
            out: tuple[int, ...] = (p.batch, p.heads, p.seqlen, p.head_dim)
            shared = (p.batch, p.kv_heads, p.seqlen_k, p.head_dim)
            operands = {
                "query": self.draw(*out),
                "key": self.draw(*shared),
                "value": self.draw(*shared),
            }
        elif p.op == "softmax":
            out = (p.batch, p.heads, p.seqlen, p.seqlen_k)
            operands = {"x": self.draw(*out)}
        elif p.op == "layer_norm":
            out = (p.batch, p.seqlen, channels)
            operands = {"x": self.draw(*out), "weight": self.draw(channels)}
            operands["bias"] = self.draw(channels)
        else:
            out = (rows,)
            target = torch.randint(p.vocab, out, generator=self.generator, device=self.device)
            operands = {"logits": self.draw(rows, p.vocab), "target": target}
        return Inputs(operands, self.draw(*out) if p.needs_backward else None)

    def refresh(self, inputs: Inputs, step: int) -> None:
        """Change one row of the first operands, in place: what was computed before is now wrong.

        Called before every timed call, outside the clock: a kernel that answers with an earlier
        result gives a wrong one.
        """
        for name in inputs.differentiable[:2]:
            x = inputs.operands[name]
            if x.ndim < 2:
                continue
            row = x.select(-2, step % x.shape[-2])
            row.copy_(self.draw(*row.shape))
