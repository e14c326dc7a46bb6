"""Photos for every use: one door to any source, and one loop that decodes and skips what can't be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from repedge.config import Preprocess
from repedge.errors import UserError
from repedge.photos import datasets, images, sources
from repedge.photos.archives import open_archive
from repedge.photos.arrays import Table, check_inputs, memory_table
from repedge.photos.sources import RANDOM, Item
from repedge.tasks.annotations import DATA_FILES, Annotations
from repedge.tasks.view import View

TAKES = "a folder of photos, a .zip of photos, or a .npz of arrays"

CALIBRATION = "--calib"
"""The option that noise may stand in for photos with."""


class Photos(Protocol):
    """A set of photos, some of which will be read.

    Attributes:
        kind: folder, zip, npz, array, iterable, random or demo.
        name: The last part of its path, or the name of its Python type.
        where: Its path as it was given, for errors; else the same as the name.
        found: What was found in it, in words.
        total: Number of items; None for a stream, whose end is not known.
        ordered: Whether it must be read in rising order to be read fast.
        names: Of all items in order, where they are known before reading: paths relative to the folder or
            in the archive, with forward slashes. None elsewhere.
        columns: Name -> array of integers [total], of a .npz that has such beside its photos.
        annotations: The boxes or masks of a data set, where they were asked for and found.
    """

    kind: str
    name: str
    where: str
    found: str
    total: int | None
    ordered: bool
    names: tuple[str, ...] | None
    columns: Mapping[str, np.ndarray]
    annotations: Annotations | None

    def read(self, indices: Sequence[int], upright: bool = False) -> Iterator[tuple[int, Item]]:
        """Items with these indices, in this order; fewer where a stream ends.

        Args:
            indices: From 0; a stream gives its next items, whatever the indices are.
            upright: Turn images as their EXIF orientation says, see `repedge.photos.images.decode`.

        Raises:
            UserError: An item is of a kind that is never an image, or an array is damaged. What is merely
                unreadable comes as an item that says why.
        """
        ...

    def beside(self, name: str) -> bytes | None:
        """A file that came with the photos, such as labels.json; None if there is none.

        It is looked for in the folder, or at the top of the .zip or in the one folder that all its photos are
        in.

        Raises:
            UserError: It is too large, damaged or encrypted.
        """
        ...


def open_photos(
    given: Any,
    pre: Preprocess | None = None,
    *,
    option: str = CALIBRATION,
    seed: int = 0,
    truth: str | None = None,
    split: str | None = None,
) -> Photos:
    """Look at what the user gave, without reading images yet.

    Args:
        given: A path of a folder, a .zip or a .npz (or for calibration the word ``random``, where no such
            file exists), an array uint8 [N, H, W, C] or float32 [N, C, H, W], or an iterable of paths, PIL
            images and uint8 [H, W, C] arrays, or of pairs (image, what is known of it).
        pre: The model's preprocessing; network inputs must have its size, and are refused without it.
        option: What asked for photos, for errors: ``--calib``, ``--images``, ``--eval-data`` or ``eval``.
        seed: Of noise.
        truth: What is to be found in the photos, ``boxes`` or ``masks``: a data set that says it is taken as
            one, and may be named by its ``data.yaml`` or its COCO file, too.
        split: Which part of a data set: train, val or test; None takes val, else test, else all.

    Raises:
        UserError: It is nothing of that kind, it is empty or no regular file, or an archive is damaged or a
            bomb.
    """
    if isinstance(given, (str, Path)):
        photos = _open_path(Path(given), pre, option, seed, truth, split)
        if split is not None and photos.annotations is None:
            raise UserError(f"{given} is no data set with parts; leave --split {split} out")
        return photos
    if isinstance(given, np.ndarray):
        return sources.Rows("array", "ndarray", "ndarray", memory_table(given, pre))
    if isinstance(given, (bytes, dict)) or not isinstance(given, Iterable):
        kind = type(given).__name__
        raise UserError(f"{option.strip('-')} is of type {kind}; give {TAKES}, or an iterable of images")
    return sources.Items(given, "calibration images" if option == CALIBRATION else "photos")


def _open_path(
    path: Path, pre: Preprocess | None, option: str, seed: int, truth: str | None, split: str | None
) -> Photos:
    if path.is_dir():
        return (truth and datasets.of_folder(path, truth, split)) or sources.folder(path)
    if not path.exists():
        if str(path) == RANDOM and option == CALIBRATION and pre is not None:
            return sources.Noise(pre, seed)
        raise UserError(f"there is nothing at {path}; {option} takes {TAKES}")
    if not path.is_file():
        raise UserError(f"{path} is neither a regular file nor a folder; {option} takes {TAKES}")
    if path.suffix.lower() in images.SUFFIXES:
        raise UserError(f"{path} is one image; {option} takes {TAKES}")
    if path.suffix.lower() in DATA_FILES:
        return datasets.of_file(path, truth, split, option)
    archive = open_archive(path, pre, option)
    if isinstance(archive, Table):
        return sources.Rows("npz", path.name, str(path), archive)
    return (truth and datasets.of_zip(path, archive, truth, split)) or sources.zipped(path, archive)


SMALL = 64
"""Pixels of a side up to which a network's input is a thumbnail rather than a photo."""


