"""What README shows, works as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def run(code, folder, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_trains_and_generates(tmp_path):
    (example,) = (block for block in blocks("python") if "Trainer" in block)
    assert len(example.splitlines()) <= 15
    shorter = example.replace("max_steps=300", "max_steps=4")
    assert shorter != example
    text = run(shorter, tmp_path)
    assert text.startswith("The ") and len(text) > 200
    assert (tmp_path / "runs" / "readme" / "loss.svg").exists()


def test_the_sessions_run_from_a_bare_import(tmp_path):
    for block in blocks("python"):
        lines = [line[4:] for line in block.splitlines() if line.startswith(">>> ")]
        if lines:
            printed = run("\n".join(["import glassformer as gf", *lines]), tmp_path)
            assert "numpy-blocked" in printed and "taken" in printed


def test_the_kernels_work_in_plain_pytorch(tmp_path):
    pytest.importorskip("triton")
    (example,) = (block for block in blocks("python") if "glassformer_kernels" in block)
    setup = """
import torch
q, k, v = (torch.randn(1, 2, 5, 8, requires_grad=True) for _ in range(3))
bias = torch.randn(2, 5, 5, requires_grad=True)
hidden, weight = torch.randn(6, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
targets = torch.arange(6)
"""
    check = """
torch.testing.assert_close(
    gk.scaled_dot_product_attention(q, k, v, is_causal=True),
    torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True),
)
torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(hidden @ weight.T, targets))
(out.sum() + lse.sum() + loss).backward()
assert all(x.grad is not None for x in (q, k, v, bias, hidden, weight))
"""
    run(setup + example + check, tmp_path, TRITON_INTERPRET="1")


def test_what_attention_can_do_is_shown_by_tests_that_exist():
    rows = re.findall(r"^\| .* \| (?:Y|TL\+BR|1…256) \|.*\| (.*) \|$", README, re.MULTILINE)
    assert len(rows) >= 18
    for cell in rows:
        for file, name in re.findall(r"(test_\w+\.py)::(test_\w+)", cell):
            source = (ROOT / "tests" / "kernels" / file).read_text()
            assert f"def {name}(" in source, cell
        assert "::" in cell or cell == "all of them", cell


def test_each_family_is_shown_by_a_test_that_exists():
    shown = re.findall(r"^\| .* \| `(\w+/test_\w+\.py)::(test_\w+)` \|$", README, re.MULTILINE)
    assert len(shown) >= 11
    for file, name in shown:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), (file, name)


def test_the_map_names_folders_that_exist():
    for name in re.findall(r"^\| `(?:[├└] )?([\w/]+)/`", README, re.MULTILINE):
        assert (ROOT / name).is_dir() or (ROOT / "engine" / "glassformer" / name).is_dir(), name


def test_the_commands_are_targets_and_subcommands():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    helps = run(
        "from glassformer.cli.parser import build_parser; build_parser().print_help()", ROOT
    )
    for command in re.findall(r"^glassformer (\w+)", README, re.MULTILINE):
        assert command in helps, command
