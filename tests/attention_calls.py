"""Calls of attention for tests: awkward layouts, runs with every gradient, the formula itself."""

import numpy as np

import glassformer as gf
from glassformer import fused
from glassformer.fused.attention import attention

OP = "scaled_dot_product_attention"
KERNEL = "numpy-blocked"
REFERENCE = "reference"


def contiguous(x):
    return np.ascontiguousarray(x)


def heads_last(x):
    """As a linear layer leaves it: (B, T, H, D) in memory."""
    return np.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)


def sliced(x):
    """As one third of a fused projection, with NaN for neighbours."""
    b, h, t, d = x.shape
    whole = np.full((b, t, h, 3 * d), np.nan, x.dtype)
    part = whole[..., d : 2 * d].transpose(0, 2, 1, 3)
    part[...] = x
    return part


def backwards(x):
    """Negative strides."""
    return x[..., ::-1, ::-1].copy()[..., ::-1, ::-1]


def dims_swapped(x):
    """The length, not the head dimension, is adjacent in memory."""
    return np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2)


LAYOUTS = (contiguous, heads_last, sliced, backwards, dims_swapped)


def expanded(x, axis):
    """The first slice along `axis`, repeated with stride 0."""
    return np.broadcast_to(x.take([0], axis), x.shape)


def draw(rng, *shape, dtype="float64"):
    return np.asarray(rng.standard_normal(shape), dtype)


def run(arrays, kernel=KERNEL, upstream="out and lse", **options):
    """Return values and gradients by name, for fixed random gradients of the outputs.

    `arrays`: query, key, value and, if wanted, mask and bias. `upstream` says which outputs get a
    gradient. Asserts that the kernel named is the one that ran.
    """
    arrays = (*arrays, None, None)[:5]
    leaves = [None if x is None else gf.from_numpy(x) for x in arrays]
    for leaf in leaves:
        if leaf is not None and leaf.dtype.is_floating_point:
            leaf.requires_grad_()
    with fused.use(**{OP: kernel}):
        out, lse = attention(*leaves, return_lse=True, **options)
    assert fused.last_kernel(OP) == kernel
    rng = np.random.default_rng(7)
    outputs = {"out": out, "lse": lse}
    ends = [outputs[name] for name in outputs if name in upstream]
    gf.backward(ends, [gf.from_numpy(draw(rng, *x.shape, dtype=x.dtype.numpy)) for x in ends])
    found = {name: x.detach().numpy() for name, x in outputs.items()}
    for name, leaf in zip(("query", "key", "value", "mask", "bias"), leaves, strict=True):
        if leaf is not None and leaf.requires_grad:
            grad = gf.zeros_like(leaf) if leaf.grad is None else leaf.grad  # None: not reached
            assert (grad.shape, grad.dtype) == (leaf.shape, leaf.dtype), name
            found[f"d_{name}"] = grad.numpy()
    return found


def call(*arrays, kernel=KERNEL, **options):
    """Values alone, as an array or a tuple of two."""
    with fused.use(**{OP: kernel}):
        result = attention(*(x if x is None else gf.from_numpy(x) for x in arrays), **options)
    assert fused.last_kernel(OP) == kernel
    return tuple(x.numpy() for x in result) if isinstance(result, tuple) else result.numpy()


def operands(b=2, heads=4, kv_heads=2, tq=5, tk=7, d=3, dv=4, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((b, heads, tq, d), (b, kv_heads, tk, d), (b, kv_heads, tk, dv))
    return tuple(draw(rng, *shape, dtype=dtype) for shape in shapes)


def leaves(*arrays):
    """Tensors that require grad where they can."""
    tensors = [None if x is None else gf.tensor(x) for x in arrays]
    for x in tensors:
        if x is not None and x.dtype.is_floating_point:
            x.requires_grad_()
    return tensors


def visible(shape, mask=None, causal=None, window=None):
    """Which key each query may see, (B, H, Tq, Tk), by the definition of each option."""
    *_, query_length, key_length = shape
    offset = 0 if causal == "top_left" else key_length - query_length
    # how far a key lies after the query's position
    ahead = np.arange(key_length) - (np.arange(query_length)[:, None] + offset)
    seen = np.ones(shape, bool)
    if causal is not None:
        seen &= ahead <= 0
    left, right = window or (None, None)
    if left is not None:
        seen &= -ahead <= left
    if right is not None:
        seen &= ahead <= right
    return seen if mask is None else seen & mask


def closed_form(
    query, key, value, mask=None, bias=None, *, causal=None, window=None, scale=None, softcap=None
):
    """Return softmax(softcap(QKᵀ·scale) + bias)V and log Σ exp, in float64, as it is written."""
    query, key, value = (x.astype(np.float64) for x in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    key, value = (np.repeat(x, groups, axis=1) for x in (key, value))
    scale = 1 / np.sqrt(query.shape[-1]) if scale is None else scale
    scores = np.einsum("bhid,bhjd->bhij", query, key) * scale
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    scores = np.where(visible(scores.shape, mask, causal, window), scores, -np.inf)
    highest = scores.max(-1, initial=-1e300, keepdims=True)
    weights = np.exp(scores - highest)
    total = weights.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + highest)[..., 0]
    weights = weights / np.where(total == 0, 1, total)
    return np.einsum("bhij,bhjd->bhid", weights, value), lse
