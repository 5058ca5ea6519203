"""Samples of the fused operations, by their public functions, and of primitives of layers."""

import numpy as np
import torch
from torch.nn import functional as theirs

import glassformer as gf
from glassformer.fused.loss import linear_cross_entropy
from glassformer.nn import functional as ops
from glassformer.primitive import registry
from tests.samples import Op, call, distinct, fails, integers, mask, uniform

FLOATS = ("float64", "float32", "float16")


def over_one_dim():
    return [
        call(uniform(3, 4), -1),
        call(uniform(2, 3, 4), 1),
        call(uniform(2, 3), dim=0),
        call(uniform(), 0),
        call(uniform(0, 3), -1),
        call(uniform(3, 0), 1),
        call(np.array([[0.0, -np.inf, 1.0], [900.0, 901.0, -900.0]]), -1),
    ]


def activation(name, *more):
    shapes = [(), (3, 4), (0,), (2, 1, 3)]
    return Op(
        name,
        getattr(ops, name),
        [*(call(uniform(*shape)) for shape in shapes), *more],
        [fails((TypeError, AttributeError), "list|Tensor", [1.0])],
        torch=getattr(theirs, name),
        dtypes=FLOATS,
    )


def logits(*shape):
    return distinct(shape)[0] * 3


WEIGHTS = np.array([0.5, 2.0, 1.0, 0.25])
TARGETS = np.array([1, 0, 3, 3, 2])
SOME_IGNORED = np.array([1, -100, 3, -100, 2])


def losses():
    return [
        call(logits(5, 4), TARGETS),
        call(logits(5, 4), TARGETS, reduction="sum"),
        call(logits(5, 4), SOME_IGNORED, reduction="none"),
        call(logits(5, 4), SOME_IGNORED),
        call(logits(5, 4), SOME_IGNORED, label_smoothing=0.2),
        call(logits(5, 4), np.array([7, 0, 7, 3, 2]), ignore_index=7, reduction="sum"),
        call(logits(0, 4), integers(0, limit=1), reduction="sum"),
    ]


def our_weighted_loss(input, target, **kwargs):
    return ops.cross_entropy(
        input, target, gf.tensor(WEIGHTS, dtype=input.dtype, device=input.device), **kwargs
    )


def torch_weighted_loss(input, target, **kwargs):
    return theirs.cross_entropy(input, target, torch.tensor(WEIGHTS, dtype=input.dtype), **kwargs)


BAD_TARGETS = [
    fails(IndexError, "4", logits(2, 4), np.array([4, 0])),
    fails(IndexError, "-1", logits(2, 4), np.array([-1, 0])),
]


def attention_arguments(heads=2, shared=2, queries=3, keys=4, dim=2):
    return (
        uniform(1, heads, queries, dim),
        uniform(1, shared, keys, dim),
        uniform(1, shared, keys, 3),
    )


def every_query_sees_something(queries=3, keys=4):
    visible = mask(queries, keys)
    visible[:, 0] = True
    return visible


def torch_rotary(x, cos, sin):
    """By complex numbers: the pair (x[i], x[i + D/2]) is one, turned by cos + i sin."""
    half = x.shape[-1] // 2
    wide = torch.promote_types(x.dtype, torch.float32)  # of complex halves it warns
    first, second, cos, sin = (t.to(wide) for t in (x[..., :half], x[..., half:], cos, sin))
    turned = torch.complex(first, second) * torch.complex(cos, sin)
    return torch.cat([turned.real, turned.imag], -1).to(x.dtype)


def torch_dropout(x, p, training=True, seed=0):
    """With our choice of what to keep."""
    if p == 0 or not training:
        return x
    keep = gf.Generator(seed).numpy.random(tuple(x.shape), dtype=np.float32) >= p
    return x * torch.from_numpy(np.asarray(keep)) * (1 / (1 - p) if p < 1 else 0.0)


def our_dropout(x, p, training=True, seed=0):
    return ops.dropout(x, p, training, gf.Generator(seed))


def torch_attention(
    query, key, value, visible=None, bias=None, *, causal=None, window=None, alibi_slopes=None,
    softcap=None, return_lse=False,
):  # fmt: skip
    """By the formula, in float64 where PyTorch has no function for it."""
    q, k, v = (x.double() for x in (query, key, value))
    scores = q @ k.mT / query.shape[-1] ** 0.5
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    distance = torch.arange(key.shape[2]) - torch.arange(query.shape[2])[:, None]
    if causal == "bottom_right" or alibi_slopes is not None:
        distance = distance - (key.shape[2] - query.shape[2])
    if alibi_slopes is not None:
        scores = scores - alibi_slopes.double().reshape(1, -1, 1, 1) * distance.abs()
    scores = scores if bias is None else scores + bias.double()
    seen = torch.ones_like(distance, dtype=torch.bool) if visible is None else visible
    seen = seen & (distance <= 0) if causal else seen
    if window is not None:
        seen = seen & (distance >= -window[0]) & (distance <= window[1])
    scores = scores.masked_fill(~seen, float("-inf"))
    out = (torch.softmax(scores, -1) @ v).to(query.dtype)
    lse_dtype = torch.promote_types(query.dtype, torch.float32)
    return (out, torch.logsumexp(scores, -1).to(lse_dtype)) if return_lse else out


