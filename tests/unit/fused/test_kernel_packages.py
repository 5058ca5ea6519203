"""Kernels that other packages bring, by the entry-point group `glassformer.kernels`."""

import os
import subprocess
import sys

import pytest

import glassformer as gf

ENGINE = os.path.dirname(os.path.dirname(gf.__file__))

PROVIDER = """
import sys
from glassformer.fused import Kernel
from glassformer.fused.attention import scaled_dot_product_attention as op

print("imported", flush=True)

def forward(query, key, value, mask, bias, **params):
    return value * 0 + 42, ()

def register():
    if {fails!r}:
        raise RuntimeError("no such accelerator")
    op.register(Kernel("borrowed", "cpu", 1000, forward))
"""

USER = """
import glassformer as gf
from glassformer import fused
from glassformer.fused.attention import attention
x = gf.ones(1, 1, 2, 3)
"""


@pytest.fixture
def provider(tmp_path):
    """Installs a made-up distribution that offers a kernel, and runs Python where it is found."""

    def install(entry_name, fails=False):
        info = tmp_path / "borrowed_kernels-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: borrowed-kernels\nVersion: 1.0\n"
        )
        entry = f"[glassformer.kernels]\n{entry_name} = borrowed_kernels:register\n"
        (info / "entry_points.txt").write_text(entry)
        (tmp_path / "borrowed_kernels.py").write_text(PROVIDER.format(fails=fails))

    def run(code):
        path = os.pathsep.join([str(tmp_path), ENGINE])
        result = subprocess.run(
            [sys.executable, "-W", "error", "-c", USER + code],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.split("\n")[:-1]

    return install, run


@pytest.mark.parametrize("name", ["cpu", "cpu.borrowed"])
def test_kernels_of_another_distribution_are_found_on_first_use(provider, name):
    install, run = provider
    install(name)
    lines = run(
        "print('made')\n"
        "out = attention(x, x, x)\n"
        "print(fused.last_kernel('scaled_dot_product_attention'), out.numpy().max())\n"
        "print(fused.explain('scaled_dot_product_attention', x, x, x)[0].name)\n"
        "attention(x, x, x)\n"
    )
    assert lines == ["made", "imported", "borrowed 42.0", "borrowed"]


def test_explain_and_use_know_them_before_any_call(provider):
    install, run = provider
    install("cpu")
    assert run("print(fused.explain('scaled_dot_product_attention', x, x, x)[0].name)") == [
        "imported",
        "borrowed",
    ]
    lines = run(
        "with fused.use(scaled_dot_product_attention='borrowed'):\n"
        "    print(attention(x, x, x).numpy().max())\n"
    )
    assert lines == ["imported", "42.0"]


def test_those_for_other_devices_stay_unloaded(provider):
    install, run = provider
    install("cuda.borrowed")
    code = "attention(x, x, x)\nprint(fused.last_kernel('scaled_dot_product_attention'))\n"
    assert run(code) == ["numpy-blocked"]


def test_a_package_that_fails_to_register_fails_every_call(provider):
    """Not the first one alone: what follows would silently run something else."""
    install, run = provider
    install("cpu", fails=True)
    lines = run(
        "for _ in range(2):\n"
        "    try:\n"
        "        attention(x, x, x)\n"
        "    except RuntimeError as error:\n"
        "        print(error)\n"
    )
    assert lines == ["imported", "no such accelerator", "no such accelerator"]


def test_explain_says_why_triton_does_not_serve_the_cpu():
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    code = (
        "import glassformer as gf\n"
        "print(gf.fused.explain('softmax', gf.ones(2, 3, device='torch-cpu')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("triton-interpreted")]
    assert "Triton's interpreter is off; set TRITON_INTERPRET=1" in row, done.stderr
    assert "\nreference                priority    -  taken" in done.stdout
