"""The command `attnbench`: what it prints, keeps and returns."""

import csv
import io
import json
import shlex
import signal
import subprocess
import sys

import pytest
import torch

from glassformer_bench import tables
from glassformer_bench.ceilings import Ceilings
from glassformer_bench.cli import main
from glassformer_bench.record import load, make_record, save
from tests.bench import cheats

SIZES = ("--batch", "1", "--heads", "2", "--head-dim", "16", "--threads", "1")
SMALL = (*SIZES, "--warmup-ms", "1", "--rep-ms", "10")

# A kernel as a user would write it, in 15 lines, with no more than PyTorch.
MINE = '''
import torch

def attention(query, key, value, is_causal=False, scale=1.0, block=64):
    """Attention a block of queries at a time: the scores never exist all at once."""
    out = torch.empty_like(query)
    for first in range(0, query.shape[2], block):
        rows = slice(first, min(first + block, query.shape[2]))
        scores = query[:, :, rows] @ key.transpose(-2, -1) * scale
        if is_causal:
            i = torch.arange(rows.start, rows.stop, device=query.device)[:, None]
            j = torch.arange(key.shape[2], device=query.device)
            scores = scores.masked_fill(j > i, float("-inf"))
        out[:, :, rows] = scores.softmax(-1) @ value
    return out
'''


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    def measure(self, dtypes):
        self.flops = dict.fromkeys(dtypes, 1e15)
        self.copy = self.read = 1e15

    monkeypatch.setattr(Ceilings, "measure", measure)


def test_a_run_prints_a_checked_table_and_keeps_the_record(tmp_path, capsys):
    path = tmp_path / "run.json"
    options = f"--provider engine-fused,sdpa --seqlen 32,48 --mode fwd_bwd --json {path} --tag t"
    assert main(["run", *SMALL, *options.split()]) == 0
    told = capsys.readouterr()
    assert told.out.count("engine-fused  ok") == told.out.count("sdpa          ok") == 2
    assert "attention B1 H2 Tq48 D16 fp32 fwd_bwd hot" in told.out
    assert "speed-up over sdpa" in told.out
    assert "[4 of 4" in told.err
    if not torch.cuda.is_available():
        assert told.err.count("No CUDA GPU") == 1

    record = load(path)
    assert record["schema"] == 1
    assert record["tag"] == "t"
    assert record["command"].startswith("attnbench run --batch 1")
    for name in ("cpu", "threads", "versions", "blas", "variables", "git_commit", "gpu", "driver"):
        assert name in record["environment"]
    assert [row["status"] for row in record["rows"]] == ["ok"] * 4
    for row in record["rows"]:
        assert row["n"] == len(row["samples_ms"])
        assert set(row["errors"]) == {"out", "d_query", "d_key", "d_value"}
        assert row["p10"] <= row["p50"] <= row["p90"]
    assert record["rows"][1]["speedup"] == 1