CELLS = ("Platelets", "RBC", "WBC")
"""What is to be found in the bundled photos of blood cells."""


def bundled_photos(pre: Preprocess, labels: Sequence[str] = ()) -> Photos:
    """Photos for use when the user gives none: those of what the network is for, where there are such.

    Else 16 photos of 256x256, or thumbnails for inputs of up to `SMALL`.

    Args:
        pre: The network's preprocessing.
        labels: Its class names.
    """
    if tuple(labels) == CELLS:
        return cell_photos()
    return demo_photos() if max(pre.size) <= SMALL else _bundled_files()


@cache
def cell_photos() -> Photos:
    """The 16 bundled photos of BCCD (640x480), with boxes."""
    photos = datasets.of_folder(Path(__file__).parent / "bundled" / "cells", "boxes", None)
    assert photos is not None, "their XML files are beside them"
    photos.kind, photos.name, photos.where = sources.DEMO, "bundled photos of blood cells", sources.DEMO
    return photos


@cache
def _bundled_files() -> Photos:
    folder = Path(__file__).parent / "bundled"  # LICENSES.md there says whose they are
    names = sorted(p.name for p in folder.glob("*.jpg"))
    return sources.Files(
        sources.DEMO, "bundled photos", sources.DEMO, names, lambda name: (folder / name).read_bytes(),
        lambda name: None,
    )  # fmt: skip


@cache
def demo_photos() -> Photos:
    """The 64 bundled CIFAR-10 test photos (32x32), with their classes."""
    folder = Path(__file__).parents[1] / "models" / "weights"
    sheet = Image.open(folder / "demo_images.png").convert("RGB")
    entries = json.loads((folder / "demo_images.json").read_text())
    return sources.Demo(sheet, 32, [e["name"] for e in entries], [e["label"] for e in entries])


