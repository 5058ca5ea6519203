"""Time a GPT training step against PyTorch eager, on the CPU, in one process.

Both run the same model from the same weights on the same batches with the same number of threads.
Before anything is timed, losses and every gradient are compared; a wrong answer gets no time. Then
the two take turns of a few steps each, so that whatever else the machine does hits both alike; the
first step of a turn is not counted, because threads of the other may still be spinning. The floor
is the step's matrix-product FLOPs over the rate of a large product measured in the same run.

    python -m glassformer_bench.train_step [--config small|medium] [--rounds N] [--threads N]
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import glassformer as gf
from glassformer.models.gpt import GPTConfig
from glassformer.optim import AdamW
from glassformer_bench.environment import environment
from glassformer_bench.runner import set_threads
from glassformer_bench.torch_gpt import twins

_LEARNING_RATE = 3e-4
_VOCABULARY = 104


@dataclass(frozen=True)
class Config:
    """A model and a batch."""

    layers: int
    heads: int
    channels: int
    length: int
    batch: int
    rounds: int  # turns of each contender
    turn: int  # steps counted in a turn

    def model(self) -> GPTConfig:
        """Return the model's shape."""
        return GPTConfig(
            vocab_size=_VOCABULARY,
            n_positions=self.length,
            n_embd=self.channels,
            n_layer=self.layers,
            n_head=self.heads,
        )

    def flops(self) -> float:
        """Matrix-product FLOPs of a training step: 2 forward, 4 backward per weight and token.

        Attention counts half of its square: what a causal mask leaves.
        """
        tokens = self.batch * self.length
        weights = self.layers * 12 * self.channels**2 + _VOCABULARY * self.channels
        attention = self.layers * 2 * self.length * self.channels / 2
        return 6.0 * tokens * (weights + attention)


CONFIGS = {
    "small": Config(4, 4, 128, 64, 12, rounds=10, turn=15),
    "medium": Config(6, 6, 384, 256, 16, rounds=4, turn=2),
}


class Contest:
    """One configuration: both models, their optimizers, and the batch they train on."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.ours, self.theirs, self.pairs = twins(config.model())
        self.our_optimizer = AdamW(list(self.ours.parameters()), lr=_LEARNING_RATE)
        self.their_optimizer = torch.optim.AdamW(self.theirs.parameters(), lr=_LEARNING_RATE)
        random = np.random.default_rng(0)
        shape = (64, config.batch, config.length + 1)
        self.tokens = random.integers(0, _VOCABULARY, shape)

    def _batch(self, i: int) -> tuple[Any, Any]:
        batch = self.tokens[i % len(self.tokens)]
        return np.ascontiguousarray(batch[:, :-1]), np.ascontiguousarray(batch[:, 1:])

    def our_step(self, i: int) -> float:
        """Train on batch i with glassformer; return the loss."""
        ids, targets = map(gf.from_numpy, self._batch(i))
        loss = self.ours(ids, shift_labels=targets).loss
        self.our_optimizer.zero_grad()
        loss.backward()
        self.our_optimizer.step()
        return float(loss.item())

    def their_step(self, i: int) -> float:
        """Train on batch i with PyTorch; return the loss."""
        loss = self.theirs.loss(*map(torch.from_numpy, self._batch(i)))
        self.their_optimizer.zero_grad()
        loss.backward()
        self.their_optimizer.step()
        return float(loss.item())

    def check(self) -> float:
        """Take a step with both and compare; return the largest relative gradient error.

        Raises:
            RuntimeError: losses or gradients differ: nothing will be timed.
        """
        mine, other = self.our_step(0), self.their_step(0)
        if abs(mine - other) > 1e-4 * abs(other):
            raise RuntimeError(f"losses differ: {mine} here, {other} in PyTorch")
        worst = 0.0
        for a, b in self.pairs:
            assert a.grad is not None and b.grad is not None
            expected = b.grad.numpy()
            error = np.abs(a.grad.numpy() - expected).max() / (np.abs(expected).max() + 1e-12)
            worst = max(worst, float(error))
        if worst > 1e-3:
            raise RuntimeError(f"gradients differ by {worst:.1e} of the largest element")
        return worst


def _milliseconds(function: Callable[..., Any], *args: Any) -> float:
    start = time.perf_counter()
    function(*args)
    return (time.perf_counter() - start) * 1e3


def product_rate() -> float:
    """Return FLOP/s of NumPy's product of two 2048 x 2048 float32 matrices, best of five."""
    a = np.random.default_rng(0).standard_normal((2048, 2048), dtype=np.float32)
    out = np.empty_like(a)
    best = min(_milliseconds(lambda: np.matmul(a, a, out=out)) for _ in range(5))
    return 2 * 2048**3 / (best * 1e-3)


def run(name: str, rounds: int | None = None) -> dict[str, Any]:
    """Check, warm up and time one configuration; return the record."""
    config = CONFIGS[name]
    contest = Contest(config)
    error = contest.check()
    for i in range(1, 4):
        contest.our_step(i)
        contest.their_step(i)
    ours: list[float] = []
    theirs: list[float] = []
    steps = iter(range(4, 1 << 30))
    for turn in range(rounds or config.rounds):
        contenders = [(ours, contest.our_step), (theirs, contest.their_step)]
        for times, step in contenders if turn % 2 else reversed(contenders):
            step(next(steps))
            times.extend(_milliseconds(step, next(steps)) for _ in range(config.turn))
    turns = [np.median(np.reshape(times, (-1, config.turn)), axis=1) for times in (ours, theirs)]
    ratios = list(turns[0] / turns[1])
    floor = config.flops() / product_rate() * 1e3
    return {
        "config": name,
        **asdict(config),
        "steps": len(ours),
        "gradient_error": error,
        "ours_ms": _quantiles(ours),
        "torch_ms": _quantiles(theirs),
        "ratio_of_medians": statistics.median(ours) / statistics.median(theirs),
        "ratio": _quantiles(ratios),
        "floor_ms": floor,
    }


def _quantiles(values: list[float]) -> dict[str, float]:
    p10, p50, p90 = np.quantile(values, [0.1, 0.5, 0.9])
    return {"p10": float(p10), "p50": float(p50), "p90": float(p90)}


def main() -> int:
    """Print the table; `--json FILE` keeps the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=list(CONFIGS), action="append")
    parser.add_argument("--rounds", type=int, help="turns of each (default: 10 and 4)")
    parser.add_argument("--threads", type=int, default=gf.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the record here")
    args = parser.parse_args()
    set_threads(args.threads)
    record: dict[str, Any] = {
        "environment": environment("cpu", args.threads),
        "command": shlex.join(["python", "-m", "glassformer_bench.train_step", *sys.argv[1:]]),
        "rows": [],
    }
    for key, value in record["environment"].items():
        if value:
            print(f"{key:12} {value}")
    print(f"\n{'step':8} {'ours ms':>9} {'torch ms':>9} {'ours/torch':>11} "
          f"{'p10-p90':>11} {'floor ms':>9} {'grad error':>11}")  # fmt: skip
    for name in args.config or CONFIGS:
        row = run(name, args.rounds)
        record["rows"].append(row)
        print(
            f"{name:8} {row['ours_ms']['p50']:9.1f} {row['torch_ms']['p50']:9.1f} "
            f"{row['ratio_of_medians']:11.2f} "
            f"{row['ratio']['p10']:5.2f}-{row['ratio']['p90']:4.2f}  "
            f"{row['floor_ms']:9.1f} {row['gradient_error']:11.1e}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
