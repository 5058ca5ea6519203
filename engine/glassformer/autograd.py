"""Reverse-mode automatic differentiation: the walk back through the recorded graph.

`backward` visits the nodes that operations left (`graph.py`) from the newest to the oldest, so that
a node is reached when all its gradients have arrived, and hands each gradient on to the nodes
before it. Rules are written in Tensor operations (`primitive.py`): with `create_graph=True` the
walk itself is recorded, and derivatives of any order follow.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any

from glassformer.grad_mode import recording, set_grad_enabled
from glassformer.graph import Node, edge_of
from glassformer.tensor import Tensor


def unbroadcast(g: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sum `g` over the dimensions along which an input of `shape` was repeated."""
    if g.shape == shape:
        return g
    added = g.ndim - len(shape)
    dims = tuple(range(added)) + tuple(
        i + added for i, n in enumerate(shape) if n == 1 and g.shape[i + added] != 1
    )
    return (g.sum(dims) if dims else g).reshape(shape)


class _Gradients:
    """Gradients on their way: for each node's output and for each leaf, the sum so far."""

    def __init__(self, in_place: bool) -> None:
        self.in_place = in_place
        self.sums: dict[Any, Tensor] = {}
        self.own: set[Any] = set()  # sums made here, which may be added to in place
        self.queue: list[tuple[int, Node]] = []
        self.queued: set[int] = set()
        # Owners of memory that the caller holds as well: it was passed in, or a hook has seen it.
        self.exposed: set[int] = set()

    def add(self, edge: Tensor | tuple[Node, int], g: Tensor) -> None:
        """Add `g` to what has arrived at a leaf (a Tensor) or at a node's output."""
        if not isinstance(edge, Tensor) and edge[0].sequence not in self.queued:
            self.queued.add(edge[0].sequence)
            heapq.heappush(self.queue, (-edge[0].sequence, edge[0]))
        before = self.sums.get(edge)
        if before is None:
            self.sums[edge] = g
        elif edge in self.own:
            before.add_(g)
        else:
            self.sums[edge] = before + g
            if self.in_place:
                self.own.add(edge)

    def take(self, edge: Tensor | tuple[Node, int]) -> Tensor | None:
        return self.sums.pop(edge, None)


def _nodes_leading_to(targets: set[Any], roots: Sequence[Any]) -> set[Node]:
    """Return the nodes between `roots` and `targets`: the only ones worth visiting."""
    seen: set[Node] = set()
    stack = [root[0] for root in roots if not isinstance(root, Tensor)]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(edge[0] for edge in node.edges if isinstance(edge, tuple))
    useful: set[Node] = set()
    for node in sorted(seen, key=lambda node: node.sequence):
        for edge in node.edges:
            if edge in targets or (isinstance(edge, tuple) and edge[0] in useful):
                useful.add(node)
                break
    return useful


def _apply_hooks(
    hooks: dict[int, Callable[[Tensor], Tensor | None]], g: Tensor, exposed: set[int]
) -> Tensor:
    for hook in list(hooks.values()):
        exposed.add(_owner(g))
        replaced = hook(g)
        if replaced is None:
            continue
        if replaced.shape != g.shape or replaced.dtype is not g.dtype:
            raise RuntimeError(
                f"a hook replaced a gradient of shape {g.shape} and {g.dtype} by one of shape "
                f"{replaced.shape} and {replaced.dtype}; both must stay"
            )
        g = replaced
        exposed.add(_owner(g))
    return g


def _owner(tensor: Tensor) -> int:
    return tensor.device.backend.owner(tensor.array)


def _walk(
    roots: Sequence[tuple[Tensor, Tensor]],
    targets: Sequence[Tensor] | None,
    retain_graph: bool,
    create_graph: bool,
) -> tuple[dict[Any, Tensor], set[int]]:
    """Carry gradients from `roots` back.

    Returns those that reached leaves (or the targets), and the owners of memory that is not ours.
    """
    gradients = _Gradients(in_place=not create_graph)
    for tensor, g in roots:
        edge = edge_of(tensor)
        assert edge is not None
        gradients.exposed.add(_owner(g))
        gradients.add(edge, g)
    wanted = None if targets is None else {edge_of(target) for target in targets}
    useful = None if wanted is None else _nodes_leading_to(wanted, [edge_of(t) for t, _ in roots])
    results: dict[Any, Tensor] = {}

    while gradients.queue:
        node = heapq.heappop(gradients.queue)[1]
        grads: list[Tensor | None] = []
        for index in range(len(node.outputs)):
            g_out = gradients.take((node, index))
            if g_out is not None:
                if index in node.hooks:
                    g_out = _apply_hooks(node.hooks[index], g_out, gradients.exposed)
                kept = node.retained[index]() if index in node.retained else None
                if kept is not None:
                    _accumulate(kept, g_out.clone())
                if wanted is not None and (node, index) in wanted:
                    results[node, index] = g_out
            grads.append(g_out)
        if useful is not None and node not in useful:
            continue
        needs = [
            edge is not None
            and (
                wanted is None
                or useful is None
                or edge in wanted
                or (isinstance(edge, tuple) and edge[0] in useful)
            )
            for edge in node.edges
        ]
        for i, g_in in enumerate(node.rule(grads, needs, node.unpack())):
            edge = node.edges[i]
            like = node.inputs[i]
            if g_in is None or edge is None or like is None:
                continue
            g_in = unbroadcast(g_in, like.shape)
            gradients.add(edge, g_in if g_in.dtype is like.dtype else g_in.to(like.dtype))
        if not retain_graph:
            node.release()

    for edge, g in gradients.sums.items():  # only leaves are left
        if isinstance(edge, Tensor) and (wanted is None or edge in wanted):
            results[edge] = _apply_hooks(edge.hooks, g, gradients.exposed)
    return results, gradients.exposed


