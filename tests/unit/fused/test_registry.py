"""Which kernel is taken, and why: priorities, reasons, explain() and use()."""

import re
import threading

import numpy as np
import pytest

from glassformer import fused
from glassformer.fused import FusedOp, Kernel
from tests.square_op import backward, forward, scaled_square, small_only, values


def test_the_highest_priority_that_can_serve_is_taken(op):
    assert fused.last_kernel(op) is None
    op(values(3), factor=1.0)
    assert fused.last_kernel(op) == fused.last_kernel("scaled_square") == "small"
    op(values(5), factor=1.0)
    assert fused.last_kernel(op) == "any-size"


def test_the_reference_serves_what_no_kernel_can():
    op = FusedOp("scaled_square", scaled_square)
    op.register(Kernel("small", "cpu", 10, forward, backward, small_only))
    x = values(5)
    out = op(x, factor=2.0)
    assert fused.last_kernel(op) == "reference"
    np.testing.assert_array_equal(out.detach().numpy(), 2.0 * np.arange(1, 6) ** 2)
    out.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), 4.0 * np.arange(1, 6))


def test_of_equal_priorities_the_first_registered_is_taken(op):
    op.register(Kernel("late", "cpu", 10, forward, backward))
    op(values(3), factor=1.0)
    assert fused.last_kernel(op) == "small"


def test_a_name_is_taken_once(op):
    for name in ("small", "reference"):
        with pytest.raises(ValueError, match=f"scaled_square has a kernel named '{name}' already"):
            op.register(Kernel(name, "cpu", 1, forward, backward))
    assert [kernel.name for kernel in op.kernels] == ["elsewhere", "small", "any-size"]


def test_explain_tells_why(op):
    rows = fused.explain(op, values(5, "float16"), factor=1.0)
    assert [(row.name, row.priority, row.taken) for row in rows] == [
        ("elsewhere", 99, False),
        ("small", 10, False),
        ("any-size", 5, True),
        ("reference", None, False),
    ]
    assert rows[0].reasons == ("it runs on nowhere, the tensors are on cpu",)
    assert rows[1].reasons == ("5 elements are more than 4", "half precision is beyond it")
    assert rows[2].reasons == ()
    table = str(rows).splitlines()
    assert re.fullmatch(r"elsewhere +priority +99 +it runs on nowhere, .* on cpu", table[0])
    assert re.fullmatch(r"small +priority +10 +5 elements .* 4; half precision .*", table[1])
    assert re.fullmatch(r"any-size +priority +5 +taken", table[2])
    assert re.fullmatch(
        r"reference +priority +- +the definition, for calls that no kernel can serve", table[3]
    )
    assert fused.last_kernel(op) is None, "nothing was to be computed"


def test_explain_refuses_what_a_call_would_not_take(op):
    names = "its arguments are x, y, factor"
    with pytest.raises(TypeError, match=f"scaled_square: .*'is_causal'; {names}"):
        fused.explain(op, values(3), is_causal=True)
    with pytest.raises(TypeError, match=f"scaled_square: too many positional arguments; {names}"):
        fused.explain(op, values(3), values(3), values(3))
    assert fused.explain(op, values(3))[1].taken, "what is left out is as if it were not there"


def test_explain_shows_what_is_passed_over(op):
    rows = fused.explain("scaled_square", values(3), factor=1.0)
    assert [row.name for row in rows if row.taken] == ["small"]
    assert rows[2].reasons == ("a kernel of higher priority serves this",)


def test_explain_agrees_with_the_call_under_use(op):
    for name in ("small", "any-size", "reference"):
        with fused.use(scaled_square=name):
            rows = fused.explain(op, values(3), factor=1.0)
            op(values(3), factor=1.0)
        assert [row.name for row in rows if row.taken] == [name] == [fused.last_kernel(op)]
        assert all(f"{name} is forced" in str(rows) for row in rows if not row.taken)
    with fused.use(scaled_square="small"):
        rows = fused.explain(op, values(5), factor=1.0)
        assert not any(row.taken for row in rows), "the call raises"
    assert rows[1].reasons == ("5 elements are more than 4",)


def test_a_forced_kernel_that_cannot_serve_raises_its_reasons(op):
    words = "scaled_square: small can't serve this: 5 elements are more than 4; half precision"
    with fused.use(scaled_square="small"), pytest.raises(ValueError, match=words):
        op(values(5, "float16"), factor=1.0)
    with fused.use(scaled_square="elsewhere"), pytest.raises(ValueError, match="runs on nowhere"):
        op(values(3), factor=1.0)


def test_unknown_names_are_answered_with_the_known_ones(op):
    words = "no kernel named 'smal'; it has elsewhere, small, any-size, reference"
    with pytest.raises(ValueError, match=words), fused.use(scaled_square="smal"):
        op(values(3), factor=1.0)
    words = "no fused operation 'sqare'; there are .*scaled_square"
    for wrong in (
        lambda: fused.use(sqare="reference").__enter__(),
        lambda: fused.explain("sqare", values(3)),
        lambda: fused.last_kernel("sqare"),
    ):
        with pytest.raises(ValueError, match=words):
            wrong()


def test_use_nests_and_ends_even_by_an_exception(op):
    def taken():
        op(values(3), factor=1.0)
        return fused.last_kernel(op)

    with fused.use(scaled_square="any-size"):
        with pytest.raises(KeyError), fused.use(scaled_square="reference"):
            assert taken() == "reference"
            raise KeyError
        assert taken() == "any-size"
    assert taken() == "small"


def test_use_and_last_kernel_are_the_threads_own(op):
    seen = []

    def elsewhere():
        seen.append(fused.last_kernel(op))
        op(values(3), factor=1.0)
        seen.append(fused.last_kernel(op))

    with fused.use(scaled_square="reference"):
        op(values(3), factor=1.0)
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert seen == [None, "small"]
        assert fused.last_kernel(op) == "reference"


def test_tensors_are_needed(op):
    with pytest.raises(TypeError, match="scaled_square got no Tensor"):
        op(1.0, factor=1.0)
