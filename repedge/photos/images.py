"""From image files to pixels, and from pixels to the network's input.

The same two steps for every use (verification, evaluation, calibration, golden vectors): `pixels`
is what an app does with a photo before it calls the artifact, `normalise` is what the artifact does
inside. Both are written in the plainest way, as the reference that the artifacts are held against.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
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


@dataclass(frozen=True)
class Sample:
    """One image and, where known, the index of its class.

    Attributes:
        name: File name, relative to the set's folder.
        load: Opens and decodes the image; raises UserError if it can't.
        label: Class index, or None.
    """

    name: str
    load: Callable[[], Image.Image]
    label: int | None = None


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


def is_image_name(name: str) -> bool:
    """Whether a file's name is that of an image; macOS puts a ``._`` file with attributes beside each."""
    return Path(name).suffix.lower() in SUFFIXES and not name.startswith("._")


def image_files(folder: Path) -> list[Path]:
    """All image files below ``folder`` in name order.

    Raises:
        UserError: No such folder, or no images in it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder of images at {folder}")
    files = sorted(p for p in folder.rglob("*") if is_image_name(p.name) and p.is_file())
    if not files:
        raise UserError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    return files


def folder_samples(folder: Path, labels: Sequence[str] = ()) -> list[Sample]:
    """All images below ``folder`` in name order.

    Class indices come from a ``labels.json`` (file name -> index) in the folder; else from class
    sub-folders: matched with ``labels`` by name where every sub-folder is one, read as numbers where
    all are, else numbered in sorted order if there are as many as ``labels`` (or no labels).

    Raises:
        UserError: No such folder, no images in it, an unusable labels.json, or folders that are no classes
            of the model.
    """
    files = image_files(folder)
    index = _label_index(folder, files, labels)
    return [
        Sample(p.relative_to(folder).as_posix(), lambda p=p: decode(p), index(p))  # type: ignore[misc]
        for p in files
    ]


def _label_index(folder: Path, files: list[Path], labels: Sequence[str]) -> Callable[[Path], int | None]:
    table_file = folder / "labels.json"
    if table_file.is_file():
        table = _read_label_table(table_file)
        if table and not any(p.name in table or p.relative_to(folder).as_posix() in table for p in files):
            raise UserError(f"{table_file} names none of the {len(files)} images in {folder}")
        return lambda p: table.get(p.relative_to(folder).as_posix(), table.get(p.name))
    classes = sorted({p.relative_to(folder).parts[0] for p in files if p.parent != folder})
    if not classes or any(p.parent == folder for p in files):
        return lambda p: None
    strange = [c for c in classes if c not in labels] if labels else []
    if labels and not strange:
        by_name = {name: labels.index(name) for name in classes}
    elif all(c.isdecimal() and len(c) < 10 for c in classes):
        by_name = {c: int(c) for c in classes}
    elif labels and (len(strange) < len(classes) or len(classes) != len(labels)):
        raise UserError(
            f"the folder {strange[0]!r} in {folder} is none of the model's {len(labels)} class names; rename "
            'it, or put a labels.json {"photo.jpg": class index} beside the photos'
        )
    else:
        by_name = {name: i for i, name in enumerate(classes)}
    return lambda p: by_name[p.relative_to(folder).parts[0]]


def _read_label_table(file: Path) -> dict[str, int]:
    try:
        table = json.loads(file.read_text(encoding="utf-8-sig"))
        for name, index in table.items():
            if isinstance(index, bool) or not isinstance(index, int):
                raise TypeError(f"{name!r} has {index!r}, not the index of a class")
            if not 0 <= index < 1 << 31:
                raise ValueError(f"{name!r} has {index}, which no model has as a class")
        return table
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as e:
        raise UserError(f'{file} must be a JSON object like {{"photo.jpg": 3}} ({e})') from e


@cache
def demo_samples() -> tuple[Sample, ...]:
    """The 64 bundled CIFAR-10 test photos (32x32), for use when the user gives no images."""
    folder = Path(__file__).parents[1] / "models" / "weights"
    sheet = Image.open(folder / "demo_images.png").convert("RGB")
    entries = json.loads((folder / "demo_images.json").read_text())
    columns = sheet.width // 32

    def cut(i: int) -> Image.Image:
        x, y = i % columns * 32, i // columns * 32
        return sheet.crop((x, y, x + 32, y + 32))

    return tuple(
        Sample(e["name"], lambda i=i: cut(i), e["label"])  # type: ignore[misc]
        for i, e in enumerate(entries)
    )


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """``count`` samples spread evenly over the set (all of them if there are fewer)."""
    if len(samples) <= count:
        return list(samples)
    return [samples[i * len(samples) // count] for i in range(count)]


def batches(
    samples: Sequence[Sample], pre: Preprocess, size: int
) -> Iterator[tuple[list[Sample], np.ndarray]]:
    """Decode in order, ``size`` images at a time: (samples, uint8 [n, H, W, C])."""
    for i in range(0, len(samples), size):
        part = list(samples[i : i + size])
        yield part, np.stack([pixels(s.load(), pre) for s in part])
