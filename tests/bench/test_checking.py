"""The float64 truth against PyTorch's own, the data, and what is allowed."""

import pytest
import torch
from torch.nn import functional as F

from glassformer_bench import truth as truth_module
from glassformer_bench.checking import Oracle, error_faults, form_faults
from glassformer_bench.inputs import Source
from glassformer_bench.problem import Problem, normalised
from glassformer_bench.providers import known
from glassformer_bench.truth import eager, truth
from glassformer_bench.verification import compute

SMALL = {"batch": 2, "heads": 4, "kv_heads": 4, "seqlen": 24, "seqlen_k": 24, "head_dim": 8}


def problem(op="attention", **changes):
    return normalised(Problem(**{"op": op, **SMALL, "vocab": 50, "mode": "fwd_bwd", **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"causal": "top_left"},
        {"kv_heads": 2, "seqlen_k": 40},
        {"causal": "top_left", "seqlen_k": 40},
    ],
)
@pytest.mark.parametrize("block", [1 << 24, 40 * 5])
def test_attention_in_blocks_is_pytorchs_in_float64(changes, block, monkeypatch):
    monkeypatch.setattr(truth_module, "_BLOCK_ELEMENTS", block)
    p = problem(**changes)
    inputs = Source(p, 0).inputs()
    leaves = [x.double().requires_grad_() for x in inputs.operands.values()]
    expected = F.scaled_dot_product_attention(
        *leaves, is_causal=p.causal is not None, enable_gqa=p.heads != p.kv_heads
    )
    grads = torch.autograd.grad(expected, leaves, inputs.d_out.double())
    found = truth(p, inputs)
    for name, right in zip(("out", "d_query", "d_key", "d_value"), (expected, *grads), strict=True):
        torch.testing.assert_close(found[name], right.detach(), rtol=0, atol=1e-13)


def test_windows_and_queries_that_see_nothing():
    p = problem(seqlen=30, seqlen_k=20, causal="bottom_right", window=(3, 0))
    inputs = Source(p, 0).inputs()
    found = truth(p, inputs)
    assert (found["out"][:, :, :10] == 0).all()
    assert (found["d_query"][:, :, :10] == 0).all()
    q, k, v = (x.double()[:, :, 10:] if x.shape[2] == 30 else x.double()
               for x in inputs.operands.values())  # fmt: skip
    i = torch.arange(20)
    seen = (i[None] <= i[:, None]) & (i[None] >= i[:, None] - 3)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    torch.testing.assert_close(found["out"][:, :, 10:], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("op", ["attention", "softmax", "layer_norm", "cross_entropy"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("data", ["randn", "uniform", "outlier"])
def test_eager_passes_its_own_check(op, dtype, data):
    p = problem(op, dtype=dtype, data=data)
    oracle = Oracle(p, Source(p, 0).inputs())
    errors = oracle.errors(eager(p, oracle.inputs()))
    assert error_faults(errors) == []
    assert errors["out"].max > 0


def test_the_data_are_what_they_say():
    big = {"seqlen": 512}
    randn = Source(problem(**big), 0).inputs().operands["query"]
    uniform = Source(problem(data="uniform", **big), 0).inputs().operands["query"]
    outlier = Source(problem(data="outlier", **big), 0).inputs().operands["query"]
    assert abs(float(randn.std()) - 1) < 0.02
    assert float(uniform.abs().max()) <= 1
    assert float(outlier.abs().max()) > 30 > 6 > float(randn.abs().max())
    assert torch.equal(randn, Source(problem(**big), 0).inputs().operands["query"])
    for other in (Source(problem(**big), 1), Source(problem(seed=1, **big), 0)):
        assert not torch.equal(randn, other.inputs().operands["query"])


def test_refresh_changes_the_answer_in_place():
    p = problem()
    source = Source(p, 0)
    inputs = source.inputs()
    before, pointer = inputs.clone(), inputs.operands["query"].data_ptr()
    source.refresh(inputs, 3)
    assert inputs.operands["query"].data_ptr() == pointer
    different = (inputs.operands["query"] != before.operands["query"]).any(-1)
    assert different.nonzero()[:, 2].unique().tolist() == [3]
    assert not torch.equal(truth(p, inputs)["out"][:, :, 7], truth(p, before)["out"][:, :, 7])


@pytest.mark.parametrize("name", ["sdpa", "engine-fused", "engine-reference"])
def test_outliers_condemn_nobody_who_is_right(name):
    # Scores of hundreds: what is left of them after rounding differs from one order of sums to
    # another by more than a few roundings of the result.
    for seed in range(20):
        p = problem(data="outlier", seed=seed)
        oracle = Oracle(p, Source(p, 0).inputs())
        results = compute(p, known()[name].bind(p, oracle.inputs()))
        assert error_faults(oracle.errors(results)) == [], seed


@pytest.mark.parametrize("data", ["randn", "outlier"])
def test_operands_rounded_to_half_precision_are_noticed(data):
    for seed in range(20):
        p = problem(data=data, seed=seed)
        oracle = Oracle(p, Source(p, 0).inputs())
        rounded = oracle.inputs()
        for x in rounded.operands.values():
            x.copy_(x.to(torch.float16))
        results = compute(p, known()["sdpa"].bind(p, rounded))
        assert error_faults(oracle.errors(results)), seed


def test_faults_are_named():
    p = problem()
    oracle = Oracle(p, Source(p, 0).inputs())
    right = {name: x.float() for name, x in oracle.truth.items()}
    assert error_faults(oracle.errors(right)) == []
    off = {**right, "d_key": right["d_key"] + 1e-3}
    (fault,) = error_faults(oracle.errors(off))
    assert fault.startswith("d_key: max error 1.00e-03, allowed ")
    holed = {**right, "out": right["out"].clone()}
    holed["out"][-1, -1, -1, -1] = float("nan")
    assert error_faults(oracle.errors(holed)) == [
        "out holds NaN or infinity where the answer is finite"
    ]


def test_a_small_error_everywhere_is_a_fault_too():
    p = problem(dtype="bf16")
    oracle = Oracle(p, Source(p, 0).inputs())
    _, allowed_mean = oracle.allowed["out"]
    shifted = {**oracle.truth, "out": oracle.truth["out"] + 1.01 * allowed_mean}
    (fault,) = error_faults(oracle.errors(shifted))
    assert fault.startswith("out: mean error")


def test_form():
    like, dtype = torch.zeros(2, 3, dtype=torch.float64), torch.float32

    def faults(x):
        return form_faults("out", x, like, dtype)

    assert faults(torch.zeros(2, 3)) == []
    assert faults(torch.zeros(3, 2)) == ["out has shape (3, 2), not (2, 3)"]
    assert faults(like) == ["out is torch.float64, not torch.float32"]
    assert "list, not a torch.Tensor" in faults([0.0])[0]

    class Lazy(torch.Tensor):
        pass

    assert "Lazy" in faults(torch.zeros(2, 3).as_subclass(Lazy))[0]


def test_changed_inputs_are_named():
    p = problem()
    oracle = Oracle(p, Source(p, 0).inputs())
    inputs = oracle.inputs()
    assert oracle.changed(inputs) == []
    inputs.operands["key"][0, 0, 0, 0] += 1
    assert oracle.changed(inputs) == ["key"]
