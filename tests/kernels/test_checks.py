"""What every public function says of arguments that others take, and it doesn't."""

import os
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

import glassformer_kernels as gk  # noqa: E402 - after the skips
from glassformer_kernels import launch  # noqa: E402

pytestmark = pytest.mark.skipif(not launch.INTERPRETED, reason="TRITON_INTERPRET is not set")


def floats(*shape):
    return torch.linspace(-1, 1, int(np.prod(shape))).reshape(shape)


QKV = {name: floats(1, 2, 3, 4) for name in ("query", "key", "value")}
CU = torch.tensor([0, 3], dtype=torch.int32)
ROTARY = {"x": floats(3, 4), "cos": floats(3, 2), "sin": floats(3, 2)}
STATE = {name: floats(3) for name in ("param", "grad", "exp_avg", "exp_avg_sq")}
TARGET = torch.tensor([0, 2])

# function, its tensors, its other arguments
CALLS = {
    "attention": (gk.attention, QKV, {}),
    "attention's extras": (
        gk.attention,
        {
            **QKV,
            "mask": floats(3, 3) > 0,
            "bias": floats(3, 3),
            "alibi_slopes": floats(2),
            "sinks": floats(2),
        },
        {},
    ),
    "packed": (
        gk.attention,
        {**{name: floats(3, 2, 4) for name in QKV}, "cu_seqlens_q": CU, "cu_seqlens_k": CU},
        {},
    ),
    "cache": (gk.attention, {**QKV, "key_lengths": torch.tensor([2], dtype=torch.int32)}, {}),
    "scaled_dot_product_attention": (
        gk.scaled_dot_product_attention,
        {**QKV, "attn_mask": floats(3, 3)},
        {},
    ),
    "merge_attention": (
        gk.merge_attention,
        {"outputs": floats(2, 3, 4), "lses": floats(2, 3)},
        {},
    ),
    "softmax": (gk.softmax, {"x": floats(2, 3), "mask": floats(2, 3) > -2}, {}),
    "log_softmax": (gk.log_softmax, {"x": floats(2, 3)}, {}),
    "layer_norm": (
        gk.layer_norm,
        {name: floats(3) for name in ("x", "weight", "bias", "residual")},
        {"normalized_shape": 3},
    ),
    "rms_norm": (gk.rms_norm, {"x": floats(2, 3), "weight": floats(3)}, {"normalized_shape": 3}),
    "gelu": (gk.gelu, {"x": floats(3)}, {}),
    "silu": (gk.silu, {"x": floats(3)}, {}),
    "swiglu": (gk.swiglu, {"gate": floats(3), "up": floats(3)}, {}),
    "cross_entropy": (gk.cross_entropy, {"logits": floats(2, 3), "target": TARGET}, {}),
    "linear_cross_entropy": (
        gk.linear_cross_entropy,
        {"x": floats(2, 4), "weight": floats(3, 4), "target": TARGET, "bias": floats(3)},
        {},
    ),
    "rotary_embedding": (gk.rotary_embedding, ROTARY, {}),
    "adamw_step_": (gk.adamw_step_, {**STATE, "master": floats(3)}, {"lr": 0.1, "step": 1}),
}
TENSORS = [(what, name) for what, (_, tensors, _) in CALLS.items() for name in tensors]


@pytest.mark.parametrize(("what", "name"), TENSORS)
def test_arrays_and_lists_are_named_and_refused(what, name):
    function, tensors, options = CALLS[what]
    for convert, kind in ((torch.Tensor.numpy, "numpy.ndarray"), (torch.Tensor.tolist, "list")):
        given = {**tensors, name: convert(tensors[name])}
        words = (
            rf"{function.__name__}: {name} must be a torch\.Tensor, got {kind}; torch\.as_tensor"
        )
        with pytest.raises(TypeError, match=words):
            function(**given, **options)


