"""The operations. Those on a tensor are its methods and operators, too."""

from __future__ import annotations

from glassformer.ops import (
    choice,
    conversion,
    convolution,
    elementwise,
    indexing,
    linalg,
    reduction,
    shape,
)
from glassformer.tensor import Tensor

_METHODS = {
    conversion: "to cpu cuda clone half bfloat16 float double int long bool",
    elementwise: """add sub mul div floor_divide remainder pow neg exp log sqrt rsqrt sin cos tanh
        sigmoid erf relu abs sign floor ceil round""",
    choice: """clamp maximum minimum masked_fill eq ne lt le gt ge logical_and logical_or
        logical_not isnan isinf isfinite""",
    reduction: "sum mean var std max min amax amin argmax argmin logsumexp cumsum any all",
    shape: """reshape view flatten unflatten transpose permute expand broadcast_to squeeze unsqueeze
        split chunk unbind flip roll tril triu contiguous""",
    indexing: "gather scatter_add index_select take_along_dim topk sort argsort",
    linalg: "matmul bmm outer",
}

_OPERATORS = {
    "__add__": elementwise.add,
    "__radd__": elementwise.add,
    "__sub__": elementwise.sub,
    "__rsub__": elementwise.rsub,
    "__mul__": elementwise.mul,
    "__rmul__": elementwise.mul,
    "__truediv__": elementwise.div,
    "__rtruediv__": elementwise.rdiv,
    "__floordiv__": elementwise.floor_divide,
    "__rfloordiv__": elementwise.rfloor_divide,
    "__mod__": elementwise.remainder,
    "__rmod__": elementwise.rremainder,
    "__pow__": elementwise.pow,
    "__rpow__": elementwise.rpow,
    "__neg__": elementwise.neg,
    "__abs__": elementwise.abs,
    "__eq__": choice.eq,
    "__ne__": choice.ne,
    "__lt__": choice.lt,
    "__le__": choice.le,
    "__gt__": choice.gt,
    "__ge__": choice.ge,
    "__and__": choice.mask_and,
    "__or__": choice.mask_or,
    "__invert__": choice.mask_not,
    "__matmul__": linalg.matmul,
    "__getitem__": indexing.getitem,
    "__setitem__": indexing.setitem,
    "__iter__": shape.iterate,
    "where": choice.where_method,
    "T": property(shape.transpose_all),
    "mT": property(shape.transpose_last_two),
}


def _bind() -> None:
    """Make the operations methods of Tensor. tensor.py lists them for type checkers."""
    for module, names in _METHODS.items():
        for name in names.split():
            setattr(Tensor, name, getattr(module, name))
    for name, function in _OPERATORS.items():
        setattr(Tensor, name, function)


_bind()
__all__ = [
    "choice",
    "conversion",
    "convolution",
    "elementwise",
    "indexing",
    "linalg",
    "reduction",
    "shape",
]
