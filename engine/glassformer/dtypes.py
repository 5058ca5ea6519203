"""Element types and the promotion rules between them (PyTorch's)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


class DType:
    """An element type: its name, its category ("bool" < "int" < "float") and its size in bytes."""

    __slots__ = ("category", "itemsize", "name")

    def __init__(self, name: str, category: str, itemsize: int) -> None:
        self.name = name
        self.category = category
        self.itemsize = itemsize

    @property
    def is_floating_point(self) -> bool:
        """Whether values of this type can carry gradients."""
        return self.category == "float"

    @property
    def wide(self) -> DType:
        """The type in which values of this one are summed: float32 for half precision."""
        return float32 if self.category == "float" and self.itemsize == 2 else self

    @property
    def eps(self) -> float:
        """The distance from 1 to the next larger number of a floating point type."""
        return 2.0**-7 if self is bfloat16 else float(np.finfo(self.numpy).eps)

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype with the same bits.

        Raises:
            TypeError: NumPy has none, and so neither has the device "cpu".
        """
        if self is bfloat16:
            raise TypeError(
                "NumPy, and with it the device 'cpu', has no bfloat16; the devices 'cuda' and "
                "'torch-cpu' have it. Convert to float32 first, for example with .float()"
            )
        return np.dtype(self.name)

    def __repr__(self) -> str:
        return f"glassformer.{self.name}"

    def __reduce__(self) -> tuple[Any, ...]:
        return as_dtype, (self.name,)


bool_ = DType("bool", "bool", 1)
int32 = DType("int32", "int", 4)
int64 = DType("int64", "int", 8)
float16 = DType("float16", "float", 2)
bfloat16 = DType("bfloat16", "float", 2)
float32 = DType("float32", "float", 4)
float64 = DType("float64", "float", 8)

DEFAULT_FLOAT = float32

# The order is the promotion lattice: of two types, the later one can hold both. (But for the two
# of half precision, of which neither holds the other.)
_LATTICE = (bool_, int32, int64, float16, bfloat16, float32, float64)
_RANK = {dtype: rank for rank, dtype in enumerate(_LATTICE)}
_CATEGORY_RANK = {"bool": 0, "int": 1, "float": 2}
_BY_NAME = {dtype.name: dtype for dtype in _LATTICE}

# NumPy can hold bfloat16, as these two bytes, and convert it (`numpy_backend.astype`), no more.
BFLOAT16_STORAGE = np.dtype([("bfloat16", "<u2")])
FROM_NUMPY = {
    BFLOAT16_STORAGE: bfloat16,
    **{dtype.numpy: dtype for dtype in _LATTICE if dtype is not bfloat16},
}


def as_dtype(spec: Any) -> DType:
    """Return the `DType` that `spec` (a DType, a name, a NumPy dtype or scalar type) names.

    Raises:
        TypeError: there is no such element type here.
    """
    if isinstance(spec, DType):
        return spec
    if spec is float:
        return DEFAULT_FLOAT
    if spec is int:
        return int64
    name = spec if isinstance(spec, str) else None
    if name is None:
        try:
            name = np.dtype(spec).name
        except TypeError:
            name = repr(spec)
    found = _BY_NAME.get(name.removeprefix("glassformer."))
    if found is None:
        raise TypeError(
            f"dtype {name} is not supported; the dtypes are {', '.join(_BY_NAME)}. "
            "Convert an array of another dtype first, for example with array.astype('float32')"
        )
    return found


def promote_types(first: DType, second: DType) -> DType:
    """Return the smallest type that holds values of both, as `torch.promote_types`."""
    if {first, second} == {float16, bfloat16}:
        return float32
    return first if _RANK[first] >= _RANK[second] else second


def _scalar_dtype(value: Any) -> DType:
    if isinstance(value, (bool, np.bool_)):
        return bool_
    if isinstance(value, (int, np.integer)):
        return int64
    if isinstance(value, (float, np.floating)):
        return DEFAULT_FLOAT
    raise TypeError(
        f"expected a Tensor or a Python number, got {type(value).__name__}; "
        "wrap arrays with glassformer.tensor() or glassformer.from_numpy()"
    )


def result_type(operands: Iterable[Any]) -> DType:
    """Return the type of an operation's result, by PyTorch's three priorities.

    Tensors with dimensions decide; a 0-d tensor, and after it a Python number, changes the result
    only when its category (bool < int < float) is higher. (PyTorch docs, "Tensor Attributes".)
    """
    best: list[DType | None] = [None, None, None]  # dimensioned tensors, 0-d tensors, numbers
    for operand in operands:
        dtype = getattr(operand, "dtype", None)
        if isinstance(dtype, DType):
            priority = 0 if operand.ndim > 0 else 1
        else:
            dtype, priority = _scalar_dtype(operand), 2
        current = best[priority]
        best[priority] = dtype if current is None else promote_types(current, dtype)
    result: DType | None = None
    for candidate in best:
        if candidate is None:
            continue
        if result is None or (_CATEGORY_RANK[candidate.category] > _CATEGORY_RANK[result.category]):
            result = candidate
    if result is None:
        raise TypeError("result_type needs at least one operand")
    return result
