"""Devices: their names, what moves between them, and that NumPy's meaning holds on each."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest

import glassformer as gf
from glassformer import nn
from tests.device_calls import DEVICE, assert_equal

torch = pytest.importorskip("torch")

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="here is no GPU")


def on_device(data, **kwargs):
    return gf.tensor(data, device=DEVICE, **kwargs)


# names


def test_a_device_is_one_object():
    device = gf.device(DEVICE)
    assert gf.device(DEVICE) is gf.device(device) is gf.zeros(1, device=DEVICE).device is device
    assert (str(device), device.type, device.index) == ("torch-cpu", "torch-cpu", None)
    assert repr(device) == "device('torch-cpu')"
    assert pickle.loads(pickle.dumps(device)) is copy.deepcopy(device) is device


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "torch-cpu:0", ""])
def test_unknown_devices(name):
    with pytest.raises(ValueError, match="is not available; the devices are cpu, cuda, torch-cpu"):
        gf.zeros(1, device=name)


@needs_no_gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_without_a_gpu_one_line_says_so(name):
    for make in (lambda: gf.zeros(1, device=name), lambda: nn.Linear(2, 2).to(name)):
        with pytest.raises(ValueError, match="torch sees no CUDA device") as raised:
            make()
        assert "\n" not in str(raised.value)


@needs_gpu
def test_gpus_are_numbered():
    first = gf.device("cuda")
    assert gf.device("cuda:0") is first
    assert (first.type, first.index, str(first)) == ("cuda", 0, "cuda:0")
    with pytest.raises(ValueError, match="there is no device 'cuda:99'"):
        gf.device("cuda:99")


def test_without_torch_one_line_says_what_to_install():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import glassformer as gf\n"
        "print(gf.ones(2).sum().item())\n"
        "for name in ('cuda', 'torch-cpu'):\n"
        "    try: gf.zeros(1, device=name)\n"
        "    except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        "2.0",
        "device 'cuda' needs PyTorch; install it: pip install 'glassformer[gpu]'",
        "device 'torch-cpu' needs PyTorch; install it: pip install 'glassformer[gpu]'",
    ], done.stderr


def test_the_engine_imports_torch_only_for_a_device_that_needs_it():
    code = (
        "import sys, glassformer as gf; gf.ones(2) @ gf.ones(2); print('torch' in sys.modules)\n"
        "gf.ones(2, device='torch-cpu'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "True"], done.stderr


# there and back


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int32", "bool"])
def test_values_survive_the_way_there_and_back(dtype):
    x = gf.tensor([[1, 0, -3], [4, 5, 6]], dtype=dtype)
    for there in (x.to(DEVICE), x.T.clone().T.to(gf.device(DEVICE)), gf.tensor(x, device=DEVICE)):
        assert isinstance(there.array, torch.Tensor)
        assert not there.array.requires_grad
        assert there.dtype is x.dtype
        assert there.tolist() == x.tolist()
        assert_equal(there.cpu(), x)
    assert x.cpu() is x
    assert there.to(DEVICE) is there
    assert x.to(there).device is there.device


def test_a_moved_tensor_is_a_copy():
    x = gf.ones(3)
    there = x.to(DEVICE)
    x.zero_()
    back = there.cpu()
    there.zero_()
    assert (there.tolist(), back.tolist()) == ([0] * 3, [1] * 3)


def test_moving_may_convert():
    assert gf.ones(2).to(DEVICE, gf.float64).dtype is gf.float64
    assert gf.ones(2).to(DEVICE, dtype="int64").tolist() == [1, 1]
    assert on_device([1.5]).to("cpu", "float16").dtype is gf.float16


def test_gradients_go_back_the_way_the_values_came():
    x = gf.tensor([1.0, 2.0, 3.0], dtype="float64", requires_grad=True)
    y = (x.to(DEVICE) ** 3).to("cpu") * 2
    (first,) = gf.grad(y.sum(), x, create_graph=True)
    (second,) = gf.grad(first.sum(), x)
    assert first.device is second.device is x.device
    assert (first.tolist(), second.tolist()) == ([6, 24, 54], [12, 24, 36])
    half = on_device([1.0, 2.0], dtype="bfloat16", requires_grad=True)
    half.float().cpu().sum().backward()
    assert (half.grad.dtype, half.grad.device) == (gf.bfloat16, half.device)


def test_numpy_asks_for_a_copy_on_the_cpu():
    for ask in (lambda x: x.numpy(), np.asarray):
        with pytest.raises(TypeError, match=r"on torch-cpu; copy it to the CPU first: .*\.cpu\(\)"):
            ask(on_device([1.0]))


def test_tensors_of_two_devices_do_not_mix():
    here, there = gf.ones(2), on_device([1.0, 1.0])
    operations = [
        lambda: here + there,
        lambda: here.add_(there),
        lambda: there.masked_fill_(here > 0, 0.0),
        lambda: gf.cat([here, there]),
    ]
    for operation in operations:
        with pytest.raises(ValueError, match=r"\.to\(\)"):
            operation()


def test_printing_and_python_numbers():
    x = on_device([[1.5, 2.0]])
    assert repr(x) == "tensor([[1.5, 2. ]], device='torch-cpu')"
    assert repr(x.bfloat16()[0, :1]) == (
        "tensor([1.5], dtype=glassformer.bfloat16, device='torch-cpu')"
    )
    assert (x.sum().item(), float(x[0, 0]), int(x[0, 1]), bool(x.any())) == (3.5, 1.5, 2, True)


def test_memory_is_shared_through_dlpack():
    theirs = torch.arange(4.0)
    x = gf.from_dlpack(theirs, DEVICE)
    x[1] = 7.0
    assert theirs.tolist() == [0, 7, 2, 3]
    torch.from_dlpack(x)[0] = 5.0
    assert x.tolist() == [5, 7, 2, 3]
    assert gf.from_dlpack(theirs).device.type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            gf.from_dlpack(theirs, "cuda")


def test_leaves_can_be_copied_and_modules_moved():
    layer = nn.Linear(3, 2)
    weight = layer.weight
    before = weight.detach().clone()
    assert layer.to(DEVICE) is layer
    assert layer.weight is weight
    assert weight.device.type == DEVICE
    twin = copy.deepcopy(layer)
    with gf.no_grad():
        weight.zero_()
    assert_equal(twin.weight, before)
    state = {name: tensor.cpu() for name, tensor in twin.state_dict().items()}
    layer.load_state_dict(state)
    assert_equal(layer.cpu().weight, before)


# making tensors


def test_any_numpy_array_can_be_the_source():
    numbers = np.arange(6.0).reshape(2, 3)
    frozen = numbers.copy()
    frozen.setflags(write=False)
    sources = [numbers.T, numbers[::-1, ::-2], numbers.astype(">f8"), frozen, numbers[0, 0]]
    sources.append(np.broadcast_to(numbers[0], (4, 3)))
    for source in sources:
        for there in (on_device(source), gf.tensor(source).to(DEVICE)):
            assert_equal(there, gf.tensor(np.array(source, "f8")))
        assert gf.Tensor(source, gf.device(DEVICE)).tolist() == source.tolist()


def test_the_same_seed_gives_the_same_numbers_on_every_device():
    def drawn(device):
        generator = gf.Generator(5)
        options = {"generator": generator, "device": device}
        layer = nn.Linear(4, 3).to(device)
        nn.init.normal_(layer.weight, generator=generator)
        dropped = nn.functional.dropout(gf.ones(50, device=device), 0.4, generator=generator)
        return [
            gf.rand(3, 4, **options),
            gf.randn(5, dtype="float64", **options),
            gf.rand(4, dtype="float16", **options),
            gf.randint(0, 9, (6,), **options),
            gf.randperm(7, **options),
            layer.weight,
            dropped,
        ]

    for here, there in zip(drawn("cpu"), drawn(DEVICE), strict=True):
        assert there.device.type == DEVICE
        assert_equal(there, here)


def test_constants_are_made_on_the_device():
    makers = [
        lambda **kw: gf.zeros(2, 3, **kw),
        lambda **kw: gf.ones(2, dtype="int64", **kw),
        lambda **kw: gf.full((2,), True, **kw),
        lambda **kw: gf.arange(1, 9, 2, **kw),
        lambda **kw: gf.linspace(0, 1, 5, **kw),
        lambda **kw: gf.eye(3, 4, **kw),
    ]
    for make in makers:
        assert_equal(make(device=DEVICE), make())
    x = gf.empty(2, 5, device=DEVICE)
    for like in (gf.zeros_like(x), gf.rand_like(x), gf.full_like(x, 3)):
        assert (like.shape, like.device) == (x.shape, x.device)


# changing them in place


IN_PLACE = {
    "add_": lambda x: x.add_(2),
    "add_ of a tensor": lambda x: x.add_(gf.ones(4, device=x.device)),
    "sub_": lambda x: x.sub_(1.5),
    "mul_": lambda x: x.mul_(-2),
    "div_": lambda x: x.div_(4),
    "clamp_": lambda x: x.clamp_(-1, 2),
    "clamp_ above": lambda x: x.clamp_(max=0.5),
    "fill_": lambda x: x.fill_(3),
    "zero_": lambda x: x.zero_(),
    "copy_": lambda x: x.copy_(gf.arange(4, device=x.device)),
    "copy_ from the CPU": lambda x: x.copy_(gf.arange(4)),
    "masked_fill_": lambda x: x.masked_fill_(x > 1, float("-inf")),
    "row": lambda x: x.__setitem__(1, 5),
    "slice": lambda x: x.__setitem__((slice(None), slice(0, 2)), gf.zeros(2, device=x.device)),
    "backwards": lambda x: x.__setitem__(
        (slice(None, None, -1), slice(None, 0, -2)),
        gf.arange(6, dtype="float32", device=x.device).reshape(3, 2),
    ),
    "backwards and listed": lambda x: x.__setitem__((slice(None, None, -1), [0, 2]), -1.0),
    "listed": lambda x: x.__setitem__(([0, 2], [1, 1]), 9.0),
    "of another dtype": lambda x: x.__setitem__(
        [0, 2], gf.arange(4, dtype="float64", device=x.device)
    ),
    "masked": lambda x: x.__setitem__(x < 0, 0.0),
    "new axis": lambda x: x.__setitem__((None, ..., -1), 4.0),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_changes_in_place_are_those_of_numpy(name):
    data = np.linspace(-3, 4, 12, dtype=np.float32).reshape(3, 4)
    results = []
    for device in ("cpu", DEVICE):
        x = gf.tensor(data, device=device)
        IN_PLACE[name](x)
        assert x.version > 0
        results.append(x)
    assert_equal(results[1], results[0], rtol=1e-6)


@pytest.mark.parametrize("device", ["cpu", DEVICE])
def test_what_does_not_fit_in_place_is_refused(device):
    x = gf.tensor([1, 2, 3], device=device)
    for change in (lambda: x.add_(1.5), lambda: x.div_(2), lambda: x.clamp_(max=0.5)):
        with pytest.raises(TypeError):
            change()
    for index in (3, -4, [0, 3], np.array([5]), np.array([True, False])):
        with pytest.raises(IndexError):
            x[index] = 0
        with pytest.raises(IndexError):
            x[index]
    assert x.tolist() == [1, 2, 3]


def test_sums_at_repeated_places_are_the_same_every_time():
    """On a GPU the obvious functions add in any order (edge case 18)."""
    generator = np.random.default_rng(0)
    index = on_device(generator.integers(0, 7, 5000))
    values = on_device(generator.standard_normal((5000, 3)).astype(np.float32))

    def results():
        weight = gf.zeros(7, 3, device=DEVICE, requires_grad=True)
        first = (nn.functional.embedding(index, weight) * values).sum()
        second = (weight[index] * values).sum()
        third = (gf.gather(weight, 0, index.unsqueeze(1).expand(5000, 3)) * values).sum()
        return [gf.grad(loss, weight)[0].tolist() for loss in (first, second, third)]

    first = results()
    assert all(results() == first for _ in range(20))


def test_order_among_equals_is_that_of_numpy():
    numbers = np.random.default_rng(0).integers(0, 5, (3, 4000)).astype(np.float32)
    numbers[:, ::9] = np.nan
    here, there = gf.tensor(numbers), on_device(numbers)
    for descending in (False, True):
        assert_equal(there.argsort(-1, descending), here.argsort(-1, descending))
    for data in (numbers, numbers[:, 1:9], numbers > 2, numbers > 9):
        here, there = gf.tensor(data), on_device(data)
        for dim in (None, 0, 1):
            assert_equal(there.argmax(dim), here.argmax(dim))
            assert_equal(there.argmin(dim), here.argmin(dim))


# bfloat16


def test_numpy_has_no_bfloat16():
    for make in (
        lambda: gf.zeros(2, dtype="bfloat16"),
        lambda: gf.ones(2).bfloat16(),
        lambda: gf.ones(2, device=DEVICE).bfloat16().cpu(),
        lambda: gf.bfloat16.numpy,
        lambda: nn.Linear(2, 2).to("bfloat16"),
    ):
        with pytest.raises(TypeError, match="no bfloat16; the devices 'cuda' and 'torch-cpu' have"):
            make()


def test_bfloat16_is_a_floating_point_type():
    x = gf.tensor([1.0, 1.00390625, 3e38], dtype=gf.bfloat16, device=DEVICE)
    assert (x.dtype, x.dtype.itemsize, x.dtype.is_floating_point) == (gf.bfloat16, 2, True)
    assert x.float().tolist()[:2] == [1.0, 1.0]  # 8 bits: 1 + 2⁻⁸ is even's
    assert x[2].item() == pytest.approx(3e38, rel=0.01)  # the range of float32
    assert gf.bfloat16.eps == torch.finfo(torch.bfloat16).eps
    assert pickle.loads(pickle.dumps(gf.bfloat16)) is gf.bfloat16
    drawn = gf.rand(100_000, dtype="bfloat16", device=DEVICE)
    assert drawn.max().item() < 1


def test_half_precision_is_summed_in_single():
    for dtype in ("float16", "bfloat16"):
        ones = gf.ones(4096, dtype=dtype, device=DEVICE, requires_grad=True)
        assert ones.sum().item() == 4096  # one by one they stop at 2048, or at 256
        assert ones.cumsum(0)[-1].item() == 4096
        assert ones.mean().item() == 1
        assert (ones @ ones).item() == 4096
        assert gf.einsum("i,i->", ones, ones).item() == 4096
        zeros = gf.zeros(4096, dtype="int64", device=DEVICE)
        for taken in (ones[:1][zeros], ones[:1].index_select(0, zeros)):
            (g,) = gf.grad(taken.sum(), ones)
            assert g[0].item() == 4096
