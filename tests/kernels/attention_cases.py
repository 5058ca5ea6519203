"""Calls of the attention kernels for tests: drawn cases, the exact answer, and eager PyTorch's."""

from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from tests.kernel_calls import (
    DEVICE,
    GRADIENT,
    LARGE,
    LAYOUTS,
    ON_GPU,
    OUTPUT,
    assert_near,
    contiguous,
    dtypes,
    layouts,
    seeds,
)

# isort: split
import torch

import glassformer as gf
from glassformer import fused
from glassformer_kernels import launch
from glassformer_kernels.launch import Config
from glassformer_kernels.ops.attention import attention
from tests.attention_calls import visible

NAMES = ("query", "key", "value", "bias", "sinks")

# In the interpreter a program takes some 10 ms: few and small tiles, yet several in each direction.
LONGEST, WIDEST = (300, 256) if ON_GPU else (100, 128) if LARGE else (36, 40)
TILES = ((16, 16), (32, 16), (16, 32))


@contextmanager
def tiles(block_m=16, block_n=16):
    """Force small tiles, so that short sequences take every path of the kernels."""
    with launch.use_config(
        attention_forward=Config({"BLOCK_M": block_m, "BLOCK_N": block_n}),
        attention_key_gradients=Config({"BLOCK_N": block_n, "BLOCK_M": block_m}),
        attention_query_gradients=Config({"BLOCK_M": block_m, "BLOCK_N": block_n}),
        attention_bias_gradient=Config({"BLOCK_M": block_m, "BLOCK_N": block_n}),
        attention_decode=Config({"BLOCK_M": 16, "BLOCK_N": block_n}),
    ):
        yield


@dataclass(frozen=True)
class Case:
    """One call: sizes, options and how the operands lie in memory."""

    batch: int = 2
    kv_heads: int = 2
    groups: int = 2
    tq: int = 20
    tk: int = 23
    d: int = 8
    dv: int = 8
    dtype: torch.dtype = torch.float32
    causal: str | None = None
    window: tuple | None = None
    scale: float | None = None
    softcap: float | None = None
    mask: tuple | None = None  # which of (B, H, Tq) are not broadcast
    bias: tuple | None = None
    alibi: bool = False
    sinks: bool = False
    dropout_p: float = 0.0
    layout: object = contiguous
    tile: tuple = (16, 16)
    seed: int = 0

    @property
    def shape(self):
        return (self.batch, self.kv_heads * self.groups, self.tq, self.tk)

    def options(self):
        return {
            "causal": self.causal,
            "window": self.window,
            "scale": self.scale,
            "softcap": self.softcap,
            "dropout_p": self.dropout_p,
            "seed": self.seed,
        }


@dataclass
class Operands:
    """Tensors of a case, as float32 or less precise, on the CPU and contiguous."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    bias: torch.Tensor | None
    slopes: torch.Tensor | None
    sinks: torch.Tensor | None
    d_out: torch.Tensor
    d_lse: torch.Tensor


lengths = st.one_of(st.integers(1, LONGEST), st.sampled_from([1, 2, 15, 16, 17, 31, 33]))
head_dims = st.one_of(st.integers(1, 20), st.sampled_from([16, 17, 32, 33, WIDEST]))
parts = st.tuples(st.booleans(), st.booleans(), st.booleans())
causals = st.sampled_from([None, "top_left", "bottom_right"])
sides = st.one_of(st.none(), st.integers(0, 20))


def fewer(percent):
    """Draw that part of the examples that the profile asks for."""
    return settings(max_examples=max(1, settings().max_examples * percent // 100))


def cases(**fixed):
    """Draw cases; what isn't named in `fixed` and isn't a size is left at its default."""
    sizes = {
        "batch": st.integers(1, 2),
        "kv_heads": st.integers(1, 2),
        "groups": st.integers(1, 2),
        "tq": lengths,
        "tk": lengths,
        "d": head_dims,
        "dv": head_dims,
        "dtype": dtypes,
        "layout": layouts,
        "tile": st.sampled_from(TILES),
        "seed": seeds,
    }
    return st.builds(Case, **{**sizes, **fixed})


def operands(case):
    """Draw a case's numbers from its seed."""
    rng = np.random.default_rng(case.seed)
    b, h, tq, tk = case.shape

    def drawn(*shape):
        return torch.from_numpy(rng.standard_normal(shape, np.float32)).to(case.dtype)

    def per_pair(kept):
        return tuple(n if keep else 1 for n, keep in zip((b, h, tq), kept, strict=True))

    mask = None
    if case.mask is not None:
        mask = torch.from_numpy(rng.random((*per_pair(case.mask), tk)) < 0.6)
    return Operands(
        query=drawn(b, h, tq, case.d),
        key=drawn(b, case.kv_heads, tk, case.d),
        value=drawn(b, case.kv_heads, tk, case.dv),
        mask=mask,
        bias=None if case.bias is None else drawn(*per_pair(case.bias), tk),
        slopes=torch.from_numpy(rng.random(h, np.float32)) if case.alibi else None,
        sinks=drawn(h) if case.sinks else None,
        d_out=drawn(b, h, tq, case.dv),
        d_lse=drawn(b, h, tq).float(),
    )


