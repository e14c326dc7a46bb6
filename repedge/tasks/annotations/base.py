"""What data sets say of their photos, in words that no format knows: boxes, masks, classes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Protocol

import numpy as np

from repedge.errors import UserError

OVERHANG = 0.01
"""Of a photo's side: boxes that reach out of it by no more are cut, for coordinates were rounded."""

SMALL_FILE = 4 * 2**20
"""Bytes of a file that speaks of one photo, or of a list of photos."""

SPLITS = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""The parts of a data set, and what folders and lists of them are called."""

DEFAULT_SPLITS = ("val", "test")
"""Which part is judged on, if nobody says: the first that there is."""


class Place(Protocol):
    """A folder or an archive; nothing outside it can be reached.

    Attributes:
        where: Its path as it was given, for errors.
        home: Its absolute path, with forward slashes; empty of an archive.
    """

    where: str
    home: str

    def files(self) -> Sequence[str]:
        """Every file in it in name order: paths relative to it, with forward slashes."""
        ...

    def read(self, name: str, largest: int) -> bytes:
        """The bytes of one of the files.

        Raises:
            UserError: It can't be read, or is larger than ``largest`` bytes.
        """
        ...


@dataclass(frozen=True)
class Marked:
    """The objects of a photo.

    Attributes:
        boxes: Left, top, right, bottom, float64 [n, 4], within ``size``.
        classes: Index of each one's class among the data set's, int64 [n].
        ignored: Crowds and difficult ones, that are neither missed nor wrongly found, bool [n].
        size: Width and height of the photo in the boxes' unit; (1, 1) where they are shares of its sides,
            None where the data set does not say.
        where: What an error calls it.
    """

    boxes: np.ndarray
    classes: np.ndarray
    ignored: np.ndarray
    size: tuple[float, float] | None
    where: str


@dataclass(frozen=True)
class Mask:
    """The class of each pixel of a photo.

    Attributes:
        ids: uint8 or uint16 [H, W], as in the file.
        where: What an error calls it.
    """

    ids: np.ndarray
    where: str


@dataclass(frozen=True)
class Annotations:
    """What a data set says of the photos of one of its parts.

    Attributes:
        kind: ``boxes`` or ``masks``.
        format: In words.
        where: The file or the folder that says it.
        photos: Name of each photo in the place -> what reads the truth of it; None of one that nothing is
            said of.
        classes: Names, by index; None where it has only numbers.
        named: Gives the names that stand in the labels themselves, where there is no list of them.
        split: Which part of the data set; empty if it has none.
        upright: Whether coordinates are of the photo as it is turned by its EXIF orientation.
    """

    kind: str
    format: str
    where: str
    photos: Mapping[str, Callable[[], Marked | Mask] | None]
    classes: tuple[str, ...] | None = None
    split: str = ""
    upright: bool = False
    found: str = field(default="")

    def __post_init__(self) -> None:
        part = f", {self.split}" if self.split else ""
        object.__setattr__(self, "found", f"{len(self.photos)} photos ({self.format}{part})")

    def of(self, photo: str) -> Marked | Mask | None:
        """What is said of a photo, by its name.

        Raises:
            UserError: It can't be read, or can't be true.
        """
        read = self.photos.get(photo)
        return None if read is None else read()


def objects(
    rows: Sequence[tuple[Sequence[float], int, bool]], size: tuple[float, float] | None, where: str
) -> Marked:
    """Boxes of a photo, checked; those of no area are nothing that could be found, and are left out.

    Args:
        rows: (left, top, right, bottom), index of the class, whether it is to be ignored.
        size, where: See `Marked`.

    Raises:
        UserError: A box has coordinates that are no numbers or in the wrong order, or lies outside the photo.
    """
    boxes = np.array([box for box, _, _ in rows], np.float64).reshape(-1, 4)
    for i, box in enumerate(boxes):
        shown = ", ".join(f"{v:g}" for v in box)
        if not np.isfinite(box).all():
            raise UserError(f"{where}: box {i + 1} is ({shown}), which is no box; mend or remove it")
        if (box[2:] < box[:2]).any():
            raise UserError(
                f"{where}: box {i + 1} ends before it begins: left, top, right, bottom are {shown}; mend or "
                "remove it"
            )
        check_inside(box, size, f"{where}: box {i + 1}")
    if size is not None:
        boxes = np.clip(boxes, 0, np.tile(size, 2))
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
    classes = np.array([c for _, c, _ in rows], np.int64)
    ignored = np.array([i for _, _, i in rows], bool)
    return Marked(boxes[kept], classes[kept], ignored[kept], size, where)


def check_inside(box: np.ndarray, size: tuple[float, float] | None, called: str) -> None:
    """Refuse a box that reaches out of its photo by more than `OVERHANG`; nothing is known without a size.

    Raises:
        UserError: It does.
    """
    if size is None:
        return
    sides = np.tile(size, 2)
    if ((box < -OVERHANG * sides) | (box > (1 + OVERHANG) * sides)).any():
        shown = ", ".join(f"{v:g}" for v in box)
        photo = "the photo, whose sides are 1" if size == (1, 1) else f"the photo of {size[0]:g}x{size[1]:g}"
        raise UserError(f"{called}, from left, top to right, bottom {shown}, is outside {photo}; mend it")


def part_of(name: str) -> str | None:
    """Which part of a data set a path's folders say that it is in; None if they say none."""
    words = {word: part for part, known in SPLITS.items() for word in known}
    for folder in reversed(PurePosixPath(name).parts[:-1]):
        stem = re.sub(r"(19|20)\d\d$", "", folder.lower()).removesuffix("annot").rstrip("_-")
        if stem in words:
            return words[stem]
    return None


def choose_split(there: Sequence[str], asked: str | None, where: str) -> str:
    """The part of a data set to take; empty text, all of it, if it has none or none that is judged on.

    Raises:
        UserError: The user asks for one that it does not have.
    """
    if asked is None:
        return next((s for s in DEFAULT_SPLITS if s in there), "")
    if asked not in there:
        has = f"it has {', '.join(sorted(there))}" if there else "it is not divided"
        raise UserError(f"{where} has no part {asked!r}; {has}")
    return asked


def common_folder(path: str) -> str:
    """``a/b/c.txt`` -> ``a/b/``; empty text of a file at the top."""
    return path[: path.rfind("/") + 1]


def within(place: Place, folder: str, path: str) -> str | None:
    """``path``, which is relative to ``folder``, as a path of the place; None if it leaves the place.

    Args:
        place: Its own absolute path may stand before a path.
        folder: With a slash at its end, or empty.
        path: With either kind of slash, as a data set writes it.
    """
    path = path.strip().replace("\\", "/")
    if place.home and f"{path}/".startswith(f"{place.home}/"):
        folder, path = "", path[len(place.home) + 1 :]
    if path.startswith("/") or re.match(r"[A-Za-z]:", path) or "\0" in path:
        return None
    parts: list[str] = []
    for part in (folder + path).split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)
