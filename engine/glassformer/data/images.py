"""Images to the numbers that a vision model takes, with the names and results of Hugging Face's."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from glassformer.data.batch_encoding import TENSOR_TYPES, BatchEncoding
from glassformer.data.image_input import MAX_PIXELS, Array, ImageError, as_pixels, pillow
from glassformer.durable import write_file
from glassformer.tensor import from_numpy

Self = TypeVar("Self", bound="ImageProcessor")

PROCESSOR_FILE = "preprocessor_config.json"

_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # Radford et al. 2021's code: of its own images
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# What a file of each kind means by leaving a setting out.
_KINDS: dict[str, dict[str, Any]] = {
    "ViT": {},
    "DeiT": {"size": 256, "resample": 3, "do_center_crop": True},
    "CLIP": {
        "size": {"shortest_edge": 224},
        "resample": 3,
        "do_center_crop": True,
        "do_convert_rgb": True,
        "image_mean": _CLIP_MEAN,
        "image_std": _CLIP_STD,
    },
}


@dataclass(kw_only=True)
class ImageProcessor:
    """Resizes, crops, rescales and normalizes images: x = (pixel · rescale_factor - mean) / std.

    Names and defaults of the settings are Hugging Face's (`ViTImageProcessor`). Each step is taken
    if its `do_...` says so.

    Args:
        size: {"height", "width"}, or {"shortest_edge"}, which keeps the proportions; a number is
            height and width.
        resample: Pillow's filter: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming.
        crop_size: {"height", "width"} of what is cut from the middle; where the image is smaller
            it gets a black border.
        rescale_factor: 1/255 takes 8 bits to [0, 1].
        image_mean: one for each channel, or one for all.
        image_std: likewise. Their number, 1 or 3, is that of the channels; 3 where one is for all.
        do_convert_rgb: kept for the file alone: images always get the channels that are needed.
        image_processor_type: kept for the file alone.

    Raises:
        ValueError: a setting has a value that it can't have.
    """

    do_resize: bool = True
    size: Any = 224
    resample: int = 2
    do_center_crop: bool = False
    crop_size: Any = 224
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: Sequence[float] | float = _HALF
    image_std: Sequence[float] | float = _HALF
    do_convert_rgb: bool | None = None
    image_processor_type: str = "ViTImageProcessor"

    def __post_init__(self) -> None:
        for name in _STEPS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r:.80}")
        self.size = _checked_size("size", self.size, ("height", "width"), ("shortest_edge",))
        self.crop_size = _checked_size("crop_size", self.crop_size, ("height", "width"))
        if self.resample not in range(6) or isinstance(self.resample, bool | float):
            raise ValueError(f"resample must be one of 0 to 5, got {self.resample!r:.80}")
        if not _is_number(self.rescale_factor):
            raise ValueError(f"rescale_factor must be a number, got {self.rescale_factor!r:.80}")
        for name in ("image_mean", "image_std"):
            setattr(self, name, _checked_list(name, getattr(self, name)))
        counts = {len(v) for v in (self.image_mean, self.image_std) if isinstance(v, list)}
        if len(counts) > 1:
            raise ValueError(
                "image_mean and image_std must be of equally many channels, got "
                f"{self.image_mean} and {self.image_std}"
            )
        self.num_channels = counts.pop() if counts else 3
        if self.num_channels not in (1, 3):
            raise ValueError(f"images have 1 or 3 channels, image_mean has {self.num_channels}")
        if not np.all(np.asarray(self.image_std, np.float32)):
            raise ValueError(f"image_std must not be 0 (in float32), got {self.image_std}")

    @classmethod
    def from_pretrained(cls: type[Self], folder: str | os.PathLike[str], **settings: Any) -> Self:
        """Read `preprocessor_config.json` of a folder. Nothing is ever downloaded.

        Args:
            folder: as the hub serves it.
            settings: replace those of the file, such as `size=384` or `do_rescale=False`.

        Raises:
            ImageError: a ValueError; the file is missing, damaged, or asks for what isn't here.
        """
        path = Path(folder) / PROCESSOR_FILE
        found = _read_object(path)
        kind = found.get("image_processor_type") or found.get("feature_extractor_type")
        kind = "ViTImageProcessor" if kind is None else kind
        match = re.fullmatch(r"(\w+?)(ImageProcessor|FeatureExtractor)(Fast|Pil)?", str(kind))
        family = match[1] if match else ""
        if family not in _KINDS:
            raise ImageError(
                f"{path}: image_processor_type {kind!r:.80} is unknown; known are those of "
                f"{', '.join(_KINDS)}"
            )
        if family == "CLIP" and isinstance(found.get("size"), int):
            found["size"] = {"shortest_edge": found["size"]}
        if found.get("do_pad"):
            raise ImageError(f"{path}: do_pad is not supported; set it to false, and resize")
        known = {field.name for field in fields(cls)} - {"image_processor_type"}
        own = {name: value for name, value in found.items() if name in known}
        skipped = {name: False for name in _STEPS if name in own and own[name] is None}
        own = {name: value for name, value in own.items() if value is not None}
        try:
            return cls(
                **{**_KINDS[family], **own, **skipped, **settings},
                image_processor_type=f"{family}ImageProcessor",
            )
        except ValueError as error:
            raise ImageError(f"{path}: {error}") from None

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `preprocessor_config.json`; at any instant the old or the new one is there."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        settings = {name: value for name, value in asdict(self).items() if value is not None}
        text = json.dumps(settings, indent=2, sort_keys=True, allow_nan=False)
        write_file(Path(folder) / PROCESSOR_FILE, f"{text}\n".encode())

    def __call__(self, images: Any, return_tensors: str = "gf") -> BatchEncoding:
        """Return {"pixel_values": (B, C, H, W)} in float32.

        Args:
            images: one image or a list; each a path, a `PIL.Image.Image`, or an array (H, W),
                (H, W, C) or (C, H, W). An array (B, ., ., .) is a list of images. Values are 0 to
                255; floats from 0 to 1 are taken if `do_rescale` is off.
            return_tensors: "gf" for a tensor, "np" for a NumPy array.

        Raises:
            ImageError: a ValueError; an image can't be used, or the results differ in size.
            ImportError: Pillow (extra `[vision]`) isn't installed, and something needs it.
        """
        if return_tensors not in TENSOR_TYPES:
            raise ValueError(f"return_tensors must be 'gf' or 'np', got {return_tensors!r}")
        many = isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4
        rows = [self.preprocess(image) for image in (images if many else [images])]
        shapes = sorted({row.shape for row in rows})
        if len(shapes) != 1:
            raise ImageError(
                f"images come out as (C, H, W) {', '.join(map(str, shapes))}, which make no batch; "
                'size={"height": ..., "width": ...} makes all alike'
                if rows
                else "there are no images in the list"
            )
        values = np.stack(rows)
        return BatchEncoding(
            {"pixel_values": values if return_tensors == "np" else from_numpy(values)}
        )

    def preprocess(self, image: Any) -> Array:
        """Return one image as float32 (C, H, W)."""
        pixels = as_pixels(image, self.num_channels)  # (H, W, C)
        if self.do_rescale and _is_fractional(pixels) and pixels.min() >= 0 and pixels.max() <= 1:
            raise ImageError(
                f"floats from {pixels.min():.3g} to {pixels.max():.3g} would be scaled to [0, 1] "
                "once more; pass values from 0 to 255, or make the processor with do_rescale=False"
            )
        if self.do_resize:
            pixels = self._resized(pixels)
        if self.do_center_crop:
            pixels = _center_crop(pixels, self.crop_size["height"], self.crop_size["width"])
        if self.do_rescale:
            pixels = pixels.astype(np.float64) * self.rescale_factor
        pixels = pixels.astype(np.float32)
        if self.do_normalize:
            mean, std = (np.asarray(v, np.float32) for v in (self.image_mean, self.image_std))
            pixels = (pixels - mean) / std
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _resized(self, pixels: Array) -> Array:
        """Resize by Pillow, which works on 8 bits; floats from 0 to 1 come back as such."""
        height, width = self._target(*pixels.shape[:2])
        if height * width > MAX_PIXELS:
            raise ImageError(
                f"an image of {pixels.shape[:2]} would be resized to {(height, width)}, more than "
                f"{MAX_PIXELS:,} pixels"
            )
        fractional = _is_fractional(pixels)
        if fractional:
            pixels = (pixels.astype(np.float64) * 255).astype(np.float32)
        if not (pixels.min() >= 0 and pixels.max() <= 255):
            raise ImageError(
                "an image that is to be resized must be of whole numbers from 0 to 255, or of "
                "floats from 0 to 1 (with do_rescale=False)"
            )
        plane = pixels.astype(np.uint8)
        plane = plane if self.num_channels == 3 else plane[:, :, 0]
        image = pillow().Image.fromarray(plane).resize((width, height), self.resample)
        resized = np.asarray(image).reshape(height, width, -1)
        return (resized * (1 / 255)).astype(np.float32) if fractional else resized

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if "height" in self.size:
            return self.size["height"], self.size["width"]
        short = self.size["shortest_edge"]
        long = int(short * max(height, width) / min(height, width))
        return (long, short) if width <= height else (short, long)


class AutoImageProcessor:
    """Loads the image processor of any model's folder."""

    @staticmethod
    def from_pretrained(folder: str | os.PathLike[str], **settings: Any) -> ImageProcessor:
        """Return the image processor of a folder; see `ImageProcessor.from_pretrained`."""
        return ImageProcessor.from_pretrained(folder, **settings)