def test_without_a_gpu_the_error_names_the_function_that_was_called():
    """In a process of its own: whether kernels are interpreted is decided on import."""
    program = """
import torch
import glassformer_kernels as gk
q, rows, target = torch.ones(1, 2, 3, 4), torch.ones(2, 4), torch.tensor([0, 1])
for name, call in {
    "attention": lambda: gk.attention(q, q, q),
    "scaled_dot_product_attention": lambda: gk.scaled_dot_product_attention(q, q, q),
    "softmax": lambda: gk.softmax(rows),
    "gelu": lambda: gk.gelu(rows),
    "silu": lambda: gk.silu(rows),
    "swiglu": lambda: gk.swiglu(rows, rows),
    "rms_norm": lambda: gk.rms_norm(rows, 4),
    "cross_entropy": lambda: gk.cross_entropy(rows, target),
    "rotary_embedding": lambda: gk.rotary_embedding(rows, rows[:, :2], rows[:, :2]),
    "adamw_step_": lambda: gk.adamw_step_(rows, rows, rows.clone(), rows.clone(), lr=1, step=1),
}.items():
    try:
        call()
    except ValueError as error:
        assert str(error).startswith(f"{name} runs on CUDA tensors, got tensors on cpu;"), error
        assert "set TRITON_INTERPRET=1" in str(error)
        print(name)
assert gk.softmax(rows.to("meta")).shape == (2, 4)  # shapes alone need no GPU
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 10


@pytest.mark.parametrize("op", [gk.layer_norm, gk.rms_norm])
def test_a_weight_in_the_place_of_the_shape_is_recognised(op):
    words = (
        rf"{op.__name__}: normalized_shape must be an int or a sequence of ints, got a tensor of "
        rf"shape \(4,\); .*: {op.__name__}\(x, weight\.shape, weight\)"
    )
    with pytest.raises(TypeError, match=words):
        op(floats(3, 4), floats(4))
    with pytest.raises(TypeError, match="got NoneType"):
        op(floats(3, 4), None, floats(4))
    with pytest.raises(TypeError, match=f"{op.__name__}: weight must be a torch.Tensor, got float"):
        op(floats(3, 4), 4, 1e-5)


def test_softmax_tells_what_pytorchs_is_causal_is_called():
    with pytest.raises(ValueError, match="softmax: causal must be .*, got True; 'top_left' is PyT"):
        gk.softmax(floats(3, 4), causal=True)


@pytest.mark.parametrize(
    ("mask", "kind", "words"),
    [
        (floats(5, 3), ValueError, r"attn_mask \(5, 3\) can't be broadcast to \(1, 2, 3, 3\)"),
        (floats(5, 3) > 0, ValueError, r"attn_mask \(5, 3\) can't be broadcast"),
        (floats(3, 3).double(), TypeError, "attn_mask must be float32, float16 or bfloat16"),
        (floats(3, 3).long(), TypeError, r"attn_mask must be bool .* with attn_mask != 0, one of"),
        (floats(3, 3).to("meta"), ValueError, "attn_mask on meta"),
    ],
)
def test_attn_mask_is_called_by_its_name_in_the_signature(mask, kind, words):
    with pytest.raises(kind, match=f"scaled_dot_product_attention: .*{words}"):
        gk.scaled_dot_product_attention(**QKV, attn_mask=mask)


ONCE = {
    "attention": lambda x: gk.attention(x, x, x),
    "softmax or log_softmax": gk.softmax,
    "layer_norm or rms_norm": lambda x: gk.rms_norm(x, 4),
    "gelu or silu": gk.gelu,
    "swiglu": lambda x: gk.swiglu(x, x),
    "cross_entropy": lambda x: gk.cross_entropy(x.reshape(6, 4), torch.zeros(6, dtype=torch.int64)),
    "linear_cross_entropy": lambda x: gk.linear_cross_entropy(
        x.reshape(6, 4), floats(3, 4), torch.zeros(6, dtype=torch.int64)
    ),
}


@pytest.mark.parametrize("what", ONCE)
def test_a_second_derivative_says_that_there_is_none(what):
    x = floats(1, 2, 3, 4).requires_grad_()
    out = ONCE[what](x)
    (first,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    words = rf"^{what} of glassformer_kernels can be differentiated only once; .* PyTorch's own"
    with pytest.raises(RuntimeError, match=words):
        torch.autograd.grad(first.square().sum(), x)
