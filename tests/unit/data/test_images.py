"""Image processors: the numbers against transformers' (by Pillow), and what is refused."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest

import glassformer as gf
from glassformer.data import AutoImageProcessor, ImageError, ImageProcessor, read_image
from glassformer.data.image_input import as_pixels

Image = pytest.importorskip("PIL.Image")

TOLERANCE = 1e-6  # of numbers about 1 in size


@pytest.fixture(scope="module")
def photographs():
    """Two real photographs, uint8 (427, 640, 3)."""
    return pytest.importorskip("sklearn.datasets").load_sample_images().images


def theirs(family="ViT", **settings):
    module = pytest.importorskip(f"transformers.models.{family.lower()}")
    return getattr(module, f"{family}ImageProcessorPil")(**settings)


def compare(processor, images, folder, **call):
    """Check our processor, made from the file that theirs writes, on some images."""
    processor.save_pretrained(folder)
    ours = AutoImageProcessor.from_pretrained(folder, **call)
    found = ours(images, return_tensors="np")["pixel_values"]
    wanted = processor(images, return_tensors="np", **call)["pixel_values"]
    assert found.dtype == np.float32
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=0)
    return ours


SETTINGS = {
    "defaults": {},
    "a number for the size": {"size": 32},
    "higher than wide": {"size": {"height": 61, "width": 37}},
    "enlarged": {"size": {"height": 500, "width": 801}},
    "shortest edge": {"size": {"shortest_edge": 50}},
    "a crop": {"size": {"shortest_edge": 50}, "do_center_crop": True, "crop_size": 48},
    "a crop, odd": {"do_resize": False, "do_center_crop": True, "crop_size": 33},
    "a crop beyond the image": {
        "size": {"height": 30, "width": 45},
        "do_center_crop": True,
        "crop_size": {"height": 41, "width": 44},
    },
    "no resizing": {"do_resize": False},
    "no rescaling": {"do_rescale": False, "size": 20},
    "no normalizing": {"do_normalize": False, "size": 20},
    "another factor": {"rescale_factor": 1 / 127.5, "size": 20},
    "one mean and deviation": {"image_mean": 0.4, "image_std": 0.3, "size": 20},
    "ImageNet's": {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_setting_gives_the_same_numbers_on_photographs(settings, photographs, tmp_path):
    compare(theirs(**settings), photographs, tmp_path)


@pytest.mark.parametrize("resample", range(6))
def test_every_filter_gives_the_same_numbers(resample, photographs, tmp_path):
    compare(theirs(resample=resample, size=50), photographs, tmp_path)


@pytest.mark.parametrize("family", ["ViT", "DeiT", "CLIP"])
def test_what_a_file_leaves_out_is_its_familys_default(family, photographs, tmp_path):
    processor = theirs(family)
    kind = {"feature_extractor_type": f"{family}FeatureExtractor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(kind))
    ours = AutoImageProcessor.from_pretrained(tmp_path)
    wanted = processor(photographs, return_tensors="np")["pixel_values"]
    found = ours(photographs, "np").pixel_values
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=0)


def test_a_null_in_a_file_is_a_step_not_taken_or_a_default(photographs, tmp_path):
    nulls = {"crop_size": None, "do_center_crop": None, "do_normalize": None, "image_mean": None}
    settings = {"image_processor_type": "DeiTImageProcessorFast", "size": {"height": 9, "width": 8}}
    settings |= nulls | {"do_convert_rgb": None, "do_pad": None, "device": None}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    found = AutoImageProcessor.from_pretrained(tmp_path)(photographs, "np").pixel_values
    processor = theirs("DeiT", size=settings["size"], do_center_crop=False, do_normalize=False)
    wanted = processor(photographs, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=0)


def test_an_old_file_with_numbers_for_sizes_is_read(tmp_path):
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 60, "crop_size": 50}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert processor.size == {"shortest_edge": 60}
    assert processor.crop_size == {"height": 50, "width": 50}


@pytest.mark.parametrize("shape", [(1, 1), (1, 97), (97, 2), (5, 7), (224, 223), (225, 224)])
def test_odd_sizes_give_the_same_numbers(shape, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    compare(theirs(), Image.fromarray(image), tmp_path)


def test_proportions_are_kept_whichever_side_is_shorter(photographs, tmp_path):
    processor = theirs(size={"shortest_edge": 33})
    compare(processor, photographs[0][:, :100], tmp_path)
    compare(processor, photographs[0][:90], tmp_path)


FORMS = {
    "a PIL image": lambda photo: Image.fromarray(photo),
    "(C, H, W)": lambda photo: photo.transpose(2, 0, 1),
    "int64": lambda photo: photo.astype(np.int64),
    "whole floats": lambda photo: photo.astype(np.float32),
    "a batch": lambda photo: np.stack([photo, photo[::-1]]),
    "a list of several sizes": lambda photo: [photo, photo[:100], Image.fromarray(photo[:, :77])],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_image_gives_the_same_numbers(form, photographs, tmp_path):
    compare(theirs(size=40), form(photographs[1]), tmp_path)


@pytest.mark.parametrize("do_resize", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_from_0_to_1_give_the_same_numbers(dtype, do_resize, photographs, tmp_path):
    photo = (photographs[0][:90, :70] / 255).astype(dtype)
    compare(theirs(size=40), photo, tmp_path, do_rescale=False, do_resize=do_resize)


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "LA", "RGBA", "PA"])
def test_every_mode_of_pil_images_becomes_rgb_as_with_do_convert_rgb(mode, photographs, tmp_path):
    image = Image.fromarray(photographs[0][:60, :50])
    if mode in ("LA", "RGBA", "PA"):
        image.putalpha(Image.fromarray(photographs[1][:60, :50, 0]))
    image = image.convert(mode)
    compare(theirs(size=40, do_convert_rgb=True), image, tmp_path)


def test_gray_images_go_into_one_channel(photographs, tmp_path):
    processor = theirs(size=40, image_mean=[0.4], image_std=[0.2])
    gray = photographs[0][:, :, 1]
    ours = compare(processor, gray[None], tmp_path)
    compare(processor, Image.fromarray(gray), tmp_path)
    np.testing.assert_array_equal(
        ours(gray, "np").pixel_values, ours(gray[None], "np").pixel_values
    )


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff", "gif", "ppm"])
def test_files_of_every_format_give_the_same_numbers(suffix, photographs, tmp_path):
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(photographs[0]).save(path)
    processor = theirs(size=40)
    processor.save_pretrained(tmp_path)
    ours = AutoImageProcessor.from_pretrained(tmp_path)
    utils = pytest.importorskip("transformers.image_utils")
    with Image.open(path) as file:
        wanted = processor(utils.load_image(file), return_tensors="np")["pixel_values"]
    for name in (path, str(path), [path]):
        found = ours(name, "np")["pixel_values"]
        np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=0)


def test_a_file_is_turned_upright_and_its_alpha_dropped(photographs, tmp_path):
    image = Image.fromarray(photographs[0][:60, :50])
    image.putalpha(77)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rows are columns from right to left
    image.save(tmp_path / "turned.png", exif=exif)
    wanted = np.rot90(photographs[0][:60, :50], -1)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), wanted)
    np.testing.assert_array_equal(
        read_image(tmp_path / "turned.png", channels=1)[:, :, 0],
        np.asarray(Image.fromarray(wanted).convert("L")),
    )


def test_the_default_is_a_tensor(photographs):
    batch = ImageProcessor(size=16)(photographs)
    assert list(batch) == ["pixel_values"]
    assert batch.pixel_values.shape == (2, 3, 16, 16)
    assert batch.pixel_values.dtype is gf.float32


def test_transformers_loads_what_we_save(photographs, tmp_path):
    ours = ImageProcessor(
        size={"shortest_edge": 70},
        crop_size=64,
        do_center_crop=True,
        resample=Image.Resampling.BICUBIC,
        image_mean=[0.1, 0.2, 0.3],
    )
    ours.save_pretrained(tmp_path / "new" / "folder")
    assert AutoImageProcessor.from_pretrained(tmp_path / "new" / "folder") == ours
    again = type(theirs()).from_pretrained(tmp_path / "new" / "folder")
    np.testing.assert_allclose(
        ours(photographs, "np").pixel_values,
        again(photographs, return_tensors="np")["pixel_values"],
        atol=TOLERANCE,
        rtol=0,
    )


RGB = np.zeros((5, 6, 3), np.uint8)
BAD_IMAGES = {
    "four channels": (np.zeros((5, 6, 4), np.uint8), "channels"),
    "either order": (np.zeros((3, 6, 3), np.uint8), "may be"),
    "one dimension": (np.zeros(5, np.uint8), r"\(H, W\)"),
    "five dimensions": (np.zeros((1, 1, 1, 5, 5), np.uint8), r"\(H, W\)"),
    "no pixels": (np.zeros((0, 5, 3), np.uint8), "no pixels"),
    "an empty list": ([], "no images"),
    "bools": (RGB.astype(bool), "got bool"),
    "strings": (RGB.astype(str), "<U"),
    "objects": (RGB.astype(object), "object"),
    "complex": (RGB.astype(complex), "complex"),
    "too much": (RGB + np.int64(256), "256"),
    "below 0": (RGB - np.int64(1), "-1"),
    "NaN": (np.full((5, 6, 3), np.nan), "not finite"),
    "infinity": (np.full((5, 6, 3), np.inf), "not finite"),
    "scaled already": (RGB + 0.5, "do_rescale=False"),
    "fractions of 255": (RGB + 127.5, "whole numbers"),
    "negative floats": (RGB - 0.5, "whole numbers"),
    "a set": ({1, 2}, "got set"),
    "None": (None, "got NoneType"),
    "no file": ("nowhere.png", "no such file"),
    "16 bits": (Image.new("I;16", (4, 4)), "8 bits"),
    "32 bits": (Image.new("I", (4, 4)), "8 bits"),
    "floats in PIL": (Image.new("F", (4, 4)), "8 bits"),
}


@pytest.mark.parametrize("image, said", BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_what_is_no_image_is_refused(image, said):
    with pytest.raises(ImageError, match=said):
        ImageProcessor(size=8)(image)


def test_images_that_come_out_in_several_sizes_make_no_batch():
    processor = ImageProcessor(do_resize=False)
    with pytest.raises(ImageError, match=r"\(3, 4, 6\), \(3, 5, 6\)"):
        processor([RGB, RGB[:4]])


def test_an_unknown_kind_of_tensor_is_refused():
    with pytest.raises(ValueError, match="'pt'"):
        ImageProcessor()(RGB, return_tensors="pt")


def test_an_image_that_a_shortest_edge_would_make_huge_is_refused():
    thin = Image.new("RGB", (100_000, 1))
    with pytest.raises(ImageError, match="22400000"):
        ImageProcessor(size={"shortest_edge": 224})(thin)


def damaged(data):
    """A file cut off, flipped, lengthened and overwritten in 200 ways."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        changed = bytearray(data[: rng.integers(1, len(data) + 1)])
        for place in rng.integers(0, len(changed), rng.integers(0, 8)):
            changed[place] = rng.integers(0, 256)
        yield bytes(changed)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff", "gif", "ppm"])