def _is_fractional(pixels: Array) -> bool:
    """Whether pixels are floats that are no whole numbers, as 8 bits would be."""
    return pixels.dtype.kind == "f" and not np.allclose(pixels, np.trunc(pixels))


def _center_crop(pixels: Array, height: int, width: int) -> Array:
    """Cut (height, width) from the middle of (H, W, C); what is missing is black."""
    short = [max(0, want - have) for want, have in zip((height, width), pixels.shape, strict=False)]
    before = [math.ceil(missing / 2) for missing in short]
    border = [(first, missing - first) for first, missing in zip(before, short, strict=True)]
    padded = np.pad(pixels, [*border, (0, 0)])
    top, left = (padded.shape[0] - height) // 2, (padded.shape[1] - width) // 2
    return padded[top : top + height, left : left + width]


def _checked_size(name: str, value: Any, *allowed: tuple[str, ...]) -> dict[str, int]:
    if type(value) is int:
        value = {"height": value, "width": value}
    size = {k: v for k, v in value.items() if v is not None} if isinstance(value, Mapping) else {}
    if set(size) not in map(set, allowed):
        wanted = " or ".join("{" + ", ".join(keys) + "}" for keys in allowed)
        raise ValueError(f"{name} must be a number or {wanted}, got {value!r:.80}")
    if not all(type(edge) is int and edge >= 1 for edge in size.values()):
        raise ValueError(f"{name} must be of whole numbers from 1, got {value!r:.80}")
    if math.prod(size.values()) > MAX_PIXELS:
        raise ValueError(f"{name} {size} is more than {MAX_PIXELS:,} pixels")
    return size


def _checked_list(name: str, value: Any) -> list[float] | float:
    if _is_number(value):
        return float(value)
    if isinstance(value, list | tuple) and value and all(map(_is_number, value)):
        return [float(one) for one in value]
    raise ValueError(f"{name} must be a number or one for each channel, got {value!r:.80}")


def _is_number(value: Any) -> bool:
    """Whether a value is a number that float32 can hold."""
    return type(value) in (int, float) and bool(abs(value) < 1e38)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ImageError(
            f"{path}: there is no such file; give the folder of a vision model as the Hugging Face "
            "hub serves it. Nothing is ever downloaded"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ImageError(f"{path}: not valid JSON ({error}); get the file again") from error
    if not isinstance(value, dict):
        raise ImageError(f"{path}: must hold a JSON object, got {type(value).__name__}")
    return value
