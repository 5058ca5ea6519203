"""What holds of every operation, over the registry of samples."""

import inspect
import itertools

import numpy as np
import pytest

import glassformer as gf
from glassformer import primitive as primitives
from glassformer.fused import FusedOp, last_kernel
from glassformer.fused.registry import _ops as registered
from glassformer.ops import (
    choice,
    conversion,
    convolution,
    elementwise,
    indexing,
    linalg,
    reduction,
    shape,
)
from glassformer.primitive import Primitive
from tests import samples
from tests.samples import DEVICES, LAYOUTS, Sample, assert_agree, flattened, gradients, run, tensors

OPS = samples.registry()
DIFFERENTIABLE = [op for op in OPS.values() if op.differentiable]
_POINTWISE = {module.__name__ for module in (choice, conversion, elementwise)}
ELEMENTWISE = [op for op in OPS.values() if op.function.__module__ in _POINTWISE]
CHECKED = [op for op in DIFFERENTIABLE if op.gradcheck]

over_ops = pytest.mark.parametrize("op", OPS.values(), ids=repr)
over_devices = pytest.mark.parametrize("device", DEVICES)


def function_of_leaves(op, sample, values):
    """An operation as a function of the tensors among `values` that require grad."""

    def function(*leaves):
        given = iter(leaves)
        return tuple(run(op, sample, [next(given) if v.requires_grad else v for v in values]))

    return function, [v for v in values if v.requires_grad]


def differentiable_calls(op, device):
    """(sample, function, leaves) for each sample through which gradients flow, in float64."""
    for sample in op.samples:
        values = tensors(sample, device=device, requires_grad=True)
        function, leaves = function_of_leaves(op, sample, values)
        if leaves and any(out.requires_grad for out in function(*leaves)):
            yield sample, function, leaves


@over_devices
@pytest.mark.parametrize("op", CHECKED, ids=repr)
def test_gradients_agree_with_finite_differences(op, device):
    checked = 0
    for _, function, leaves in differentiable_calls(op, device):
        checked += gf.gradcheck(function, leaves)
    assert checked


@over_devices
@pytest.mark.parametrize("op", CHECKED, ids=repr)
def test_second_derivatives_agree_with_finite_differences(op, device):
    checked = 0
    for _, function, leaves in differentiable_calls(op, device):
        if all(gf.isfinite(out).all() for out in function(*leaves)):
            checked += gf.gradgradcheck(function, leaves)
    assert checked


@over_devices
@over_ops
def test_inputs_are_unchanged(op, device):
    for sample in op.samples:
        values = tensors(sample, device=device, requires_grad=op.differentiable)
        before = [v.detach().clone() for v in values]
        gradients(run(op, sample, values), values)
        for value, copy in zip(values, before, strict=True):
            np.testing.assert_array_equal(value.detach().cpu().numpy(), copy.cpu().numpy())
            assert value.version == 0, sample


@over_devices
@pytest.mark.parametrize("layout", LAYOUTS)
@over_ops
def test_memory_layout_changes_nothing(op, layout, device):
    compared = 0
    for sample in op.samples:
        twins = [LAYOUTS[layout](v).detach() for v in tensors(sample, device=device)]
        plain = [twin.clone() for twin in twins]
        results = []
        for values in (twins, plain):
            if op.differentiable:
                for value in values:
                    value.requires_grad_(value.dtype.is_floating_point)
            try:
                outputs = run(op, sample, values)
            except ValueError:
                assert op.function is shape.view and values is twins, sample
                break  # it refuses to copy, as it should
            found = gradients(outputs, values)
            results.append([t.detach().cpu().numpy() for t in (*outputs, *found)])
        else:
            for got, expected in zip(*results, strict=True):
                assert_agree(got, expected, f"{op} of {layout} {sample}")
                compared += 1
    assert compared


@over_devices
@over_ops
def test_bad_arguments_raise_an_error_that_says_what_they_were(op, device):
    for failure in op.failures:
        values = tensors(failure.sample, device=device)
        with pytest.raises(failure.error, match=failure.match):
            run(op, failure.sample, values)


