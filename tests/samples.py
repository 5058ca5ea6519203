"""Sample calls of every operation: gradient checks, layouts, errors and parity are made from them.

Each operation has an `Op` in a module of `tests/sample_entries`; a new one, fused or not, joins
every test by adding its entry there. In a sample arrays stand for tensors: those of float64 take
the dtype under test and may require grad, the others (indices, masks) stay what they are.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

import glassformer as gf
from tests.tolerances import assert_close


def _devices():
    """What holds of an operation holds on every device; `torch-cpu` is `cuda` without a GPU."""
    if not find_spec("torch"):
        return ("cpu",)
    import torch

    return ("cpu", "torch-cpu", *(("cuda",) if torch.cuda.is_available() else ()))


DEVICES = _devices()
DTYPES = ("float64", "float32", "float16", "int64", "int32", "bool")

_MODULES = ("elementwise", "reduction", "shape", "indexing", "linalg", "convolution", "fused")


@dataclass(frozen=True)
class Sample:
    """The arguments of one call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def arrays(self):
        """Every array among the arguments, in order."""
        found = []
        self.replaced(lambda array: found.append(array))
        return found

    def replaced(self, replace):
        """The arguments with `replace(array)` for every array."""
        args = _mapped(self.args, replace)
        return args, {name: _mapped(value, replace) for name, value in self.kwargs.items()}

    def __repr__(self):
        args, kwargs = self.replaced(lambda array: f"{array.dtype}{list(array.shape)}")
        return ", ".join([*map(str, args), *(f"{name}={value}" for name, value in kwargs.items())])


@dataclass(frozen=True)
class Failure:
    """A call that must raise `error`, with a message that matches."""

    error: type[Exception]
    match: str
    sample: Sample


@dataclass(frozen=True)
class Op:
    """An operation and how it is sampled.

    Attributes:
        name: the same in the names of tests.
        function: ours.
        samples: calls that work.
        failures: calls that must not.
        torch: PyTorch's: a callable, or a path below `torch`; by default the same name.
        differentiable: whether gradients are checked.
        gradcheck: False where finite differences can't tell (a result rounded to fewer bits).
        dtypes: those in which results must be PyTorch's, wherever PyTorch gives one.
    """

    name: str
    function: Callable[..., Any]
    samples: Sequence[Sample]
    failures: Sequence[Failure] = ()
    torch: str | Callable[..., Any] | None = None
    differentiable: bool = True
    gradcheck: bool = True
    dtypes: Sequence[str] = field(default=DTYPES)

    def __repr__(self):
        return self.name


def call(*args, **kwargs):
    """A sample: the arguments as they would be written."""
    return Sample(args, kwargs)


def fails(error, match, *args, **kwargs):
    """A failure: the error, a pattern its message must match, and the arguments."""
    return Failure(error, match, Sample(args, kwargs))


def registry():
    """Every `Op`, by name."""
    ops = {}
    for number, module in enumerate(_MODULES):
        # A new sample changes the values of its own module alone.
        _random.bit_generator.state = np.random.PCG64(number).state
        for op in import_module(f"tests.sample_entries.{module}").OPS:
            assert op.name not in ops, f"two entries are named {op.name}"
            ops[op.name] = op
    return ops


def _mapped(value, replace):
    if isinstance(value, np.ndarray):
        return replace(value)
    if isinstance(value, list | tuple):
        return type(value)(_mapped(part, replace) for part in value)
    return value


# Values


_random = np.random.default_rng()


def uniform(*shape, low=-2.0, high=2.0):
    """Random numbers between `low` and `high`."""
    return np.asarray(_random.uniform(low, high, shape))


def away_from_zero(*shape, low=0.6, high=2.0):
    """Random numbers of either sign whose size is between `low` and `high`."""
    return np.asarray(_random.choice([-1.0, 1.0], shape) * uniform(*shape, low=low, high=high))


def away_from_steps(*shape):
    """Random numbers at least 0.1 from every multiple of 1/2."""
    return np.asarray(_random.integers(-4, 4, shape) / 2 + uniform(*shape, low=0.1, high=0.4))


def distinct(*shapes):
    """Arrays that hold no number twice, nor does any other of them."""
    sizes = [int(np.prod(shape, dtype=int)) for shape in shapes]
    numbers = _random.permutation(np.linspace(-2, 2, sum(sizes) or 1))
    parts = np.split(numbers, np.cumsum(sizes))
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=False)]


