"""Random programs, run by us and by PyTorch: every value, first and second gradients agree."""

import numpy as np
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st

import glassformer as gf
from tests.samples import DEVICES
from tests.tolerances import assert_close

LARGEST = 64  # elements
SIDES = st.sampled_from([2, 3, 1, 0])

# Bounded functions, so that a long program doesn't amplify rounding.
SMOOTH = {
    "sin(x)": lambda fw, x: fw.sin(x),
    "cos(x)": lambda fw, x: x.cos(),
    "tanh(x)": lambda fw, x: fw.tanh(x),
    "sigmoid(x)": lambda fw, x: fw.sigmoid(x),
    "erf(x)": lambda fw, x: x.erf(),
    "exp(-x²)": lambda fw, x: fw.exp(-x * x),
    "log(x² + 1)": lambda fw, x: fw.log(x * x + 1),
    "sqrt(x² + 0.5)": lambda fw, x: (x * x + 0.5).sqrt(),
    "rsqrt(x² + 0.5)": lambda fw, x: fw.rsqrt(x * x + 0.5),
    "1 / (x² + 1)": lambda fw, x: 1 / (x * x + 1),
    "(sin(x) + 1.5) ** 1.5": lambda fw, x: (x.sin() + 1.5) ** 1.5,
    "2 - x / 3": lambda fw, x: 2 - x / 3,
    "clone(x)": lambda fw, x: x.clone(),
}

# Functions with corners or steps: they are given a sum with a fresh random tensor, because where
# two elements are equal but for rounding, either of two derivatives is right.
CORNERED = {
    "relu(x)": lambda fw, x: fw.relu(x),
    "abs(x)": lambda fw, x: x.abs(),
    "clamp(x)": lambda fw, x: x.clamp(-0.5, 0.7),
    "x + floor(x)": lambda fw, x: x + fw.floor(x),
    "x * sign(x)": lambda fw, x: x * fw.sign(x),
    "where(x > 0.1, x, cos(x))": lambda fw, x: fw.where(x > 0.1, x, x.cos()),
}
CORNERED_ALONG = {
    "amax(x, {})": lambda fw, x, d: fw.amax(x, d),
    "amin(x, {}, keepdim)": lambda fw, x, d: x.amin(d, keepdim=True),
    "max(x, {}).values": lambda fw, x, d: x.max(d).values,
    "sort(x, {}).values": lambda fw, x, d: x.sort(d).values,
    "topk(x, 1, {}).values": lambda fw, x, d: x.topk(1, d).values,
}

BINARY = {
    "x + y": lambda fw, x, y: x + y,
    "x - y": lambda fw, x, y: x - y,
    "sin(x · y)": lambda fw, x, y: fw.sin(x * y),
    "x / (y² + 0.5)": lambda fw, x, y: x / (y * y + 0.5),
    "(tanh(x) + 2) ** tanh(y)": lambda fw, x, y: (x.tanh() + 2) ** y.tanh(),
}

REDUCTIONS = {
    "sum(x, {}) / 2": lambda fw, x, d: x.sum(d) / 2,
    "sum(x, {}, keepdim)": lambda fw, x, d: x.sum(d, keepdim=True),
    "mean(x, {})": lambda fw, x, d: x.mean(d),
    "var(x, {}, correction=0)": lambda fw, x, d: x.var(d, correction=0),
    "logsumexp(x, {}, keepdim)": lambda fw, x, d: fw.logsumexp(x, d, True),
    "cumsum(x, {}) / 2": lambda fw, x, d: x.cumsum(d) / 2,
}

ALONG = {
    "flip(x, {})": lambda fw, x, d: fw.flip(x, (d,)),
    "roll(x, 1, {})": lambda fw, x, d: fw.roll(x, 1, d),
    "unsqueeze(x, {})": lambda fw, x, d: x.unsqueeze(d),
    "squeeze(x, {})": lambda fw, x, d: x.squeeze(d),
    "transpose(x, 0, {})": lambda fw, x, d: x.transpose(0, d),
    "cat((x, x), {})": lambda fw, x, d: fw.cat((x, x), d),
    "stack((x, sin(x)), {})": lambda fw, x, d: fw.stack((x, x.sin()), d),
    "chunk(x, 2, {})[-1]": lambda fw, x, d: x.chunk(2, d)[-1],
}