@over_ops
def test_no_graph_is_recorded_unless_a_gradient_is_wanted(op):
    for sample in op.samples:
        outputs = run(op, sample, tensors(sample))
        assert not any(out.requires_grad for out in outputs), sample
        values = tensors(sample, requires_grad=True)
        with gf.no_grad():
            outputs = run(op, sample, values)
        assert all(out.grad_fn is None for out in outputs), sample


def overwrite(tensor):
    """Change every element, in place."""
    array = tensor.detach().array
    if not array.flags.writeable:  # an expanded view: change what it repeats
        return
    array[...] = ~array if array.dtype == bool else 0
    tensor.bump_version()


@pytest.mark.parametrize("op", DIFFERENTIABLE, ids=repr)
def test_change_of_any_argument_or_result_before_backward_is_caught_or_harmless(op):
    for sample in op.samples:
        values = tensors(sample, requires_grad=True)
        outputs = run(op, sample, values)
        expected = [g.numpy() for g in gradients(outputs, values)]
        for position in range(len(values) + len(outputs)):
            values = tensors(sample, requires_grad=True)
            outputs = run(op, sample, values)
            overwrite([*values, *outputs][position])
            try:
                found = [g.numpy() for g in gradients(outputs, values)]
            except RuntimeError as error:
                assert "changed in place" in str(error), sample
                continue
            for got, want in zip(found, expected, strict=True):
                np.testing.assert_array_equal(got, want, f"{op} of {sample}")


SPECIAL = np.array([0.0, np.inf, 1.0, -np.inf, -0.0, np.nan, -1.5, 1e300, 2.0, -1e300, 5e-324])


def with_special_values(sample, turn):
    """A sample whose numbers are infinities, NaN, zeros and the like, in one of several orders."""
    turns = itertools.count(turn, 2)

    def special(array):
        given = np.roll(SPECIAL, next(turns)) if array.dtype == np.float64 else array
        return np.resize(given, array.shape)

    args, kwargs = sample.replaced(special)
    return Sample(args, kwargs)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@over_ops
def test_infinities_and_nan_are_values_and_no_reason_to_warn(op, dtype):
    """Warnings are errors in this suite: NumPy's must be silenced wherever it would give one."""
    for sample in op.samples:
        for turn in range(3):
            special = with_special_values(sample, turn)
            with np.errstate(over="ignore"):  # here 1e300 becomes infinite
                values = tensors(special, dtype=dtype, requires_grad=op.differentiable)
            outputs = run(op, special, values)
            found = gradients(outputs, values)
            leaves = [v for v in values if v.requires_grad]
            assert [(g.shape, g.dtype) for g in found] == [(v.shape, v.dtype) for v in leaves]


# Not products and sums of products, which add in any order. Not remainders: PyTorch's vectorised
# one by 5e-324 is NaN in the middle of an array and 0 at its end.
_IN_ORDER = {m.__name__ for m in (choice, conversion, elementwise, indexing, reduction, shape)}
EXACT = [op for op in OPS.values() if op.function.__module__ in _IN_ORDER]
EXACT = [op for op in EXACT if not op.name.endswith("remainder")]


@pytest.mark.parametrize("op", EXACT, ids=repr)
def test_infinities_and_nan_are_the_same_on_every_device(op):
    for sample, turn in itertools.product(op.samples, range(2)):
        special = with_special_values(sample, turn)
        results = []
        for device in DEVICES:
            values = tensors(special, device=device)
            results.append([out.cpu().numpy() for out in run(op, special, values)])
        for found in results[1:]:
            for mine, theirs in zip(found, results[0], strict=True):
                assert mine.dtype == theirs.dtype
                with np.errstate(all="ignore"):
                    np.testing.assert_allclose(mine, theirs, 1e-12, 1e-300, err_msg=str(special))


def tiled(sample, count):
    """A sample of arrays of one shape, each repeated `count` times along the first dimension."""
    args, kwargs = sample.replaced(lambda a: np.tile(a, (count,) + (1,) * (a.ndim - 1)))
    return Sample(args, kwargs)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("op", ELEMENTWISE, ids=repr)
