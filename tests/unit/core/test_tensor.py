"""Tensors: values in and out, memory shared and not, in-place changes."""

import copy
import pickle

import numpy as np
import pytest
import torch

import glassformer as gf
from tests.samples import assert_agree

DTYPES = ("bool", "int32", "int64", "float16", "float32", "float64")


# values in and out


@pytest.mark.parametrize(
    "data",
    [
        1,
        1.5,
        True,
        [1, 2],
        [1, 2.5],
        [True, False],
        [[1.0], [2.0]],
        [],
        [[]],
        np.float64(2),
        np.arange(3),
    ]
    + [np.ones((2, 1), dtype) for dtype in DTYPES],
    ids=repr,
)
def test_tensor_infers_the_dtype_as_pytorch_does(data):
    assert_agree(gf.tensor(data).numpy(), torch.tensor(data).numpy())


def test_tensor_copies():
    array = np.ones(3)
    for source in (array, gf.from_numpy(array)):
        t = gf.tensor(source)
        assert not np.shares_memory(t.array, array)
        assert t.dtype == gf.float64


def test_tensor_converts_and_checks():
    assert gf.tensor([1.7, -1.7], dtype="int64").tolist() == [1, -1]
    assert gf.tensor([1e300]).tolist() == [float("inf")]  # and no warning
    for data in (np.ones(2, np.uint8), np.ones(2, complex), ["a"], [None]):
        with pytest.raises(
            TypeError, match=r"dtype \w+ is not supported; the dtypes are bool, int32"
        ):
            gf.tensor(data)


def test_attributes():
    x = gf.zeros(2, 3, 4)
    assert (x.shape, x.ndim, x.dim(), x.numel(), len(x)) == ((2, 3, 4), 3, 3, 24, 2)
    assert (x.size(), x.size(-1), x.dtype, str(x.device)) == ((2, 3, 4), 4, gf.float32, "cpu")
    assert x.is_contiguous()
    assert not x.transpose(0, 1).is_contiguous()
    with pytest.raises(TypeError, match="0-d"):
        len(gf.tensor(1.0))


def test_single_numbers():
    x = gf.tensor([[2.5]])
    assert (x.item(), float(x), int(x), bool(x)) == (2.5, 2.5, 2, True)
    assert [10, 20, 30][gf.tensor(1)] == 20
    assert list(range(gf.tensor(3))) == [0, 1, 2]
    for use in (gf.Tensor.item, float, int, bool):
        with pytest.raises(ValueError, match=r"shape \(2,\)"):
            use(gf.ones(2))
    for index in (gf.tensor(1.0), gf.tensor([1, 2]), gf.tensor(True)):
        with pytest.raises(TypeError, match="only a single integer"):
            [10, 20, 30][index]


def test_lists_iteration_and_unpacking():
    x = gf.tensor([[1, 2], [3, 4]])
    assert x.tolist() == [[1, 2], [3, 4]]
    first, second = x
    assert (first.tolist(), second.tolist()) == ([1, 2], [3, 4])
    assert [row.sum().item() for row in x] == [3, 7]


def test_repr_shows_values_dtype_and_graph():
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    assert repr(x) == "tensor([1., 2.], requires_grad=True)"
    assert repr(x * 2) == "tensor([2., 4.], grad_fn=<mul node>)"
    assert repr(gf.tensor(True)) == "tensor(True, dtype=glassformer.bool)"
    assert repr(gf.tensor([1])) == "tensor([1])"
    assert repr(gf.Parameter(gf.ones(1))).startswith("Parameter containing:\ntensor([1.]")


def test_tensors_hash_by_identity():
    x, y = gf.ones(2), gf.ones(2)
    assert len({x, y, x}) == 2


# NumPy


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_and_from_numpy_share_memory(dtype):
    array = np.ones((2, 3), dtype)
    t = gf.from_numpy(array)
    assert t.numpy() is array
    array[0, 0] = 0
    assert t[0, 0].item() == 0
    t.fill_(0)
    assert not array.any()
    assert np.asarray(t) is array
    assert np.array(t) is not array


@pytest.mark.parametrize("view", [lambda a: a.T, lambda a: a[::-1], lambda a: a[:, ::2]])
def test_from_numpy_takes_any_strides(view):
    array = view(np.arange(12.0).reshape(3, 4))
    t = gf.from_numpy(array)
    assert np.shares_memory(t.numpy(), array)
    np.testing.assert_array_equal((t * 2).numpy(), array * 2)


