"""Primitives: operations on arrays, each together with its derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from glassformer.graph import common_device, like, record, wants_grad
from glassformer.tensor import Tensor


class Primitive:
    """An operation on arrays together with the derivative of it, one rule per argument.

        multiply = Primitive("multiply", lambda xp, x, y: x * y)
        multiply.defvjp(
            lambda g, _out, _x, y: g * y,  # d/dx
            lambda g, _out, x, _y: g * x,  # d/dy
        )

    `forward(xp, *arrays, **params)` computes on the arrays of the backend `xp`. A rule is a
    vector-Jacobian product: given the gradient `g` of the output (a tuple of them when the
    primitive returns several), the output and the arguments, it returns the gradient of one
    argument, in Tensor operations. Broadcasting is undone for it. An argument whose name begins
    with an underscore is not read: its values are not kept for backward, and the rule gets its
    shape, dtype and device alone.

    Args:
        name: what errors and graphs call it.
        forward: the computation.
        view: the output may share memory with the first argument.
    """

    def __init__(self, name: str, forward: Callable[..., Any], *, view: bool = False) -> None:
        self.name = name
        self.forward = forward
        self.view = view
        self.rules: tuple[Callable[..., Any] | None, ...] = ()
        self._reads: tuple[tuple[bool, ...], ...] = ()
        self._rule_for_each: Callable[..., Any] | None = None
        registry[name] = self

    def defvjp(self, *rules: Callable[..., Any] | None) -> None:
        """Set one rule per argument; None where an argument takes no gradient."""
        self.rules = rules
        self._reads = tuple(() if rule is None else _parameters_read(rule) for rule in rules)

    def defvjp_each(self, rule: Callable[..., Any]) -> None:
        """Set one rule for any number of arguments: `rule(i, g, out, *args)` is argument i's."""
        self._rule_for_each = rule
        self._reads = (_parameters_read(rule)[1:],)

    def __call__(self, *args: Any, **params: Any) -> Tensor:
        """Compute, and record the operation if a gradient may be wanted.

        Several outputs come as a tuple.
        """
        device = common_device(self.name, args)
        backend = device.backend
        arrays = [value.array if isinstance(value, Tensor) else value for value in args]
        with backend.quiet():
            result = self.forward(backend, *arrays, **params)
        single = not isinstance(result, tuple)
        outputs = tuple(Tensor(array, device) for array in ((result,) if single else result))
        if self.view:
            source = backend.owner(arrays[0])
            for output in outputs:
                if backend.owner(output.array) == source:  # it may have taken a copy after all
                    output.share_version(args[0])
        if self._reads and wants_grad(args):
            self._record(args, outputs, params)
        return outputs[0] if single else outputs  # type: ignore[return-value]

    def _record(
        self, args: tuple[Any, ...], outputs: tuple[Tensor, ...], params: dict[str, Any]
    ) -> None:
        reads = self._read_positions(args)
        single = len(outputs) == 1
        out: Any = tuple(map(like, outputs))
        if single:
            out = outputs[0] if reads[0] else out[0]
        values = [
            value if read or not isinstance(value, Tensor) else like(value)
            for value, read in zip(args, reads[1:], strict=True)
        ]

        def rule(
            grads: Sequence[Tensor | None], needs: Sequence[bool], saved: Sequence[Any]
        ) -> Sequence[Tensor | None]:
            g: Any = grads[0] if single else _materialize(grads, saved[0])
            return [
                self._vjp(i, g, saved, params) if need else None for i, need in enumerate(needs)
            ]

        record(self.name, args, outputs, rule, (out, *values))

    def _vjp(self, i: int, g: Any, saved: Sequence[Any], params: dict[str, Any]) -> Tensor | None:
        if self._rule_for_each is not None:
            return self._rule_for_each(i, g, *saved, **params)  # type: ignore[no-any-return]
        rule = self.rules[i] if i < len(self.rules) else None
        return None if rule is None else rule(g, *saved, **params)

    def _read_positions(self, args: Sequence[Any]) -> list[bool]:
        """For the output and each argument: will any rule that can be asked for read it?"""
        if self._rule_for_each is not None:
            read_out, read_args = self._reads[0]
            return [read_out] + [read_args] * len(args)
        reads = [False] * (len(args) + 1)
        for value, rule_reads in zip(args, self._reads, strict=False):
            if rule_reads and isinstance(value, Tensor) and value.requires_grad:
                for position, read in enumerate(rule_reads[: len(reads)]):
                    reads[position] |= read
        return reads

    def __repr__(self) -> str:
        return f"<Primitive {self.name}>"


registry: dict[str, Primitive] = {}


_VARARGS = 0x04  # the flag of code objects that take *args


def _parameters_read(rule: Callable[..., Any]) -> tuple[bool, ...]:
    """Tell for `out` and each argument whether a rule reads it, by the names it gives them."""
    code = rule.__code__  # a hundred times faster than inspect.signature, at import
    names = code.co_varnames[: code.co_argcount]
    if code.co_flags & _VARARGS:
        names += (code.co_varnames[code.co_argcount + code.co_kwonlyargcount],)
    return tuple(not name.startswith("_") for name in names[1:])


def _materialize(grads: Sequence[Tensor | None], likes: Sequence[Any]) -> tuple[Tensor, ...]:
    """Replace the gradients of outputs that nobody used by zeros."""
    return tuple(
        Tensor(like.device.backend.zeros(like.shape, like.dtype), like.device) if g is None else g
        for g, like in zip(grads, likes, strict=True)
    )
