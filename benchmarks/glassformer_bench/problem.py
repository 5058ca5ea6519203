"""What is computed: an operation, its sizes, its data. A grid of options becomes a list of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

OPS = ("attention", "softmax", "layer_norm", "cross_entropy", "decode")
DTYPES = {"bf16": 2, "fp16": 2, "fp32": 4}  # bytes an element
MODES = ("fwd", "bwd", "fwd_bwd")
DATA = ("randn", "uniform", "outlier")
CAUSAL = (None, "top_left", "bottom_right")

Window = tuple[int, int]


@dataclass(frozen=True)
class Problem:
    """One operation on one set of sizes.

    Attributes:
        op: one of `OPS`.
        batch, heads, kv_heads, seqlen, seqlen_k, head_dim: B, H, Hkv, Tq, Tk, D. Softmax takes
            (B, H, Tq, Tk), layer norm (B, Tq, H·D), cross-entropy (B·Tq, vocab); decode is
            attention of one query over a cache of Tk keys.
        vocab: classes of the cross-entropy.
        causal: "top_left" lets query i see keys 0 … i, as `is_causal` in PyTorch; "bottom_right"
            lets the last query see the last key; None, no limit.
        window: (left, right), keys a query sees on either side of its position; -1 is no limit.
        dtype: one of `DTYPES`.
        mode: fwd, bwd (the gradients alone) or fwd_bwd.
        device: "cpu" or "cuda".
        data: randn, uniform or outlier (some elements are 30 times larger).
        seed: of the data.
    """

    op: str = "attention"
    batch: int = 1
    heads: int = 8
    kv_heads: int = 8
    seqlen: int = 512
    seqlen_k: int = 512
    head_dim: int = 64
    vocab: int = 32000
    causal: str | None = None
    window: Window | None = None
    dtype: str = "fp32"
    mode: str = "fwd"
    device: str = "cpu"
    data: str = "randn"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("op", self.op, OPS),
            ("dtype", self.dtype, tuple(DTYPES)),
            ("mode", self.mode, MODES),
            ("data", self.data, DATA),
            ("causal", self.causal, CAUSAL),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
        for name in ("batch", "heads", "kv_heads", "seqlen", "seqlen_k", "head_dim", "vocab"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"{self.heads} query heads can't share {self.kv_heads} key heads: the first must "
                "be a multiple of the second"
            )
        if self.window is not None and min(self.window) < -1:
            raise ValueError(f"window counts keys on either side, -1 for no limit: {self.window}")
        if self.op == "decode" and self.mode != "fwd":
            raise ValueError("decode has no backward: use --mode fwd")

    @property
    def is_attention(self) -> bool:
        """Whether the operands are query, key and value."""
        return self.op in ("attention", "decode")

    @property
    def itemsize(self) -> int:
        """Bytes an element."""
        return DTYPES[self.dtype]

    @property
    def scale(self) -> float:
        """What attention's scores are multiplied by, 1/√D."""
        return 1 / math.sqrt(self.head_dim)

    @property
    def needs_backward(self) -> bool:
        """Whether gradients are computed."""
        return self.mode != "fwd"

    def key(self) -> tuple[Any, ...]:
        """Return what identifies the problem between two runs: everything but the seed."""
        return tuple(sorted((k, v) for k, v in self.to_dict().items() if k != "seed"))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them; the window as "left,right"."""
        fields = asdict(self)
        fields["window"] = None if self.window is None else f"{self.window[0]},{self.window[1]}"
        return fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Problem:
        """Undo `to_dict`."""
        window = fields.get("window")
        return cls(**{**fields, "window": None if window is None else parse_window(window)})

    def label(self) -> str:
        """Describe the problem in a few words, for progress."""
        sizes = {
            "attention": f"{self.batch}x{self.heads}x{self.seqlen}x{self.head_dim}",
            "decode": f"{self.batch}x{self.heads}x{self.seqlen_k}x{self.head_dim}",
            "softmax": f"{self.batch}x{self.heads}x{self.seqlen}x{self.seqlen_k}",
            "layer_norm": f"{self.batch}x{self.seqlen}x{self.heads * self.head_dim}",
            "cross_entropy": f"{self.batch * self.seqlen}x{self.vocab}",
        }[self.op]
        extras = [self.causal] if self.causal else []
        extras += [f"window {self.window}"] if self.window else []
        return " ".join([self.op, sizes, *extras, self.dtype, self.mode])


def normalised(problem: Problem) -> Problem:
    """Set what the operation doesn't have to one value, so that equal problems compare equal."""
    if problem.op == "decode":
        return replace(problem, seqlen=1, vocab=1, causal=None)  # the last key is the newest
    if problem.op == "attention":
        return replace(problem, vocab=1)
    plain = replace(problem, causal=None, window=None, kv_heads=problem.heads)
    if problem.op == "softmax":
        return replace(plain, head_dim=1, vocab=1)
    if problem.op == "layer_norm":
        return replace(plain, seqlen_k=1, vocab=1)
    return replace(plain, seqlen_k=1, heads=1, kv_heads=1, head_dim=1)


def parse_size(text: str) -> int:
    """Return the number that `512`, `2k` (2,048) or `1m` (1,048,576) stands for."""
    factor = {"k": 1024, "m": 1024**2}.get(text[-1:].lower(), 1)
    digits = text if factor == 1 else text[:-1]
    if not digits.isdigit() or int(digits) < 1:
        raise ValueError(f"a size is a number such as 512 or 2k, got {text!r}")
    return int(digits) * factor


def parse_window(text: str) -> Window:
    """Return (left, right) of "left,right"; one number is that many keys to the left, 0 right."""
    parts = [int(part) for part in text.split(",")]
    if len(parts) not in (1, 2):
        raise ValueError(f"a window is LEFT or LEFT,RIGHT, got {text!r}")
    return (parts[0], parts[1] if len(parts) == 2 else 0)


def grid(
    *,
    batch: Sequence[int],
    heads: Sequence[int],
    kv_heads: Sequence[int | None],
    seqlen: Sequence[int],
    seqlen_k: Sequence[int | None],
    head_dim: Sequence[int],
    causal: Sequence[str | None],
    dtype: Sequence[str],
    mode: Sequence[str],
    **fixed: Any,
) -> list[Problem]:
    """Return every combination once, in the order of the lists; None for "as the query's"."""
    found: dict[Problem, None] = {}
    axes: Iterable[tuple[Any, ...]] = itertools.product(
        dtype, causal, batch, heads, kv_heads, head_dim, seqlen, seqlen_k, mode
    )
    for dt, masked, b, h, hkv, d, tq, tk, m in axes:
        problem = Problem(
            batch=b,
            heads=h,
            kv_heads=hkv or h,
            seqlen=tq,
            seqlen_k=tk or tq,
            head_dim=d,
            causal=masked,
            dtype=dt,
            mode=m,
            **fixed,
        )
        found[normalised(problem)] = None
    return list(found)
