"""Fused operations: a reference that defines each, kernels that compute it faster, and dispatch.

A `FusedOp` is defined by its reference, a few Tensor operations that read like the formula. A
`Kernel` computes the same function on arrays, and says in words which calls it can't serve.
Dispatch takes the kernel of highest priority that can; the reference serves the rest.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from glassformer.autograd import grad
from glassformer.grad_mode import enable_grad, is_grad_enabled
from glassformer.graph import common_device, record, wants_grad
from glassformer.tensor import Tensor

REFERENCE = "reference"
_ENTRY_POINTS = "glassformer.kernels"


@dataclass(frozen=True)
class Kernel:
    """A fast way to compute a fused operation on one device.

    Attributes:
        name: how `use` and `explain` call it.
        device: the device type it runs on.
        priority: the highest that can serve a call is taken.
        forward: `(*arrays, **params) -> (output, or a tuple of them; residuals)`. The residuals
            (a tuple of anything) are kept for backward.
        backward: `(grads, arrays, outputs, residuals, needs, **params) -> gradients`, one per
            positional argument, None where `needs` is False. `grads` holds one array per output,
            None where no gradient arrived. Nothing that is passed in may be changed.
        unsupported: `(*tensors, **params) -> reasons`, in words, why it can't serve a call.
        saves_output: backward reads the outputs.
    """

    name: str
    device: str
    priority: int
    forward: Callable[..., Any]
    backward: Callable[..., Any] | None = None
    unsupported: Callable[..., list[str]] | None = None
    saves_output: bool = False

    def reasons(self, device: str, args: Sequence[Any], params: dict[str, Any]) -> list[str]:
        """Return why this kernel can't serve the call; nothing if it can."""
        if device != self.device:
            return [f"it runs on {self.device}, the tensors are on {device}"]
        return [] if self.unsupported is None else self.unsupported(*args, **params)


class _Thread(threading.local):
    def __init__(self) -> None:
        self.forced: dict[str, str] = {}
        self.last: dict[str, str] = {}


_thread = _Thread()
_ops: dict[str, FusedOp] = {}
_loaded: set[str] = set()
_registered: set[Any] = set()  # entry points that were called
_loading = threading.RLock()


