"""The Tensor: an array, the device it is on, and its place in the graph of operations.

Operations live in `glassformer.ops`, each beside its derivative; the same functions are methods
and operators here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np

from glassformer.devices import Device, as_device
from glassformer.dtypes import DEFAULT_FLOAT, DType, as_dtype, bfloat16, float32

if TYPE_CHECKING:
    from glassformer.graph import Node
    from glassformer.ops import choice, conversion, elementwise, indexing, linalg, reduction
    from glassformer.ops import shape as shapes

_hook_ids = itertools.count()


class Tensor:
    """A multi-dimensional array that remembers how it was computed.

    Make one with `glassformer.tensor`, `from_numpy`, `zeros`, `randn` and the like.

    Attributes:
        array: the bare storage (`numpy.ndarray` on `cpu`, else `torch.Tensor`). Read it freely;
            after writing into it call `bump_version()`.
        device: where it is.
        grad: the gradient accumulated by `backward`, or None.
        grad_fn: the graph node that made it; None for a leaf.
    """

    __slots__ = (
        "__weakref__",
        "_version",
        "_requires_grad",
        "array",
        "device",
        "grad",
        "grad_fn",
        "hooks",
        "output_index",
    )
    __array_ufunc__ = None  # ndarray * Tensor goes to Tensor.__rmul__, which explains

    def __init__(self, array: Any, device: Device, requires_grad: bool = False) -> None:
        backend = device.backend
        self.array = array if backend.is_array(array) else backend.asarray(array)
        self.device = device
        self.grad: Tensor | None = None
        self._requires_grad = requires_grad
        self.grad_fn: Node | None = None
        self.output_index = 0
        self.hooks: dict[int, Callable[[Tensor], Tensor | None]] = {}
        self._version = [0]

    # ---- what it is ----

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each dimension."""
        return tuple(self.array.shape)

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.array.shape)

    @property
    def dtype(self) -> DType:
        """The element type."""
        return self.device.backend.dtype_of(self.array)

    @property
    def is_leaf(self) -> bool:
        """Whether it was made by the user rather than by a recorded operation."""
        return self.grad_fn is None

    @property
    def version(self) -> int:
        """How often its memory was changed in place, through any view."""
        return self._version[0]

    @property
    def requires_grad(self) -> bool:
        """Whether gradients flow to (or through) it; set it on leaves, see `requires_grad_`."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    def size(self, dim: int | None = None) -> Any:
        """Return the shape, or the length of one dimension."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """Return the number of dimensions."""
        return self.ndim

    def numel(self) -> int:
        """Return the number of elements."""
        count = 1
        for n in self.array.shape:
            count *= n
        return count

    def is_contiguous(self) -> bool:
        """Tell whether elements lie in memory in row-major order."""
        return self.device.backend.is_contiguous(self.array)

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len() of a 0-d tensor")
        return self.shape[0]

    def __repr__(self) -> str:
        backend = self.device.backend
        array = backend.astype(self.array, float32) if self.dtype is bfloat16 else self.array
        values = np.array2string(
            backend.to_numpy(array), separator=", ", precision=4, prefix="tensor("
        )
        notes = "" if self.dtype in (DEFAULT_FLOAT, as_dtype(int)) else f", dtype={self.dtype!r}"
        if self.numel() == 0:
            notes += f", shape={self.shape}"
        if self.device.type != "cpu":
            notes += f", device={str(self.device)!r}"
        if self.grad_fn is not None:
            notes += f", grad_fn={self.grad_fn!r}"
        elif self.requires_grad:
            notes += ", requires_grad=True"
        return f"tensor({values}{notes})"

    def __bool__(self) -> bool:
        if self.numel() != 1:
            raise ValueError(
                f"the truth of a tensor of shape {self.shape} is ambiguous; use .any() or .all()"
            )
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype.category != "int" or self.numel() != 1:
            raise TypeError(
                f"only a single integer can be an index, not {self.dtype} of shape {self.shape}"
            )
        return int(self.item())

    __hash__ = object.__hash__

    # ---- values in and out ----

    def item(self) -> Any:
        """Return the single element as a Python number.

        Raises:
            ValueError: there are several, or none.
        """
        if self.numel() != 1:
            raise ValueError(f"item() needs a tensor of one element, not of shape {self.shape}")
        return self.array.item()

    def tolist(self) -> Any:
        """Return the values as nested lists."""
        return self.array.tolist()

    def numpy(self) -> Any:
        """Return the values as a `numpy.ndarray`, of the same memory.

        Raises:
            RuntimeError: it requires grad; what is done to the array could not be differentiated.
            TypeError: it is on another device than the CPU.
        """
        if self.requires_grad:
            raise RuntimeError(
                "numpy() of a tensor that requires grad; use tensor.detach().numpy()"
            )
        if self.device.type != "cpu":
            raise TypeError(
                f"numpy() of a tensor on {self.device}; copy it to the CPU first: tensor.cpu()"
            )
        return self.device.backend.to_numpy(self.array)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **kwargs: Any) -> Any:
        if self.requires_grad:
            raise BufferError("a tensor that requires grad can't be exported; detach() it first")
        return self.array.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()

    # ---- place in the graph ----

    def attach(self, node: Node, output_index: int) -> None:
        """Make this tensor an output of `node`."""
        self._requires_grad = True
        self.grad_fn = node
        self.output_index = output_index

    def detach(self) -> Tensor:
        """Return the same memory as a leaf that doesn't require grad."""
        out = Tensor(self.array, self.device)
        out._version = self._version
        return out

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if self.grad_fn is not None:
            raise RuntimeError("only leaves can be deep-copied; use clone() or detach() first")
        out: Tensor = type(self).__new__(type(self))
        Tensor.__init__(out, self.device.backend.copy(self.array), self.device, self.requires_grad)
        memo[id(self)] = out
        return out

    def share_version(self, base: Tensor) -> None:
        """Count in-place changes together with `base`, whose memory this tensor may view."""
        self._version = base._version

    def bump_version(self) -> None:
        """Note that the memory was changed in place."""
        self._version[0] += 1

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set whether gradients flow to this leaf; return it.

        Raises:
            TypeError: its dtype can't carry gradients.
            RuntimeError: it is not a leaf.
        """
        if requires_grad and not self.dtype.is_floating_point:
            raise TypeError(f"only floating point tensors can require grad, not {self.dtype}")
        if self.grad_fn is not None and not requires_grad:
            raise RuntimeError("requires_grad can be turned off on leaves only; use detach()")
        self._requires_grad = requires_grad
        return self

    def backward(
        self,
        gradient: Tensor | None = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Sequence[Tensor] | None = None,
    ) -> None:
        """Add the gradient of this tensor to the `.grad` of every leaf it was computed from.

        See `glassformer.autograd.backward`.
        """
        from glassformer.autograd import backward

        backward(self, gradient, retain_graph, create_graph, inputs)

    def retain_grad(self) -> None:
        """Keep `.grad` on this result as well; by default only leaves get one.

        Raises:
            RuntimeError: it doesn't require grad.
        """
        if not self.requires_grad:
            raise RuntimeError("retain_grad() on a tensor that doesn't require grad")
        if self.grad_fn is not None:
            self.grad_fn.retained[self.output_index] = ref(self)

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> HookHandle:
        """Call `hook(grad)` whenever this tensor's gradient is known; its result replaces it.

        Returns a handle whose `remove()` ends that.

        Raises:
            RuntimeError: it doesn't require grad.
        """
        if not self.requires_grad:
            raise RuntimeError("register_hook() on a tensor that doesn't require grad")
        node = self.grad_fn
        hooks = self.hooks if node is None else node.hooks.setdefault(self.output_index, {})
        return HookHandle(hooks, hook)

    # ---- in-place changes, never recorded ----

    def change(self, name: str, *operands: Any) -> Any:
        """Check that changing this memory goes behind no graph's back; return the array."""
        from glassformer.grad_mode import is_grad_enabled

        if is_grad_enabled() and any(
            isinstance(value, Tensor) and value.requires_grad for value in (self, *operands)
        ):
            what = "a leaf that requires grad" if self.is_leaf else "a tensor in the graph"
            raise RuntimeError(
                f"in-place {name} on {what} (shape {self.shape}); in-place operations are not "
                "recorded: use the operation that returns a new tensor, or no_grad()"
            )
        self.bump_version()
        return self.array

    def _update(self, name: str, other: Any, operation: str) -> Tensor:
        array, backend = self.change(name, other), self.device.backend
        with backend.quiet():
            backend.update(operation, array, self._beside(name, other))
        return self

    def _beside(self, name: str, other: Any) -> Any:
        """The array of another operand, which must be on this device; numbers as they are."""
        if not isinstance(other, Tensor):
            return other
        if other.device is not self.device:
            raise ValueError(
                f"{name} of a tensor on {self.device} got one on {other.device}; move it with .to()"
            )
        return other.array

    def _write(self, name: str, value: Any) -> Tensor:
        array, backend = self.change(name, value), self.device.backend
        with backend.quiet():
            backend.assign(array, ..., self._beside(name, value))
        return self

    def add_(self, other: Any) -> Tensor:
        """Add `other` in place."""
        return self._update("add_", other, "add")

    def sub_(self, other: Any) -> Tensor:
        """Subtract `other` in place."""
        return self._update("sub_", other, "subtract")

    def mul_(self, other: Any) -> Tensor:
        """Multiply by `other` in place."""
        return self._update("mul_", other, "multiply")

    def div_(self, other: Any) -> Tensor:
        """Divide by `other` in place."""
        return self._update("div_", other, "divide")

    def copy_(self, source: Tensor) -> Tensor:
        """Overwrite with the values of `source`, broadcast, converted and moved as need be."""
        moved = source if source.device is self.device else source.detach().to(self.device)
        return self._write("copy_", moved)

    def fill_(self, value: Any) -> Tensor:
        """Overwrite with a number."""
        return self._write("fill_", value)

    def zero_(self) -> Tensor:
        """Overwrite with zeros."""
        return self.fill_(0)

    def clamp_(self, min: float | None = None, max: float | None = None) -> Tensor:
        """Limit to [min, max] in place."""
        if min is not None:
            self._update("clamp_", min, "maximum")
        return self if max is None else self._update("clamp_", max, "minimum")

    def masked_fill_(self, mask: Tensor, value: float) -> Tensor:
        """Overwrite with `value` where `mask` (bool, broadcast) is true."""
        array, backend = self.change("masked_fill_"), self.device.backend
        with backend.quiet():
            backend.fill_where(array, self._beside("masked_fill_", mask), value)
        return self

    if TYPE_CHECKING:  # bound by glassformer/ops/__init__.py, where each operation is defined
        add = __add__ = elementwise.add
        __radd__ = elementwise.add
        sub = __sub__ = elementwise.sub
        __rsub__ = elementwise.rsub
        mul = __mul__ = __rmul__ = elementwise.mul
        div = __truediv__ = elementwise.div
        __rtruediv__ = elementwise.rdiv
        floor_divide = __floordiv__ = elementwise.floor_divide
        __rfloordiv__ = elementwise.rfloor_divide
        remainder = __mod__ = elementwise.remainder
        __rmod__ = elementwise.rremainder
        pow = __pow__ = elementwise.pow
        __rpow__ = elementwise.rpow
        neg = __neg__ = elementwise.neg
        exp = elementwise.exp
        log = elementwise.log
        sqrt = elementwise.sqrt
        rsqrt = elementwise.rsqrt
        sin = elementwise.sin
        cos = elementwise.cos
        tanh = elementwise.tanh
        sigmoid = elementwise.sigmoid
        erf = elementwise.erf
        relu = elementwise.relu
        abs = __abs__ = elementwise.abs
        sign = elementwise.sign
        floor = elementwise.floor
        ceil = elementwise.ceil
        round = elementwise.round
        clamp = choice.clamp
        maximum = choice.maximum
        minimum = choice.minimum
        masked_fill = choice.masked_fill
        where = choice.where_method
        eq = choice.eq
        __eq__ = choice.eq  # type: ignore[assignment]
        ne = choice.ne
        __ne__ = choice.ne  # type: ignore[assignment]
        lt = __lt__ = choice.lt
        le = __le__ = choice.le
        gt = __gt__ = choice.gt
        ge = __ge__ = choice.ge
        logical_and = choice.logical_and
        logical_or = choice.logical_or
        logical_not = choice.logical_not
        __and__ = choice.mask_and
        __or__ = choice.mask_or
        __invert__ = choice.mask_not
        isnan = choice.isnan
        isinf = choice.isinf
        isfinite = choice.isfinite
        to = conversion.to
        cpu = conversion.cpu
        cuda = conversion.cuda
        clone = conversion.clone
        half = conversion.half
        bfloat16 = conversion.bfloat16
        float = conversion.float
        double = conversion.double
        int = conversion.int
        long = conversion.long
        bool = conversion.bool
        sum = reduction.sum
        mean = reduction.mean
        var = reduction.var
        std = reduction.std
        max = reduction.max
        min = reduction.min
        amax = reduction.amax
        amin = reduction.amin
        argmax = reduction.argmax
        argmin = reduction.argmin
        logsumexp = reduction.logsumexp
        cumsum = reduction.cumsum
        any = reduction.any
        all = reduction.all
        reshape = shapes.reshape
        view = shapes.view
        flatten = shapes.flatten
        unflatten = shapes.unflatten
        transpose = shapes.transpose
        permute = shapes.permute
        expand = shapes.expand
        broadcast_to = shapes.broadcast_to
        squeeze = shapes.squeeze
        unsqueeze = shapes.unsqueeze
        split = shapes.split
        chunk = shapes.chunk
        unbind = shapes.unbind
        flip = shapes.flip
        roll = shapes.roll
        tril = shapes.tril
        triu = shapes.triu
        contiguous = shapes.contiguous
        T = property(shapes.transpose_all)
        mT = property(shapes.transpose_last_two)
        __getitem__ = indexing.getitem
        __setitem__ = indexing.setitem
        __iter__ = shapes.iterate
        gather = indexing.gather
        scatter_add = indexing.scatter_add
        index_select = indexing.index_select
        take_along_dim = indexing.take_along_dim
        topk = indexing.topk
        sort = indexing.sort
        argsort = indexing.argsort
        matmul = __matmul__ = linalg.matmul
        bmm = linalg.bmm
        outer = linalg.outer


