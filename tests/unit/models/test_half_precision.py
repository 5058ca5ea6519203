"""Weights held in float16 and bfloat16, and element types that are asked for."""

import json

import numpy as np
import pytest

import glassformer as gf
from glassformer.models.bert import (
    BertModel,
)
from glassformer.models.loading import _converted
from glassformer.models.safetensors_file import open_weights
from tests.unit.models.folders import (
    IDS,
    SHAPE,
    assert_same,
    bytes_held,
    saved,
    values,
)


@pytest.fixture(params=["float16", "bfloat16"])
def compact(request, tmp_path):
    """A folder with weights in half precision, and transformers' model that holds them widened."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    # Wide enough that matrices, which are kept compact, outweigh biases and norms.
    shape = {**SHAPE, "hidden_size": 48, "intermediate_size": 96}
    theirs = transformers.BertModel(transformers.BertConfig(**shape)).eval()
    theirs.to(getattr(torch, request.param)).save_pretrained(tmp_path)
    return request.param, tmp_path, theirs.float()


def test_half_precision_is_held_compact_and_computed_in_float32(compact):
    dtype, folder, theirs = compact
    ours = BertModel.from_pretrained(folder)
    assert {p.dtype.name for p in ours.parameters() if p.ndim == 2} == {dtype}
    assert {p.dtype.name for p in ours.parameters() if p.ndim == 1} <= {dtype, "float32"}
    assert bytes_held(ours) < 0.55 * bytes_held(BertModel.from_pretrained(folder, dtype="float32"))
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        wanted = theirs(torch.tensor(IDS.numpy()))
    found = ours(IDS)
    assert found.last_hidden_state.dtype is gf.float32
    for name in ("last_hidden_state", "pooler_output"):
        got, want = getattr(found, name).detach().numpy(), getattr(wanted, name).numpy()
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)


def test_a_compact_model_is_saved_compact(compact, tmp_path_factory):
    dtype, folder, _ = compact
    model = BertModel.from_pretrained(folder)
    again = tmp_path_factory.mktemp("again")
    model.save_pretrained(again)
    assert json.loads((again / "config.json").read_text())["dtype"] == dtype
    with open_weights(folder) as before, open_weights(again) as after:
        assert set(before) == set(after)
        matrices = [name for name in before if len(before.shape(name)) == 2]
        assert matrices
        for name in matrices:
            assert after.array(name).tobytes() == before.array(name).tobytes(), name
    back = BertModel.from_pretrained(again)
    np.testing.assert_array_equal(
        back(IDS).last_hidden_state.detach().numpy(), model(IDS).last_hidden_state.detach().numpy()
    )


def test_a_compact_model_widened_gives_the_same(compact):
    _, folder, _ = compact
    narrow, wide = (BertModel.from_pretrained(folder, dtype=d) for d in ("auto", "float32"))
    assert {parameter.dtype for parameter in wide.parameters()} == {gf.float32}
    np.testing.assert_allclose(
        narrow(IDS).last_hidden_state.detach().numpy(),
        wide(IDS).last_hidden_state.detach().numpy(),
        atol=1e-6,
        rtol=0,
    )


def test_a_dtype_that_is_asked_for(tmp_path):
    model = saved(tmp_path)
    double = BertModel.from_pretrained(tmp_path, dtype="float64")
    assert {parameter.dtype for parameter in double.parameters()} == {gf.float64}
    assert_same(values(double), values(model))
    assert double(IDS).last_hidden_state.dtype is gf.float64
    half = BertModel.from_pretrained(tmp_path, dtype=gf.float16)
    assert {p.dtype for p in half.parameters() if p.ndim == 2} == {gf.float16}


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("chooser", [BertModel, gf.models.AutoModel])
def test_full_precision_is_held_compact_if_asked_for(chooser, dtype, name, tmp_path):
    torch = pytest.importorskip("torch")
    model = saved(tmp_path)
    narrow = chooser.from_pretrained(tmp_path, **{name: dtype})
    assert {p.dtype.name for p in narrow.parameters() if p.ndim == 2} == {dtype}
    assert {p.dtype.name for p in narrow.parameters() if p.ndim == 1} == {"float32"}
    for name, value in values(model).items():
        found = narrow.state_dict()[name].to("float32").numpy()
        rounded = torch.tensor(value).to(getattr(torch, dtype)).float().numpy()
        np.testing.assert_array_equal(found, rounded if value.ndim == 2 else value, err_msg=name)
    found, wanted = narrow(IDS).last_hidden_state, model(IDS).last_hidden_state
    assert found.dtype is gf.float32
    np.testing.assert_allclose(found.detach().numpy(), wanted.detach().numpy(), atol=0.1)


def test_bfloat16_is_rounded_as_pytorch_rounds():
    torch = pytest.importorskip("torch")
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    bits[:40_000] &= 0xFFFF8000  # ties
    special = [0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 1, 0]
    bits[:8] = special
    floats = bits.view(np.float32)
    found = _converted(floats, gf.bfloat16).view(np.uint16)
    wanted = torch.tensor(floats).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    is_nan = np.isnan(floats)
    np.testing.assert_array_equal(found[~is_nan], wanted[~is_nan])
    assert ((found[is_nan] & 0x7FFF) > 0x7F80).all()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"torch_dtype": "int64"}, "weights are floats"),
        ({"torch_dtype": "half"}, "dtype half is not supported"),
        ({"dtype": "float32", "torch_dtype": "float16"}, "two names of one argument"),
    ],
)
def test_a_dtype_that_is_none(asked, said, tmp_path):
    saved(tmp_path)
    with pytest.raises(TypeError, match=said):
        BertModel.from_pretrained(tmp_path, **asked)