class FusedOp:
    """An operation defined by `reference` and served by the fastest kernel that can.

    Positional arguments are tensors or None, keyword arguments are constants; both are passed on
    to the reference and to kernels alike. A first derivative is the kernel's; further ones go
    through the reference.

    Args:
        name: how `use` and `explain` call it.
        reference: the definition, in Tensor operations.
        mutates: positions of the arguments that a call changes in place; such an operation returns
            nothing and is never recorded.
    """

    def __init__(
        self, name: str, reference: Callable[..., Any], mutates: tuple[int, ...] = ()
    ) -> None:
        self.name = name
        self.reference = reference
        self.mutates = mutates
        self.kernels: list[Kernel] = []
        self.__doc__ = reference.__doc__
        _ops[name] = self

    def register(self, kernel: Kernel) -> None:
        """Add a kernel.

        Raises:
            ValueError: there is one of that name.
        """
        if kernel.name == REFERENCE or any(k.name == kernel.name for k in self.kernels):
            raise ValueError(f"{self.name} has a kernel named {kernel.name!r} already")
        # A new list: another thread may be walking over the old one.
        self.kernels = sorted([*self.kernels, kernel], key=lambda k: -k.priority)

    def __call__(self, *args: Any, **params: Any) -> Any:
        """Compute with the best kernel, or with the reference where none can serve."""
        device = common_device(self.name, args)
        kernel = self._select(device.type, args, params)
        _thread.last[self.name] = REFERENCE if kernel is None else kernel.name
        if kernel is None:
            return self.reference(*args, **params)
        arrays = [value.array if isinstance(value, Tensor) else value for value in args]
        with device.backend.quiet():
            result, residuals = kernel.forward(*arrays, **params)
        if self.mutates:
            for position in self.mutates:
                args[position].bump_version()
            return None
        single = not isinstance(result, tuple)
        outputs = tuple(Tensor(array, device) for array in ((result,) if single else result))
        if wants_grad(args):
            saved = (residuals, *args, *(outputs if kernel.saves_output else ()))
            record(self.name, args, outputs, self._rule(kernel, len(args), params), saved)
        return outputs[0] if single else outputs

    def _select(self, device: str, args: Sequence[Any], params: dict[str, Any]) -> Kernel | None:
        load_kernels(device)
        forced = _thread.forced.get(self.name)
        if forced is not None:
            return self._forced(forced, device, args, params)
        for kernel in self.kernels:
            if not kernel.reasons(device, args, params):
                return kernel
        return None

    def _forced(
        self, name: str, device: str, args: Sequence[Any], params: dict[str, Any]
    ) -> Kernel | None:
        if name == REFERENCE:
            return None
        for kernel in self.kernels:
            if kernel.name == name:
                reasons = kernel.reasons(device, args, params)
                if reasons:
                    raise ValueError(f"{self.name}: {name} can't serve this: {'; '.join(reasons)}")
                return kernel
        names = ", ".join([k.name for k in self.kernels] + [REFERENCE])
        raise ValueError(f"{self.name} has no kernel named {name!r}; it has {names}")

    def _rule(self, kernel: Kernel, count: int, params: dict[str, Any]) -> Any:
        def rule(
            grads: Sequence[Tensor | None], needs: Sequence[bool], saved: Sequence[Any]
        ) -> Sequence[Tensor | None]:
            residuals, args, outputs = saved[0], saved[1 : count + 1], saved[count + 1 :]
            if is_grad_enabled() or kernel.backward is None:
                return self._reference_vjp(grads, needs, args, params)
            device = common_device(self.name, args)
            with device.backend.quiet():
                result = kernel.backward(
                    tuple(None if g is None else g.array for g in grads),
                    tuple(value.array if isinstance(value, Tensor) else value for value in args),
                    tuple(out.array for out in outputs) if kernel.saves_output else None,
                    residuals,
                    needs,
                    **params,
                )
            return [None if g is None else Tensor(g, device) for g in result]

        return rule

    def _reference_vjp(
        self,
        grads: Sequence[Tensor | None],
        needs: Sequence[bool],
        args: Sequence[Any],
        params: dict[str, Any],
    ) -> Sequence[Tensor | None]:
        """Differentiate the reference, recorded, so that the result can be differentiated."""
        create_graph = is_grad_enabled()
        with enable_grad():
            # Each input gets a name of its own: one may have been computed from another, and its
            # gradient here must not include what flows on through that other.
            own = [
                value.reshape(value.shape) if need else value
                for value, need in zip(args, needs, strict=True)
            ]
            result = self.reference(*own, **params)
        outputs = (result,) if isinstance(result, Tensor) else result
        reached = [(out, g) for out, g in zip(outputs, grads, strict=True) if g is not None]
        found = iter(
            grad(
                [out for out, _ in reached],
                [value for value, need in zip(own, needs, strict=True) if need],
                [g for _, g in reached],
                create_graph=create_graph,
                allow_unused=True,
            )
        )
        return [next(found) if need else None for need in needs]

    def __repr__(self) -> str:
        return f"<FusedOp {self.name}: {', '.join([k.name for k in self.kernels] + [REFERENCE])}>"


def load_kernels(device: str) -> None:
    """Load what other packages offer for a device type, on its first use.

    A package names a function in the entry-point group `glassformer.kernels`, under the device
    type (`cuda`, or `cuda.anything`). It is called without arguments, and registers its kernels.
    If that fails, so does every call of an operation on the device.
    """
    if device in _loaded:
        return
    from importlib.metadata import entry_points

    with _loading:
        for entry in entry_points(group=_ENTRY_POINTS):
            if entry not in _registered and entry.name.partition(".")[0] == device:
                entry.load()()
                _registered.add(entry)
        _loaded.add(device)


