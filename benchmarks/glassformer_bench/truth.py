"""The right answer in float64, and what plain PyTorch makes of it in the problem's precision.

Attention is computed a block of queries at a time, with the gradients written out, so that long
sequences fit in memory. The yardstick ("eager") is the textbook composite in the problem's dtype:
scores, softmax and products each rounded to it, as a user's own PyTorch would.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from glassformer_bench.inputs import Inputs
from glassformer_bench.problem import Problem

Results = dict[str, torch.Tensor]  # "out", and "d_<operand>" where gradients are computed
_BLOCK_ELEMENTS = 1 << 24  # of a block of scores


def truth(problem: Problem, inputs: Inputs) -> Results:
    """Return the result and the gradients in float64."""
    return _evaluate(problem, inputs, torch.float64)


def eager(problem: Problem, inputs: Inputs) -> Results:
    """Return what plain PyTorch computes in the dtype of the inputs."""
    return _evaluate(problem, inputs, next(iter(inputs.operands.values())).dtype)


def visible(
    problem: Problem, device: torch.device, first: int = 0, end: int | None = None
) -> torch.Tensor | None:
    """Return which keys queries `first` … `end` may see, bool (queries, Tk); None if all."""
    if problem.causal is None and problem.window is None:
        return None
    offset = 0 if problem.causal == "top_left" else problem.seqlen_k - problem.seqlen
    position = torch.arange(first, problem.seqlen if end is None else end, device=device)
    position = position[:, None] + offset
    key = torch.arange(problem.seqlen_k, device=device)
    seen = torch.ones(len(position), problem.seqlen_k, dtype=torch.bool, device=device)
    left, right = problem.window or (-1, -1)
    if problem.causal is not None:
        seen &= key <= position
    if left >= 0:
        seen &= key >= position - left
    if right >= 0:
        seen &= key <= position + right
    return seen


def has_blind_queries(problem: Problem) -> bool:
    """Tell whether some query sees no key: implementations disagree about its result."""
    seen = visible(problem, torch.device("cpu"))
    return seen is not None and not bool(seen.any(-1).all())


def composite_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seen: torch.Tensor | None,
    scale: float,
    has_blind: bool = True,
) -> torch.Tensor:
    """Return softmax(QKᵀ·scale)V over the keys that are seen.

    A query that sees none gives 0; `has_blind` False says that there is none.
    """
    scores = query @ key.transpose(-2, -1) * scale  # (..., Tq, Tk)
    if seen is None:
        return scores.softmax(-1) @ value
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    if has_blind:
        weights = weights.masked_fill(~seen.any(-1, keepdim=True), 0.0)
    return weights @ value


def row_operation(problem: Problem, operands: list[torch.Tensor]) -> torch.Tensor:
    """Return PyTorch's own softmax, layer norm or cross-entropy (a loss for each target)."""
    if problem.op == "softmax":
        return F.softmax(operands[0], -1)
    if problem.op == "layer_norm":
        return F.layer_norm(operands[0], operands[0].shape[-1:], operands[1], operands[2])
    return F.cross_entropy(operands[0], operands[1], reduction="none")


def _evaluate(problem: Problem, inputs: Inputs, dtype: torch.dtype) -> Results:
    if problem.is_attention:
        return _attention(problem, inputs, dtype)
    names = inputs.differentiable
    leaves = {
        name: x.detach().to(dtype).requires_grad_(problem.needs_backward) if name in names else x
        for name, x in inputs.operands.items()
    }
    out = row_operation(problem, list(leaves.values()))
    found = {"out": out.detach()}
    if inputs.d_out is not None:
        grads = torch.autograd.grad(out, [leaves[n] for n in names], inputs.d_out.to(dtype))
        found |= {f"d_{name}": g for name, g in zip(names, grads, strict=True)}
    return found


def _attention(problem: Problem, inputs: Inputs, dtype: torch.dtype) -> Results:
    query, key, value = inputs.operands.values()
    wide = dtype if dtype == torch.float64 else torch.float32  # gradients of keys add up here
    names = ["out"] + (["d_query", "d_key", "d_value"] if problem.needs_backward else [])
    like = {"out": query, "d_query": query, "d_key": key, "d_value": value}
    found = {name: torch.zeros_like(like[name], dtype=wide) for name in names}
    groups = problem.heads // problem.kv_heads
    step = max(1, min(problem.seqlen, _BLOCK_ELEMENTS // problem.seqlen_k))
    for b in range(problem.batch):
        for h in range(problem.heads):
            shared = h // groups
            for first in range(0, problem.seqlen, step):
                rows = slice(first, min(first + step, problem.seqlen))
                seen = visible(problem, query.device, rows.start, rows.stop)
                leaves = [
                    x.to(dtype).detach().requires_grad_(problem.needs_backward)
                    for x in (query[b, h, rows], key[b, shared], value[b, shared])
                ]
                out = composite_attention(leaves[0], leaves[1], leaves[2], seen, problem.scale)
                found["out"][b, h, rows] = out.detach().to(wide)
                if inputs.d_out is not None:
                    d_out = inputs.d_out[b, h, rows].to(dtype)
                    d_query, d_key, d_value = torch.autograd.grad(out, leaves, d_out)
                    found["d_query"][b, h, rows] = d_query.to(wide)
                    found["d_key"][b, shared] += d_key
                    found["d_value"][b, shared] += d_value
    return found if dtype == wide else {name: x.to(dtype) for name, x in found.items()}
