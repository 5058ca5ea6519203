"""Ahead-of-time compilation: of our kernels for GPUs that aren't there, and the tool that does it.

The compiler runs in processes of their own: here Triton was told to interpret kernels.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import tests.kernel_calls  # noqa: F401 - skips where torch or triton is missing
from glassformer_kernels import aot, launch
from glassformer_kernels.aot_compile import Outcome
from glassformer_kernels.aot_report import Row, as_json, problem_of, table
from glassformer_kernels.resources import (
    Resources,
    matrix_instruction,
    read_amdgcn,
    read_ptxas,
)

ROOT = Path(__file__).parents[2]
COUNTS = ("registers", "spills", "shared_memory")
LIMITS = {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}  # bytes


def run(*arguments):
    """Run the tool where kernels can be compiled."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(
        map(str, (ROOT, ROOT / "engine", ROOT / "kernels", environment.get("PYTHONPATH", "")))
    )
    command = [sys.executable, "-m", "glassformer_kernels.aot", "--jobs", "2", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def compile_rows(*arguments):
    """Compile kernels, all of which must do, and return the report's rows."""
    done = run("--json", "-", *arguments)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert rows
    for row in rows:
        assert row["shared_memory"] <= LIMITS[row["target"]], row
    return rows


# ---- our kernels --------------------------------------------------------------------------------

ROW_WISE = (
    "^(softmax of (1024|262144) columns|(layer|rms)_norm of (1024|65536) columns"
    "|cross_entropy of 32768|linear_cross_entropy|activation gelu|swiglu|rotary|adamw)$"
)

ATTENTION = "^(attention d64 causal|decode d64 paged, 4 key heads)$"


def assert_fit_for_hopper(rows):
    """Assert what a fast attention kernel can't do without, of head dimension 64 or 128."""
    multiplying = [row for row in rows if row["kernel"] != "attention_delta"]
    assert {(row["kernel"], row["matrix"]) for row in multiplying} >= {
        (f"attention_{name}", "wgmma") for name in ("forward", "key_gradients", "query_gradients")
    }
    assert [row for row in rows if row["spills"]] == []
    assert [row for row in multiplying if row["matrix"] != "wgmma"] == []


@pytest.mark.parametrize("head_dim", [64, 128])
def test_attention_on_hopper_multiplies_with_wgmma_and_spills_nothing(head_dim):
    pattern = f"^attention d{head_dim} (full|causal(, 4 key heads)?)$"
    rows = compile_rows("--target", "sm_90", "--kernel", pattern)
    assert_fit_for_hopper(rows)


def test_attention_compiles_for_every_target():
    rows = compile_rows("--target", "sm_80,sm_100,gfx942", "--kernel", ATTENTION)
    assert {"attention_decode", "attention_merge"} <= {row["kernel"] for row in rows}
    matrix = {row["target"]: row["matrix"] for row in rows if row["kernel"] == "attention_forward"}
    assert matrix == {"sm_80": "mma", "sm_100": "tcgen05", "gfx942": "mfma"}


@pytest.mark.parametrize("targets", ["sm_80,sm_90", "sm_100,gfx942"])
def test_row_wise_kernels_compile_for_every_target(targets):
    rows = compile_rows("--target", targets, "--kernel", ROW_WISE)
    kernels = {row["kernel"] for row in rows if row["target"] in targets.split(",")}
    assert {
        "softmax_forward",
        "softmax_backward",
        "softmax_online_forward",
        "softmax_online_backward",
        "norm_forward",
        "norm_backward",
        "norm_tiled_forward",
        "norm_tiled_backward",
        "cross_entropy_forward",
        "cross_entropy_backward",
        "linear_cross_entropy_forward",
        "linear_cross_entropy_d_logits",
        "activation_forward",
        "activation_backward",
        "swiglu_forward",
        "swiglu_backward",
        "rotary",
        "adamw_step",
    } <= kernels


@pytest.mark.large
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("target", list(LIMITS))
def test_every_kernel_compiles(target, dtype):
    compile_rows("--target", target, "--dtype", dtype)


@pytest.mark.large
def test_every_half_precision_attention_of_head_dim_64_and_128_is_fit_for_hopper():
    pattern = "^attention d(64|128)"
    rows = compile_rows("--target", "sm_90", "--dtype", "bf16,fp16", "--kernel", pattern)
    assert_fit_for_hopper(rows)


# ---- the tool, on toys --------------------------------------------------------------------------


def run_toys(pattern, *arguments):
    done = run("--samples", "tests.aot_toys", "--kernel", pattern, "--json", "-", *arguments)
    return done, {
        (row["sample"], row["target"]): row
        for row in json.loads(done.stdout or '{"rows": []}')["rows"]
    }


def test_a_good_kernel_gives_its_figures_on_every_target():
    done, rows = run_toys("^product$")
    assert done.returncode == 0, done.stderr
    assert {target: row["matrix"] for (_, target), row in rows.items()} == {
        "sm_80": "mma",
        "sm_90": "wgmma",
        "sm_100": "tcgen05",
        "gfx942": "mfma",
    }
    for row in rows.values():
        # Two or three tiles of 128·64 numbers of 2 bytes for each operand, or none pipelined.
        assert 2 * 128 * 64 * 2 <= row["shared_memory"] <= 3 * 2 * 128 * 64 * 2 + 1024
        assert 64 <= row["registers"] <= 512
        assert row["spills"] == 0
        assert row["seconds"] > 0
        assert row["config"] == "BLOCK_M=128 BLOCK_N=128 BLOCK_K=64 warps=4 stages=3"
    assert "[4/4]" in done.stderr


def test_what_is_wrong_with_a_kernel_is_named_and_the_others_are_compiled():
    done, rows = run_toys("", "--target", "sm_90")
    assert done.returncode == 1
    problems = {sample: row["problem"] for (sample, _), row in rows.items()}
    assert problems.pop("product, deep") == "shared memory over 232448"
    assert "no wgmma" in problems.pop("product, narrow")
    assert "spills" in problems.pop("product, one warp")
    assert {sample for sample, problem in problems.items() if problem == "error"} == {
        "wrong",
        "raises",
        "crashes",
    }
    assert [problems["scale"], problems["product"]] == ["", ""]
    assert rows["wrong", "sm_90"]["kernel"] == "toy_wrong"
    assert "sm_90 toy_wrong · wrong bf16 · error" in done.stderr
    assert "incompatible dimensions" in rows["wrong", "sm_90"]["error"]
    assert "a call that can't be made" in rows["raises", "sm_90"]["error"]
    assert "as a compiler that aborts" in rows["crashes", "sm_90"]["error"]
    assert rows["product, one warp", "sm_90"]["spills"] > 0
    assert ("scale again", "sm_90") not in rows, "the same specialisation was compiled twice"


def test_the_table_shows_every_configuration_on_request():
    arguments = ("--samples", "tests.aot_toys", "--kernel", "^scale$", "--target", "sm_80")
    done = run(*arguments, "--all-configs", "--dtype", "bf16,fp32")
    assert done.returncode == 0, done.stderr
    header, *lines = done.stdout.splitlines()
    assert header.split("  ")[0] == "kernel"
    assert len(lines) == 4
    assert sum("BLOCK=256 warps=2" in line for line in lines) == 2
    assert sum("fp32" in line for line in lines) == 2


# ---- its pieces ---------------------------------------------------------------------------------

PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_kernel' for 'sm_90a'
ptxas info    : Function properties for _kernel
    24 bytes stack frame, 20 bytes spill stores, 28 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 24 bytes cumulative stack size
"""
AMDGCN = """
	v_mfma_f32_32x32x8_bf16_1k a[0:15], v[2:3], v[4:5], a[0:15]
amdhsa.kernels:
  - .agpr_count:     16
    .sgpr_count:     26
    .sgpr_spill_count: 1
    .vgpr_count:     122
    .vgpr_spill_count: 3
"""


def test_ptxas_log_is_read():
    assert read_ptxas(PTXAS, "wgmma.mma_async.sync") == Resources(168, 48, "wgmma")


def test_ptxas_says_when_wgmma_is_serialized():
    log = PTXAS + (
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are "
        "serialized due to insufficient register resources for the wgmma pipeline crossing "
        "function boundary at a function call in the function '_kernel'\n"
    )
    assert read_ptxas(log, "").serialized


def test_an_empty_ptxas_log_is_an_error():
    with pytest.raises(ValueError, match="said nothing of registers"):
        read_ptxas("ptxas info    : 0 bytes gmem", "")


def test_amd_metadata_is_read():
    assert read_amdgcn(AMDGCN) == Resources(122, 3 * 4, "mfma")


def test_assembly_without_metadata_is_an_error():
    with pytest.raises(ValueError, match="no .vgpr_count"):
        read_amdgcn("s_endpgm")


@pytest.mark.parametrize(
    ("text", "matrix"),
    [
        ("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%f1}", "wgmma"),
        ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1}", "mma"),
        ("tcgen05.mma.cta_group::1.kind::f16 [ %r1 + 0 ], %rd1;", "tcgen05"),
        ("v_mfma_f32_16x16x16_bf16 a[0:3], v[0:1], v[2:3], a[0:3]", "mfma"),
        ("mma.sync.aligned.m16n8k16 {%f1}; wgmma.mma_async.sync.aligned {%f1}", "wgmma"),
        ("tcgen05.alloc.cta_group::1.sync.aligned; fma.rn.f32 %f1, %f2, %f3, %f4;", "-"),
        ("wgmma.fence.sync.aligned;", "-"),
        ("v_fma_f32 v1, v2, v3, v4", "-"),
    ],
)
def test_matrix_instruction(text, matrix):
    assert matrix_instruction(text) == matrix


def outcome(spills=0, matrix="wgmma", shared=0, tensor=0, has_dot=True, serialized=False):
    taken = Resources(100, spills, matrix, serialized)
    return Outcome(1.0, taken, shared, tensor, has_dot)


@pytest.mark.parametrize(
    ("done", "target", "guarded", "problem"),
    [
        (outcome(), "sm_90", True, ""),
        (outcome(shared=232448), "sm_90", True, ""),
        (outcome(shared=232449), "sm_90", False, "shared memory over 232448"),
        (outcome(shared=65537), "gfx942", False, "shared memory over 65536"),
        (outcome(tensor=512), "sm_100", False, ""),
        (outcome(tensor=513), "sm_100", False, "tensor memory 513 over 512 columns"),
        (outcome(spills=8), "sm_90", True, "spills"),
        (outcome(spills=8), "sm_90", False, ""),
        (outcome(spills=8), "sm_80", True, ""),
        (outcome(matrix="mma"), "sm_90", True, "no wgmma"),
        (outcome(matrix="-", has_dot=False), "sm_90", True, ""),
        (outcome(serialized=True), "sm_90", True, ""),
        (outcome(spills=8, matrix="mma"), "sm_90", True, "spills, no wgmma"),
        (Outcome(error="no"), "sm_90", False, "error"),
    ],
)
def test_problem(done, target, guarded, problem):
    assert problem_of(done, target, guarded) == problem


ROWS = [
    Row("softmax", "rows of 8", "bf16", "B=8", "sm_90", 32, 0, 128, 232448, "-", False, 0.25, ""),
    Row(
        "broken", "x", "fp32", "", "gfx942", None, None, None, 65536, "", False, 0.0, "error", "why"
    ),
]


def test_the_table_says_where_wgmma_is_serialized():
    row = replace(ROWS[0], matrix="wgmma", serialized=True)
    assert " wgmma, serialized " in table([row])


def test_table_has_a_line_for_each_row_and_its_columns_align():
    header, softmax, broken = table(ROWS).splitlines()
    assert " ".join(softmax.split()) == "softmax rows of 8 bf16, B=8 sm_90 32 0 128 - 0.25"
    assert broken.endswith("error")
    for column, cell in (("target", "sm_90"), ("configuration", "rows of 8"), ("matrix", "-  ")):
        assert header.index(column) == softmax.index(cell)
    assert header.index("problem") == broken.index("error")


def test_json_has_what_the_table_has():
    report = json.loads(json.dumps(as_json(ROWS)))
    assert report["format"] == 1
    assert set(report) == {"format", "triton", "torch", "rows"}
    assert report["rows"][0] == {
        "kernel": "softmax",
        "sample": "rows of 8",
        "dtype": "bf16",
        "config": "B=8",
        "target": "sm_90",
        "registers": 32,
        "spills": 0,
        "shared_memory": 128,
        "shared_memory_limit": 232448,
        "matrix": "-",
        "serialized": False,
        "seconds": 0.25,
        "problem": "",
        "error": "",
    }
    assert all(report["rows"][1][name] is None for name in COUNTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "sm_90,sm_95"], "'sm_95' is unknown; known are sm_80, "),
        (["--dtype", "fp8"], "'fp8' is unknown; known are bf16, fp16, fp32"),
        (["--kernel", "("], r"'\(' is no regular expression"),
        (["--jobs", "0"], "must be a whole number from 1 on, got '0'"),
    ],
)
def test_wrong_arguments_end_with_2_and_a_reason(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        aot.main(arguments)
    assert message.replace("\\", "") in capsys.readouterr().err


def test_help_names_every_default(capsys):
    with pytest.raises(SystemExit, match="0"):
        aot.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count(" --") == shown.count("(default: ") + 1, "all but --help"
    assert "(default: sm_80,sm_90,sm_100,gfx942)" in shown and "(default: bf16)" in shown


def test_interpreted_kernels_cannot_be_compiled(monkeypatch, capsys):
    monkeypatch.setattr(launch, "INTERPRETED", True)
    assert aot.main([]) == 2
    assert capsys.readouterr().err == (
        "error: TRITON_INTERPRET is set, so kernels run in Python and can't be compiled; unset it\n"
    )


def test_a_pattern_that_nothing_matches_ends_with_2():
    done = run("--samples", "tests.aot_toys", "--kernel", "^nothing$")
    assert done.returncode == 2
    assert "no kernel's name and no sample's matches '^nothing$'" in done.stderr