def get(op: str | FusedOp) -> FusedOp:
    """Return the fused operation of that name.

    Raises:
        ValueError: there is none.
    """
    if isinstance(op, FusedOp):
        return op
    if op not in _ops:
        raise ValueError(f"there is no fused operation {op!r}; there are {', '.join(sorted(_ops))}")
    return _ops[op]


def last_kernel(op: str | FusedOp) -> str | None:
    """Return the name of the kernel that served the last call on this thread; None before any."""
    return _thread.last.get(get(op).name)


@contextmanager
def use(**kernels: str) -> Iterator[None]:
    """Force a kernel by name on this thread: `with use(softmax="reference"):`.

    A call that it can't serve raises a ValueError with the reasons. So does a call if there is no
    kernel of that name; which there are is known only then, when the device has loaded its own.

    Raises:
        ValueError: there is no operation of that name.
    """
    for name in kernels:
        get(name)
    before = _thread.forced
    _thread.forced = {**before, **kernels}
    try:
        yield
    finally:
        _thread.forced = before


@dataclass(frozen=True)
class Candidate:
    """One way to serve a call: the reasons against it, and whether it would be taken."""

    name: str
    priority: int | None
    taken: bool
    reasons: tuple[str, ...]


class Explanation(list[Candidate]):
    """The candidates for a call in the order they are tried; prints as a table."""

    def __str__(self) -> str:
        rows = []
        for candidate in self:
            verdict = "taken" if candidate.taken else "; ".join(candidate.reasons)
            priority = "-" if candidate.priority is None else str(candidate.priority)
            rows.append(f"{candidate.name:24} priority {priority:>4}  {verdict}")
        return "\n".join(rows)


def explain(op: str | FusedOp, *args: Any, **params: Any) -> Explanation:
    """Tell which kernel a call would take, and why not the others. Nothing is computed.

        print(gf.fused.explain("scaled_dot_product_attention", q, k, v, causal="top_left"))

    Args:
        op: a fused operation, or its name.
        args: the call's tensors, in the order in which the operation's reference takes them.
        params: its settings by name; settings and trailing tensors may be left out.

    Returns:
        The candidates in the order they are tried, the reference last; printed, a table. Kernels
        that other packages bring for a device are among them once a tensor is on that device.

    Raises:
        TypeError: the operation has no such argument.
        ValueError: there is no operation of that name.
    """
    fused = get(op)
    _check_arguments(fused, args, params)
    device = common_device(fused.name, args).type
    load_kernels(device)
    forced = _thread.forced.get(fused.name)
    found: list[Candidate] = []
    taken = False
    for kernel in fused.kernels:
        reasons = kernel.reasons(device, args, params)
        if not reasons and forced not in (None, kernel.name):
            reasons = [f"{forced} is forced by use()"]
        elif not reasons and taken:
            reasons = ["a kernel of higher priority serves this"]
        found.append(Candidate(kernel.name, kernel.priority, not reasons, tuple(reasons)))
        taken = taken or not reasons
    last: tuple[str, ...] = (_DEFINITION,) if taken else ()
    if forced not in (None, REFERENCE) and not taken:  # a call would raise
        last = (f"{forced} is forced by use()",)
    found.append(Candidate(REFERENCE, None, not last, last))
    return Explanation(found)


_DEFINITION = "the definition, for calls that no kernel can serve"


def _check_arguments(op: FusedOp, args: Sequence[Any], params: dict[str, Any]) -> None:
    """Raise TypeError for an argument that a call would not take."""
    signature = inspect.signature(op.reference)
    try:
        signature.bind_partial(*args, **params)
    except TypeError as error:
        names = ", ".join(signature.parameters)
        raise TypeError(f"{op.name}: {error}; its arguments are {names}") from None


__all__ = ["Candidate", "Explanation", "FusedOp", "Kernel", "explain", "last_kernel", "use"]
