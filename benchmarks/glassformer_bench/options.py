"""The command line: what can be asked for, and what it means."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from glassformer_bench.problem import DATA, DTYPES, MODES, OPS, Problem, grid, parse_size
from glassformer_bench.problem import parse_window as _parse_window

_CAUSAL: dict[str, list[str | None]] = {
    "true": ["top_left"],
    "false": [None],
    "both": [None, "top_left"],
    "bottom_right": ["bottom_right"],
}
_DEFAULT_DTYPE = {"cpu": "fp32", "cuda": "bf16"}
_DEFAULT_L2 = {"cpu": ["hot"], "cuda": ["cold"]}
_KERNELS = (
    "A kernel of your own gets the operands as torch tensors (query, key, value; x; x, weight, "
    "bias; logits, target) and, of is_causal, causal, window, scale and enable_gqa, those that its "
    "signature names. Cross-entropy returns a loss for each target. For gradients its result must "
    "carry them."
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `attnbench`."""
    parser = argparse.ArgumentParser(
        prog="attnbench",
        description="A benchmark of attention and softmax kernels: checked against float64 first, "
        "timed second.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="the providers, and why some can't be used here")
    listing.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    environment = commands.add_parser("env", help="the machine and the versions, as JSON")
    environment.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    environment.add_argument("--threads", type=_positive)
    for name, what in (
        ("run", "check and time"),
        ("verify", "check alone; exit 1 if any is wrong"),
    ):
        running = commands.add_parser(name, help=what, epilog=_KERNELS)
        add_run_options(running, is_timed=name == "run")
    comparing = commands.add_parser(
        "compare",
        help="two records: exit 0 same or better, 1 regression, 2 usage, 3 the machines differ",
    )
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.add_argument("--fail-on", default="5%", metavar="SHARE", help="default: 5%%")
    comparing.add_argument(
        "--across-machines", action="store_true", help="compare although the machines differ"
    )
    for name, what in (
        ("report", "one HTML page, or with -o FILE.md a brief table,"),
        ("plot", "a picture, .svg or .png"),
    ):
        drawing = commands.add_parser(name, help=f"{what} from records")
        drawing.add_argument("records", type=Path, nargs="+")
        drawing.add_argument("-o", "--output", type=Path, required=True)
    return parser


def add_run_options(parser: argparse.ArgumentParser, is_timed: bool) -> None:
    """Add what `run` and `verify` take."""
    what = parser.add_argument_group("what to compute")
    what.add_argument("--op", choices=OPS, default="attention")
    what.add_argument("--provider", metavar="NAME,...", help="see `attnbench list`")
    what.add_argument(
        "--kernel",
        action="append",
        default=[],
        metavar="NAME=MODULE:FUNCTION",
        help="a kernel of your own, also NAME=path/to/file.py:function; repeatable",
    )
    for name, default, meaning in (
        ("batch", "1", "batch size"),
        ("heads", "8", "query heads; layer_norm has heads x head-dim channels"),
        ("kv-heads", None, "key heads (default: as many as query heads)"),
        ("seqlen", "512,1k,2k", "queries (for decode: length of the cache)"),
        ("seqlen-k", None, "keys (default: as many as queries)"),
        ("head-dim", "64", "head dimension"),
    ):
        what.add_argument(f"--{name}", type=_sizes, default=default, metavar="N,...", help=meaning)
    what.add_argument("--vocab", type=parse_size, default=32000, help="classes of cross_entropy")
    what.add_argument(
        "--causal",
        choices=list(_CAUSAL),
        default="false",
        help="true is PyTorch's is_causal, from the top left; bottom_right as with a cache",
    )
    what.add_argument("--window", type=_window, metavar="LEFT[,RIGHT]", help="-1 is no limit")
    what.add_argument("--dtype", type=_choices(tuple(DTYPES)), metavar="bf16,fp16,fp32")
    what.add_argument("--mode", type=_choices(MODES), default=["fwd"], metavar="fwd,bwd,fwd_bwd")
    what.add_argument("--data", choices=DATA, default="randn")
    what.add_argument("--seed", type=int, default=0)
    where = parser.add_argument_group("where and how")
    where.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto")
    where.add_argument("--threads", type=_positive, help="CPU threads of every provider")
    where.add_argument("--isolate", action="store_true", help="each row in a process of its own")
    where.add_argument("--timeout", type=float, metavar="S", help="seconds a row; isolates it")
    if is_timed:
        _add_timing(parser)
    out = parser.add_argument_group("results")
    out.add_argument("--json", type=Path, metavar="FILE", help="keep the record")
    out.add_argument("--csv", metavar="FILE", help="- is stdout")
    out.add_argument("--md", nargs="?", const="-", metavar="FILE", help="Markdown; stdout if bare")
    if is_timed:
        out.add_argument("--plot", type=Path, metavar="FILE", help="draw a picture, .svg or .png")
    out.add_argument("--tag", help="a note for the record")
    out.add_argument("-q", "--quiet", action="store_true", help="no progress")


def _add_timing(parser: argparse.ArgumentParser) -> None:
    timing = parser.add_argument_group("timing")
    timing.add_argument("--timer", choices=["auto", "event", "graph", "wall"], default="auto")
    timing.add_argument(
        "--l2", choices=["cold", "hot", "both"], help="default: cold on a GPU, hot on the CPU"
    )
    timing.add_argument(
        "--check",
        choices=["strict", "warn", "off"],
        default="strict",
        help="strict: a wrong row has no speed, and the exit code is 1; warn: the same with exit "
        "code 0; off: nothing is checked, and every row says so",
    )
    timing.add_argument("--warmup-ms", type=_milliseconds, default=100.0)
    timing.add_argument("--rep-ms", type=_milliseconds, default=500.0)
    timing.add_argument(
        "--max-noise", type=_share, metavar="SHARE", help="measure longer, then tell"
    )
    timing.add_argument("--baseline", metavar="NAME", help="default: sdpa, eager or the first")


def problems(args: argparse.Namespace, device: str) -> list[Problem]:
    """Return what the options ask for.

    Raises:
        ValueError: the sizes don't fit together.
    """
    return grid(
        op=args.op,
        batch=args.batch,
        heads=args.heads,
        kv_heads=args.kv_heads or [None],
        seqlen=args.seqlen,
        seqlen_k=args.seqlen_k or [None],
        head_dim=args.head_dim,
        causal=_CAUSAL[args.causal],
        dtype=args.dtype or [_DEFAULT_DTYPE[device]],
        mode=args.mode,
        vocab=args.vocab,
        window=args.window,
        device=device,
        data=args.data,
        seed=args.seed,
    )


def l2_states(choice: str | None, device: str) -> list[str]:
    """Return the states of the cache to measure in."""
    if choice is None:
        return _DEFAULT_L2[device]
    return ["cold", "hot"] if choice == "both" else [choice]


def row_arguments(row: Any, args: argparse.Namespace, threads: int) -> list[str]:
    """Return the arguments that measure one row again, every setting written out."""
    p = row.problem
    causal = {None: "false", "top_left": "true", "bottom_right": "bottom_right"}[p["causal"]]
    plugged = [spec for spec in args.kernel if spec.partition("=")[0] == row.provider]
    named = ["--kernel", plugged[0]] if plugged else ["--provider", row.provider]
    found = [args.command, "--op", p["op"], *named]
    is_decode = p["op"] == "decode"
    for name in ("batch", "heads", "kv_heads", "seqlen", "seqlen_k", "head_dim", "vocab"):
        value = p["seqlen_k"] if name == "seqlen" and is_decode else p[name]
        found += [f"--{name.replace('_', '-')}", str(value)]
    found += ["--causal", causal, "--dtype", p["dtype"], "--mode", p["mode"], "--data", p["data"]]
    found += ["--seed", str(p["seed"]), "--device", p["device"], "--threads", str(threads)]
    if p["window"]:
        found.append(f"--window={p['window']}")
    if args.isolate:
        found.append("--isolate")
    if args.timeout is not None:
        found += ["--timeout", f"{args.timeout:g}"]
    if args.command == "run":
        found += ["--timer", row.timer, "--l2", row.l2, "--check", args.check]
        found += ["--warmup-ms", f"{args.warmup_ms:g}", "--rep-ms", f"{args.rep_ms:g}"]
        if args.max_noise is not None:
            found += ["--max-noise", f"{args.max_noise:g}"]
    return found


def _typed(function: Any) -> Any:
    def parse(text: str) -> Any:
        try:
            return function(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


_window = _typed(_parse_window)
_sizes = _typed(lambda text: [parse_size(part) for part in text.split(",")])


def _choices(allowed: tuple[str, ...]) -> Any:
    def parse(text: str) -> list[str]:
        for part in text.split(","):
            if part not in allowed:
                raise ValueError(f"{part!r} is none of {', '.join(allowed)}")
        return text.split(",")

    return _typed(parse)


@_typed
def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"a number of threads is 1 or more, got {text!r}")
    return int(text)


@_typed
def _milliseconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(f"milliseconds are 0 or more, got {text!r}")
    return value


@_typed
def _share(text: str) -> float:
    value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(f"a share is 0 or more, such as 0.1 or 10%, got {text!r}")
    return value