def test_large_arrays_are_treated_like_small_ones(op, dtype):
    """Results from some size on are written into reused memory."""
    for sample in op.samples:
        shapes = {array.shape for array in sample.arrays()}
        if len(shapes) > 1 or not min(shapes):
            continue
        count = -(-40_000 // max(1, int(np.prod(min(shapes)))))
        results = []
        for each in (sample, tiled(sample, count)):
            values = tensors(each, dtype=dtype, requires_grad=op.differentiable)
            outputs = run(op, each, values)
            found = []
            if any(out.requires_grad for out in outputs):
                leaves = [v for v in values if v.requires_grad]
                found = gf.grad([out.sum() for out in outputs], leaves, allow_unused=True)
            results.append([t.detach().numpy() for t in (*outputs, *found) if t is not None])
        for small, large in zip(*results, strict=True):
            expected = np.tile(small, (count,) + (1,) * (small.ndim - 1))
            assert_agree(large, expected, f"{op} of {sample}")


# The registry itself


def test_every_primitive_and_every_kernel_is_sampled(monkeypatch):
    called, served = set(), set()
    primitive, fused = Primitive.__call__, FusedOp.__call__

    def recording(self, *args, **params):
        called.add(self.name)
        return primitive(self, *args, **params)

    def recording_fused(self, *args, **params):
        result = fused(self, *args, **params)
        served.add((self.name, last_kernel(self)))
        return result

    monkeypatch.setattr(Primitive, "__call__", recording)
    monkeypatch.setattr(FusedOp, "__call__", recording_fused)
    # Triton's kernels, on all devices but the CPU, leave float64 to the reference.
    for device, dtype in itertools.zip_longest(DEVICES, ["float64"], fillvalue="float32"):
        for op in OPS.values():
            for sample in op.samples:
                values = tensors(
                    sample, dtype=dtype, device=device, requires_grad=op.differentiable
                )
                first = gradients(run(op, sample, values), values, create_graph=True)
                gradients(first, values)
    ours = {
        name
        for name, primitive in primitives.registry.items()
        if primitive.forward.__module__.startswith("glassformer.")
    }
    assert ours - called == set(), "these primitives have no samples: add them in sample_entries/"
    kernels = {
        (op.name, kernel.name)
        for op in registered.values()
        for kernel in op.kernels
        if not op.mutates and kernel.device in DEVICES
    }
    assert kernels - served == set(), "these kernels have no samples: add them in sample_entries/"


def public_functions(module):
    return {
        function
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and function.__module__ == module.__name__
        and not name.startswith("_")
    }


@pytest.mark.parametrize(
    "module",
    [choice, conversion, convolution, elementwise, indexing, linalg, reduction, shape],
    ids=lambda m: m.__name__,
)
def test_every_public_operation_is_sampled(module):
    sampled = {op.function for op in OPS.values()}
    helpers = {conversion.promoted, conversion.as_number, conversion.as_float}
    helpers |= {indexing.check_range, indexing.setitem}
    helpers |= {
        conversion.cpu,
        conversion.cuda,
        conversion.bfloat16,
    }  # tests/unit/core/test_devices
    missing = public_functions(module) - sampled - helpers
    assert missing == set(), "these have no samples: add them in sample_entries/"


def test_every_operation_has_samples_and_failures():
    without = [op.name for op in OPS.values() if not op.samples or not op.failures]
    # these refuse nothing: whatever is a tensor has a contiguous form, reversed dimensions
    assert without == ["contiguous", "transpose_all"]


@over_ops
def test_samples_have_a_tensor_without_elements(op):
    assert any(array.size == 0 for sample in op.samples for array in sample.arrays())


@pytest.mark.parametrize("op", ELEMENTWISE, ids=repr)
def test_samples_of_elementwise_operations_have_a_single_number(op):
    assert any(array.ndim == 0 for sample in op.samples for array in sample.arrays())


def test_flattened_finds_tensors_in_nested_results():
    x, y = gf.zeros(1), gf.ones(2)
    assert [t.shape for t in flattened(((x, [y]), iter([x])))] == [(1,), (2,), (1,)]
