"""From image files to pixels, and from pixels to the network's input.

The same two steps for every use (verification, evaluation, calibration, golden vectors): `pixels`
is what an app does with a photo before it calls the artifact, `normalise` is what the artifact does
inside. Both are written in the plainest way, as the reference that the artifacts are held against.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from repedge.config import Preprocess
from repedge.errors import UserError
from repedge.tasks.view import View

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}
# Of all that Pillow reads, what is meant to be a photo; among the rest is PostScript, a program.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM", "GIF")
LARGEST = 1 << 26
"""Pixels of an image in memory (256 MiB); a strip of 1x60000 pixels, resized by its short side, would have
more."""
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def decode(file: Path | BinaryIO, name: str = "", *, upright: bool = False) -> Image.Image:
    """Decode an image file to 8-bit RGB (or to grey where it is grey).

    Args:
        file: A path, or an opened file.
        name: What an error calls it; its path if empty.
        upright: Turn the image as its EXIF orientation says. Left alone otherwise, as the training
            pipelines of these networks leave it.

    Raises:
        UserError: The file is no image that Pillow reads, or is truncated, or has more pixels than `LARGEST`
            and is no JPEG, which can be decoded at a half, a quarter or an eighth of its size.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_bound` is stricter
            with Image.open(file, formats=_FORMATS) as image:
                _bound(image)
                image.load()
                return eight_bits(turned(image) if upright else image)
    except Exception as e:  # Pillow's readers raise nearly anything on damaged files
        why = "of no known format" if isinstance(e, UnidentifiedImageError) else e
        raise UserError(f"{name or file} can't be read as an image ({why}); replace or remove it") from e


def _bound(image: Image.Image) -> None:
    """Let a large JPEG be decoded at a smaller size, and refuse other large images, before a pixel is.

    Raises:
        ValueError: It would take more memory than `LARGEST` pixels do.
    """
    width, height = image.size
    if width * height <= LARGEST:
        return
    progressive = image.info.get("progressive")  # such a JPEG is decoded whole first
    if image.format in ("JPEG", "MPO") and not progressive:
        side = math.sqrt(LARGEST / (width * height))
        image.draft(None, (int(width * side / 2), int(height * side / 2)))
        if image.width * image.height <= LARGEST:
            return
    raise ValueError(
        f"{width}x{height} pixels are more than the {LARGEST >> 20} megapixels that are decoded; "
        "make it smaller"
    )


def turned(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says; as it is where that can't be read."""
    try:
        result = ImageOps.exif_transpose(image)
    except Exception:
        return image
    result.format = image.format
    return result


def eight_bits(image: Image.Image) -> Image.Image:
    """In 8-bit RGB, or in 8-bit grey where it is grey; alpha is dropped.

    Raises:
        ValueError: 32-bit pixels, whose white is not known.
    """
    if image.mode in ("RGB", "L"):
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        # Pillow's own conversion clips at 255; its readers of 16-bit RGB take the high byte, too.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no known white; save it with 8 or 16 bits")
    return image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")


def pixels(image: Image.Image, pre: Preprocess) -> np.ndarray:
    """Resize and crop an image to uint8 [H, W, C] in RGB order (C = 1 for GRAY networks).

    The geometry is that of the usual ImageNet evaluation: the short side becomes ``pre.resize`` (the
    long side is rounded down), then the centre is cut out; an image smaller than the crop is padded
    with zeros. With ``resize=None`` the image is squashed to ``pre.size``, or fitted into it with bars where
    there is a letterbox.

    Raises:
        UserError: The image, resized, would not fit into memory.
    """
    mode = "L" if pre.color == "GRAY" else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    height, width = pre.size
    if height * width > LARGEST:
        raise UserError(
            f"an input of {height}x{width} pixels is more than memory holds; choose a smaller one"
        )
    method = _FILTERS[pre.interpolation]
    place = placement(image.width, image.height, pre)
    image = image.resize((place.width, place.height), method)
    if (place.width, place.height) != (width, height):
        image = _cut(image, place, pre)
    array = np.asarray(image, dtype=np.uint8)
    return array[:, :, None] if array.ndim == 2 else array


def _cut(image: Image.Image, place: Placement, pre: Preprocess) -> Image.Image:
    """What of a resized image falls into the input, on black or on the letterbox's bars."""
    value = 0 if pre.letterbox is None else pre.letterbox.value
    result = Image.new(image.mode, (pre.size[1], pre.size[0]), (value,) * len(image.getbands()))
    result.paste(image, (place.left, place.top))
    return result


@dataclass(frozen=True)
class Placement:
    """Where an image comes to lie: its size once resized, and where its top left is in the input, pixels.

    A point (x, y) of the input is (x - ``left``) * width of the image / ``width`` there, y likewise.
    """

    width: int
    height: int
    left: int
    top: int


def placement(width: int, height: int, pre: Preprocess) -> Placement:
    """Where an image of a size comes to lie in the network's input.

    Args:
        width, height: Of the image, pixels.

    Raises:
        UserError: The image, resized, would not fit into memory.
    """
    rows, columns = pre.size
    if pre.letterbox is not None:
        w, h = fitted(width, height, columns, rows)
        corner = pre.letterbox.corner
        return Placement(w, h, 0 if corner else (columns - w) // 2, 0 if corner else (rows - h) // 2)
    if pre.resize is None:
        return Placement(columns, rows, 0, 0)
    short = min(width, height)
    if short == 0 or pre.resize * pre.resize * max(width, height) > LARGEST * short:
        raise UserError(
            f"an image of {width}x{height} pixels can't be resized to a short side of {pre.resize}; "
            "crop it first"
        )
    w, h = max(1, pre.resize * width // short), max(1, pre.resize * height // short)
    return Placement(w, h, -round((w - columns) / 2), -round((h - rows) / 2))


def view(size: tuple[int, int] | None, pre: Preprocess) -> View:
    """Where an image comes to lie, for tasks.

    Args:
        size: Width and height of the image; None of one that is the network's input already.

    Raises:
        UserError: As `placement`.
    """
    if size is None:
        height, width = pre.size
        return View((width, height), (width, height), 0, 0, pre.size)
    place = placement(*size, pre)
    return View(size, (place.width, place.height), place.left, place.top, pre.size)


def fitted(width: int, height: int, columns: int, rows: int) -> tuple[int, int]:
    """The largest size of an image's shape within ``columns`` by ``rows``; halves of pixels go up."""
    if width < 1 or height < 1:
        raise UserError(f"an image of {width}x{height} pixels can't be resized")
    if columns * height <= rows * width:
        return columns, max(1, (2 * height * columns + width) // (2 * width))
    return max(1, (2 * width * rows + height) // (2 * height)), rows


def normalise(batch: np.ndarray, pre: Preprocess) -> np.ndarray:
    """uint8 RGB pixels [N, H, W, C] -> the network's input, float32 [N, C, H, W]."""
    if pre.color == "BGR":
        batch = batch[..., ::-1]
    x = batch.astype(np.float64) / 255
    x = (x - np.asarray(pre.mean)) / np.asarray(pre.std)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2), dtype=np.float32)


def to_pixels(inputs: np.ndarray, pre: Preprocess) -> np.ndarray:
    """Network inputs float32 [N, C, H, W] -> RGB pixels float32 [N, C, H, W]; the inverse of `normalise`."""
    column = (1, -1, 1, 1)
    x = inputs.astype(np.float64) * np.reshape(pre.std, column) + np.reshape(pre.mean, column)
    x = x[:, ::-1] if pre.color == "BGR" else x
    return (x * 255).astype(np.float32)


def is_image_name(name: str) -> bool:
    """Whether a file's name is that of an image; macOS puts a ``._`` file with attributes beside each."""
    return Path(name).suffix.lower() in SUFFIXES and not name.startswith("._")
