"""The kernels in the engine's registry: its fused operations, served by Triton on its devices.

The engine calls `register` when `cuda` is first used, and `register_interpreted` for `torch-cpu`
(the entry points of pyproject.toml). Arrays are torch tensors; how a kernel is called, and what
`unsupported` means, is said at `glassformer.fused.registry.Kernel`. What a kernel can't serve
(float64, class weights) the engine's reference does, in PyTorch's operations; where Triton is not
installed (it is made for Linux), all of them.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from glassformer.fused.registry import get

if TYPE_CHECKING:
    from glassformer_kernels.serving.reasons import Served


def served() -> dict[str, Served]:
    """Return the adapter of each fused operation that has a kernel."""
    from glassformer_kernels.serving import attention, elementwise, losses, rows

    return {
        "softmax": rows.SOFTMAX,
        "log_softmax": rows.LOG_SOFTMAX,
        "layer_norm": rows.LAYER_NORM,
        "rms_norm": rows.RMS_NORM,
        "gelu": elementwise.GELU,
        "silu": elementwise.SILU,
        "swiglu": elementwise.SWIGLU,
        "cross_entropy": losses.CROSS_ENTROPY,
        "linear_cross_entropy": losses.LINEAR_CROSS_ENTROPY,
        "rotary_embedding": elementwise.ROTARY_EMBEDDING,
        "adamw_step": elementwise.ADAMW_STEP,
        "scaled_dot_product_attention": attention.ATTENTION,
    }


def register() -> None:
    """Register every kernel for the device type `cuda`."""
    if find_spec("triton"):
        for name, adapter in served().items():
            get(name).register(adapter.kernel("triton", "cuda"))


def register_interpreted() -> None:
    """Register every kernel for `torch-cpu`, where Triton's interpreter runs: TRITON_INTERPRET=1.

    Slow, and exact: that is for tests. Without the interpreter the references serve that device,
    and `glassformer.fused.explain` tells what is missing.
    """
    if not find_spec("triton"):
        return
    from glassformer_kernels import launch

    for name, adapter in served().items():
        if not launch.INTERPRETED:
            adapter = replace(adapter, unsupported=_not_interpreted)
        get(name).register(adapter.kernel("triton-interpreted", "torch-cpu"))


def _not_interpreted(*args: Any, **params: Any) -> list[str]:
    return ["Triton's interpreter is off; set TRITON_INTERPRET=1 before starting Python"]