class Program:
    """The tensors so far, ours and PyTorch's, and the ways to compute another."""

    def __init__(self, draw):
        self.draw = draw
        self.random = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
        self.device = draw(st.sampled_from(DEVICES), label="device")
        self.mine, self.theirs = [], []
        self.leaves = []  # positions of the inputs
        for _ in range(draw(st.integers(1, 3))):
            self.leaf(tuple(draw(st.lists(SIDES, max_size=3))))

    def choose(self, what):
        return self.draw(st.sampled_from(what))

    def leaf(self, shape):
        """A new input; return its position."""
        values = self.random.normal(size=shape)
        note(f"t{len(self.mine)} = input{shape}")
        self.leaves.append(len(self.mine))
        self.mine.append(gf.tensor(values, device=self.device, requires_grad=True))
        self.theirs.append(torch.tensor(values, dtype=torch.float64, requires_grad=True))
        return self.leaves[-1]

    def shape(self, position):
        return tuple(self.theirs[position].shape)

    def apply(self, text, function, *operands):
        """Compute a new tensor from those at positions `operands`, and compare its value."""
        names = ", ".join(f"t{i}" for i in operands)
        note(f"t{len(self.mine)} = {text} of {names}")
        mine = function(gf, *(self.mine[i] for i in operands))
        theirs = function(torch, *(self.theirs[i] for i in operands))
        assert_close(mine.detach().cpu().numpy(), theirs.detach().numpy(), text)
        if theirs.numel() <= LARGEST and theirs.ndim <= 4:
            self.mine.append(mine)
            self.theirs.append(theirs)

    def any_tensor(self):
        return self.draw(st.integers(0, len(self.mine) - 1))

    def partners(self, x):
        """Positions of the tensors that broadcast with the one at `x`, itself among them."""
        shape = self.shape(x)
        return [i for i in range(len(self.mine)) if _broadcasts(shape, self.shape(i))]

    def any_dim(self, shape):
        return self.draw(st.integers(-len(shape), len(shape) - 1))

    def smooth(self):
        text = self.choose(list(SMOOTH))
        self.apply(text, SMOOTH[text], self.any_tensor())

    def cornered(self):
        x = self.any_tensor()
        shape = self.shape(x)
        shift = self.leaf(shape)
        if shape and 0 not in shape and self.draw(st.booleans()):
            text, d = self.choose(list(CORNERED_ALONG)), self.any_dim(shape)
            along = CORNERED_ALONG[text]
            self.apply(text.format(d), lambda fw, x, y: along(fw, x + y, d), x, shift)
        else:
            text = self.choose(list(CORNERED))
            self.apply(text, lambda fw, x, y: CORNERED[text](fw, x + y), x, shift)

    def binary(self):
        x = self.any_tensor()
        text = self.choose(list(BINARY))
        self.apply(text, BINARY[text], x, self.choose(self.partners(x)))

    def along(self, table, need_elements):
        x = self.any_tensor()
        shape = self.shape(x)
        if shape and not (need_elements and 0 in shape):
            text, d = self.choose(list(table)), self.any_dim(shape)
            self.apply(text.format(d), lambda fw, x: table[text](fw, x, d), x)

    def reduction(self):
        self.along(REDUCTIONS, need_elements=True)

    def rearrangement(self):
        self.along(ALONG, need_elements=False)

    def reshape(self):
        x = self.any_tensor()
        shape = self.shape(x)
        order = tuple(self.draw(st.permutations(range(len(shape)))))
        self.apply(f"reshape(permute{order}, -1)", lambda fw, x: x.permute(order).reshape(-1), x)

    def expand(self):
        x = self.any_tensor()
        shape = self.shape(x)
        target = (2, *(3 if n == 1 else n for n in shape))
        self.apply(f"expand{target}", lambda fw, x: x.expand(*target), x)

    def index(self):
        x = self.any_tensor()
        parts = tuple(self.index_part(n) for n in self.shape(x))
        keep = self.draw(st.integers(0, len(parts)))
        parts = (*parts[:keep], *self.choose([(), (...,), (None,)]))

        def function(fw, x):
            return x[
                tuple(
                    fw.tensor(p, device=x.device) if isinstance(p, np.ndarray) else p for p in parts
                )
            ]

        self.apply(f"index {parts}", function, x)

    def index_part(self, n):
        slices = [slice(None), slice(1, None), slice(None, -1), slice(None, None, 2)]
        if n == 0:
            return self.choose(slices)
        rows = self.random.integers(-n, n, 2)  # two, so that any number of them broadcast
        return self.choose([*slices, n - 1, -n, rows])

    def gather(self):
        x = self.any_tensor()
        shape = self.shape(x)
        if shape and 0 not in shape:
            d = self.draw(st.integers(0, len(shape) - 1))
            rows = self.random.integers(0, shape[d], (*shape[:d], 3, *shape[d + 1 :]))
            self.apply(
                f"gather({d})", lambda fw, x: x.gather(d, fw.tensor(rows, device=x.device)), x
            )

    def choice(self):
        x = self.any_tensor()
        y = self.choose(self.partners(x))
        mask = self.random.random(self.shape(x)) < 0.5
        self.apply(
            "where(mask, x, y)",
            lambda fw, x, y: fw.where(fw.tensor(mask, device=x.device), x, y),
            x,
            y,
        )
        self.apply(
            "masked_fill(x)", lambda fw, x: x.masked_fill(fw.tensor(mask, device=x.device), 0.3), x
        )

    def product(self):
        x = self.any_tensor()
        shape = self.shape(x)
        if shape:
            y = self.leaf(self.choose([(shape[-1],), (shape[-1], 2)]))
            self.apply("tanh(x @ y)", lambda fw, x, y: (x @ y).tanh(), x, y)
        if len(shape) > 1:
            self.apply("tanh(x @ xᵀ)", lambda fw, x: (x @ x.transpose(-2, -1)).tanh(), x)
            self.apply(
                "sin(einsum)", lambda fw, x: fw.einsum("...ij,...ij->...i", x, x.cos()).sin(), x
            )

    def window(self):
        x = self.any_tensor()
        if len(self.shape(x)) > 1:
            pads = (1, 0, -1, 2) if self.shape(x)[-2] else (1, 0)
            pad = {gf: gf.pad, torch: torch.nn.functional.pad}
            self.apply(f"tril(pad{pads})", lambda fw, x: fw.tril(pad[fw](x, pads), 1), x)

    def step(self):
        kinds = (
            self.smooth,
            self.cornered,
            self.binary,
            self.reduction,
            self.rearrangement,
            self.reshape,
            self.expand,
            self.index,
            self.gather,
            self.choice,
            self.product,
            self.window,
        )
        self.choose(kinds)()