def test_numpy_of_what_requires_grad_is_an_error():
    x = gf.ones(2, requires_grad=True)
    for use in (gf.Tensor.numpy, np.asarray):
        with pytest.raises(RuntimeError, match=r"detach\(\)\.numpy\(\)"):
            use(x)
    assert np.shares_memory(x.detach().numpy(), x.array)


def test_from_numpy_takes_supported_arrays_only():
    with pytest.raises(TypeError, match="takes a numpy.ndarray, got list"):
        gf.from_numpy([1.0])
    with pytest.raises(TypeError, match="uint8 is not supported"):
        gf.from_numpy(np.ones(2, np.uint8))


def test_arrays_and_tensors_do_not_mix_silently():
    t, array = gf.ones(2), np.ones(2)
    for mix in (lambda: t + array, lambda: array + t, lambda: t @ array, lambda: array * t):
        with pytest.raises((TypeError, AttributeError)):
            mix()


# DLPack


@pytest.mark.parametrize("dtype", DTYPES)
def test_dlpack_to_pytorch_and_numpy_shares_memory(dtype):
    x = gf.ones(2, 3, dtype=dtype)
    theirs, array = torch.from_dlpack(x), np.from_dlpack(x)
    assert str(theirs.dtype) == f"torch.{dtype}"
    theirs[0, 1] = 0
    assert x[0, 1].item() == array[0, 1] == 0
    x[1, 1] = 0
    assert theirs[1, 1].item() == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_dlpack_from_pytorch_and_numpy_shares_memory(dtype):
    theirs = torch.ones(2, 3, dtype=getattr(torch, dtype))
    x = gf.from_dlpack(theirs)
    assert x.dtype == getattr(gf, dtype)
    theirs[0, 1] = 0
    assert x[0, 1].item() == 0
    x[1, 1] = 0
    assert theirs[1, 1].item() == 0
    array = np.ones(3, dtype)
    assert np.shares_memory(gf.from_dlpack(array).array, array)


def test_dlpack_keeps_strides():
    x = gf.arange(6).reshape(2, 3).T
    assert torch.from_dlpack(x).stride() == (1, 3)
    assert gf.from_dlpack(torch.arange(6).reshape(2, 3).T).tolist() == x.tolist()


def test_dlpack_of_what_requires_grad_is_an_error():
    with pytest.raises(BufferError, match="detach"):
        torch.from_dlpack(gf.ones(2, requires_grad=True))
    torch.from_dlpack(gf.ones(2, requires_grad=True).detach())


# copies


