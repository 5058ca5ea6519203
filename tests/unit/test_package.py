"""The package as its users meet it: what a wheel holds, an import costs and make installs."""

import ast
import email
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import glassformer

ROOT = Path(__file__).parents[2]

MAX_WHEEL_BYTES = 670_000  # NumPy takes twenty times as much
MAX_IMPORT_SECONDS = 0.030  # beyond NumPy's own
OPTIONAL = {"torch", "triton", "transformers", "matplotlib", "tqdm", "tokenizers", "jinja2", "PIL"}


def run(*command, env=None, cwd=ROOT):
    """The finished process of a command, its output captured as text."""
    environment = {**os.environ, **(env or {})}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


def python(code, **kwargs):
    """What a fresh interpreter prints for `code`, with warnings as errors."""
    done = run(sys.executable, "-W", "error", "-c", code, **kwargs)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    done = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel):
    """The wheel's METADATA, parsed."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def test_wheel_is_pure_python_and_small(wheel):
    assert wheel.name == f"glassformer-{glassformer.__version__}-py3-none-any.whl"
    assert wheel.stat().st_size <= MAX_WHEEL_BYTES


def test_wheel_holds_three_packages_and_nothing_but_python(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = [Path(name) for name in archive.namelist() if ".dist-info/" not in name]
    assert {f.parts[0] for f in files} == {
        "glassformer",
        "glassformer_kernels",
        "glassformer_bench",
    }
    assert {f for f in files if f.suffix != ".py"} == {Path("glassformer/py.typed")}


def test_wheel_installs_the_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "glassformer = glassformer.cli:main" in archive.read(name).decode()


def test_core_needs_numpy_and_safetensors_alone(metadata):
    core = {line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    assert core == {"numpy>=2", "safetensors>=0.8"}


def test_metadata_names_license_and_python(metadata):
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.10"
    assert set(metadata.get_all("Provides-Extra")) == {
        *("gpu", "hub", "train", "vision", "plot", "bench", "test", "dev")
    }


def test_every_file_is_python_3_10():
    files = [
        path
        for root in ("engine", "kernels", "benchmarks")
        for path in ROOT.glob(f"{root}/**/*.py")
    ]
    assert len(files) > 90
    for path in files:
        ast.parse(path.read_text(), str(path), feature_version=(3, 10))


def test_import_loads_no_optional_package():
    loaded = python("import sys, glassformer; print(*{m.partition('.')[0] for m in sys.modules})")
    assert "numpy" in loaded.split()
    assert OPTIONAL.isdisjoint(loaded.split())


def test_import_costs_little_beyond_numpy():
    # Timed after NumPy's own import, in a fresh interpreter each time. Noise only ever adds, so the
    # fastest run is the estimate, and one run under the limit settles the question. Bytecode is
    # kept between runs, as it is where the package is installed: compiling is not importing.
    code = (
        "import numpy, time; start = time.perf_counter(); import glassformer;"
        "print(time.perf_counter() - start)"
    )
    seconds = []
    while len(seconds) < 15 and min(seconds, default=1) > MAX_IMPORT_SECONDS:
        seconds.append(float(python(code, env={"PYTHONDONTWRITEBYTECODE": ""})))
    assert min(seconds) <= MAX_IMPORT_SECONDS


@pytest.mark.parametrize(
    ("env", "examples", "derandomized"),
    [
        ({"HYPOTHESIS_PROFILE": "ci"}, 100, True),
        ({"HYPOTHESIS_PROFILE": "dev"}, 20, False),
        ({"HYPOTHESIS_PROFILE": "nightly"}, 5000, False),
        ({"HYPOTHESIS_PROFILE": "dev", "CI": "true"}, 20, False),
        ({"HYPOTHESIS_PROFILE": "", "CI": "true"}, 100, True),
    ],
)
def test_hypothesis_profile_follows_the_environment(env, examples, derandomized):
    shown = python(
        "import tests.conftest; from hypothesis import settings; s = settings();"
        "print(s.max_examples, s.derandomize, s.deadline)",
        env=env,
    )
    assert shown == f"{examples} {derandomized} None"


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@needs_make
def test_make_demo_installs_the_core_alone():
    plan = run("make", "--dry-run", "--always-make", f"PYTHON={sys.executable}", "demo").stdout
    (install,) = [line for line in plan.splitlines() if "pip install" in line]
    assert install.endswith("--editable .")


@needs_make
def test_make_test_runs_the_ci_profile_on_two_workers():
    plan = run("make", "--dry-run", "test").stdout
    assert "HYPOTHESIS_PROFILE=${HYPOTHESIS_PROFILE:-ci}" in plan
    assert "pytest -n 2" in plan


@needs_make
def test_make_names_an_old_python_in_one_line_and_makes_nothing(tmp_path):
    old = tmp_path / "python3.8"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.19 || exit 1\n')
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    done = run("make", f"PYTHON={old}", "demo", cwd=tmp_path)
    assert done.returncode != 0
    ours = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert ours == [
        "glassformer needs Python 3.10 or newer, found Python 3.8.19; name one: make PYTHON=..."
    ]
    assert not (tmp_path / ".venv").exists()


# Each module of a toy package named like ours, with an import that the contracts must refuse.
FORBIDDEN_IMPORTS = {
    "backends": "glassformer.tensor",
    "autograd": "glassformer.ops",
    "ops": "glassformer.fused",
    "fused": "glassformer.nn",
    "nn": "glassformer.optim",
    "optim": "glassformer.models",
    "data": "glassformer.training",
    "models": "glassformer.generation",
    "generation": "glassformer.cli",
    "tensor": "torch",
    "training": "transformers",
    "inspection": "matplotlib",
    "cli": "glassformer_kernels",
}


def lint_imports(folder, imports):
    """import-linter, under this project's contracts, over a package of one-import modules."""
    pytest.importorskip("importlinter")
    package = folder / "glassformer"
    package.mkdir()
    (package / "__init__.py").touch()
    for name in FORBIDDEN_IMPORTS:
        (package / f"{name}.py").write_text(imports.get(name, ""))
    for name in (name for name in imports if "/" in name):
        path = package / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.parent.with_suffix(".py").unlink(missing_ok=True)  # a package in a module's place
        (path.parent / "__init__.py").touch()
        path.write_text(imports[name])
    shutil.copy(ROOT / "pyproject.toml", folder)
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return run(sys.executable, "-c", code, env={"PYTHONPATH": str(folder)}, cwd=folder)


