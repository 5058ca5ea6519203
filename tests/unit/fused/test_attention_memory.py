"""The attention kernel's memory grows with length, not with its square."""

import os
import subprocess
import sys

import pytest

import glassformer as gf

ENGINE = os.path.dirname(os.path.dirname(gf.__file__))
MEGABYTE = 2**20

# Peak memory only ever rises: each length is measured from the peak before it, the longer last.
PROGRAM = """
import numpy as np
import glassformer as gf
from glassformer import fused
from glassformer.fused.attention import attention

def peak():  # not getrusage's: that starts from the peak of the process that started this one
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

def measure(heads, length, **options):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((1, heads, length, 64), dtype="float32") for _ in range(4)]
    query, key, value, upstream = (gf.from_numpy(x) for x in arrays)
    for x in (query, key, value):
        x.requires_grad_()
    before = peak()
    if "mask" in options:  # of padding
        options["mask"] = gf.from_numpy(np.arange(length) < 0.9 * length)
    out = attention(query, key, value, causal="top_left", **options)
    out.backward(upstream)
    assert fused.last_kernel("scaled_dot_product_attention") == "numpy-blocked"
    print(peak() - before, flush=True)
    return arrays, out.detach().numpy(), query.grad.numpy()

measure(2, 1000)  # what the first call costs: imports, threads and their buffers
arrays, out, d_query = measure({heads}, {length}, **{options})
if {options}:
    raise SystemExit

query, key, value, upstream = (x[0, -1].astype("float64") for x in arrays)
for row in (0, 1, 600, {length} // 2, {length} - 1):
    scores = key[: row + 1] @ query[row] / 8  # 1/√64
    weights = np.exp(scores - scores.max())
    weights /= weights.sum()
    expected = weights @ value[: row + 1]
    d_weights = value[: row + 1] @ upstream[row]
    d_scores = weights * (d_weights - weights @ d_weights)
    for actual, formula in ((out, expected), (d_query, d_scores @ key[: row + 1] / 8)):
        np.testing.assert_allclose(actual[0, -1, row], formula, rtol=0, atol=1e-5)
"""


def extra_memory(heads, length, **options):
    """Bytes that forward and backward take beyond their inputs, in a process of their own."""
    program = PROGRAM
    for name, argument in (("heads", heads), ("length", length), ("options", options)):
        program = program.replace(f"{{{name}}}", repr(argument))
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=os.environ | {"PYTHONPATH": ENGINE},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return int(result.stdout.split()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_16384_tokens_take_far_less_than_their_scores():
    """Forward and backward, two heads: under 1 GB beyond the inputs; the scores are 2 GB.

    Nearly all of it is what must be there: the output and three gradients, 8 MB each.
    """
    extra = {length: extra_memory(2, length) for length in (8192, 16384)}
    assert extra[16384] < 100 * MEGABYTE
    assert extra[16384] < 2.3 * extra[8192]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_option_makes_a_matrix_of_its_own():
    options = {"mask": "padding", "softcap": 30.0, "dropout_p": 0.1, "seed": 0}
    assert extra_memory(1, 16384, **options) < 100 * MEGABYTE