def test_deep_copy_and_pickle_of_leaves():
    x = gf.tensor([1.0, 2.0], dtype="float16", requires_grad=True)
    for twin in (copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        assert (twin.tolist(), twin.dtype, twin.requires_grad) == ([1, 2], gf.float16, True)
        assert not np.shares_memory(twin.array, x.array)
        assert (twin + x).tolist() == [2, 4]
    with pytest.raises(RuntimeError, match="only leaves can be deep-copied"):
        copy.deepcopy(x * 2)
    shared = copy.deepcopy([x, x])
    assert shared[0] is shared[1]


# in-place changes against PyTorch's

BASE = [[1.5, -2.0, 0.25], [3.0, 0.0, -1.0]]
ROW = [2.0, -0.5, 4.0]
IN_PLACE = {
    "add_": lambda fw, x: x.add_(fw.tensor(ROW)),
    "add_ number": lambda fw, x: x.add_(2),
    "sub_": lambda fw, x: x.sub_(fw.tensor(ROW, dtype=fw.float64)),
    "mul_": lambda fw, x: x.mul_(fw.tensor(3)),
    "div_": lambda fw, x: x.div_(fw.tensor(ROW)),
    "copy_": lambda fw, x: x.copy_(fw.tensor(ROW)),
    "fill_": lambda fw, x: x.fill_(7),
    "zero_": lambda fw, x: x.zero_(),
    "clamp_": lambda fw, x: x.clamp_(-1, 1),
    "masked_fill_": lambda fw, x: x.masked_fill_(fw.tensor([True, False, True]), -1.0),
    "overlapping": lambda fw, x: x[:, 1:].copy_(x[:, :-1].clone()),
    "x[0] =": lambda fw, x: x.__setitem__(0, fw.tensor(ROW)),
    "x[:, 1] =": lambda fw, x: x.__setitem__((slice(None), 1), 5),
    "x[mask] =": lambda fw, x: x.__setitem__(x > 0, 0.5),
    "x[rows] =": lambda fw, x: x.__setitem__(fw.tensor([1, 0]), x.clone()),
    "x[row, columns] =": lambda fw, x: x.__setitem__((1, fw.tensor([2, 0])), -3.5),
    "x[row, None, mask] =": lambda fw, x: x.__setitem__(
        (0, None, fw.tensor([True, False, True])), 9
    ),
    "x[...] =": lambda fw, x: x.__setitem__(..., 1),
    "through a view": lambda fw, x: x.reshape(-1)[1:4].mul_(10),
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("change", IN_PLACE.values(), ids=IN_PLACE)
def test_in_place_changes_as_in_pytorch(change, dtype):
    mine, theirs = gf.tensor(BASE, dtype=dtype), torch.tensor(BASE, dtype=getattr(torch, dtype))
    change(gf, mine)
    change(torch, theirs)
    assert_agree(mine.numpy(), theirs.numpy())
    assert mine.version >= 1


def test_assignment_at_an_integer_beside_an_array_as_in_pytorch():
    mine, theirs = gf.zeros(2, 3, 4), torch.zeros(2, 3, 4)
    for framework, x in ((gf, mine), (torch, theirs)):
        x[1, :, framework.tensor([3, 0])] = framework.arange(6).reshape(3, 2).float()
    assert_agree(mine.numpy(), theirs.numpy())
    with pytest.raises(IndexError, match=r"out of bounds .*\(2, 3, 4\)"):
        mine[2, :, gf.tensor([0])] = 1


def test_in_place_changes_return_the_tensor():
    x = gf.ones(3)
    assert x.add_(1).mul_(3).sub_(2).clamp_(max=3).masked_fill_(x > 100, 0) is x
    assert x.tolist() == [3, 3, 3]


def test_in_place_overflow_gives_infinity_without_a_warning():
    x = gf.full((2,), 6e4, dtype="float16")
    assert x.mul_(2).tolist() == [float("inf")] * 2
    assert x.copy_(gf.tensor([1e6, 1.0])).tolist() == [float("inf"), 1]
    assert x.fill_(1e6).tolist() == [float("inf")] * 2
    x[0] = -1e6
    assert x.tolist() == [-float("inf"), float("inf")]


def test_in_place_changes_that_do_not_fit_are_errors():
    x = gf.ones(2)
    with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)"):
        x.add_(gf.ones(3))
    with pytest.raises(ValueError, match=r"\(2,\).*\(2,2\)"):
        x.add_(gf.ones(2, 2))
    with pytest.raises(TypeError, match="int64"):
        gf.ones(2, dtype="int64").div_(2)


def test_an_expanded_tensor_is_read_only():
    with pytest.raises(ValueError, match="read-only"):
        gf.ones(1, 3).expand(2, 3).add_(1)


# devices and dtypes


def test_devices():
    assert gf.zeros(1, device="cpu").device is gf.device("cpu") is gf.zeros(1).device
    with pytest.raises(ValueError, match="device 'quantum' is not available; the devices are cpu"):
        gf.zeros(1, device="quantum")
    x = gf.ones(2)
    assert x.to("cpu") is x.to(gf.float32) is x.to(gf.ones(1)) is x


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_go_by_any_name(dtype):
    theirs = getattr(torch, dtype)
    ours = getattr(gf, dtype)
    for spec in (ours, dtype, f"glassformer.{dtype}", np.dtype(dtype), np.dtype(dtype).type):
        assert gf.zeros(1, dtype=spec).dtype is ours
    assert (ours.itemsize, ours.is_floating_point) == (theirs.itemsize, theirs.is_floating_point)
    assert ours.numpy == np.dtype(dtype)
    assert pickle.loads(pickle.dumps(ours)) is ours


def test_dtypes_of_python_types():
    found = [gf.zeros(1, dtype=kind).dtype for kind in (float, int, bool)]
    assert found == [gf.float32, gf.int64, gf.bool]


@pytest.mark.parametrize("spec", ["int8", "float", np.uint8, torch.float32, "float8"])
def test_unknown_dtypes(spec):
    with pytest.raises(
        TypeError, match="is not supported; the dtypes are bool, int32, int64, float16"
    ):
        gf.zeros(1, dtype=spec)
