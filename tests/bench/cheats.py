"""Attention kernels that cheat, each in one way. `honest` doesn't."""

import time

import torch
from torch.nn import functional as F


def honest(query, key, value, is_causal=False, scale=None):
    return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=scale)


def zeros(query, key, value):
    return honest(query, key, value) * 0


_by_shape, _by_pointer, _by_version, _calls, _buffers = {}, {}, {}, {}, {}


def cached_by_shape(query, key, value):
    return _by_shape.setdefault(query.shape, honest(query, key, value))


def cached_by_pointer(query, key, value):
    if query.data_ptr() not in _by_pointer:
        _by_pointer[query.data_ptr()] = honest(query, key, value)
    return _by_pointer[query.data_ptr()].clone()


def replays_after_eight_calls(query, key, value):
    _calls["replays"] = _calls.get("replays", 0) + 1
    if _calls["replays"] <= 8:
        _by_version["last"] = honest(query, key, value).detach()
    return _by_version["last"].clone()


def stale_buffer(query, key, value):
    previous = _buffers.get("stale", torch.zeros_like(query))
    _buffers["stale"] = honest(query, key, value)
    return previous


def one_buffer_for_all(query, key, value):
    buffer = _buffers.setdefault((query.shape, query.dtype), torch.empty_like(query))
    return buffer.copy_(honest(query, key, value))


def mutates_query(query, key, value):
    out = honest(query, key, value)
    query.data.mul_(0.5)
    return out


class _MutatesGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value):
        ctx.save_for_backward(query, key, value)
        return honest(query, key, value)

    @staticmethod
    def backward(ctx, grad):
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            grads = torch.autograd.grad(honest(*leaves), leaves, grad)
        grad.zero_()
        return grads


mutates_gradient = _MutatesGradient.apply


class _WrongKeyGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value):
        ctx.save_for_backward(query, key, value)
        return honest(query, key, value)

    @staticmethod
    def backward(ctx, grad):
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            d_query, d_key, d_value = torch.autograd.grad(honest(*leaves), leaves, grad)
        return d_query, d_key * 1.001, d_value


def wrong_key_gradient(query, key, value):
    return _WrongKeyGradient.apply(query, key, value)


def wrong_dtype(query, key, value):
    return honest(query, key, value).double()


def half_precision_inside(query, key, value):
    return honest(query.bfloat16(), key.bfloat16(), value.bfloat16()).to(query.dtype)


def wrong_shape(query, key, value):
    return honest(query, key, value)[:, :, :-1]


def transposed(query, key, value):
    return honest(query, key, value).transpose(1, 2)


def nan_in_the_tail(query, key, value):
    out = honest(query, key, value)
    out.detach()[-1, -1, -1, -1] = float("nan")
    return out


def unwritten_tail(query, key, value):
    out = torch.empty_like(query)
    out[:, :, :-1] = honest(query, key, value)[:, :, :-1]
    return out


def right_once(query, key, value):
    _calls["once"] = _calls.get("once", 0) + 1
    return honest(query, key, value) * (1 if _calls["once"] == 1 else 1.01)


class _Lazy(torch.Tensor):
    pass


def lazy(query, key, value):
    return honest(query, key, value).as_subclass(_Lazy)


def replaces_the_clock(query, key, value):
    time.perf_counter = lambda: 0.0
    return honest(query, key, value)


def replaces_the_clock_and_is_wrong(query, key, value):
    return replaces_the_clock(query, key, value) * 0


def on_another_stream(query, key, value):
    with torch.cuda.stream(torch.cuda.Stream()):
        return honest(query, key, value)


def raises(query, key, value):
    raise RuntimeError("no kernel image is available")


def out_of_memory(query, key, value):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def dies(query, key, value):
    import os
    import signal

    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(query, key, value):
    time.sleep(1000)


def forget():
    """Start over: what one test's kernel remembers is nothing to the next."""
    for memory in (_by_shape, _by_pointer, _by_version, _calls, _buffers):
        memory.clear()
