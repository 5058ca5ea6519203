"""Convolutions: patch embeddings and speech front ends need them."""

from __future__ import annotations

import math

from glassformer.nn import functional as F
from glassformer.nn.init import kaiming_uniform_, uniform_
from glassformer.nn.module import Module
from glassformer.ops.creation import empty
from glassformer.tensor import Parameter, Tensor

Pair = int | tuple[int, int]


class _Conv(Module):
    """What both convolutions share: their arguments, checked, and the start of their weights."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    groups: int
    weight: Parameter  # (out_channels, in_channels / groups, *kernel_size)
    bias: Parameter | None  # (out_channels,)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        groups: int,
        bias: bool,
    ) -> None:
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups={groups} must divide in_channels={in_channels} and "
                f"out_channels={out_channels}"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.groups = groups
        self.weight = Parameter(empty(out_channels, in_channels // groups, *kernel_size))
        self.bias = Parameter(empty(out_channels)) if bias else None
        kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(math.prod(self.weight.shape[1:]))
            uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        size = "x".join(map(str, self.kernel_size))
        return f"{self.in_channels} -> {self.out_channels}, kernel_size={size}"


class Conv1d(_Conv):
    """Cross-correlation over a sequence: (B, in_channels, T) -> (B, out_channels, T').

    T' = (T + 2·padding - dilation·(kernel_size - 1) - 1) // stride + 1. Arguments are those of
    `torch.nn.Conv1d`; padding is with zeros.
    """

    stride: int
    padding: int
    dilation: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, (kernel_size,), groups, bias)
        self.stride, self.padding, self.dilation = stride, padding, dilation

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, in_channels, T)."""
        return F.conv1d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class Conv2d(_Conv):
    """Cross-correlation over an image: (B, in_channels, Y, X) -> (B, out_channels, Y', X').

    Y' = (Y + 2·padding - dilation·(kernel_size - 1) - 1) // stride + 1, and so for X'. Arguments
    are those of `torch.nn.Conv2d`; an int stands for both directions; padding is with zeros.
    """

    stride: Pair
    padding: Pair
    dilation: Pair

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        super().__init__(in_channels, out_channels, size, groups, bias)
        self.stride, self.padding, self.dilation = stride, padding, dilation

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, in_channels, Y, X)."""
        return F.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )
