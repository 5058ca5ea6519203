"""Images as users have them - files, Pillow's, arrays - as arrays (H, W, C)."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

MAX_PIXELS = 89_478_485  # of one image: Pillow's own limit, a quarter of a GiB as RGB

# Formats that are nothing but pixels. Pillow knows others: to show PostScript it runs a program.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_MODES = {1: "L", 3: "RGB"}


class ImageError(ValueError):
    """An image or an image processor's file can't be used; the message says which, and why."""


def pillow() -> ModuleType:
    """Return the package `PIL`, with `PIL.Image` and `PIL.ImageOps` loaded.

    Raises:
        ImportError: Pillow isn't installed; says how to.
    """
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError:
        raise ImportError(
            "images are read and resized by 'pillow': pip install glassformer[vision]"
        ) from None
    return PIL


def read_image(path: str | os.PathLike[str], channels: int = 3) -> Array:
    """Return an image file as uint8 (H, W, channels), turned upright; alpha is dropped.

    Args:
        path: a BMP, GIF (its first frame), JPEG, PNG, PPM, TIFF or WebP file.
        channels: 3 for RGB, 1 for gray.

    Raises:
        ImageError: there is no such file, it is damaged, of another format, or has more than
            `MAX_PIXELS` pixels.
    """
    package = pillow()
    path = Path(path)
    if not path.is_file():
        raise ImageError(f"{path}: there is no such file")
    try:
        with warnings.catch_warnings():
            # What Pillow warns of is a file that is small but would fill the memory.
            warnings.simplefilter("error", package.Image.DecompressionBombWarning)
            with package.Image.open(path, formats=_FORMATS) as file:
                _check_mode(file.mode)
                upright = package.ImageOps.exif_transpose(file)
        return _pixels(upright.convert(_MODES[channels]))
    except package.UnidentifiedImageError:
        raise ImageError(
            f"{path}: no image of a known format ({', '.join(_FORMATS)}), or a damaged one"
        ) from None
    except Exception as error:  # a damaged file makes Pillow's readers raise nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ImageError(f"{path}: not a usable image ({reason})") from error


def as_pixels(image: Any, channels: int = 3) -> Array:
    """Return an image as (H, W, channels), of 8 bits or of floats.

    Pillow's images and gray ones come out with as many channels as are asked for, on white where
    they are transparent.

    Args:
        image: a file's path, a `PIL.Image.Image`, or an array (H, W), (H, W, C) or (C, H, W), its
            values integers from 0 to 255 or floats.
        channels: 3 for RGB, 1 for gray.

    Raises:
        ImageError: it is none of these, or has other channels.
    """
    if isinstance(image, np.ndarray):
        return _as_channels(_checked(image), channels)
    if isinstance(image, str | os.PathLike):
        return read_image(image, channels)
    package = pillow()
    if not isinstance(image, package.Image.Image):
        raise ImageError(
            "an image must be a path, a PIL image or a NumPy array (H, W), (H, W, C) or (C, H, W), "
            f"got {type(image).__name__}"
        )
    _check_mode(image.mode)
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        transparent = image.convert("RGBA")
        white = package.Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = package.Image.alpha_composite(white, transparent)
    return _pixels(image.convert(_MODES[channels]))


def _check_mode(mode: str) -> None:
    if mode.startswith(("I", "F")):
        raise ImageError(
            f"pixels of mode {mode!r} have more than 8 bits, which nothing here says how to scale; "
            "pass an array of values from 0 to 255"
        )


def _pixels(image: Any) -> Array:
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _checked(array: Array) -> Array:
    """Return the array, integers as uint8, after a look at its values."""
    if array.size == 0:
        raise ImageError(f"an image of shape {array.shape} has no pixels")
    if array.dtype.kind not in "uif":
        raise ImageError(
            f"an image must be of integers from 0 to 255 or of floats, got {array.dtype}"
        )
    low, high = array.min(), array.max()
    if array.dtype.kind == "f":
        if not np.isfinite(low) or not np.isfinite(high):
            raise ImageError("an image has values that are not finite (NaN or infinity)")
        return array
    if low < 0 or high > 255:
        raise ImageError(f"integers of an image must be from 0 to 255, got {low} to {high}")
    return array.astype(np.uint8)


def _as_channels(array: Array, channels: int) -> Array:
    """Return (H, W, channels) of an array in any of the usual orders."""
    if array.ndim == 2:
        array = array[:, :, None]
    elif array.ndim != 3:
        raise ImageError(f"an image must be (H, W), (H, W, C) or (C, H, W), got {array.shape}")
    else:
        first, last = (array.shape[axis] in {1, channels} for axis in (0, 2))
        if first and last:
            raise ImageError(
                f"an image of shape {array.shape} may be (H, W, C) or (C, H, W); pass a PIL image"
            )
        if not first and not last:
            raise ImageError(
                f"an image of shape {array.shape} has neither first nor last the {channels} "
                "channels that are needed, nor one for gray"
            )
        array = np.moveaxis(array, 0, -1) if first else array
    if array.shape[2] == 1 and channels == 3:
        return np.repeat(array, 3, axis=2)
    return array
