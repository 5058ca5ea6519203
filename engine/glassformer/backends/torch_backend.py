"""The backend of `cuda` and `torch-cpu`: array functions over `torch.Tensor` as bare storage.

PyTorch's autograd is never used: no array here requires grad. What differs from NumPy in PyTorch's
functions is put right here (axes that are None or tuples, numbers as operands, sums of half
precision), and what differs in its indexing in `torch_indexing.py`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from glassformer.backends import torch_indexing
from glassformer.dtypes import (
    DType,
    bfloat16,
    bool_,
    float16,
    float32,
    float64,
    int32,
    int64,
)

Array = Any
Axis = int | tuple[int, ...] | None

TO_TORCH = {
    bool_: torch.bool,
    int32: torch.int32,
    int64: torch.int64,
    float16: torch.float16,
    bfloat16: torch.bfloat16,
    float32: torch.float32,
    float64: torch.float64,
}
_FROM_TORCH = {theirs: ours for ours, theirs in TO_TORCH.items()}
_HALF = (torch.float16, torch.bfloat16)
_QUIET = nullcontext()


def connect(kind: str, index: int | None) -> TorchBackend:
    """Return the backend for "torch-cpu", or for the `cuda` device of that number.

    Raises:
        ValueError: there is no such device here.
    """
    if kind == "torch-cpu":
        return TorchBackend(torch.device("cpu"))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index is None or index >= count:
        if count:
            raise ValueError(f"there is no device 'cuda:{index}'; torch sees {count}, from cuda:0")
        raise ValueError(
            "device 'cuda' is not available: torch sees no CUDA device; check nvidia-smi and that "
            "torch is a CUDA build, or use the device 'cpu'"
        )
    return TorchBackend(torch.device("cuda", index))


def _with_shapes(function: Callable[..., Array]) -> Callable[..., Array]:
    """Raise a ValueError that names the shapes, as NumPy does, where they don't fit."""

    def call(*args: Any) -> Array:
        try:
            return function(*args)
        except RuntimeError as error:
            problem = str(error).partition("\n")[0]
            if isinstance(error, torch.OutOfMemoryError) or not _SHAPES.search(problem):
                raise
            shapes = [tuple(arg.shape) for arg in args if isinstance(arg, torch.Tensor)]
            raise ValueError(f"shapes {', '.join(map(str, shapes))}: {problem}") from None

    return call


_SHAPES = re.compile("[Ss]izes? of (the )?tensor|expanded size|^shape |broadcast shape")


def _binary(function: Callable[[Array, Array], Array], scalar: Any = None) -> Any:
    """A function of two tensors that takes a Python number for either, then by way of `scalar`."""

    of_tensors = _with_shapes(function)

    def call(x: Array, y: Array) -> Array:
        if isinstance(x, torch.Tensor):
            if isinstance(y, torch.Tensor):
                return of_tensors(x, y)
            return scalar(x, y) if scalar else function(x, torch.as_tensor(y, device=x.device))
        return scalar(x, y) if scalar else function(torch.as_tensor(x, device=y.device), y)

    return staticmethod(call)


def _at_least(x: Array, y: Array) -> Array:
    return torch.clamp(x, min=y) if isinstance(x, torch.Tensor) else torch.clamp(y, min=x)


def _at_most(x: Array, y: Array) -> Array:
    return torch.clamp(x, max=y) if isinstance(x, torch.Tensor) else torch.clamp(y, max=x)


def _rounding(function: Callable[[Array], Array]) -> Any:
    """Rounding, which leaves integers and bools as they are."""
    return staticmethod(lambda x: function(x) if x.is_floating_point() else x.clone())


def _reduced(function: Callable[..., Array]) -> Callable[..., Array]:
    """A reduction over the axes of NumPy: None for all, a tuple, and () for none of them."""

    def call(x: Array, axis: Axis, keepdims: bool) -> Array:
        if axis == ():
            return function(x.unsqueeze(0), 0, False)
        if axis is None:
            axis = tuple(range(x.ndim))
            if not axis:
                return function(x.unsqueeze(0), 0, False)
        return function(x, axis, keepdims)

    return call


def _arg(function: Callable[..., Array]) -> Callable[[Array, int | None, bool], Array]:
    """The index of the first extreme, which bools have too."""

    def call(x: Array, axis: int | None, keepdims: bool) -> Array:
        x = x.to(torch.uint8) if x.dtype is torch.bool else x
        if axis is None:
            return function(x.reshape(-1)).reshape((1,) * x.ndim if keepdims else ())
        return function(x, axis, keepdims)

    return call


def _sum(x: Array, axis: Axis, keepdims: bool) -> Array:
    if x.dtype in _HALF:
        return torch.sum(x, axis, keepdims, dtype=torch.float32).to(x.dtype)
    return torch.sum(x, axis, keepdims)


