"""ViT, both classes, against transformers."""

import numpy as np
import pytest

import glassformer as gf
from glassformer.models.auto import AutoModelForImageClassification
from glassformer.models.vit import ViTForImageClassification, ViTModel
from tests.parity.hub import build, compare, torch, transformers

SMALL = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "image_size": 12,
    "patch_size": 4,
    "num_labels": 3,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """PyTorch's threads cost tiny models more than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def softmax_in_its_own_precision(monkeypatch):
    """transformers takes ViT's softmax in float32 whatever the model's dtype; here it must not."""
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(
        torch.nn.functional, "softmax", lambda scores, dim, dtype=None: softmax(scores, dim)
    )


def images(config, dtype="float32", size=None, batch=3):
    height, width = size or np.broadcast_to(config.image_size, 2)
    rng = np.random.default_rng(1)
    return rng.normal(size=(batch, config.num_channels, height, width)).astype(dtype)


def check(our_class, folder, dtype="float32", labels=None, size=None, **settings):
    """Compare a class under some settings; return our model."""
    config = transformers.ViTConfig(**{**SMALL, **settings})
    inputs = {"pixel_values": images(config, dtype, size), "output_hidden_states": True}
    if size is not None:
        inputs["interpolate_pos_encoding"] = True
    outputs = ["last_hidden_state", "pooler_output", "hidden_states"]
    if our_class is ViTForImageClassification:
        inputs["labels"] = np.array([2, 0, 1]) if labels is None else labels
        outputs = ["loss", "logits", "hidden_states"]
    theirs = build(getattr(transformers, our_class.__name__), config, dtype)
    return compare(theirs, our_class, inputs, outputs, folder)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("our_class", [ViTModel, ViTForImageClassification])
def test_both_classes_give_the_same_outputs_losses_and_gradients(our_class, dtype, tmp_path):
    check(our_class, tmp_path, dtype)


VARIANTS = {
    "an image that is no square": {"image_size": [8, 20]},
    "patches that are no squares": {"image_size": [6, 15], "patch_size": [2, 5]},
    "pixels left over": {"image_size": [14, 11]},
    "one patch": {"image_size": 4},
    "one channel": {"num_channels": 1},
    "one head, one layer": {"num_attention_heads": 1, "num_hidden_layers": 1},
    "no bias of queries, keys and values": {"qkv_bias": False},
    "another activation and eps": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3},
    "another pooler": {"pooler_output_size": 7, "pooler_act": "relu"},
}


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_every_setting_means_the_same(settings, tmp_path):
    check(ViTModel, tmp_path, "float64", **settings)


LOSSES = {
    "regression, one number": ("regression", 1, np.array([0.5, -1.0, 2.0])),
    "regression, three numbers": ("regression", 3, np.linspace(-1, 1, 9).reshape(3, 3)),
    "one class": ("single_label_classification", 4, np.array([3, 0, 3])),
    "several classes": ("multi_label_classification", 3, np.eye(3)[[1, 1, 0]]),
}


@pytest.mark.parametrize("problem, count, labels", LOSSES.values(), ids=LOSSES)
def test_every_kind_of_loss_is_the_same(problem, count, labels, tmp_path):
    check(
        ViTForImageClassification,
        tmp_path,
        "float64",
        labels=labels,
        num_labels=count,
        problem_type=problem,
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [(20, 28), (8, 4), (12, 25), (30, 9), (13, 14)])
def test_positions_are_interpolated_for_other_sizes(size, dtype, tmp_path):
    check(ViTModel, tmp_path, dtype, size=size)


@pytest.mark.parametrize("old, new", [((2, 5), (3, 4)), ((1, 4), (2, 9)), ((3, 2), (1, 1))])
def test_a_grid_that_is_no_square_is_interpolated_in_both_directions(old, new):
    settings = {**SMALL, "image_size": [4 * old[0], 4 * old[1]]}
    del settings["num_labels"]
    model = ViTModel(ViTModel.config_class(**settings)).eval().to(gf.float64)
    x = np.zeros((1, 3, 4 * new[0], 4 * new[1]))
    embedded = model.embeddings(gf.tensor(x), True) - model.embeddings.patch_embeddings.bias
    grid = model.embeddings.position_embeddings.detach().numpy()[:, 1:].reshape(1, *old, -1)
    wanted = torch.nn.functional.interpolate(
        torch.tensor(grid).permute(0, 3, 1, 2), size=new, mode="bicubic"
    )
    np.testing.assert_allclose(
        embedded.detach().numpy()[:, 1:],
        wanted.permute(0, 2, 3, 1).flatten(1, 2),
        atol=1e-12,
    )


def saved(folder, hf_class=transformers.ViTForImageClassification, dtype="float32", **settings):
    theirs = build(hf_class, transformers.ViTConfig(**{**SMALL, **settings}), dtype)
    theirs.save_pretrained(folder)
    return theirs


def test_the_auto_class_finds_it_and_another_number_of_labels_starts_a_fresh_head(tmp_path):
    saved(tmp_path, transformers.ViTModel)
    fresh, left_out = pytest.warns(match="fresh"), pytest.warns(match="also holds pooler")
    with fresh, left_out:
        model = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=5)
    assert isinstance(model, ViTForImageClassification)
    assert model.classifier.weight.shape == (5, 12)


def test_a_masked_image_model_lends_its_body(tmp_path):
    theirs = saved(tmp_path, transformers.ViTForMaskedImageModeling, encoder_stride=4)
    with pytest.warns(match="fresh"), pytest.warns(match="also holds .*mask_token"):
        ours = ViTForImageClassification.from_pretrained(tmp_path)
    pixels = images(theirs.config)
    found = ours.vit(gf.tensor(pixels)).last_hidden_state.detach().numpy()
    wanted = theirs.vit(torch.tensor(pixels)).last_hidden_state.detach()
    np.testing.assert_allclose(found, wanted, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("stored, asked", [("bfloat16", "auto"), ("float32", "float16")])
def test_half_precision_is_held_compact_and_computed_in_float32(stored, asked, tmp_path):
    theirs = saved(tmp_path, dtype=stored)
    ours = ViTForImageClassification.from_pretrained(tmp_path, dtype=asked)
    assert ours.classifier.weight.dtype.itemsize == 2
    theirs = theirs.to(getattr(torch, asked) if asked != "auto" else torch.bfloat16).float()
    pixels = images(theirs.config)
    found = ours(gf.tensor(pixels)).logits
    wanted = theirs(torch.tensor(pixels)).logits.detach()
    assert found.dtype is gf.float32
    np.testing.assert_allclose(found.detach().numpy(), wanted, atol=1e-4)


def fresh(**settings):
    settings = {**SMALL, **settings}
    return ViTForImageClassification(ViTModel.config_class.from_dict(settings))


@pytest.mark.parametrize(
    "shape, said",
    [
        ((1, 1, 12, 12), r"\(batch, 3, 12, 12\), got \(1, 1, 12, 12\)"),
        ((1, 12, 12, 3), r"\(batch, 3, 12, 12\), got \(1, 12, 12, 3\)"),
        ((3, 12, 12), r"got \(3, 12, 12\)"),
        ((1, 1, 3, 12, 12), r"got \(1, 1, 3, 12, 12\)"),
        ((1, 3, 8, 8), "interpolate_pos_encoding=True"),
        ((1, 3, 12, 16), "interpolate_pos_encoding=True"),
    ],
)
def test_images_that_do_not_fit_are_refused(shape, said):
    with pytest.raises(ValueError, match=said):
        fresh()(gf.zeros(*shape))


@pytest.mark.parametrize("dtype", ["int64", "bool"])
def test_pixels_as_a_file_has_them_are_refused(dtype):
    pixels = gf.zeros(1, 3, 12, 12).to(dtype)
    with pytest.raises(TypeError, match=f"must be a Tensor of floats, got {dtype}; an Im"):
        fresh()(pixels)
    with pytest.raises(TypeError, match="of floats, got None"):
        fresh()(None)


def test_an_image_smaller_than_a_patch_is_refused():
    with pytest.raises(ValueError, match="no patch"):
        fresh()(gf.zeros(1, 3, 3, 12), interpolate_pos_encoding=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"image_size": [8]},
        {"image_size": 0},
        {"patch_size": [4, 4, 4]},
        {"patch_size": 13},
        {"num_attention_heads": 5},
        {"num_channels": 0},
        {"pooler_act": "unheard-of"},
        {"hidden_act": "unheard-of"},
    ],
)
def test_impossible_shapes_are_refused(settings):
    with pytest.raises(ValueError, match=r"\w+ "):
        fresh(**settings)


def test_checkpointed_blocks_give_the_same_gradients():
    model = fresh().train()
    pixels, labels = gf.tensor(images(model.config)), gf.tensor(np.array([0, 1, 2]))
    gradients = []
    for enabled in (False, True):
        model.gradient_checkpointing_enable(enabled)
        model.zero_grad()
        model(pixels, labels=labels).loss.backward()
        gradients.append([p.grad.numpy().copy() for p in model.parameters()])
    for kept, again in zip(*gradients, strict=True):
        np.testing.assert_array_equal(kept, again)
