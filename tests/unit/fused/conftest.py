"""Fixtures for the registry's tests."""

import pytest

from glassformer.fused import FusedOp, Kernel, registry
from tests.square_op import backward, forward, scaled_square, small_only


@pytest.fixture(autouse=True)
def leave_no_trace(monkeypatch):
    monkeypatch.setattr(registry, "_ops", dict(registry._ops))
    monkeypatch.setattr(registry, "_thread", registry._Thread())


@pytest.fixture
def op():
    """factor · x² + y, with a kernel for all and a better one for a few elements."""
    op = FusedOp("scaled_square", scaled_square)
    op.register(Kernel("any-size", "cpu", 5, forward, backward))
    op.register(Kernel("elsewhere", "nowhere", 99, forward, backward))
    op.register(Kernel("small", "cpu", 10, forward, backward, small_only))
    return op
