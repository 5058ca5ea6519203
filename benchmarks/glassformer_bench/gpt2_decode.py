"""Time greedy decoding of a GPT-2 of 124 million parameters against transformers, in one process.

Both load the same random weights from a folder, and continue the same prompt with a cache, on the
same number of threads. The tokens must be the same before anything is timed. Then the two take
turns, so that whatever else the machine does hits both alike. What is timed is a token after the
prompt: the first one of a turn isn't counted. The floor is the bytes of the weights that a token
reads over the rate at which matrix-vector products read memory, measured in the same turns.

    python -m glassformer_bench.gpt2_decode [--rounds N] [--new-tokens N] [--threads N]
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import glassformer as gf
from glassformer.backends.numpy_backend import matmul
from glassformer.generation import stream_generate
from glassformer.models.gpt2 import GPT2LMHeadModel
from glassformer_bench.environment import environment
from glassformer_bench.runner import set_threads

_PROMPT = 16


class _Streamer:
    """A streamer of transformers' that notes when each token arrives."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, then each token."""
        self.tokens += value.flatten().tolist()
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to do."""


class Contest:
    """Both models, from the same files, and the prompt they continue."""

    def __init__(self, folder: Path, new_tokens: int) -> None:
        torch.manual_seed(0)
        transformers.GPT2LMHeadModel(transformers.GPT2Config()).save_pretrained(folder)
        self.theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
        self.ours = GPT2LMHeadModel.from_pretrained(folder)
        self.new_tokens = new_tokens
        vocabulary = self.ours.config.vocab_size
        self.prompt = np.random.default_rng(0).integers(0, vocabulary, (1, _PROMPT))

    def our_tokens(self) -> tuple[list[int], list[float]]:
        """Return the tokens, and the milliseconds that each took after the first."""
        tokens, times = [], []
        for step in stream_generate(self.ours, self.prompt, self.new_tokens):
            tokens.append(int(step[0]))
            times.append(time.perf_counter())
        return tokens, _gaps(times)

    def their_tokens(self) -> tuple[list[int], list[float]]:
        """As `our_tokens`, by transformers."""
        streamer = _Streamer()
        self.theirs.generate(
            torch.from_numpy(self.prompt),
            attention_mask=torch.ones(1, _PROMPT, dtype=torch.long),
            max_new_tokens=self.new_tokens,
            eos_token_id=None,
            pad_token_id=0,
            do_sample=False,
            streamer=streamer,
        )
        return streamer.tokens[_PROMPT:], _gaps(streamer.times[1:])

    def check(self) -> float:
        """Compare logits and tokens; return the largest difference of a logit.

        Raises:
            RuntimeError: they differ: nothing will be timed.
        """
        with gf.no_grad(), torch.inference_mode():
            mine = self.ours(gf.from_numpy(self.prompt)).logits.numpy()
            other = self.theirs(torch.from_numpy(self.prompt)).logits.numpy()
        worst = float(np.abs(mine - other).max() / np.abs(other).max())
        tokens, expected = self.our_tokens()[0], self.their_tokens()[0]
        if worst > 1e-4 or tokens != expected:
            raise RuntimeError(f"logits differ by {worst:.1e}, tokens {tokens} and {expected}")
        return worst

    def bytes_read(self) -> int:
        """Return the bytes of all weights that a token multiplies: all but the position table."""
        matrices = (p.numel() for p in self.ours.parameters() if p.ndim == 2)
        return 4 * (sum(matrices) - self.ours.transformer.embed_positions.weight.numel())

    def read_rate(self) -> float:
        """Return the bytes/ms at which a product of the vocabulary's matrix and a vector reads."""
        table = self.ours.lm_head.weight.array
        row = np.ones((1, table.shape[1]), np.float32)
        return max(table.nbytes / _milliseconds(matmul, row, table.T) for _ in range(3))


def _gaps(times: list[float]) -> list[float]:
    return [1e3 * (after - before) for before, after in pairwise(times)]


def _quantiles(values: list[float]) -> dict[str, float]:
    return {f"p{q}": float(np.quantile(values, q / 100)) for q in (0, 10, 50, 90)}


def _milliseconds(function: Callable[..., Any], *args: Any) -> float:
    start = time.perf_counter()
    function(*args)
    return (time.perf_counter() - start) * 1e3


def run(rounds: int, new_tokens: int) -> dict[str, Any]:
    """Check, and time in turns; return the record."""
    ours: list[float] = []
    theirs: list[float] = []
    rates: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        contest = Contest(Path(folder), new_tokens)
        error = contest.check()
        for turn in range(rounds):
            contenders = [(ours, contest.our_tokens), (theirs, contest.their_tokens)]
            for times, decode in contenders if turn % 2 else reversed(contenders):
                times.extend(decode()[1])
            rates.append(contest.read_rate())
        count = contest.bytes_read()
    turns = [np.median(np.reshape(times, (rounds, -1)), axis=1) for times in (ours, theirs)]
    return {
        "prompt": _PROMPT,
        "new_tokens": new_tokens,
        "rounds": rounds,
        "logit_error": error,
        "ours_ms": _quantiles(ours),
        "transformers_ms": _quantiles(theirs),
        "ratio_of_medians": statistics.median(ours) / statistics.median(theirs),
        "ratio_of_best": min(ours) / min(theirs),
        "ratio": _quantiles(list(turns[0] / turns[1])),
        "megabytes": count / 1e6,
        "gigabytes_per_second": max(rates) / 1e6,
        "floor_ms": count / max(rates),
        "load": os.getloadavg()[0],
    }


def main() -> int:
    """Print the record; `--json FILE` keeps it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6, help="turns of each")
    parser.add_argument("--new-tokens", type=int, default=33, help="in a turn")
    parser.add_argument("--threads", type=int, default=gf.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the record here")
    args = parser.parse_args()
    set_threads(args.threads)
    record: dict[str, Any] = {
        "environment": {
            **environment("cpu", args.threads),
            "transformers": transformers.__version__,
        },
        "command": shlex.join(["python", "-m", "glassformer_bench.gpt2_decode", *sys.argv[1:]]),
    }
    for key, value in record["environment"].items():
        print(f"{key:12} {value}")
    row = record["row"] = run(args.rounds, args.new_tokens)
    for name in ("ours_ms", "transformers_ms", "ratio"):
        print(f"{name:16}", "  ".join(f"{key} {value:7.2f}" for key, value in row[name].items()))
    print(
        f"ratio of medians {row['ratio_of_medians']:.2f}, of the best {row['ratio_of_best']:.2f}\n"
        f"floor            {row['floor_ms']:.2f} ms: {row['megabytes']:.0f} MB at "
        f"{row['gigabytes_per_second']:.1f} GB/s\n"
        f"logits differ by {row['logit_error']:.1e} of the largest; load {row['load']:.1f}"
    )
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