OPS = [
    Op(
        "softmax",
        ops.softmax,
        over_one_dim(),
        [
            fails(
                IndexError,
                r"dim 2 is out of range for a tensor of shape \(2, 3\)",
                uniform(2, 3),
                2,
            )
        ],
        torch=torch.softmax,
        dtypes=FLOATS,
    ),
    Op(
        "log_softmax",
        ops.log_softmax,
        over_one_dim()[:-1],
        [
            fails(
                IndexError,
                r"dim 2 is out of range for a tensor of shape \(2, 3\)",
                uniform(2, 3),
                2,
            )
        ],
        torch=torch.log_softmax,
        dtypes=FLOATS,
    ),
    activation("gelu", call(uniform(3, 4), approximate="tanh")),
    activation("silu"),
    Op(
        "swiglu",
        ops.swiglu,
        [
            call(uniform(3, 4), uniform(3, 4)),
            call(uniform(0), uniform(0)),
            call(uniform(), uniform()),
        ],
        [fails(ValueError, r"\(2, 3\).*\(2, 4\)|\(2,3\).*\(2,4\)", uniform(2, 3), uniform(2, 4))],
        torch=lambda gate, up: theirs.silu(gate) * up,
        dtypes=FLOATS,
    ),
    Op(
        "layer_norm",
        ops.layer_norm,
        [
            call(uniform(3, 4), (4,), uniform(4), uniform(4)),
            call(uniform(2, 3, 4), (4,)),
            call(uniform(2, 3, 4), (3, 4), uniform(3, 4), uniform(3, 4)),
            call(uniform(3, 4), (4,), uniform(4), None, 1e-2),
            call(uniform(0, 4), (4,), uniform(4), uniform(4)),
        ],
        [fails(ValueError, r"\(2, 3\).*\(4,\)", uniform(2, 3), (4,))],
        torch="nn.functional.layer_norm",
        dtypes=FLOATS,
    ),
    Op(
        "rms_norm",
        ops.rms_norm,
        [
            call(uniform(3, 4), (4,), uniform(4), 1e-3),
            call(uniform(2, 3, 4), (4,), None, 1e-2),
            call(uniform(2, 3, 4), (3, 4), uniform(3, 4), 1e-3),
            call(uniform(0, 4), (4,), uniform(4), 1e-3),
        ],
        [fails(ValueError, r"\(2, 3\).*\(4,\)", uniform(2, 3), (4,))],
        torch="nn.functional.rms_norm",
        dtypes=FLOATS,
    ),
    Op(
        "rms_norm with the default eps",
        ops.rms_norm,
        [call(uniform(3, 4), (4,), uniform(4)), call(uniform(0, 4), (4,))],
        [fails(ValueError, r"\(2, 3\).*\(3, 2\)", uniform(2, 3), (3, 2))],
        torch="nn.functional.rms_norm",
        dtypes=("float64", "float32"),  # it depends on the dtype, and the half's truth is float64's
    ),
    Op(
        "cross_entropy",
        ops.cross_entropy,
        losses(),
        BAD_TARGETS,
        torch="nn.functional.cross_entropy",
        dtypes=FLOATS,
    ),
    Op(
        "cross_entropy with constant class weights",
        our_weighted_loss,
        losses(),
        BAD_TARGETS,
        torch=torch_weighted_loss,
        dtypes=FLOATS,
    ),
    Op(
        "cross_entropy with class weights",
        ops.cross_entropy,
        [
            call(logits(5, 4), SOME_IGNORED, WEIGHTS),
            call(logits(5, 4), TARGETS, WEIGHTS, reduction="none", label_smoothing=0.1),
            call(logits(0, 4), integers(0, limit=1), WEIGHTS, reduction="sum"),
        ],
        [fails(ValueError, r"\(3,\)", logits(2, 4), np.array([1, 0]), WEIGHTS[:3])],
        torch=lambda x, target, w, **kwargs: theirs.cross_entropy(x, target, w.detach(), **kwargs),
        gradcheck=False,  # no gradient flows to a weight, so finite differences disagree
        dtypes=FLOATS,
    ),
    Op(
        "linear_cross_entropy",
        linear_cross_entropy,
        [
            call(uniform(5, 3), uniform(4, 3), TARGETS),
            call(uniform(5, 3), uniform(4, 3), SOME_IGNORED, reduction="sum", label_smoothing=0.1),
            call(uniform(5, 3), uniform(4, 3), SOME_IGNORED, reduction="none"),
            call(uniform(0, 3), uniform(4, 3), integers(0, limit=1), reduction="sum"),
        ],
        [fails(IndexError, "4", uniform(2, 3), uniform(4, 3), np.array([4, 0]))],
        torch=lambda h, w, target, **kwargs: theirs.cross_entropy(h @ w.T, target, **kwargs),
        dtypes=FLOATS,
    ),
    Op(
        "rotary_embedding",
        ops.rotary_embedding,
        [
            call(uniform(2, 2, 3, 4), uniform(3, 2), uniform(3, 2)),
            call(uniform(1, 0, 3, 2), uniform(3, 1), uniform(3, 1)),
        ],
        [
            fails(
                ValueError,
                r"\(1, 1, 3, 4\).*\(2, 2\)",
                uniform(1, 1, 3, 4),
                uniform(2, 2),
                uniform(2, 2),
            )
        ],
        torch=torch_rotary,
        dtypes=FLOATS,
    ),
    Op(
        "scaled_dot_product_attention",
        ops.scaled_dot_product_attention,
        [
            call(*attention_arguments()),
            call(*attention_arguments(), is_causal=True),
            call(*attention_arguments(), every_query_sees_something()),
            call(*attention_arguments(), uniform(1, 1, 3, 4), scale=0.3),
            call(*attention_arguments(heads=4), is_causal=True, enable_gqa=True),
            call(uniform(3, 2), uniform(4, 2), uniform(4, 2)),
            call(uniform(0, 2, 3, 2), uniform(0, 2, 4, 2), uniform(0, 2, 4, 2)),
        ],
        [
            fails(ValueError, "4 heads but key has 2", *attention_arguments(heads=4)),
            fails(TypeError, "int64", *attention_arguments(), np.ones((3, 4), int)),
        ],
        torch="nn.functional.scaled_dot_product_attention",
        dtypes=FLOATS,
    ),
    Op(
        "attention",
        ops.attention,
        [
            call(*attention_arguments(), None, uniform(1, 1, 3, 4), causal="bottom_right"),
            call(*attention_arguments(queries=4), window=(1, 1), softcap=2.0),
            call(*attention_arguments(), alibi_slopes=uniform(2, low=0.1, high=0.5)),
            call(*attention_arguments(), every_query_sees_something(), return_lse=True),
            call(uniform(1, 1, 0, 2), uniform(1, 1, 2, 2), uniform(1, 1, 2, 2), return_lse=True),
        ],
        [fails(TypeError, "bool", *attention_arguments(), np.ones((3, 4), int))],
        torch=torch_attention,
        dtypes=FLOATS,
    ),
    Op(
        "dropout",
        our_dropout,
        [
            call(uniform(3, 4), 0.5),
            call(uniform(3, 4), 0.0),
            call(uniform(3, 4), 1.0),
            call(uniform(3, 4), 0.9, False),
            call(uniform(0, 2), 0.5),
        ],
        [fails(ValueError, "1.5", uniform(2), 1.5), fails(ValueError, "-0.1", uniform(2), -0.1)],
        torch=torch_dropout,
        dtypes=FLOATS,
    ),
    Op(
        "split_heads",
        registry["split_heads"],
        [
            call(uniform(2, 3, 8), sizes=(2, 1, 1)),
            call(uniform(2, 3, 4), sizes=(2,)),
            call(uniform(0, 3, 4), sizes=(1, 1)),
        ],
        [fails(ValueError, r"[\[(]2, ?3, ?3, ?2[\])]", uniform(2, 3, 8), sizes=(2, 1))],
        torch=lambda x, sizes: x.unflatten(-1, (sum(sizes), -1)).transpose(1, 2).split(sizes, 1),
    ),
    Op(
        "join_heads",
        registry["join_heads"],
        [
            call(uniform(2, 2, 3, 2), uniform(2, 1, 3, 2), uniform(2, 1, 3, 2)),
            call(uniform(2, 2, 3, 2)),
            call(uniform(2, 0, 3, 2), uniform(2, 1, 3, 2)),
        ],
        [fails(ValueError, "dimension", uniform(2, 1, 3, 2), uniform(2, 1, 2, 2))],
        torch=lambda *parts: torch.cat(parts, 1).transpose(1, 2).flatten(2),
    ),
]
