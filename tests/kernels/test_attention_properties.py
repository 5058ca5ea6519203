"""What attention promises of itself: symmetries, prefixes, batches, bits, second derivatives."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel_calls import DEVICE, bits_equal, dtypes, torch

# isort: split
import glassformer as gf
from glassformer import fused
from glassformer.nn import functional
from glassformer_kernels.ops.attention import attention
from tests import device_calls
from tests.kernels.attention_cases import (
    Case,
    cases,
    causals,
    fewer,
    operands,
    parts,
    run,
    tiles,
)
from tests.row_calls import drawn

pairs = st.one_of(st.none(), parts)
NEAR = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def assert_same(case, found, expected, bitwise=False):
    """Assert that two calls agree, to a few roundings of their largest numbers or bit for bit."""
    assert found.keys() == expected.keys()
    for name, a in found.items():
        b = expected[name]
        if bitwise:
            assert bits_equal(a, b), name
            continue
        seen = b[b.isfinite()].double().abs()
        size = max(1.0, float(seen.max())) if seen.numel() else 1.0
        # Δ of half precision is made of rounded outputs: as exact as dO · O, not as dS.
        torch.testing.assert_close(a, b, rtol=0, atol=4 * NEAR[case.dtype] * size, msg=name)


def with_lse(case, x):
    """Values and all gradients; the lse of a row that sees nothing is no part of them."""
    return run(case, x, with_lse=case.causal is None and case.mask is None)


@given(cases(mask=pairs, bias=pairs), st.data())
@fewer(10)
def test_permuting_keys_permutes_their_gradients_alone(case, data):
    order = torch.tensor(data.draw(st.permutations(range(case.tk))))
    x = operands(case)
    moved = replace(x, key=x.key[:, :, order], value=x.value[:, :, order])
    if x.mask is not None:
        moved.mask = x.mask[..., order]
    if x.bias is not None:
        moved.bias = x.bias[..., order]
    expected, found = with_lse(case, x), with_lse(case, moved)
    for name, dim in (("d_key", 2), ("d_value", 2), ("d_bias", 3)):
        if name in expected:
            expected[name] = expected[name].index_select(dim, order.to(DEVICE))
    assert_same(case, found, expected)


@given(cases(causal=causals, mask=pairs, dtype=st.just(torch.float32)), st.floats(-30, 30))
@fewer(10)
def test_a_constant_added_to_a_row_of_scores_shifts_its_lse_alone(case, constant):
    case = replace(case, bias=(True, True, True))
    x = operands(case)
    shift = constant * torch.randn(*x.bias.shape[:3], 1, generator=torch.Generator().manual_seed(0))
    expected, found = (
        with_lse(case, one) for one in (x, replace(x, bias=(x.bias.double() + shift).float()))
    )
    expected["lse"] = expected["lse"] + shift[..., 0].to(DEVICE)
    for name, a in found.items():
        size = max(1.0, abs(constant)) * 10
        torch.testing.assert_close(a, expected[name], rtol=0, atol=2e-5 * size, msg=name)


@given(cases(alibi=st.booleans(), sinks=st.booleans(), bias=pairs), st.data())
@fewer(10)
def test_what_comes_later_changes_nothing_before_it(case, data):
    # Queries and keys up to some length, alone: causal attention can't tell.
    length = data.draw(st.integers(1, min(case.tq, case.tk)))
    case = replace(case, causal="top_left")
    x = operands(case)
    whole = run(case, x)
    bias = x.bias if x.bias is None else x.bias[..., :length]
    if bias is not None and bias.shape[2] > 1:
        bias = bias[:, :, :length]
    cut = replace(
        x,
        query=x.query[:, :, :length],
        key=x.key[:, :, :length],
        value=x.value[:, :, :length],
        bias=bias,
        d_out=x.d_out[:, :, :length],
        d_lse=x.d_lse[:, :, :length],
    )
    prefix = run(replace(case, tq=length, tk=length), cut)
    for name in ("out", "lse", "d_query"):
        assert bits_equal(prefix[name], whole[name][:, :, :length]), name


@given(
    cases(
        batch=st.integers(2, 3),
        causal=causals,
        mask=pairs,
        alibi=st.booleans(),
        sinks=st.booleans(),
        softcap=st.sampled_from([None, 5.0]),
    )
)
@fewer(10)
def test_a_batch_is_its_parts_bit_for_bit(case):
    x = operands(case)
    whole = with_lse(case, x)
    for b in range(case.batch):
        one = {}
        for name, tensor in vars(x).items():
            own = tensor is not None and name not in ("slopes", "sinks") and tensor.shape[0] > 1
            one[name] = tensor[b : b + 1] if own else tensor
        part = with_lse(replace(case, batch=1), type(x)(**one))
        for name in part:
            if name != "d_sinks":  # a sum over the batch
                assert bits_equal(part[name], whole[name][b : b + 1]), name


@given(cases(causal=causals, mask=pairs), st.integers(0, 10))
@fewer(10)
def test_a_window_that_is_wide_enough_is_no_window(case, more):
    wide = case.tq + case.tk + more
    x = operands(case)
    full = with_lse(case, x)
    for window in ((wide, wide), (None, 2**40)):
        assert_same(case, with_lse(replace(case, window=window), x), full)


@given(cases(dtype=dtypes, window=st.just((0, 0))))
@fewer(10)
def test_a_window_of_nothing_but_oneself_is_the_value(case):
    case = replace(case, tk=case.tq)
    x = operands(case)
    found = run(case, x)
    assert bits_equal(found["out"].cpu(), x.value.repeat_interleave(case.groups, 1))


def test_two_hundred_runs_agree_in_every_bit():
    case = Case(
        batch=1,
        kv_heads=1,
        tq=17,
        tk=18,
        causal="bottom_right",
        bias=(False, False, False),
        sinks=True,
        dropout_p=0.3,
        tile=(32, 32),
    )
    x = operands(case)
    first = run(case, x)
    for _ in range(199):
        assert_same(case, run(case, x), first, bitwise=True)


# ---- second derivatives -------------------------------------------------------------------------


def test_second_derivatives_go_through_the_composite():
    shapes = ((1, 2, 5, 4), (1, 1, 6, 4), (1, 1, 6, 3), (1, 2, 5, 6))
    found = []
    for kernel in ("triton-interpreted", "reference"):
        rng = np.random.default_rng(0)
        leaves = [
            gf.tensor(rng.standard_normal(s), dtype="float32", device="torch-cpu").requires_grad_()
            for s in shapes
        ]
        with fused.use(scaled_dot_product_attention=kernel):
            out = functional.attention(*leaves[:3], bias=leaves[3], causal="bottom_right")
            assert fused.last_kernel("scaled_dot_product_attention") == kernel
            first = gf.grad((out * out).sum(), leaves, create_graph=True)
            second = gf.grad(sum((g * g).sum() for g in first), leaves)
        found.append([*first, *second])
    for mine, theirs in zip(*found, strict=True):
        size = np.abs(device_calls.values(theirs)).max()
        device_calls.assert_equal(mine.detach(), theirs.detach(), atol=2e-5 * max(size, 1))


def test_second_derivatives_of_pytorch_are_refused():
    leaves = [drawn(i, (1, 1, 3, 4)).requires_grad_() for i in range(3)]
    out = attention(*leaves)
    first = torch.autograd.grad(out.sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="attention of .* can be differentiated only once"):
        torch.autograd.grad(first[0].square().sum(), leaves)


def test_a_tensor_used_thrice_gets_the_sum_of_its_gradients():
    x = drawn(0, (1, 2, 5, 4)).requires_grad_()
    copies = [x.detach().clone().requires_grad_() for _ in range(3)]
    d_out = drawn(1, (1, 2, 5, 4))
    with tiles():
        attention(x, x, x).backward(d_out)
        attention(*copies).backward(d_out)
    torch.testing.assert_close(x.grad, sum(c.grad for c in copies), rtol=0, atol=1e-6)