def spread(total: int | None, count: int | None = None) -> list[int]:
    """Indices of ``count`` photos spread evenly over all; all of them if there are fewer, or without a count.

    Raises:
        UserError: All of a stream, whose end is not known.
    """
    if total is None:
        if count is None:
            raise UserError("how many photos a stream has is not known: give a list, or say how many to take")
        return list(range(count))
    if count is None or total <= count:
        return list(range(total))
    return [i * total // count for i in range(count)]


@dataclass(frozen=True)
class Batch:
    """Photos that were read together; what could not be read is left out of all but ``skipped``.

    Attributes:
        indices, names, hashes, told: Of each photo; see `repedge.photos.sources.Item`.
        sizes: Width and height of each photo as it was decoded; None of a network's input.
        pixels: Preprocessing -> uint8 [n, H, W, C] in RGB order.
        skipped: Name -> why it was left out.
    """

    indices: tuple[int, ...]
    names: tuple[str, ...]
    hashes: tuple[str, ...]
    told: tuple[Any, ...]
    sizes: tuple[tuple[int, int] | None, ...]
    pixels: dict[Preprocess, np.ndarray]
    skipped: dict[str, str]

    @property
    def tried(self) -> int:
        """Photos read or left out."""
        return len(self.names) + len(self.skipped)

    def truths(self, of: Callable[[str, Any], Any] | None) -> list[Any]:
        """What ``of`` makes of each photo's name and what was told of it; Nones if there is no ``of``."""
        return [None if of is None else of(n, t) for n, t in zip(self.names, self.told, strict=True)]

    def views(self, pre: Preprocess) -> list[View]:
        """Where each photo came to lie in the input of a preprocessing."""
        return [images.view(size, pre) for size in self.sizes]


class _Kept(NamedTuple):
    """What is left of a readable item in memory."""

    at: int
    name: str
    sha256: str
    told: Any
    size: tuple[int, int] | None
    pixels: list[np.ndarray]


def batches(
    photos: Photos, indices: Sequence[int], pres: Iterable[Preprocess], size: int, *, upright: bool = False
) -> Iterator[Batch]:
    """Read photos, ``size`` at a time, and bring each to the input of every preprocessing.

    A batch has fewer where some can't be read, and none where none can.

    Args:
        photos, indices, upright: As for `Photos.read`.
        pres: Preprocessings.
        size: Photos tried for each batch; the last may have fewer.

    Raises:
        UserError: As `Photos.read`, or network inputs that a preprocessing can't give.
    """
    wanted = tuple(dict.fromkeys(pres))
    kept: list[_Kept] = []
    skipped: dict[str, str] = {}
    for tried, (index, item) in enumerate(photos.read(indices, upright), 1):
        try:
            pixels = [pixels_of(item, pre) for pre in wanted]
        except UserError as e:
            if isinstance(item.content, np.ndarray):
                raise  # they were all normalised in another way, not this one alone
            skipped[item.name] = str(e)
        else:
            of_photo = item.content.size if isinstance(item.content, Image.Image) else None
            kept.append(_Kept(index, item.name, item.sha256, item.told, of_photo, pixels))
        if tried % size == 0:
            yield _batch(kept, skipped, wanted)
            kept, skipped = [], {}
    if kept or skipped:
        yield _batch(kept, skipped, wanted)


def _batch(kept: list[_Kept], skipped: dict[str, str], pres: Sequence[Preprocess]) -> Batch:
    pixels = {
        pre: np.stack([k.pixels[i] for k in kept])
        if kept
        else np.empty((0, *pre.size, pre.channels), np.uint8)
        for i, pre in enumerate(pres)
    }
    return Batch(
        tuple(k.at for k in kept), tuple(k.name for k in kept), tuple(k.sha256 for k in kept),
        tuple(k.told for k in kept), tuple(k.size for k in kept), pixels, skipped,
    )  # fmt: skip


def pixels_of(item: Item, pre: Preprocess) -> np.ndarray:
    """An item as uint8 [H, W, C] in RGB order: an image resized and cropped, a network input rounded.

    Raises:
        UserError: It could not be read, or would not fit into memory once resized, or is a network input
            that the preprocessing can't give.
    """
    if item.content is None:
        raise UserError(item.why)
    if isinstance(item.content, Image.Image):
        return images.pixels(item.content, pre)
    check_inputs(item.content, pre)
    rgb = np.rint(np.clip(images.to_pixels(item.content[None], pre)[0], 0, 255))
    return np.ascontiguousarray(rgb.transpose(1, 2, 0).astype(np.uint8))


def stacked(photos: Photos, pre: Preprocess, count: int | None = None) -> np.ndarray:
    """``count`` photos spread evenly over a set (all without a count) as uint8 [n, H, W, C], n from 1.

    Raises:
        UserError: None can be read; see `batches`.
    """
    indices = spread(photos.total, count)
    parts = [b.pixels[pre] for b in batches(photos, indices, (pre,), 16) if b.names]
    if not parts:
        raise UserError(f"none of the {len(indices)} photos of {photos.where} can be read")
    return np.concatenate(parts)


def with_skipped(source: str, skipped: Mapping[str, str]) -> str:
    """A phrase for where photos came from, which says how many of them could not be read."""
    return f"{source} ({len(skipped)} unreadable left out)" if skipped else source
