"""Module: the base class of layers and models.

A module is a plain object. Its parameters are the `Parameter` attributes it holds, its buffers the
other `Tensor` attributes, its children the `Module` attributes; lists, tuples and dicts are opened
("layers.0"). Nothing is registered: the attributes are looked at when somebody asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from glassformer.grad_mode import no_grad
from glassformer.nn.table import module_table
from glassformer.tensor import Parameter, Tensor

Self = TypeVar("Self", bound="Module")
PreHook = Callable[["Module", tuple[Any, ...]], Any]
Hook = Callable[["Module", tuple[Any, ...], Any], Any]


class RemovableHandle:
    """What registering a hook returns: `remove()` takes the hook off again."""

    def __init__(self, module: Module, kind: str, hook: Callable[..., Any]) -> None:
        self.module, self.kind, self.hook = module, kind, hook

    def remove(self) -> None:
        """Take the hook off; once is enough, twice does no harm."""
        kept = tuple(handle for handle in getattr(self.module, self.kind) if handle is not self)
        setattr(self.module, self.kind, kept)


class IncompatibleKeys(NamedTuple):
    """The names that `load_state_dict(strict=False)` let pass."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """A layer: tensors, children and a `forward`.

    A subclass lists what it holds in its class body, sets it in `__init__`, and computes in
    `forward`. Call the module rather than `forward`, so that hooks run.
    """

    training: bool = True
    # Tuples that are replaced, never changed: a hook may remove itself while the hooks run.
    _forward_pre_hooks: tuple[RemovableHandle, ...] = ()
    _forward_hooks: tuple[RemovableHandle, ...] = ()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the module's output."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward()")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the pre-hooks, `forward`, and the hooks."""
        for handle in self._forward_pre_hooks:
            replaced = handle.hook(self, args)
            if replaced is not None:
                args = replaced if isinstance(replaced, tuple) else (replaced,)
        output = self.forward(*args, **kwargs)
        for handle in self._forward_hooks:
            replaced = handle.hook(self, args, output)
            if replaced is not None:
                output = replaced
        return output

    def register_forward_pre_hook(self, hook: PreHook) -> RemovableHandle:
        """Run `hook(module, args)` before `forward`; what it returns, unless None, is the new args.

        `args` are the positional arguments.
        """
        handle = RemovableHandle(self, "_forward_pre_hooks", hook)
        self._forward_pre_hooks = (*self._forward_pre_hooks, handle)
        return handle

    def register_forward_hook(self, hook: Hook) -> RemovableHandle:
        """Run `hook(module, args, output)` after `forward`; what it returns replaces the output.

        Unless it returns None. `args` are the positional arguments.
        """
        handle = RemovableHandle(self, "_forward_hooks", hook)
        self._forward_hooks = (*self._forward_hooks, handle)
        return handle

    def own_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the parameters and buffers held directly, in the order they were assigned."""
        for name, value in _entries(vars(self)):
            if isinstance(value, Tensor):
                yield name, value

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Yield the modules held directly, in the order they were assigned."""
        for name, value in _entries(vars(self)):
            if isinstance(value, Module):
                yield name, value

    def children(self) -> Iterator[Module]:
        """Yield the modules held directly."""
        return (child for _, child in self.named_children())

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """Yield this module (named "") and everything below it, each object once."""
        seen: set[int] = set()
        for name, module in _walk(self, ""):
            if id(module) not in seen:
                seen.add(id(module))
                yield name, module

    def modules(self) -> Iterator[Module]:
        """Yield this module and everything below it, each object once."""
        return (module for _, module in self.named_modules())

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield every parameter once, a tied one under the first of its names."""
        seen: set[int] = set()
        for name, tensor in self.named_tensors():
            if isinstance(tensor, Parameter) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor

    def parameters(self) -> Iterator[Parameter]:
        """Yield every parameter once."""
        return (parameter for _, parameter in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor that is held but not trained, once."""
        seen: set[int] = set()
        for name, tensor in self.named_tensors():
            if not isinstance(tensor, Parameter) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor

    def buffers(self) -> Iterator[Tensor]:
        """Yield every tensor that is held but not trained, once."""
        return (buffer for _, buffer in self.named_buffers())

    def named_tensors(self, persistent: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Yield every parameter and buffer, a tied one under every name that leads to it.

        With `persistent`, without buffers whose name starts with an underscore.
        """
        for prefix, owner in _walk(self, ""):
            for name, tensor in owner.own_tensors():
                if not (persistent and name.startswith("_") and not isinstance(tensor, Parameter)):
                    yield f"{prefix}.{name}" if prefix else name, tensor

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Return how many numbers the parameters hold; tied parameters count once."""
        return sum(
            parameter.numel()
            for parameter in self.parameters()
            if parameter.requires_grad or not only_trainable
        )

    def apply(self: Self, fn: Callable[[Module], Any]) -> Self:
        """Call `fn` on every module below this one, then on this one, and return it."""
        for module in reversed(list(self.modules())):
            fn(module)
        return self

    def train(self: Self, mode: bool = True) -> Self:
        """Set training mode (dropout acts) for this module and all below it."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: Self) -> Self:
        """Set evaluation mode (dropout is the identity) for this module and all below it."""
        return self.train(False)

    def requires_grad_(self: Self, requires_grad: bool = True) -> Self:
        """Freeze (False) or unfreeze every parameter."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def to(self: Self, target: Any) -> Self:
        """Move everything to a device, or cast its floats to a dtype, in place.

        `target` is a device, a dtype, or the name of either: `model.to("float64")`. Parameters stay
        the same objects, so an optimizer goes on with them; gradients are dropped.

        Raises:
            TypeError: the dtype is not a floating point one.
        """
        with no_grad():
            for _, tensor in self.named_tensors():
                moved = tensor.to(target)
                if not moved.dtype.is_floating_point and tensor.dtype.is_floating_point:
                    raise TypeError(f"a module can't be cast to {target}: parameters are floats")
                if moved.dtype is tensor.dtype or tensor.dtype.is_floating_point:
                    tensor.array, tensor.device, tensor.grad = moved.array, moved.device, None
                    tensor.bump_version()
        return self

    def cpu(self: Self) -> Self:
        """Move everything to the CPU, in place."""
        return self.to("cpu")

    def cuda(self: Self, device: int = 0) -> Self:
        """Move everything to a GPU, in place."""
        return self.to(f"cuda:{device}")

    def zero_grad(self) -> None:
        """Drop the gradient of every parameter."""
        for parameter in self.parameters():
            parameter.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """Return every parameter and persistent buffer by name, sharing the model's memory.

        A buffer whose name starts with an underscore is not persistent. A tied parameter stands
        under each of its names, every time as the same `Tensor` object.
        """
        detached: dict[int, Tensor] = {}
        return {
            name: detached.setdefault(id(tensor), tensor.detach())
            for name, tensor in self.named_tensors(persistent=True)
        }

    def load_state_dict(
        self, state_dict: Mapping[str, Tensor], strict: bool = True
    ) -> IncompatibleKeys:
        """Copy the named tensors into the model, each cast to the dtype the model has.

        A tied parameter may stand under any one of its names, or under all with equal values.
        With `strict=False` missing and unexpected names are returned and not an error.

        Raises:
            ValueError: some names are missing, unexpected, of another shape, or disagree about a
                tied parameter. Every one is listed, and the model is left as it was.
        """
        own = dict(self.named_tensors(persistent=True))
        given: dict[int, str] = {}  # which name each of the model's tensors is loaded from
        wrong: list[str] = []
        for name in (name for name in own if name in state_dict):
            value, shape = state_dict[name], own[name].shape
            first = given.setdefault(id(own[name]), name)
            if value.shape != shape:
                wrong.append(f"shape of {name}: given {value.shape}, the model has {shape}")
            elif first != name and not _equal(value, state_dict[first]):
                wrong.append(f"{name} and {first} are tied, but differ in what is given")
        missing = [name for name, tensor in own.items() if id(tensor) not in given]
        unexpected = [name for name in state_dict if name not in own]
        if strict:
            wrong += [f"missing: {name}" for name in missing]
            wrong += [f"unexpected: {name}" for name in unexpected]
        if wrong:
            listed = "\n  ".join(sorted(wrong))
            raise ValueError(f"the state_dict does not fit {type(self).__name__}:\n  {listed}")
        with no_grad():
            for tensor in {id(tensor): tensor for tensor in own.values()}.values():
                if id(tensor) in given:
                    tensor.copy_(state_dict[given[id(tensor)]])
        return IncompatibleKeys(missing, unexpected)

    def extra_repr(self) -> str:
        """Return what stands between the parentheses of this layer's line in the table."""
        return ""

    def __repr__(self) -> str:
        return module_table(self)


def _entries(holder: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the tensors and modules among the values, with containers opened."""
    for name, value in holder.items():
        if isinstance(value, (Tensor, Module)):
            yield str(name), value
        elif isinstance(value, (list, tuple, dict)):
            inner = value if isinstance(value, dict) else dict(enumerate(value))
            for inner_name, inner_value in _entries(inner):
                yield f"{name}.{inner_name}", inner_value


def _walk(module: Module, prefix: str) -> Iterator[tuple[str, Module]]:
    yield prefix, module
    for name, child in module.named_children():
        yield from _walk(child, f"{prefix}.{name}" if prefix else name)


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and bool((first == second).all())