def seen_pairs(case, x):
    """Which pairs are visible, (B, H, Tq, Tk), by the definition of the options."""
    mask = None if x.mask is None else x.mask.numpy()
    return visible(case.shape, mask, case.causal, case.window)


def alibi_bias(case, x):
    """-slope · |p - j|, float64 (H, Tq, Tk)."""
    offset = 0 if case.causal == "top_left" else case.tk - case.tq
    distance = np.abs(np.arange(case.tq)[:, None] + offset - np.arange(case.tk))
    return -x.slopes.double().numpy()[:, None, None] * distance


def exact(case, x):
    """Values and gradients in float64, by the engine's composite reference on NumPy.

    A sink is written as what it means: one more key, with the score of the sink and the value 0.
    """
    b, h, tq, tk = case.shape
    leaves = {
        name: gf.from_numpy(getattr(x, name).double().numpy()).requires_grad_()
        for name in NAMES
        if getattr(x, name) is not None
    }
    seen = gf.from_numpy(seen_pairs(case, x))
    key, value, bias = leaves["key"], leaves["value"], leaves.get("bias")
    if bias is not None:
        bias = bias.expand(b, h, tq, tk)
    if case.alibi:
        extra = gf.from_numpy(alibi_bias(case, x))
        bias = extra if bias is None else bias + extra
    if case.sinks:
        key = gf.cat([key, gf.zeros(b, case.kv_heads, 1, case.d, dtype="float64")], 2)
        value = gf.cat([value, gf.zeros(b, case.kv_heads, 1, case.dv, dtype="float64")], 2)
        if bias is None:
            bias = gf.zeros(b, h, tq, tk, dtype="float64")
        column = leaves["sinks"].reshape(1, h, 1, 1).expand(b, h, tq, 1)
        if case.softcap is not None:
            column = column + 0.0  # the cap is of scores; the sink's score 0 stays 0
        bias = gf.cat([bias.expand(b, h, tq, tk), column], 3)
        seen = gf.cat([seen, gf.ones(b, h, tq, 1, dtype="bool")], 3)
    with fused.use(scaled_dot_product_attention="reference"):
        out, lse = fused.attention.attention(
            leaves["query"],
            key,
            value,
            seen,
            bias,
            scale=case.scale,
            softcap=case.softcap,
            dropout_p=case.dropout_p,
            seed=case.seed,
            return_lse=True,
        )
    ends, grads = [out], [x.d_out]
    if bool(np.isfinite(lse.numpy() if not lse.requires_grad else lse.detach().numpy()).all()):
        ends, grads = [out, lse], [x.d_out, x.d_lse]
    gf.backward(ends, [gf.from_numpy(g.double().numpy()) for g in grads])
    found = {"out": out.detach().numpy(), "lse": lse.detach().numpy()}
    for name, leaf in leaves.items():
        found[f"d_{name}"] = gf.zeros_like(leaf).numpy() if leaf.grad is None else leaf.grad.numpy()
    return found


def eager(case, x):
    """Values and gradients by PyTorch's own operations in the case's dtype, as one would write."""
    b, h, tq, tk = case.shape
    leaves = {
        name: getattr(x, name).to(DEVICE, copy=True).requires_grad_()
        for name in NAMES
        if getattr(x, name) is not None
    }
    seen = torch.from_numpy(seen_pairs(case, x)).to(DEVICE)
    key, value = (leaves[n].repeat_interleave(case.groups, 1) for n in ("key", "value"))
    scale = case.d**-0.5 if case.scale is None else case.scale
    scores = leaves["query"] @ key.mT * scale
    if case.softcap is not None:
        scores = torch.tanh(scores / case.softcap) * case.softcap
    if "bias" in leaves:
        scores = scores + leaves["bias"]
    if case.alibi:
        scores = scores + torch.from_numpy(alibi_bias(case, x)).to(scores)
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    if case.sinks:
        scores = torch.cat([scores, leaves["sinks"].view(1, h, 1, 1).expand(b, h, tq, 1)], -1)
    lse = torch.logsumexp(scores.float(), -1)
    weights = scores.softmax(-1)[..., :tk]
    weights = weights.masked_fill(~seen, 0)
    if case.dropout_p > 0:
        kept = fused.dropout_mask.keep_mask(case.seed, case.dropout_p, (b, h, tq, tk))
        weights = weights * torch.from_numpy(kept).to(weights) / (1 - case.dropout_p)
    out = weights @ value
    ends, grads = [out], [x.d_out.to(DEVICE)]
    if bool(seen.any(-1).all()) or case.sinks:
        ends, grads = [out, lse], [x.d_out.to(DEVICE), x.d_lse.to(DEVICE)]
    torch.autograd.backward(ends, grads)
    return {"out": out, "lse": lse, **{f"d_{name}": leaf.grad for name, leaf in leaves.items()}}