def _accumulate(leaf: Tensor, g: Tensor) -> None:
    if leaf.grad is None:
        leaf.grad = g
    elif recording.enabled:
        leaf.grad = leaf.grad + g
    else:
        leaf.grad.add_(g)


def _roots(
    outputs: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> list[tuple[Tensor, Tensor]]:
    roots = []
    for output, g in zip(outputs, gradients, strict=True):
        if not output.requires_grad:
            raise RuntimeError(
                f"backward from a tensor of shape {output.shape} that no gradient can flow "
                "through: it doesn't require grad, or was computed under no_grad()"
            )
        if g is None:
            if output.numel() != 1:
                raise RuntimeError(
                    f"backward from a tensor of shape {output.shape} needs gradient=, of the same "
                    "shape; only a single number can do without"
                )
            backend = output.device.backend
            g = Tensor(backend.full(output.shape, 1, output.dtype), output.device)
        elif g.shape != output.shape:
            raise RuntimeError(f"gradient has shape {g.shape} but its tensor {output.shape}")
        roots.append((output, g if g.dtype is output.dtype else g.to(output.dtype)))
    return roots


def backward(
    tensors: Tensor | Sequence[Tensor],
    grad_tensors: Tensor | None | Sequence[Tensor | None] = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Sequence[Tensor] | None = None,
) -> None:
    """Add the gradients of `tensors` to the `.grad` of the leaves (or of `inputs`).

    Args:
        tensors: where to start.
        grad_tensors: the gradient of each; None stands for 1 where a tensor is a single number.
        retain_graph: keep saved tensors, for another backward. Default: `create_graph`.
        create_graph: record the walk, so that the gradients can be differentiated.
        inputs: accumulate into these only.

    Raises:
        RuntimeError: a tensor takes no gradient, a saved tensor was changed in place, or the graph
            was released by an earlier backward.
    """
    outputs = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    if grad_tensors is None or isinstance(grad_tensors, Tensor):
        grad_tensors = [grad_tensors] * len(outputs)
    if inputs is not None:
        _require_grad(inputs)
    keep = create_graph if retain_graph is None else retain_graph
    roots = _roots(outputs, grad_tensors)
    with set_grad_enabled(create_graph):
        results, taken = _walk(roots, inputs, keep, create_graph)
        # Gradients that share memory, with each other or with what the caller holds, are copied
        # apart, and so are read-only ones (repeated, or empty): .grad is changed in place later.
        by_edge = None if inputs is None else {edge_of(tensor): tensor for tensor in inputs}
        for edge, g in results.items():
            leaf = edge if by_edge is None else by_edge[edge]
            shared = _owner(g) in taken or not g.is_contiguous() or g.numel() == 0
            taken.add(_owner(g))
            _accumulate(leaf, g.clone() if leaf.grad is None and shared else g)


def _require_grad(inputs: Sequence[Tensor]) -> None:
    if not inputs:
        raise RuntimeError("inputs is empty: name at least one tensor, or leave it out")
    for position, tensor in enumerate(inputs):
        if not tensor.requires_grad:
            raise RuntimeError(
                f"inputs[{position}] of shape {tensor.shape} doesn't require grad; "
                "call requires_grad_() on it before computing the outputs"
            )


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Tensor | None | Sequence[Tensor | None] = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of `outputs` with respect to `inputs`; no leaf's `.grad` is touched.

    Args:
        outputs: what to differentiate (their sum, weighted by `grad_outputs`).
        inputs: with respect to what; leaves or results.
        grad_outputs: the gradient of each output; None stands for 1 for single numbers.
        retain_graph: keep saved tensors, for another backward. Default: `create_graph`.
        create_graph: record the walk, so that the result can be differentiated.
        allow_unused: return None for inputs the outputs don't depend on, rather than raise.

    Raises:
        RuntimeError: as `backward`; or an input isn't in the graph and `allow_unused` is False.
    """
    starts = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    ends = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if grad_outputs is None or isinstance(grad_outputs, Tensor):
        grad_outputs = [grad_outputs] * len(starts)
    _require_grad(ends)
    keep = create_graph if retain_graph is None else retain_graph
    roots = _roots(starts, grad_outputs)
    with set_grad_enabled(create_graph):
        results, _ = _walk(roots, ends, keep, create_graph)
    found = [results.get(edge_of(end)) for end in ends]
    for position, g in enumerate(found):
        if g is None and not allow_unused:
            raise RuntimeError(
                f"the outputs don't depend on inputs[{position}] of shape "
                f"{ends[position].shape}; pass allow_unused=True to get None for it"
            )
    return tuple(found)