def _broadcasts(a, b):
    return all(n == m or 1 in (n, m) for n, m in zip(reversed(a), reversed(b), strict=False))


def loss_of(outputs):
    return sum(((out + 0.5) ** 2).sum() for out in outputs)


def arrays(gradients, inputs):
    """As arrays, with zeros for None."""
    return [
        np.zeros(tuple(x.shape)) if g is None else g.detach().cpu().numpy()
        for g, x in zip(gradients, inputs, strict=True)
    ]


def two_gradients(grad, outputs, inputs):
    """The gradients of the outputs' loss, then those of the first ones' sum of squares."""
    first = grad(loss_of(outputs), inputs, create_graph=True, allow_unused=True)
    squares = [(g**2).sum() for g in first if g is not None and g.requires_grad]
    second = [None] * len(inputs)
    if squares:
        second = grad(sum(squares), inputs, allow_unused=True)
    return arrays(first, inputs) + arrays(second, inputs)


@settings(max_examples=3 * settings.default.max_examples)  # most of what goes wrong is rare
@given(st.data())
def test_random_programs_agree_with_pytorch(data):
    program = Program(data.draw)
    for _ in range(data.draw(st.integers(3, 12), label="steps")):
        program.step()
    leaves = program.leaves
    mine = two_gradients(gf.grad, program.mine, [program.mine[i] for i in leaves])
    theirs = two_gradients(torch.autograd.grad, program.theirs, [program.theirs[i] for i in leaves])
    for position, got, expected in zip([*leaves, *leaves], mine, theirs, strict=True):
        assert_close(got, expected, f"gradient of t{position}")


@given(st.data())
def test_gradients_of_intermediate_results_agree_with_pytorch(data):
    """`grad` for results in the middle of a program, one of which may depend on another.

    First gradients only: whether theirs depends on a result, or on what it was computed from, is
    a matter of how a rule is written.
    """
    program = Program(data.draw)
    for _ in range(data.draw(st.integers(3, 8), label="steps")):
        program.step()
    some = data.draw(
        st.lists(st.integers(0, len(program.mine) - 1), min_size=1, max_size=4, unique=True)
    )
    mine, theirs = ([tensors[i] for i in some] for tensors in (program.mine, program.theirs))
    found = gf.grad(loss_of(program.mine), mine, allow_unused=True)
    expected = torch.autograd.grad(loss_of(program.theirs), theirs, allow_unused=True)
    results = zip(some, arrays(found, mine), arrays(expected, theirs), strict=True)
    for position, got, want in results:
        assert_close(got, want, f"gradient of t{position}")