def test_the_command_of_a_row_makes_the_same_row_again(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    first, again = tmp_path / "a.json", tmp_path / "b.json"
    kernel = ["--kernel", f"mine={path}:attention"]
    options = "--seqlen 32,64 --seqlen-k 80 --causal both --data uniform --seed 3 --window 5,-1"
    arguments = ["run", *SMALL, "-q", *kernel, "--provider", "sdpa", *options.split()]
    assert main([*arguments, "--json", str(first)]) == 0
    for row in load(first)["rows"][-2:]:
        argv = shlex.split(row["command"])
        assert argv[0] == "attnbench"
        main([*argv[1:], "-q", "--json", str(again)])
        (other,) = load(again)["rows"]
        for name in ("provider", "problem", "status", "timer", "l2", "reasons"):
            assert other[name] == row[name]


def test_a_kernel_of_fifteen_lines(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    options = f"--kernel mine={path}:attention --provider sdpa --seqlen 80 --causal both"
    assert main(["run", *SMALL, *options.split(), "-q"]) == 0
    out = capsys.readouterr().out
    assert out.count("mine      ok") == 2


def test_a_wrong_row_shows_no_speed_and_fails_the_run(capsys):
    options = ["--kernel", f"zeros={cheats.__file__}:zeros", "--seqlen", "32", "-q"]
    assert main(["run", *SMALL, *options]) == 1
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("zeros"))
    status, *rest = line.split()[1:]
    assert status == "wrong"
    assert len(rest) == 2  # the largest and the mean error
    assert main(["run", *SMALL, *options, "--check", "warn"]) == 0
    assert main(["verify", *SIZES, *options]) == 1


def test_check_off_is_said(capsys):
    options = ["--kernel", f"zeros={cheats.__file__}:zeros", "--seqlen", "32", "--check", "off"]
    assert main(["run", *SMALL, *options, "-q"]) == 0
    assert "unchecked" in capsys.readouterr().out


@pytest.mark.parametrize("op", ["softmax", "layer_norm", "cross_entropy", "decode"])
def test_every_operation(op, capsys):
    options = f"--op {op} --provider engine-fused,engine-reference,eager --seqlen 24 --vocab 100 -q"
    assert main(["run", *SMALL, *options.split()]) == 0
    assert capsys.readouterr().out.count(" ok ") == 3


def test_csv_and_markdown(tmp_path, capsys):
    target = tmp_path / "rows.csv"
    options = f"--provider engine-fused,flash_attn --seqlen 32 -q --csv {target} --md"
    assert main(["run", *SMALL, *options.split()]) == 0
    rows = list(csv.DictReader(io.StringIO(target.read_text())))
    assert [row["status"] for row in rows] == ["ok", "unsupported"]
    assert float(rows[0]["p50"]) > 0
    assert rows[0]["seqlen"] == "32"
    assert "not installed" in rows[1]["reasons"]
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("|")]
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {len(tables.COLUMNS) + 1}


def test_a_picture_of_the_run(tmp_path, capsys):
    target = tmp_path / "run.svg"
    options = f"--provider engine-fused,sdpa --seqlen 16,32 -q --plot {target}"
    assert main(["run", *SMALL, *options.split()]) == 0
    assert target.read_text().count("<title>sdpa: ") == 2 * 3  # in each of three charts


def test_list_names_every_provider_with_its_reason(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name in (
        *("engine-reference", "engine-fused", "triton", "sdpa", "sdpa-flash", "sdpa-cudnn"),
        *("sdpa-math", "flex", "flash_attn", "xformers", "compile"),
    ):
        assert f"\n{name} " in "\n" + out
    assert "flash_attn is not installed: pip install flash-attn" in out


def test_env_is_json(capsys):
    assert main(["env"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"] == torch.__version__
    assert found["cores"] >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--provider", "nothing"], "there is no provider 'nothing'"),
        (["run", "--provider", "sdpa", "--baseline", "eager"], "--baseline eager is not among"),
        (["run", "--heads", "6", "--kv-heads", "4"], "can't share"),
        (["run", "--kernel", "mine"], "--kernel takes NAME="),
        (["run", "--op", "decode", "--mode", "bwd"], "decode has no backward"),
    ],
)
def test_what_makes_no_sense_is_said_in_a_line(arguments, message, capsys):
    assert main([*arguments, "-q"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("attnbench: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--seqlen", "long"],
        ["--dtype", "fp8"],
        ["--window", "a"],
        ["--threads", "0"],
        ["--op", "x"],
    ],
)
def test_usage_errors_exit_with_two(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["run", *arguments])
    assert stopped.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capsys):
    assert main(["run", "--device", "cuda"]) == 2
    assert "no CUDA GPU" in capsys.readouterr().err


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "glassformer_bench", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    for command in ("list", "env", "verify", "run", "compare", "plot", "report"):
        assert command in done.stdout


