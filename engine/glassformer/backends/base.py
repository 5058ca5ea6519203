# ruff: noqa: D102 - the names say it: they are NumPy's
"""The array functions a device offers: what a backend module must define.

A backend is a plain module (or an object, where there is one for each of several GPUs). Its
functions have NumPy's semantics on the backend's own arrays: `numpy.ndarray` on `cpu`,
`torch.Tensor` elsewhere. `axis` may be None, an int or a tuple of ints as in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from glassformer.dtypes import DType

Array = Any
Axis = int | tuple[int, ...] | None


class Backend(Protocol):
    """Array functions over one kind of array."""

    # storage
    def asarray(self, data: Any, dtype: DType | None = None) -> Array: ...
    def is_array(self, data: Any) -> bool: ...
    def to_numpy(self, x: Array) -> Any: ...
    def dtype_of(self, x: Array) -> DType: ...
    def astype(self, x: Array, dtype: DType) -> Array: ...
    def copy(self, x: Array) -> Array: ...
    def owner(self, x: Array) -> int: ...
    def is_contiguous(self, x: Array) -> bool: ...
    def quiet(self) -> AbstractContextManager[Any]: ...
    def empty(self, shape: Sequence[int], dtype: DType) -> Array: ...
    def zeros(self, shape: Sequence[int], dtype: DType) -> Array: ...
    def full(self, shape: Sequence[int], value: Any, dtype: DType) -> Array: ...

    # in place
    def update(self, operation: str, x: Array, y: Any) -> None: ...
    def assign(self, x: Array, index: Any, value: Any) -> None: ...
    def fill_where(self, x: Array, mask: Array, value: Any) -> None: ...

    # elementwise
    add: Callable[[Array, Array], Array]
    subtract: Callable[[Array, Array], Array]
    multiply: Callable[[Array, Array], Array]
    divide: Callable[[Array, Array], Array]
    floor_divide: Callable[[Array, Array], Array]
    remainder: Callable[[Array, Array], Array]
    power: Callable[[Array, Array], Array]
    negative: Callable[[Array], Array]
    exp: Callable[[Array], Array]
    log: Callable[[Array], Array]
    sqrt: Callable[[Array], Array]
    sin: Callable[[Array], Array]
    cos: Callable[[Array], Array]
    tanh: Callable[[Array], Array]
    erf: Callable[[Array], Array]
    abs: Callable[[Array], Array]
    sign: Callable[[Array], Array]
    floor: Callable[[Array], Array]
    ceil: Callable[[Array], Array]
    round: Callable[[Array], Array]
    maximum: Callable[[Array, Array], Array]
    minimum: Callable[[Array, Array], Array]
    where: Callable[[Array, Array, Array], Array]
    equal: Callable[[Array, Array], Array]
    not_equal: Callable[[Array, Array], Array]
    less: Callable[[Array, Array], Array]
    less_equal: Callable[[Array, Array], Array]
    greater: Callable[[Array, Array], Array]
    greater_equal: Callable[[Array, Array], Array]
    logical_and: Callable[[Array, Array], Array]
    logical_or: Callable[[Array, Array], Array]
    logical_not: Callable[[Array], Array]
    isnan: Callable[[Array], Array]
    isinf: Callable[[Array], Array]
    isfinite: Callable[[Array], Array]

    # reductions
    def sum(self, x: Array, axis: Axis, keepdims: bool) -> Array: ...
    def max(self, x: Array, axis: Axis, keepdims: bool) -> Array: ...
    def min(self, x: Array, axis: Axis, keepdims: bool) -> Array: ...
    def any(self, x: Array, axis: Axis, keepdims: bool) -> Array: ...
    def all(self, x: Array, axis: Axis, keepdims: bool) -> Array: ...
    def argmax(self, x: Array, axis: int | None, keepdims: bool) -> Array: ...
    def argmin(self, x: Array, axis: int | None, keepdims: bool) -> Array: ...
    def square_sum(self, x: Array) -> Any: ...
    def cumsum(self, x: Array, axis: int) -> Array: ...

    # shapes
    reshape: Callable[[Array, Sequence[int]], Array]
    transpose: Callable[[Array, Sequence[int]], Array]
    broadcast_to: Callable[[Array, Sequence[int]], Array]
    concatenate: Callable[[Sequence[Array], int], Array]
    flip: Callable[[Array, Sequence[int]], Array]
    roll: Callable[[Array, Sequence[int], Sequence[int]], Array]
    tril: Callable[[Array, int], Array]
    triu: Callable[[Array, int], Array]

    def pad(self, x: Array, widths: Sequence[tuple[int, int]], value: Any) -> Array: ...

    # indexing
    def getitem(self, x: Array, index: Any) -> Array: ...
    def index_put_add(self, shape: Sequence[int], index: Any, values: Array) -> Array: ...
    def take(self, x: Array, index: Array, axis: int) -> Array: ...
    def take_add(self, shape: Sequence[int], index: Array, values: Array, axis: int) -> Array: ...
    def gather(self, x: Array, axis: int, index: Array) -> Array: ...
    def scatter_add(self, x: Array, axis: int, index: Array, values: Array) -> Array: ...
    def argsort(self, x: Array, axis: int, descending: bool) -> Array: ...

    # products
    matmul: Callable[[Array, Array], Array]

    def einsum(self, equation: str, *operands: Array) -> Array: ...
    def windows(
        self, x: Array, size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
    ) -> Array: ...
    def windows_add(
        self, shape: Sequence[int], g: Array, stride: tuple[int, int], dilation: tuple[int, int]
    ) -> Array: ...