def run(case, x, with_lse=True):
    """Values and gradients by the kernels, every operand laid out as the case says."""

    def laid(tensor, layout=None):
        return None if tensor is None else (layout or case.layout)(tensor.to(DEVICE))

    leaves = {
        name: laid(getattr(x, name), contiguous if name == "sinks" else None).requires_grad_()
        for name in NAMES
        if getattr(x, name) is not None
    }
    with tiles(*case.tile):
        out, lse = attention(
            leaves["query"],
            leaves["key"],
            leaves["value"],
            laid(x.mask),
            leaves.get("bias"),
            alibi_slopes=laid(x.slopes, contiguous),
            sinks=leaves.get("sinks"),
            return_lse=True,
            **case.options(),
        )
        ends, grads = [out], [laid(x.d_out)]
        if with_lse:
            ends, grads = [out, lse], [laid(x.d_out), laid(x.d_lse)]
        torch.autograd.backward(ends, grads)
    found = {"out": out.detach(), "lse": lse.detach()}
    for name, leaf in leaves.items():
        assert leaf.grad.dtype is leaf.dtype
        found[f"d_{name}"] = leaf.grad
    return found


def largest_terms(case, x):
    """The largest numbers that are summed to make each gradient.

    dS = P ∘ (dP - Δ) is a difference of two sums of products dO · V, added up on different ways
    (that is what saves the weights from being stored): where few keys are seen it cancels to 0.
    """
    value = x.value.double().repeat_interleave(case.groups, 1)
    most = float((x.d_out.double().abs() @ value.abs().mT).max()) / (1 - case.dropout_p)
    scale = case.d**-0.5 if case.scale is None else abs(case.scale)
    # What is summed over many rows adds up their roundings, as a random walk does.
    b, h, tq, _ = case.shape
    summed = np.prod([n for n, own in zip((b, h, tq), case.bias or (), strict=False) if not own])
    # dV adds weights computed again: a float32 score's rounding is in them. (Of one key alone the
    # weight is 1, which eager keeps exactly.)
    key = x.key.double().abs().repeat_interleave(case.groups, 1)
    score = float((x.query.double().abs() @ key.mT).max()) * scale
    if x.bias is not None:
        score += float(x.bias.abs().max())
    if case.alibi:
        score += float(np.abs(alibi_bias(case, x)).max())
    in_float32 = torch.finfo(torch.float32).eps / torch.finfo(case.dtype).eps
    weighed = float(x.d_out.abs().max()) / (1 - case.dropout_p) * max(1.0, score)
    return {
        "lse": score,
        "d_value": weighed * (case.groups * tq) ** 0.5 * in_float32,
        "d_query": most * scale * float(x.key.abs().max()),
        "d_key": most * scale * float(x.query.abs().max()) * (case.groups * tq) ** 0.5,
        "d_bias": most * summed**0.5,
        "d_sinks": most * (b * tq) ** 0.5,
    }


def off_by_eager_s_usual_error(truth, theirs, cases):
    """Return `truth` off by the largest error of eager: that of `theirs`, and of six more draws.

    A few small rows may come out nearly exact by luck; other numbers of the same shapes, here each
    case with a batch of six, show what is usual.
    """
    draws = [(truth, theirs)]
    for case in cases:
        wide = replace(case, batch=6)
        x = operands(wide)
        draws.append((exact(wide, x), eager(wide, x)))
    found = {}
    for name, right in truth.items():
        # The sinks' gradient is a sum over the batch: with a batch of six its error is another.
        errors = [
            (eager_s[name].detach().double().cpu() - torch.as_tensor(exact_s[name])).abs()
            for exact_s, eager_s in (draws[:1] if name == "d_sinks" else draws)
        ]
        worst = max(float(e[e.isfinite()].max()) if bool(e.isfinite().any()) else 0 for e in errors)
        found[name] = torch.as_tensor(right) + worst
    return found


def check(case):
    """Assert that the kernels are as near to the exact answer as eager PyTorch is, or nearer."""
    x = operands(case)
    truth, theirs = exact(case, x), eager(case, x)
    ours = run(case, x, with_lse=bool(np.isfinite(truth["lse"]).all()))
    assert ours.keys() == truth.keys()
    terms = largest_terms(case, x)
    for name, value in ours.items():
        factor = GRADIENT if name.startswith("d_") else OUTPUT
        assert_near(name, value, truth[name], theirs[name], factor, terms.get(name, 0.0))


__all__ = ["LAYOUTS", "Case", "cases", "check", "exact", "operands", "run", "tiles"]