class HookHandle:
    """Removes what it was returned for."""

    def __init__(self, hooks: dict[int, Any], hook: Callable[..., Any]) -> None:
        self._hooks = hooks
        self._id = next(_hook_ids)
        hooks[self._id] = hook

    def remove(self) -> None:
        """Stop calling the hook."""
        self._hooks.pop(self._id, None)


class Parameter(Tensor):
    """A tensor that a module learns: a leaf that requires grad."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        source = data if isinstance(data, Tensor) else tensor(data)
        super().__init__(source.array, source.device)
        self.share_version(source)
        self.requires_grad_(requires_grad)

    def __repr__(self) -> str:
        return f"Parameter containing:\n{super().__repr__()}"


def tensor(
    data: Any,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return a tensor holding a copy of `data`: numbers, nested lists, an array or a tensor.

    Python floats become float32; arrays keep their dtype.

    Raises:
        TypeError: the data's element type is not one of the engine's.
    """
    if isinstance(data, Tensor):
        out = data.detach().to(data.device if device is None else device, dtype=dtype)
        if out.array is data.array:
            out = out.clone()
        return out.requires_grad_() if requires_grad else out
    place = as_device(device)
    array = np.array(data)
    if dtype is not None:
        kind = as_dtype(dtype)
    elif array.dtype == np.float64 and not isinstance(data, np.ndarray | np.generic):
        kind = DEFAULT_FLOAT
    else:
        kind = as_dtype(array.dtype)
    out = Tensor(place.backend.asarray(array, kind), place)
    return out.requires_grad_() if requires_grad else out


def from_numpy(array: Any) -> Tensor:
    """Return a tensor that shares the memory of a `numpy.ndarray`.

    Raises:
        TypeError: it is no array, or its dtype is not one of the engine's.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"from_numpy takes a numpy.ndarray, got {type(array).__name__}")
    as_dtype(array.dtype)
    return Tensor(array, as_device())


def from_dlpack(source: Any, device: Any = None) -> Tensor:
    """Return a tensor that shares the memory of any array with `__dlpack__`.

    Without `device` it is on `cpu`, or on the `cuda` device that holds the memory.

    Raises:
        ValueError: the memory is not on `device`.
    """
    kind, index = source.__dlpack_device__()
    on_cpu = kind == _DLPACK_CPU
    place = as_device(device if device is not None else "cpu" if on_cpu else f"cuda:{index}")
    if on_cpu != (place.type != "cuda") or place.index not in (None, index):
        raise ValueError(
            f"the memory is not on {place}; take it where it is, and move the tensor with .to()"
        )
    if place.type == "cpu":
        return from_numpy(np.from_dlpack(source))
    return Tensor(place.backend.from_dlpack(source), place)  # type: ignore[attr-defined]


_DLPACK_CPU = 1  # kDLCPU in dlpack.h
