"""From image files to pixels, and from pixels to the network's input.

The same two steps for every use (verification, evaluation, calibration, golden vectors): `pixels`
is what an app does with a photo before it calls the artifact, `normalise` is what the artifact does
inside. Both are written in the plainest way, as the reference that the artifacts are held against.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from repedge.config import Preprocess
from repedge.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}
# Of all that Pillow reads, what is meant to be a photo; among the rest is PostScript, a program.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM", "GIF")
LARGEST = 1 << 27
"""Pixels of an image in memory; a strip of 1x60000 pixels, resized by its short side, would be larger."""
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
        UserError: The file is no image that Pillow reads, or is truncated.
    """
    try:
        with Image.open(file, formats=_FORMATS) as image:
            image.load()
            return eight_bits(turned(image) if upright else image)
    except Exception as e:  # Pillow's readers raise nearly anything on damaged files
        why = "of no known format" if isinstance(e, UnidentifiedImageError) else e
        raise UserError(f"{name or file} can't be read as an image ({why}); replace or remove it") from e


def turned(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says; as it is where that can't be read."""
    try:
        result = ImageOps.exif_transpose(image)
    except Exception:
        return image
    result.format = image.format
    return result


def eight_bits(image: Image.Image) -> Image.Image:
    """A copy in 8-bit RGB, or in 8-bit grey where it is grey; alpha is dropped.

    Raises:
        ValueError: 32-bit pixels, whose white is not known.
    """
    if image.mode in ("RGB", "L"):
        return image.copy()
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        # Pillow's own conversion clips at 255; its readers of 16-bit RGB take the high byte, too.
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no known white; save it with 8 or 16 bits")
    return image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")


def pixels(image: Image.Image, pre: Preprocess) -> np.ndarray:
    """Resize and crop an image to uint8 [H, W, C] in RGB order (C = 1 for GRAY networks).

    The geometry is that of the usual ImageNet evaluation: the short side becomes ``pre.resize`` (the
    long side is rounded down), then the centre is cut out; an image smaller than the crop is padded
    with zeros. With ``resize=None`` the image is squashed to ``pre.size``.

    Raises:
        UserError: The image, resized, would not fit into memory.
    """
    image = image.convert("L" if pre.color == "GRAY" else "RGB")
    height, width = pre.size
    if height * width > LARGEST:
        raise UserError(
            f"an input of {height}x{width} pixels is more than memory holds; choose a smaller one"
        )
    method = _FILTERS[pre.interpolation]
    if pre.resize is None:
        image = image.resize((width, height), method)
    else:
        w, h = image.size
        short = min(w, h)
        if short == 0 or pre.resize * pre.resize * max(w, h) > LARGEST * short:
            raise UserError(
                f"an image of {w}x{h} pixels can't be resized to a short side of {pre.resize}; crop it first"
            )
        new_w, new_h = (pre.resize * w // short, pre.resize * h // short)
        image = image.resize((max(1, new_w), max(1, new_h)), method)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        image = image.crop((left, top, left + width, top + height))
    array = np.asarray(image, dtype=np.uint8)
    return array[:, :, None] if array.ndim == 2 else array


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