def test_a_damaged_file_is_an_image_or_an_error_that_names_it(suffix, photographs, tmp_path):
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(photographs[0][:40, :30]).save(path)
    refused = 0
    for data in damaged(path.read_bytes()):
        path.write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, of metadata it had to leave out
                assert read_image(path).shape[2] == 3
        except ImageError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)
            refused += 1
    assert refused > 20


def test_a_small_file_of_a_huge_image_is_refused(tmp_path):
    Image.new("1", (20_000, 5_000)).save(tmp_path / "bomb.png")  # 100 million pixels
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    with pytest.raises(ImageError, match=r"bomb\.png.*decompression bomb"):
        read_image(tmp_path / "bomb.png")


def test_formats_that_run_programs_are_refused(photographs, tmp_path):
    Image.fromarray(photographs[0][:40, :30]).save(tmp_path / "photo.eps")
    (tmp_path / "photo.eps").rename(tmp_path / "photo.png")
    with pytest.raises(ImageError, match="no image of a known format"):
        read_image(tmp_path / "photo.png")


BAD_SETTINGS = {
    "do_resize": "yes",
    "do_center_crop": 1,
    "do_rescale": "false",
    "size": {"longest_edge": 5},
    "crop_size": {"shortest_edge": 5},
    "resample": 6,
    "rescale_factor": "1/255",
    "image_mean": ["a", "b", "c"],
    "image_std": [0.5, 0.0, 0.5],
    "do_pad": True,
    "image_processor_type": "SamImageProcessor",
}
MORE = [
    ("size", {"height": 0, "width": 5}),
    ("size", {"height": 10**6, "width": 10**6}),
    ("size", {"height": 5.0, "width": 5}),
    ("size", True),
    ("size", [5, 5]),
    ("resample", True),
    ("resample", "bilinear"),
    ("rescale_factor", 10**400),
    ("rescale_factor", float("nan")),
    ("image_mean", []),
    ("image_mean", [0.5, 0.5]),
    ("image_std", 0),
    ("image_std", 1e-60),
    ("image_processor_type", ["ViTImageProcessor"]),
]


