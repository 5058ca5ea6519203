"""Every provider is right where it says it can serve, and says why where it can't."""

import os
import shutil
import sys
from importlib.metadata import EntryPoint
from importlib.util import find_spec

import pytest
import torch

from glassformer_bench.cell import measure, oracles
from glassformer_bench.problem import OPS, Problem, normalised
from glassformer_bench.providers import known, plugged, resolve
from glassformer_bench.timing import Settings

SIZES = {"batch": 1, "heads": 2, "kv_heads": 2, "seqlen": 17, "seqlen_k": 17, "head_dim": 16}
# torch.compile takes most of a minute the first time; it has a test of its own.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None
TRITON = ("triton",) if INTERPRETED else ()  # on a GPU it has a test of its own, below
EVERYWHERE = ("engine-reference", "engine-fused", "eager", *TRITON)
TORCH_ATTENTION = ("sdpa", "sdpa-flash", "sdpa-math")


def check(provider, **fields):
    problem = normalised(Problem(**{**SIZES, "vocab": 40, **fields}))
    return measure(problem, known()[provider], Settings(), None, oracles(problem))


@pytest.mark.parametrize("provider", EVERYWHERE)
@pytest.mark.parametrize("op", OPS)
def test_our_providers_and_plain_pytorch_serve_every_operation(provider, op):
    row = check(provider, op=op, mode="fwd" if op == "decode" else "fwd_bwd")
    assert (row.status, row.reasons) == ("ok", [])


@pytest.mark.parametrize("provider", (*EVERYWHERE, *TORCH_ATTENTION))
@pytest.mark.parametrize(
    "fields",
    [
        {"causal": "top_left"},
        {"causal": "top_left", "seqlen_k": 30, "kv_heads": 1},
        {"causal": "bottom_right", "seqlen_k": 30},
        {"causal": "top_left", "window": (8, 0)},
        {"window": (5, 3)},
    ],
    ids=str,
)
def test_masks_and_shared_keys(provider, fields):
    row = check(provider, mode="fwd_bwd", **fields)
    assert (row.status, row.reasons) == ("ok", [])


@pytest.mark.parametrize("provider", (*EVERYWHERE, *TORCH_ATTENTION))
@pytest.mark.parametrize("fields", [{"kv_heads": 1}, {"window": (6, 0)}], ids=str)
def test_decode(provider, fields):
    row = check(provider, op="decode", **fields)
    assert (row.status, row.reasons) == ("ok", [])


@pytest.mark.parametrize("provider", EVERYWHERE)
def test_queries_that_see_no_key(provider):
    row = check(provider, mode="fwd_bwd", causal="bottom_right", seqlen_k=9)
    assert (row.status, row.reasons) == ("ok", [])


@pytest.mark.parametrize("provider", (*TRITON, "eager", "sdpa", "sdpa-math"))
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision(provider, dtype):
    if (provider, dtype) == ("triton", "bf16"):
        pytest.skip("Triton's interpreter can't multiply bf16")
    row = check(provider, mode="fwd_bwd", dtype=dtype, causal="top_left")
    assert (row.status, row.reasons) == ("ok", [])


@pytest.mark.parametrize("data", ["uniform", "outlier"])
@pytest.mark.parametrize("provider", ("engine-fused", *TRITON, "sdpa"))
def test_other_data(provider, data):
    row = check(provider, mode="fwd_bwd", data=data)
    assert (row.status, row.reasons) == ("ok", [])


@pytest.mark.parametrize(
    ("provider", "fields", "reason"),
    [
        ("engine-fused", {"dtype": "bf16"}, "NumPy has no bf16"),
        ("sdpa", {"op": "softmax"}, "sdpa has no softmax"),
        ("sdpa", {"causal": "bottom_right", "seqlen_k": 9}, "some queries see no key"),
        ("sdpa-cudnn", {}, "needs a CUDA GPU"),
        ("flash_attn", {}, "flash_attn is not installed: pip install flash-attn"),
        ("xformers", {}, "xformers is not installed: pip install xformers"),
        ("flex", {"mode": "bwd"}, "no backward on the CPU"),
        *((name, {"head_dim": 512}, "at most 256") for name in TRITON),
    ],
)
def test_what_is_not_served_is_said(provider, fields, reason):
    row = check(provider, **fields)
    assert row.status == "unsupported"
    assert reason in row.reasons[0]


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_triton_without_its_interpreter_needs_a_gpu(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "compiles for a GPU" in known()["triton"].missing("cpu")


def test_the_engine_says_which_kernel_served():
    problem = normalised(Problem(**SIZES))
    for name, kernel in (("engine-fused", "numpy-blocked"), ("engine-reference", "reference")):
        from glassformer_bench.inputs import Source

        bound = known()[name].bind(problem, Source(problem, 0).inputs())
        bound.forward()
        assert bound.kernel() == kernel


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", [*known()])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_on_a_gpu_everyone_is_right_or_says_why_not(name, op, dtype):
    problem = normalised(
        Problem(
            op=op,
            heads=4,
            kv_heads=4,
            seqlen=200,
            seqlen_k=200,
            vocab=1000,
            dtype=dtype,
            device="cuda",
            mode="fwd" if op == "decode" else "fwd_bwd",
        )
    )
    provider = known()[name]
    row = measure(problem, provider, Settings(), None, oracles(problem))
    assert row.status == ("unsupported" if provider.reasons(problem) else "ok"), row.reasons


@pytest.mark.large
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("provider", ["compile", "flex"])
def test_compiled_providers(provider):
    row = check(provider, causal="top_left", seqlen=64, seqlen_k=64)
    assert (row.status, row.reasons) == ("ok", [])


def test_providers_are_named_once():
    assert [p.name for p in resolve(["sdpa", "sdpa", "eager"], [])] == ["sdpa", "eager"]
    with pytest.raises(ValueError, match="there is no provider 'fast'; there are engine-reference"):
        resolve(["fast"], [])
    with pytest.raises(ValueError, match="a provider 'sdpa' already"):
        resolve([], ["sdpa=torch.nn.functional:scaled_dot_product_attention"])


def test_kernels_of_installed_packages(monkeypatch):
    group = "glassformer_bench.kernels"
    installed = [
        EntryPoint("theirs", "torch.nn.functional:scaled_dot_product_attention", group),
        EntryPoint("broken", "no_such_package:kernel", group),
    ]
    monkeypatch.setattr(
        "importlib.metadata.entry_points",
        lambda group: installed if group == "glassformer_bench.kernels" else [],
    )
    found = known()
    assert found["theirs"].about == ("plugged in: torch.nn.functional:scaled_dot_product_attention")
    assert "no_such_package" in found["broken"].missing("cpu")


def test_a_class_of_providers_can_be_plugged_in(tmp_path):
    source = tmp_path / "mine.py"
    source.write_text(
        "from glassformer_bench.providers import TorchProvider\n"
        "class Mine(TorchProvider):\n"
        "    ops = ('softmax',)\n"
        "    def prepare(self, problem, device):\n"
        "        return lambda x: x.softmax(-1)\n"
    )
    provider = plugged(f"mine={source}:Mine")
    problem = normalised(Problem(op="softmax", mode="fwd_bwd", **SIZES))
    assert measure(problem, provider, Settings(), None, oracles(problem)).status == "ok"
    assert provider.reasons(Problem(**SIZES)) == ["mine has no attention"]


def test_listing_imports_none_of_the_optional_packages():
    for name in ("flash_attn", "xformers"):
        assert name not in sys.modules
    assert torch is sys.modules["torch"]
