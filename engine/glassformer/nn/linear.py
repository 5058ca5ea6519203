"""Linear: the affine map y = x Wᵀ + b."""

from __future__ import annotations

import math

from glassformer.nn import functional as F
from glassformer.nn.init import kaiming_uniform_, uniform_
from glassformer.nn.module import Module
from glassformer.ops.creation import empty
from glassformer.tensor import Parameter, Tensor


class Linear(Module):
    """y = x Wᵀ + b over the last dimension: (..., in_features) -> (..., out_features).

    Weight and bias start from U(-1/√in_features, 1/√in_features), as in PyTorch.
    """

    in_features: int
    out_features: int
    weight: Parameter  # (out_features, in_features)
    bias: Parameter | None  # (out_features,)
    adapter: Module | None = None  # its output is added; see `nn/lora.py`

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        self.in_features = in_features
        self.out_features = out_features
        self.weight = Parameter(empty(out_features, in_features))
        self.bias = Parameter(empty(out_features)) if bias else None
        kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(max(in_features, 1))
            uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Return x Wᵀ + b: (..., in_features) -> (..., out_features)."""
        out: Tensor = F.linear(x, self.weight, self.bias)
        return out if self.adapter is None else out + self.adapter(x)

    def extra_repr(self) -> str:  # noqa: D102
        return f"{self.in_features} -> {self.out_features}"
