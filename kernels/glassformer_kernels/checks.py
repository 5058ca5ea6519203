"""What is asked of every kernel's arguments before anything is launched."""

from __future__ import annotations

from typing import Any

import torch

from glassformer_kernels import launch

CAUSAL = (None, "top_left", "bottom_right")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def describe(tensor: torch.Tensor) -> str:
    """Return shape, dtype and device in words, for errors."""
    name = str(tensor.dtype).removeprefix("torch.")
    return f"{tuple(tensor.shape)} {name} on {tensor.device}"


def check_tensors(op: str, **tensors: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Return what is given, without None; raise TypeError unless all are PyTorch's tensors."""
    given = {name: x for name, x in tensors.items() if x is not None}
    for name, x in given.items():
        if not isinstance(x, torch.Tensor):
            kind = f"{type(x).__module__}.{type(x).__qualname__}".removeprefix("builtins.")
            raise TypeError(
                f"{op}: {name} must be a torch.Tensor, got {kind}; torch.as_tensor makes one of an "
                "array or a list"
            )
    return given


def check_devices(op: str, **tensors: torch.Tensor | None) -> None:
    """Raise ValueError unless all the tensors given are on one device, where kernels run."""
    given = check_tensors(op, **tensors)
    if len({x.device for x in given.values()}) > 1:
        where = ", ".join(f"{name} on {x.device}" for name, x in given.items())
        raise ValueError(f"{op}: tensors must be on one device, got {where}")
    device = next(iter(given.values())).device
    if device.type != "meta":  # shapes alone: nothing is run
        launch.check_device(op, device)


def check_floats(op: str, **tensors: torch.Tensor | None) -> None:
    """Raise TypeError unless the tensors given are float32, float16 or bfloat16, all the same."""
    given = check_tensors(op, **tensors)
    for name, x in given.items():
        if x.dtype not in FLOATS:
            raise TypeError(f"{op}: {name} must be float32, float16 or bfloat16, got {x.dtype}")
    if len({x.dtype for x in given.values()}) > 1:
        what = ", ".join(f"{name} {x.dtype}" for name, x in given.items())
        raise TypeError(f"{op}: tensors must have one dtype, got {what}")


def check_bool(op: str, name: str, mask: torch.Tensor | None) -> None:
    """Raise TypeError unless the mask is bool: whether a 1 shows or hides can't be guessed."""
    check_tensors(op, **{name: mask})
    if mask is not None and mask.dtype is not torch.bool:
        raise TypeError(
            f"{op}: {name} must be bool (True takes part), got {mask.dtype}; convert one of 1 and "
            f"0 with {name} != 0, one of 0 and -inf with {name} == 0"
        )


def check_causal(op: str, causal: str | None) -> None:
    """Raise ValueError unless `causal` is one of `CAUSAL`."""
    if causal not in CAUSAL:
        raise ValueError(
            f"{op}: causal must be None, 'top_left' or 'bottom_right', got {causal!r}; 'top_left' "
            "is PyTorch's is_causal=True, 'bottom_right' is for keys from a cache"
        )


def check_product(op: str, x: torch.Tensor) -> None:
    """Raise ValueError where a product of matrices would be wrong: bfloat16, interpreted."""
    if launch.INTERPRETED and x.dtype is torch.bfloat16 and x.device.type == "cpu":
        raise ValueError(
            f"{op}: Triton's interpreter multiplies bfloat16 matrices wrongly; use float32 or "
            "float16 there, or a GPU"
        )


def check_broadcasts(op: str, name: str, x: torch.Tensor | None, full: tuple[int, ...]) -> None:
    """Raise ValueError unless x can be broadcast to the shape `full`."""
    if x is None:
        return
    shape = tuple(x.shape)
    fits = len(shape) <= len(full) and all(
        n in (1, m) for n, m in zip(reversed(shape), reversed(full), strict=False)
    )
    if not fits:
        raise ValueError(f"{op}: {name} {shape} can't be broadcast to {full}")


def only_once_differentiable(op: str, backward: torch.library.CustomOpDef) -> None:
    """Let a second derivative through an operator for the first one say that there is none."""

    def refuse(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(
            f"{op} of glassformer_kernels can be differentiated only once; for a second derivative "
            "use PyTorch's own operations, or the engine's (glassformer.nn.functional)"
        )

    backward.register_autograd(refuse)
