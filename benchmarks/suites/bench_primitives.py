"""What an operation costs beyond its arithmetic: 4 x 4 matrices, a chain of a hundred."""

import numpy as np
import pytest
import torch

import glassformer as gf

_DEPTH = 100
_RTOL = 1e-4  # of the largest element: a hundred float32 operations after each other
# (functions of the framework, the last value, a matrix) -> the next value, of about the same size
OPERATIONS = {
    "add": lambda F, x, w: x + w,
    "multiply": lambda F, x, w: x * w,
    "tanh": lambda F, x, w: x.tanh(),
    "transpose": lambda F, x, w: x.transpose(0, 1),
    "matmul": lambda F, x, w: x @ w,
    "linear": lambda F, x, w: F.linear(x, w),
    "log_softmax": lambda F, x, w: F.log_softmax(x, -1),
    "layer_norm": lambda F, x, w: F.layer_norm(x, (4,)),
}


class Chain:
    """One framework's chain of an operation, from the same numbers as the other's."""

    def __init__(self, framework, from_numpy, name):
        start, noise, weight = np.random.default_rng(0).standard_normal((3, 4, 4), dtype="f4")
        identity = np.ones((4, 4), "f4") if name == "multiply" else np.eye(4, dtype="f4")
        self.operation, self.functions = OPERATIONS[name], framework.nn.functional
        self.no_grad = framework.no_grad
        self.start = from_numpy(start).requires_grad_()
        self.matrix = from_numpy(identity + np.float32(0.01) * noise).requires_grad_()
        self.weight = from_numpy(weight)  # of the result's elements: a norm's plain sum is constant

    def forward(self):
        """Return the last value, with the graph that leads to it."""
        value = self.start
        for _ in range(_DEPTH):
            value = self.operation(self.functions, value, self.matrix)
        return value

    def plain(self):
        """Return the last value alone."""
        with self.no_grad():
            return self.forward()

    def backward(self):
        """Leave the gradients in `start` and `matrix`."""
        self.start.grad = self.matrix.grad = None
        (self.forward() * self.weight).sum().backward()

    def results(self):
        """Return the value and the gradients that the operation has."""
        self.backward()
        found = [self.plain(), self.start.grad, self.matrix.grad]
        return [x.detach().numpy() for x in found if x is not None]


@pytest.mark.benchmark(max_time=0.2)
@pytest.mark.parametrize("way", ["plain", "backward"])
@pytest.mark.parametrize("name", OPERATIONS)
def bench_operation(race, name, way):
    """Compute alone, or with the graph and the way back."""
    ours = Chain(gf, gf.from_numpy, name)
    theirs = Chain(torch, torch.from_numpy, name)

    def check():
        errors = [
            float(np.abs(mine - other).max() / np.abs(other).max())
            for mine, other in zip(ours.results(), theirs.results(), strict=True)
        ]
        if not max(errors) < _RTOL:
            raise RuntimeError(f"value or gradients differ by {max(errors):.1e}")
        return max(errors)

    what = {"plain": "no gradient", "backward": "forward and backward"}[way]
    race(f"{name}, {what}", getattr(ours, way), getattr(theirs, way), check, calls=_DEPTH)