def test_import_contracts_refuse_each_wrong_direction(tmp_path):
    wrong = {name: f"import {target}\n" for name, target in FORBIDDEN_IMPORTS.items()}
    done = lint_imports(tmp_path, wrong)
    assert done.returncode == 1, done.stderr
    for name, target in FORBIDDEN_IMPORTS.items():
        assert f"glassformer.{name} -> {target} " in done.stdout.replace("\n", " ")


def test_import_contracts_allow_downward_and_type_only_imports(tmp_path):
    right = {
        "cli": "import glassformer.training\n",
        "training": "import glassformer.models\n",
        "models": "import glassformer.nn\n",
        "ops": "import glassformer.autograd\n",
        "tensor": "import typing\nif typing.TYPE_CHECKING:\n    import glassformer.nn\n",
    }
    done = lint_imports(tmp_path, right)
    assert done.returncode == 0, done.stdout + done.stderr


def test_import_contracts_let_one_backend_import_torch_and_no_other_module(tmp_path):
    files = ("backends/torch_backend", "backends/torch_indexing", "backends/numpy_backend")
    done = lint_imports(tmp_path, dict.fromkeys(files, "import torch\n"))
    assert done.returncode == 1, done.stderr
    shown = done.stdout.replace("\n", " ")
    assert "glassformer.backends.numpy_backend -> torch " in shown
    assert "torch_backend -> torch" not in shown and "torch_indexing -> torch" not in shown