def test_every_option_at_once(tmp_path):
    path = tmp_path / "a.json"
    options = (
        "--op attention --provider engine-fused,sdpa --batch 2 --heads 4 --kv-heads 2 --seqlen 24 "
        "--seqlen-k 32 --head-dim 8,16 --causal both --window 9,-1 --dtype fp32 --mode fwd,bwd "
        "--device cpu --threads 1 --timer wall --l2 both --data outlier --seed 7 --check warn "
        "--warmup-ms 1 --rep-ms 5 --max-noise 900% --baseline engine-fused --tag all -q"
    )
    saved = ["--json", str(path), "--csv", str(tmp_path / "a.csv"), "--md", str(tmp_path / "a.md")]
    assert main(["run", *options.split(), *saved, "--plot", str(tmp_path / "a.svg")]) == 0
    rows = load(path)["rows"]
    assert len(rows) == 2 * 2 * 2 * 2 * 2  # head dims, causal or not, modes, caches, providers
    for row in rows:
        assert row["status"] == "ok", row["reasons"]
        p = row["problem"]
        sizes = [p[name] for name in ("batch", "heads", "kv_heads", "seqlen", "seqlen_k")]
        assert sizes == [2, 4, 2, 24, 32]
        assert (p["window"], p["data"], p["seed"]) == ("9,-1", "outlier", 7)
        assert (row["speedup"] == 1) == (row["provider"] == "engine-fused")
    assert {row["l2"] for row in rows} == {"cold", "hot"}
    assert all((tmp_path / name).stat().st_size for name in ("a.csv", "a.md", "a.svg"))


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("how", [(), ("--isolate",)], ids=["together", "isolated"])
def test_ctrl_c_keeps_the_finished_rows(how, tmp_path):
    path, kernel = tmp_path / "a.json", f"hangs={cheats.__file__}:hangs"
    command = [sys.executable, "-m", "glassformer_bench", "run", *SMALL, "--seqlen", "32"]
    command += ["--provider", "eager", "--kernel", kernel, "--json", str(path), *how]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in child.stderr:
        if line.startswith("[2 of 2"):
            child.send_signal(signal.SIGINT)
            break
    out, told = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "interrupted: 1 of 2 rows are finished" in told
    assert "eager" in out
    record = load(path)
    assert record["interrupted"]
    assert [(row["provider"], row["status"]) for row in record["rows"]] == [("eager", "ok")]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_before_the_first_row_is_quiet():
    """It comes while the command's own modules are imported."""
    code = (
        "import signal, sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'glassformer_bench.options': signal.raise_signal(signal.SIGINT)\n"
        "from glassformer_bench.cli import main\n"
        "sys.meta_path.insert(0, Interrupts()); sys.exit(main(['run']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "attnbench: interrupted\n"


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_a_reader_that_leaves_early_is_no_error():
    command = [sys.executable, "-m", "glassformer_bench", "list"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    assert child.stderr.read() == b""
    child.stderr.close()
    assert child.wait(timeout=60) == 141


def test_isolated_rows_with_a_time_limit(tmp_path, capfd):
    path = tmp_path / "a.json"
    options = f"--seqlen 32 --provider eager --timeout 60 --json {path}"
    assert main(["run", *SMALL, *options.split(), "--kernel", f"z={cheats.__file__}:zeros"]) == 1
    assert [row["status"] for row in load(path)["rows"]] == ["ok", "wrong"]
    assert "--timeout 60" in load(path)["rows"][0]["command"]


@pytest.mark.parametrize("command", ["run", "compare"])
def test_without_pytorch_it_says_what_to_install(command, tmp_path):
    path = tmp_path / "a.json"
    save(make_record([], {"system": 1, "threads": 1}, None), path)
    arguments = [command] if command == "run" else [command, str(path), str(path)]
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'torch' else real(n, *a)\n"
        f"from glassformer_bench.cli import main; sys.exit(main({arguments}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "attnbench: this needs PyTorch; install it: pip install 'glassformer[bench]'\n"
        if command == "run"
        else "attnbench: the two records have no row in common: nothing can be compared\n"
    )