def integers(*shape, limit):
    """Random indices below `limit`."""
    return np.asarray(_random.integers(0, limit, shape))


def mask(*shape):
    """Random truth values."""
    return np.asarray(_random.random(shape) < 0.5)


# Tensors, results and gradients


def converted(array, dtype):
    """A float64 array in the dtype under test; other arrays as they are."""
    if array.dtype != np.float64:
        return array
    if dtype == "bool":
        return array > 0
    with np.errstate(invalid="ignore"):  # NaN has no integer; any will do
        return (np.rint(array) if dtype.startswith("int") else array).astype(dtype)


def tensors(sample, *, dtype="float64", device="cpu", requires_grad=False):
    """One tensor for each array of a sample."""
    made = [gf.tensor(converted(a, dtype), device=device) for a in sample.arrays()]
    return [t.requires_grad_() if requires_grad and t.dtype.is_floating_point else t for t in made]


def run(op, sample, values):
    """Call an operation with these tensors as the arrays of a sample; return a list of tensors."""
    left = iter(values)
    args, kwargs = sample.replaced(lambda _array: next(left))
    return flattened(op.function(*args, **kwargs))


def flattened(result):
    """The tensors in a result, of whatever form, as a list."""
    if isinstance(result, list | tuple | Iterator):
        return [tensor for part in result for tensor in flattened(part)]
    return [result]


def weights(outputs):
    """Fixed numbers shaped like each output: what a backward pass starts from.

    Multiples of 1/64, which half precision holds exactly: both sides start from the same.
    """
    random = np.random.default_rng(7)
    return [random.integers(32, 97, tuple(out.shape)) / 64 for out in outputs]


def gradients(outputs, inputs, create_graph=False):
    """The gradient of the weighted outputs for each input that requires grad; zeros for None."""
    reached = [out for out in outputs if out.requires_grad]
    leaves = [t for t in inputs if t.requires_grad]
    if not reached or not leaves:
        return [gf.zeros_like(leaf) for leaf in leaves]
    start = [
        gf.tensor(w, dtype=out.dtype, device=out.device)
        for w, out in zip(weights(reached), reached, strict=True)
    ]
    found = gf.grad(reached, leaves, start, create_graph=create_graph, allow_unused=True)
    return [gf.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]


def assert_agree(actual, expected, name="", slack=1):
    """Assert that arrays are of one dtype and shape; floats near, everything else equal."""
    assert actual.dtype == expected.dtype, f"{name}: {actual.dtype}, not {expected.dtype}"
    if actual.dtype.kind == "f":
        assert_close(actual, expected, name, slack)
    else:
        np.testing.assert_array_equal(actual, expected, name, strict=True)


# Layouts: the same values in memory that is not row by row


def _transposed(t):
    backwards = tuple(reversed(range(t.ndim)))
    return t.permute(backwards).clone().permute(backwards)


def _strided(t):
    if t.ndim == 0:
        return t
    poison = float("nan") if t.dtype.is_floating_point else 1
    wide = gf.full((*t.shape[:-1], 2 * t.shape[-1]), poison, dtype=t.dtype, device=t.device)
    wide[..., ::2] = t
    return wide[..., ::2]


def _reversed(t):
    backwards = (slice(None, None, -1),) * t.ndim
    return t[backwards].clone()[backwards]


def _repeated_rows(t):
    return t[:1].clone().expand(t.shape) if _repeatable(t) else t


def _repeated_columns(t):
    return t[..., :1].clone().expand(t.shape) if _repeatable(t) else t


def _repeatable(t):
    return t.ndim > 0 and t.dtype is not gf.bool  # the number of trues in a mask makes a shape


def _misaligned(t):
    if t.device.type != "cpu":
        return gf.cat([t.reshape(-1)[:1], t.reshape(-1)])[1:].reshape(t.shape)
    array = t.numpy()
    memory = bytearray(array.nbytes + 1)
    shifted = np.ndarray(array.shape, array.dtype, memory, offset=1)
    shifted[...] = array
    return gf.from_numpy(shifted)


LAYOUTS = {
    "transposed": _transposed,
    "strided": _strided,
    "reversed": _reversed,
    "repeated rows": _repeated_rows,
    "repeated columns": _repeated_columns,
    "misaligned": _misaligned,
}
