"""attnbench list | env | verify | run | compare | plot | report."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from glassformer_bench import compare as comparing
from glassformer_bench import options, tables
from glassformer_bench.disturbance import load
from glassformer_bench.environment import command_line, environment, gpu_state
from glassformer_bench.record import load as load_record
from glassformer_bench.record import make_record, save

_NEEDS_TORCH = "this needs PyTorch; install it: pip install 'glassformer[bench]'"
# On the CPU the compiled ones take a minute to compile: by request.
_DEFAULT_PROVIDERS = {
    "cpu": ("engine-reference", "engine-fused", "sdpa", "eager"),
    "cuda": (
        *("engine-reference", "engine-fused", "triton", "sdpa", "sdpa-flash", "sdpa-cudnn"),
        *("sdpa-math", "flex", "flash_attn", "xformers", "compile", "eager"),
    ),
}
_INTERRUPTED = 130


def run_command(argv: list[str]) -> int:
    """Run the command that the arguments name; return the exit code."""
    args = options.build_parser().parse_args(argv)
    try:
        if args.command == "compare":
            return _compare(args)
        if args.command == "report":
            return _report(args)
        if args.command == "plot":
            return _plot(args)
        if find_spec("torch") is None:
            raise ValueError(_NEEDS_TORCH)
        if args.command == "list":
            return _list(args)
        if args.command == "env":
            device = choose_device(args.device, is_quiet=True)
            print(json.dumps(environment(device, _threads(args)), indent=1))
            return 0
        return _run(args, argv)
    except ValueError as error:
        print(f"attnbench: {error}", file=sys.stderr)
        return 2


def choose_device(wanted: str, is_quiet: bool) -> str:
    """Return the device; say once where there is no GPU.

    Raises:
        ValueError: a GPU is wanted, and there is none.
    """
    import torch

    if torch.cuda.is_available():
        return "cpu" if wanted == "cpu" else "cuda"
    if wanted == "cuda":
        raise ValueError("--device cuda: PyTorch finds no CUDA GPU here")
    if wanted == "auto" and not is_quiet:
        print("No CUDA GPU: benchmarking on the CPU, by the wall clock.", file=sys.stderr)
    return "cpu"


def _threads(args: argparse.Namespace) -> int:
    import glassformer as gf

    return int(args.threads or gf.get_num_threads())


def _list(args: argparse.Namespace) -> int:
    from glassformer_bench.providers import known

    device = choose_device(args.device, is_quiet=True)
    for name, provider in known().items():
        reason = provider.missing(device)
        state = f"ready on {device}" if reason is None else f"not here: {reason}"
        print(f"{name:17} {provider.about}\n{'':17} {', '.join(provider.ops)}\n{'':17} {state}")
    return 0


def _run(args: argparse.Namespace, argv: list[str]) -> int:
    from glassformer_bench.providers import resolve
    from glassformer_bench.runner import Plan, run
    from glassformer_bench.timing import Settings

    is_timed = args.command == "run"
    device = choose_device(args.device, args.quiet)
    problems = options.problems(args, device)
    names = args.provider.split(",") if args.provider else [] if args.kernel else None
    if names is None:
        names = [n for n in _DEFAULT_PROVIDERS[device] if _has(n, args.op)]
    providers = resolve(names, args.kernel)
    chosen = [provider.name for provider in providers]
    baseline = _baseline(args.baseline, chosen) if is_timed else None
    threads = _threads(args)
    settings = Settings()
    if is_timed:
        settings = Settings(
            timer=args.timer,
            warmup_ms=args.warmup_ms,
            rep_ms=args.rep_ms,
            max_noise=args.max_noise,
        )
    states = options.l2_states(args.l2, device) if is_timed else ["hot"]
    check = args.check if is_timed else "strict"
    before, load_before = gpu_state() if device == "cuda" else None, load()
    outcome = run(
        Plan(
            problems=problems,
            providers=providers,
            settings=settings,
            l2=states,
            device=device,
            threads=threads,
            baseline=baseline,
            is_timed=is_timed,
            is_checked=check != "off",
            is_isolated=args.isolate,
            timeout=args.timeout,
            kernels=args.kernel,
            command=lambda row: command_line(options.row_arguments(row, args, threads)),
            is_quiet=args.quiet,
        )
    )
    record = make_record(
        [row.to_dict() for row in outcome.rows],
        environment(device, threads),
        None if outcome.ceilings is None else outcome.ceilings.to_dict(),
        command=command_line(argv),
        tag=args.tag,
        baseline=baseline,
        interrupted=outcome.is_interrupted,
        load_before=load_before,
        load_after=load(),
        gpu_before=before,
        gpu_after=gpu_state() if device == "cuda" else None,
    )
    _show(record, args)
    if outcome.is_interrupted:
        return _INTERRUPTED
    is_wrong = any(row.status == "wrong" for row in outcome.rows)
    return 1 if is_wrong and check == "strict" else 0


def _has(name: str, op: str) -> bool:
    from glassformer_bench.providers import known

    return op in known()[name].ops


def _baseline(wanted: str | None, names: Sequence[str]) -> str | None:
    if wanted is not None:
        if wanted not in names:
            raise ValueError(f"--baseline {wanted} is not among the providers: {', '.join(names)}")
        return wanted
    return next((n for n in ("sdpa", "eager") if n in names), names[0] if names else None)


def _show(record: dict[str, Any], args: argparse.Namespace) -> None:
    rows = record["rows"]
    if args.json:
        save(record, args.json)
    if args.csv:
        _write(args.csv, tables.csv_text(rows))
    if args.md:
        _write(args.md, heading(record) + "\n\n" + tables.markdown(rows) + "\n")
    if "-" not in (args.md, args.csv):
        print(heading(record))
        print(tables.text_table(rows))
    if getattr(args, "plot", None):
        from glassformer_bench.plot import draw

        draw([record], args.plot)


def heading(record: dict[str, Any]) -> str:
    """Return what the numbers of a table mean: the machine, the ceilings, the conventions."""
    environment = record["environment"]
    versions = environment["versions"]
    where = environment["gpu"] if environment["device"] == "cuda" else environment["cpu"]
    lines = [
        f"{where}, {environment['threads']} threads, torch {versions['torch']}, "
        f"numpy {versions['numpy']}, triton {versions['triton']}"
    ]
    busy = record.get("load_before")
    if busy is not None and busy > 0.5 and environment["device"] == "cpu":
        lines.append(
            f"load average {busy:.1f} on {environment['cores']} cores before the run: other "
            "processes may have disturbed it"
        )
    if record["ceilings"]:
        c = record["ceilings"]
        rates = ", ".join(f"{d} {f / 1e12:.3g} TFLOP/s" for d, f in c["flops"].items())
        lines.append(
            f"measured ceilings: {rates}; copy {c['copy'] / 1e9:.3g} GB/s, "
            f"read {c['read'] / 1e9:.3g} GB/s"
            + (" (other processes had the cores: too low)" if c.get("is_disturbed") else "")
        )
        lines += [record["convention"], tables.LEGEND]
        if record.get("baseline"):
            lines.append(f"speed-up over {record['baseline']}")
    doubt = tables.doubt(record["rows"])
    if doubt is not None:
        lines.append(doubt)
    if record.get("interrupted"):
        lines.append("interrupted: these are the rows that were finished")
    return "\n".join(lines)


def _write(target: str, text: str) -> None:
    if target == "-":
        print(text, end="")
    else:
        Path(target).write_text(text)


def _compare(args: argparse.Namespace) -> int:
    before, after = load_record(args.before), load_record(args.after)
    limit = comparing.parse_limit(args.fail_on)
    differences = comparing.machine_differences(before, after)
    if differences and not args.across_machines:
        print(
            "attnbench: these runs are of different machines, so their times can't be compared "
            "(--across-machines does it anyway)\n  " + "\n  ".join(differences),
            file=sys.stderr,
        )
        return comparing.OTHER_MACHINE
    changes = comparing.compare(before, after, limit)
    print(comparing.table(changes))
    first, second = comparing.only_in_one(before, after)
    if first or second:
        print(f"not compared: {first} rows of the first record alone, {second} of the second alone")
    worse = sum(change.is_regression for change in changes)
    print(f"{worse} of {len(changes)} rows are worse by more than {limit:.1%}")
    return comparing.REGRESSION if worse else comparing.SAME


def _report(args: argparse.Namespace) -> int:
    from glassformer_bench.report import page

    records = [load_record(path) for path in args.records]
    if args.output.suffix == ".md":
        parts = [f"{heading(r)}\n\n{tables.brief_markdown(r['rows'])}\n" for r in records]
        args.output.write_text("\n".join(parts))
    else:
        args.output.write_text(page(records))
    print(f"wrote {args.output}")
    return 0


def _plot(args: argparse.Namespace) -> int:
    from glassformer_bench.plot import draw

    draw([load_record(path) for path in args.records], args.output)
    print(f"wrote {args.output}")
    return 0
