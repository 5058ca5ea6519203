"""Small kernels for the tests of ahead-of-time compilation: some right, some wrong in one way.

Compiled in a process of its own, by `--samples tests.aot_toys`: never imported by a test.
"""

import multiprocessing
import os
from functools import partial

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from glassformer_kernels import launch
from glassformer_kernels.aot_compile import Sample
from glassformer_kernels.launch import Config


@triton.jit
def _toy_scale(p_x, p_none, n, one, scale, flag, BLOCK: tl.constexpr):
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)
    b_x = tl.load(p_x + o, mask=o < n, other=0.0).to(tl.float32)  # (BLOCK,)
    if p_none is not None:
        b_x += tl.load(p_none)
    if flag:
        b_x *= scale
    tl.store(p_x + o * one, b_x.to(p_x.dtype.element_ty), mask=o < n)


@triton.jit
def _toy_wrong(p_x, BLOCK: tl.constexpr):
    tl.store(p_x + tl.arange(0, BLOCK), tl.arange(0, 2 * BLOCK))


@triton.jit
def _toy_product(
    p_a, p_b, d_a, d_b, p_c, k, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    o_m, o_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    b_c = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, k, BLOCK_K):
        if d_a is not None:
            b_a = d_a.load([0, first])  # (BLOCK_M, BLOCK_K)
            b_b = d_b.load([0, first])  # (BLOCK_N, BLOCK_K)
        else:
            o_k = first + tl.arange(0, BLOCK_K)
            b_a = tl.load(p_a + o_m[:, None] * k + o_k[None, :])  # (BLOCK_M, BLOCK_K)
            b_b = tl.load(p_b + o_n[:, None] * k + o_k[None, :])  # (BLOCK_N, BLOCK_K)
        b_c = tl.dot(b_a, tl.trans(b_b), b_c, input_precision="ieee")
    tl.store(p_c + o_m[:, None] * BLOCK_N + o_n[None, :], b_c.to(p_c.dtype.element_ty))


def _meta(*shape, dtype):
    return torch.empty(shape, dtype=dtype, device="meta")


def _scale(dtype, n=4096):
    configs = [Config({"BLOCK": 1024}), Config({"BLOCK": 256}, num_warps=2)]
    x = _meta(n, dtype=dtype)
    args = {"p_x": x, "p_none": None, "n": n, "one": 1, "scale": 0.5, "flag": True}
    launch.launch(_toy_scale, 1, configs, **args)


def _product(dtype, rows=128, columns=128, warps=4, stages=3):
    a, b = _meta(rows, 512, dtype=dtype), _meta(columns, 512, dtype=dtype)

    def descriptor(x):
        if not launch.target_for(x).has_tma:
            return None
        return TensorDescriptor.from_tensor(x, [len(x), 64])

    launch.launch(
        _toy_product,
        1,
        [Config({"BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_K": 64}, warps, stages)],
        p_a=a,
        p_b=b,
        d_a=descriptor(a),
        d_b=descriptor(b),
        p_c=_meta(rows, columns, dtype=dtype),
        k=512,
    )


def _wrong(dtype):
    launch.launch(_toy_wrong, 1, [Config({"BLOCK": 64})], p_x=_meta(64, dtype=dtype))


def _raise(dtype):
    raise ValueError("a call that can't be made")


def _crash(dtype):
    if multiprocessing.parent_process():  # only where it is compiled
        os.write(2, b"as a compiler that aborts\n")
        os.abort()
    _scale(dtype, n=4097)


SAMPLES = (
    Sample("scale", _scale),
    Sample("scale again", _scale),
    Sample("product", _product, guarded=True),
    Sample("product, deep", partial(_product, stages=12)),
    Sample("product, narrow", partial(_product, rows=16, columns=32), guarded=True),
    Sample("product, one warp", partial(_product, rows=64, warps=1, stages=1), guarded=True),
    Sample("wrong", _wrong),
    Sample("raises", _raise),
    Sample("crashes", _crash),
)