@pytest.mark.parametrize("name, value", [*BAD_SETTINGS.items(), *MORE])
def test_a_file_with_impossible_settings_is_refused(name, value, tmp_path):
    settings = {"image_processor_type": "ViTImageProcessor", name: value}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ImageError, match=rf"preprocessor_config\.json.*{name}"):
        AutoImageProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "nul", '"ViT"', "[" * 100_000, "\xff\xfe"])
def test_a_damaged_file_of_settings_is_refused(text, tmp_path):
    (tmp_path / "preprocessor_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ImageError, match=r"preprocessor_config\.json"):
        AutoImageProcessor.from_pretrained(tmp_path)


def test_a_missing_file_of_settings_is_refused(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        AutoImageProcessor.from_pretrained(tmp_path / "nowhere")


def test_without_pillow_arrays_of_the_right_size_work_and_others_say_what_to_install(tmp_path):
    program = """
import sys
sys.modules["PIL"] = None
import numpy as np
from glassformer.data import ImageProcessor
image = np.zeros((8, 8, 3), np.uint8)
assert ImageProcessor(do_resize=False)(image).pixel_values.shape == (1, 3, 8, 8)
try:
    ImageProcessor(size=4)(image)
except ImportError as error:
    print(error)
"""
    command = [sys.executable, "-c", program]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "pip install glassformer[vision]" in said
    assert said.count("\n") == 1


def test_gray_pixels_are_repeated_where_three_channels_are_needed():
    gray = np.arange(20, dtype=np.uint8).reshape(4, 5)
    wanted = np.repeat(gray[:, :, None], 3, axis=2)
    for form in (gray, gray[None], gray[:, :, None], Image.fromarray(gray)):
        np.testing.assert_array_equal(as_pixels(form), wanted)
