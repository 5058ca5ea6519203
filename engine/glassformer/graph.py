"""The graph that operations leave behind while gradients are recorded.

Every recorded operation leaves a `Node`: where its inputs came from, what its derivative rule needs
to read, and the rule itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from glassformer.devices import Device
from glassformer.dtypes import DType
from glassformer.grad_mode import recording
from glassformer.tensor import Tensor

_sequence = itertools.count()


class Like(NamedTuple):
    """What a rule gets of a tensor it doesn't read: everything but the values."""

    shape: tuple[int, ...]
    dtype: DType
    device: Device

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)


def like(tensor: Tensor) -> Like:
    """Return everything of a tensor but its values."""
    return Like(tensor.shape, tensor.dtype, tensor.device)


class _SavedTensor:
    """A tensor a rule will read, and the version it had when it was saved.

    A node's own output is kept without its link to the node (the two would keep each other alive);
    unpacking it restores the link.
    """

    __slots__ = ("output_index", "tensor", "version")

    def __init__(self, tensor: Tensor, output_index: int | None) -> None:
        self.tensor = tensor if output_index is None else tensor.detach()
        self.version = tensor.version
        self.output_index = output_index

    def unpack(self, node: Node) -> Tensor:
        tensor = self.tensor
        if tensor.version != self.version:
            raise RuntimeError(
                f"{node.name} saved a tensor of shape {tensor.shape} for backward, and it was "
                f"changed in place since (version {tensor.version}, saved at version "
                f"{self.version}); change a copy instead: tensor.clone()"
            )
        if self.output_index is not None:
            tensor = tensor.detach()
            tensor.attach(node, self.output_index)
        return tensor


# The gradients that arrived (one per output), which inputs want one, and the saved values in,
# one gradient (or None) per input out.
Rule = Callable[[Sequence[Tensor | None], Sequence[bool], Sequence[Any]], Sequence[Tensor | None]]


class Node:
    """One recorded operation."""

    __slots__ = (
        "edges",
        "hooks",
        "inputs",
        "name",
        "outputs",
        "released",
        "retained",
        "rule",
        "saved",
        "sequence",
    )

    def __init__(
        self,
        name: str,
        inputs: Sequence[Any],
        outputs: Sequence[Tensor],
        rule: Rule,
        saved: Sequence[Any],
    ) -> None:
        self.name = name
        self.sequence = next(_sequence)
        self.rule = rule
        # An edge is where an input's gradient goes: a leaf, an earlier node's output, or nowhere.
        self.edges: tuple[Tensor | tuple[Node, int] | None, ...] = tuple(
            edge_of(value) if isinstance(value, Tensor) else None for value in inputs
        )
        self.inputs = tuple(
            None if edge is None else like(value)
            for value, edge in zip(inputs, self.edges, strict=True)
        )
        self.outputs = tuple(like(output) for output in outputs)
        self.hooks: dict[int, dict[int, Callable[[Tensor], Tensor | None]]] = {}
        self.retained: dict[int, Any] = {}  # output index -> weak reference to its tensor
        self.released = False
        position = {id(output): index for index, output in enumerate(outputs)}
        packed = tuple(
            _SavedTensor(value, position.get(id(value))) if isinstance(value, Tensor) else value
            for value in saved
        )
        frame = recording.frame
        # Inside checkpoint() a frame holds in their place something that will compute them again.
        self.saved: Any = packed if frame is None else frame.hold(name, inputs, packed)

    def unpack(self) -> list[Any]:
        """Return the saved values, after checking that none was changed in place."""
        if self.released:
            raise RuntimeError(
                f"backward through {self.name} a second time, after its saved tensors were "
                "released; pass retain_graph=True to the first backward"
            )
        saved = self.saved if isinstance(self.saved, tuple) else self.saved.fetch()
        return [value.unpack(self) if isinstance(value, _SavedTensor) else value for value in saved]

    def release(self) -> None:
        """Let go of the saved values."""
        if not isinstance(self.saved, tuple):
            self.saved.drop()
        self.saved = ()
        self.released = True

    def __repr__(self) -> str:
        return f"<{self.name} node>"


def edge_of(tensor: Tensor) -> Tensor | tuple[Node, int] | None:
    """Return where a tensor's gradient goes: itself (a leaf), a node's output, or nowhere."""
    if not tensor.requires_grad:
        return None
    return tensor if tensor.grad_fn is None else (tensor.grad_fn, tensor.output_index)


def record(
    name: str,
    inputs: Sequence[Any],
    outputs: Sequence[Tensor],
    rule: Rule,
    saved: Sequence[Any],
) -> None:
    """Make `outputs` the results of a node: `backward` through them will call `rule`.

    Tensors among `saved` are checked for in-place changes when the rule reads them.
    """
    node = Node(name, inputs, outputs, rule, saved)
    for index, output in enumerate(outputs):
        if output.dtype.is_floating_point:
            output.attach(node, index)


def wants_grad(inputs: Sequence[Any]) -> bool:
    """Tell whether an operation on `inputs` must be recorded."""
    if recording.enabled:
        for value in inputs:
            if isinstance(value, Tensor) and value.requires_grad:
                return True
    return False


def common_device(name: str, inputs: Sequence[Any]) -> Device:
    """Return the one device all tensors in `inputs` are on.

    Raises:
        ValueError: they are on several.
        TypeError: there is no tensor among them.
    """
    device: Device | None = None
    for value in inputs:
        if isinstance(value, Tensor):
            if device is None:
                device = value.device
            elif value.device is not device:
                raise ValueError(
                    f"{name} got tensors on {device} and on {value.device}; move them to one "
                    "device with .to()"
                )
    if device is None:
        raise TypeError(f"{name} got no Tensor among its arguments: {inputs!r}")
    return device
