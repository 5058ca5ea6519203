"""Convolution as a matrix product over windows, from two primitives that undo each other."""

from __future__ import annotations

from typing import Any

from glassformer.ops.linalg import matmul
from glassformer.ops.shape import pad
from glassformer.primitive import Primitive
from glassformer.tensor import Tensor

_windows = Primitive(
    "windows",
    lambda xp, x, size, stride, dilation: xp.windows(x, size, stride, dilation),
    view=True,
)
_windows.defvjp(
    lambda g, _out, _x, size, stride, dilation: _windows_add(
        g, shape=_x.shape, stride=stride, dilation=dilation
    )
)

_windows_add: Primitive = Primitive(
    "windows_add",
    lambda xp, g, shape, stride, dilation: xp.windows_add(shape, g, stride, dilation),
)
_windows_add.defvjp(
    lambda g, _out, _g, shape, stride, dilation: _windows(
        g, size=_g.shape[4:], stride=stride, dilation=dilation
    )
)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _same(size: tuple[int, int], dilation: tuple[int, int]) -> list[int]:
    """Counts for `pad` that keep height and width, the odd one behind."""
    counts: list[int] = []
    for k, d in reversed(list(zip(size, dilation, strict=True))):
        total = d * (k - 1)
        counts += [total // 2, total - total // 2]
    return counts


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlate images with kernels.

    input (N, C, H, W), weight (O, C/groups, kh, kw), bias (O,) -> (N, O, oh, ow) with
    oh = ⌊(H + 2·padding - dilation·(kh - 1) - 1) / stride⌋ + 1, and ow likewise.

    Args:
        input: the images; one without N is taken as a batch of one.
        weight: the kernels.
        bias: added to each output channel.
        stride: steps between windows, a number or (rows, columns), as are the next two.
        padding: zeros around the images, or "same" (stride 1) or "valid".
        dilation: steps between the elements of a kernel.
        groups: input and output channels are split into that many independent parts.

    Raises:
        ValueError: shapes, groups and padding don't fit together.
    """
    if input.ndim == 3:
        return conv2d(input.unsqueeze(0), weight, bias, stride, padding, dilation, groups).squeeze(
            0
        )
    if input.ndim != 4 or weight.ndim != 4:
        raise ValueError(
            f"conv2d takes input (N, C, H, W) and weight (O, C/groups, kh, kw), got {input.shape} "
            f"and {weight.shape}"
        )
    out_channels, group_channels, *_ = weight.shape
    if input.shape[1] != group_channels * groups or out_channels % groups:
        raise ValueError(
            f"conv2d: input has {input.shape[1]} channels, weight {weight.shape} with groups = "
            f"{groups} needs {group_channels * groups}, and {out_channels} outputs must divide"
        )
    if input.dtype is not weight.dtype:
        raise TypeError(f"conv2d: input is {input.dtype} but weight is {weight.dtype}")
    if bias is not None and bias.shape != (out_channels,):
        raise ValueError(f"conv2d: bias {bias.shape} must be ({out_channels},)")
    size = (weight.shape[2], weight.shape[3])
    steps, spread = _pair(stride), _pair(dilation)
    if padding == "same":
        if steps != (1, 1):
            raise ValueError(f"padding='same' needs stride 1, got {stride}")
        counts = _same(size, spread)
    elif isinstance(padding, str) and padding != "valid":
        raise ValueError(f"padding is a number, a pair, 'same' or 'valid', not {padding!r}")
    else:
        rows, columns = _pair(0 if padding == "valid" else padding)
        counts = [columns, columns, rows, rows]
    x = pad(input, counts) if any(counts) else input
    if any(n < d * (k - 1) + 1 for n, k, d in zip(x.shape[2:], size, spread, strict=True)):
        raise ValueError(f"conv2d: kernel {size} is larger than the padded input {x.shape}")

    patches: Tensor = _windows(x, size=size, stride=steps, dilation=spread)
    n, _, oh, ow = patches.shape[:4]
    columns_shape = (n, groups, group_channels * size[0] * size[1], oh * ow)
    patches = patches.permute(0, 1, 4, 5, 2, 3).reshape(columns_shape)  # (N, G, C/G·kh·kw, oh·ow)
    kernels = weight.reshape(groups, out_channels // groups, columns_shape[2])
    out = matmul(kernels, patches).reshape(n, out_channels, oh, ow)
    return out if bias is None else out + bias.reshape(-1, 1, 1)


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlate sequences with kernels: input (N, C, L), weight (O, C/groups, k).

    See `conv2d`, of which this is the case of height 1.

    Raises:
        ValueError: the shapes or the padding don't fit.
        TypeError: the dtypes differ.
    """
    if input.ndim not in (2, 3) or weight.ndim != 3:
        raise ValueError(
            f"conv1d takes input (N, C, L) and weight (O, C/groups, k), got {input.shape} "
            f"and {weight.shape}"
        )

    def flat(value: Any) -> int:
        return value if isinstance(value, int) else value[0]

    sides = padding if isinstance(padding, str) else (0, flat(padding))
    out = conv2d(
        input.unsqueeze(-2),
        weight.unsqueeze(-2),
        bias,
        (1, flat(stride)),
        sides,
        (1, flat(dilation)),
        groups,
    )
    return out.squeeze(-2)