def _products(x: Array, y: Array) -> Array:
    """Matrix products of integers, which GPUs' libraries lack, and of bools."""
    if x.dtype is torch.bool:
        return _products(x.to(torch.int32), y.to(torch.int32)) != 0
    if x.device.type == "cpu":
        return torch.matmul(x, y)
    products = x.unsqueeze(-1) * y.unsqueeze(-3)  # (..., n, k, m)
    return products.sum(-2, dtype=x.dtype)


class TorchBackend:
    """The array functions for one of PyTorch's devices.

    Args:
        device: where new arrays are made.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    # storage

    def asarray(self, data: Any, dtype: DType | None = None) -> Array:
        """Return `data` as an array on this device, without a copy where it is one already."""
        if not isinstance(data, torch.Tensor):
            array = np.asarray(data)
            # PyTorch takes no negative strides, no foreign byte order, no read-only memory
            plain = min(array.strides, default=0) >= 0 and array.dtype.isnative
            if not (plain and array.flags.writeable):
                array = np.array(array, array.dtype.newbyteorder("="), order="C")
            data = torch.from_numpy(array)
        return data.detach().to(self.device, None if dtype is None else TO_TORCH[dtype])

    def empty(self, shape: Sequence[int], dtype: DType) -> Array:
        """Return an array with arbitrary contents."""
        return torch.empty(tuple(shape), dtype=TO_TORCH[dtype], device=self.device)

    def zeros(self, shape: Sequence[int], dtype: DType) -> Array:
        """Return an array of zeros."""
        return torch.zeros(tuple(shape), dtype=TO_TORCH[dtype], device=self.device)

    def full(self, shape: Sequence[int], value: Any, dtype: DType) -> Array:
        """Return an array filled with `value`."""
        return torch.full(tuple(shape), value, dtype=TO_TORCH[dtype], device=self.device)

    @staticmethod
    def from_dlpack(source: Any) -> Array:
        """Return an array of the same memory as any with `__dlpack__`."""
        return torch.from_dlpack(source).detach()

    @staticmethod
    def is_array(data: Any) -> bool:
        """Tell whether `data` is this backend's kind of array."""
        return isinstance(data, torch.Tensor)

    @staticmethod
    def to_numpy(x: Array) -> Array:
        """Return a copy as a `numpy.ndarray`."""
        _ = _FROM_TORCH[x.dtype].numpy  # raises for bfloat16
        array = x.cpu().numpy()
        return array if x.is_cuda else array.copy()

    @staticmethod
    def dtype_of(x: Array) -> DType:
        """Return the element type of an array."""
        found = _FROM_TORCH.get(x.dtype)
        if found is None:
            raise TypeError(
                f"dtype {x.dtype} is not supported; the dtypes are "
                f"{', '.join(dtype.name for dtype in TO_TORCH)}"
            )
        return found

    @staticmethod
    def astype(x: Array, dtype: DType) -> Array:
        """Convert to `dtype` (always a new array)."""
        return x.to(TO_TORCH[dtype], copy=True)

    @staticmethod
    def copy(x: Array) -> Array:
        """Return a C-contiguous copy."""
        return x.clone(memory_format=torch.contiguous_format)

    @staticmethod
    def owner(x: Array) -> int:
        """Return an identity shared by all arrays that view the same memory."""
        return int(x.untyped_storage().data_ptr())

    @staticmethod
    def is_contiguous(x: Array) -> bool:
        """Tell whether elements lie in memory in row-major order."""
        return bool(x.is_contiguous())

    @staticmethod
    def quiet() -> AbstractContextManager[Any]:
        """Do nothing: PyTorch gives no floating-point warnings."""
        return _QUIET

    # elementwise

    add = _binary(torch.add, operator.add)
    subtract = _binary(torch.sub, operator.sub)
    multiply = _binary(torch.mul, operator.mul)
    divide = _binary(torch.div, operator.truediv)
    floor_divide = _binary(torch.floor_divide, operator.floordiv)
    remainder = _binary(torch.remainder, operator.mod)
    power = _binary(torch.pow, torch.pow)
    maximum = _binary(torch.maximum, _at_least)
    minimum = _binary(torch.minimum, _at_most)
    equal, not_equal = _binary(torch.eq, operator.eq), _binary(torch.ne, operator.ne)
    less, less_equal = _binary(torch.lt, operator.lt), _binary(torch.le, operator.le)
    greater, greater_equal = _binary(torch.gt, operator.gt), _binary(torch.ge, operator.ge)
    logical_and, logical_or = _binary(torch.logical_and), _binary(torch.logical_or)
    negative = staticmethod(torch.neg)
    exp, log, sqrt = staticmethod(torch.exp), staticmethod(torch.log), staticmethod(torch.sqrt)
    sin, cos, tanh = staticmethod(torch.sin), staticmethod(torch.cos), staticmethod(torch.tanh)
    erf = staticmethod(torch.erf)
    logical_not = staticmethod(torch.logical_not)
    isnan, isinf = staticmethod(torch.isnan), staticmethod(torch.isinf)
    isfinite = staticmethod(torch.isfinite)
    where = staticmethod(_with_shapes(torch.where))

    # NumPy's take bools as well as numbers, and its sign of NaN is NaN.

    @staticmethod
    def abs(x: Array) -> Array:
        """Return |x|."""
        return x.clone() if x.dtype is torch.bool else torch.abs(x)

    @staticmethod
    def sign(x: Array) -> Array:
        """Return -1, 0, 1, or NaN."""
        if x.dtype is torch.bool:
            raise TypeError("sign takes numbers, not bools")
        return torch.where(torch.isnan(x), x, torch.sign(x)) if x.is_floating_point() else x.sign()

    floor, ceil, round = _rounding(torch.floor), _rounding(torch.ceil), _rounding(torch.round)

    # in place

    @staticmethod
    def update(operation: str, x: Array, y: Any) -> None:
        """Set x to operation(x, y), "add", "subtract", "maximum" and so on, in the dtype of x."""
        _UPDATES[operation](x, y)

    @staticmethod
    def assign(x: Array, index: Any, value: Any) -> None:
        """Write `value`, an array or a number, into `x[index]`."""
        torch_indexing.assign(x, index, value)

    @staticmethod
    def fill_where(x: Array, mask: Array, value: Any) -> None:
        """Write a number into `x` where `mask` is true."""
        x.masked_fill_(mask, value)

    # reductions

    sum = staticmethod(_reduced(_sum))
    max = staticmethod(_reduced(torch.amax))
    min = staticmethod(_reduced(torch.amin))
    any = staticmethod(_reduced(torch.any))
    all = staticmethod(_reduced(torch.all))

    argmax = staticmethod(_arg(torch.argmax))
    argmin = staticmethod(_arg(torch.argmin))

    @staticmethod
    def cumsum(x: Array, axis: int) -> Array:
        """Return running sums along `axis`."""
        wide = torch.float32 if x.dtype in _HALF else x.dtype
        return torch.cumsum(x, axis, dtype=wide).to(x.dtype)

    @staticmethod
    def square_sum(x: Array) -> Array:
        """Return Σ x² over all elements, a float64 number; half precision in float32."""
        wide = torch.float32 if x.dtype in _HALF else x.dtype
        return torch.linalg.vector_norm(x, dtype=wide).double().square()

    # shapes

    reshape = staticmethod(_with_shapes(torch.reshape))
    flip = staticmethod(torch.flip)
    roll = staticmethod(torch.roll)
    tril, triu = staticmethod(torch.tril), staticmethod(torch.triu)
    concatenate = staticmethod(_with_shapes(torch.cat))
    transpose = staticmethod(torch.permute)
    broadcast_to = staticmethod(_with_shapes(torch.broadcast_to))

    pad = staticmethod(torch_indexing.pad)

    # indexing

    getitem = staticmethod(torch_indexing.getitem)
    index_put_add = staticmethod(torch_indexing.index_put_add)
    take = staticmethod(torch_indexing.take)
    take_add = staticmethod(torch_indexing.take_add)
    gather = staticmethod(torch_indexing.gather)
    scatter_add = staticmethod(torch_indexing.scatter_add)
    argsort = staticmethod(torch_indexing.argsort)

    # products

    @staticmethod
    def matmul(x: Array, y: Array) -> Array:
        """Return the matrix product; half precision is accumulated in float32 and rounded once."""
        return _matmul(x, y) if x.is_floating_point() else _products(x, y)

    @staticmethod
    def einsum(equation: str, *operands: Array) -> Array:
        """Return the Einstein sum; half precision in float32."""
        dtype = operands[0].dtype
        if dtype in _HALF:
            operands = tuple(operand.float() for operand in operands)
        out = torch.einsum(equation, *operands).to(dtype)
        shared = {operand.untyped_storage().data_ptr() for operand in operands}
        return out.clone() if out.untyped_storage().data_ptr() in shared else out  # "ij->ji"

    windows = staticmethod(torch_indexing.windows)
    windows_add = staticmethod(torch_indexing.windows_add)


_matmul = _with_shapes(torch.matmul)


def _limit(function: Callable[..., Array]) -> Callable[[Array, Any], None]:
    def call(x: Array, y: Any) -> None:
        other = torch.as_tensor(y, device=x.device)
        if other.is_floating_point() and not x.is_floating_point():
            raise TypeError(f"a limit of {y} can't be cast to {x.dtype}")
        function(x, other.to(x.dtype), out=x)

    return call


def _change(function: Callable[[Array, Any], Array]) -> Callable[[Array, Any], None]:
    checked = _with_shapes(function)

    def call(x: Array, y: Any) -> None:
        try:
            checked(x, y)
        except RuntimeError as error:
            if "can't be cast" in str(error):
                raise TypeError(str(error)) from None
            raise

    return call


_UPDATES: dict[str, Callable[[Array, Any], None]] = {
    "add": _change(torch.Tensor.add_),
    "subtract": _change(torch.Tensor.sub_),
    "multiply": _change(torch.Tensor.mul_),
    "divide": _change(torch.Tensor.div_),
    "maximum": _limit(torch.maximum),
    "minimum": _limit(torch.minimum),
}
