"""What data sets say of their photos: one file for each format, all in the words of `base`."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from repedge.errors import UserError
from repedge.tasks.annotations import coco, masks, voc, yolo
from repedge.tasks.annotations.base import SPLITS, Annotations, Marked, Mask, Place, choose_split

__all__ = ["DATA_FILES", "SPLITS", "Annotations", "Marked", "Mask", "Place", "find", "of_file"]

DATA_FILES = (".yaml", ".yml", ".json")
"""Suffixes of files that speak of a whole data set."""

YAMLS = ("data.yaml", "data.yml", "dataset.yaml")


def of_file(place: Place, file: str, images: Sequence[str], split: str | None = None) -> Annotations:
    """What a ``data.yaml`` or a COCO file says.

    Args:
        place: Its folder.
        file: Its name there.
        images: Names of the photos that are there.
        split: Which part of the data set; None chooses.

    Raises:
        UserError: It is neither, or what it says can't be true.
    """
    if file.lower().endswith(".json"):
        found = coco.read(place, file, images)
        if split not in (None, found.split):
            raise UserError(f"{found.where} is of one part of its data set; give the file of {split!r}")
        return found
    return yolo.read(place, file, images, split)


def find(place: Place, images: Sequence[str], kind: str, split: str | None = None) -> Annotations | None:
    """What is said of the photos of a folder or an archive; None if nothing of this kind is.

    Args:
        place: The folder or archive.
        images: Names of the image files in it.
        kind: ``boxes`` or ``masks``.
        split: Which part of the data set; None chooses.

    Raises:
        UserError: What it says can't be true, or several files say it.
    """
    files = place.files()
    if kind == "masks":
        return masks.read(place, images, split) if masks.paired(images) else None
    for name in sorted(files, key=lambda f: (f.count("/"), f)):
        if posixpath.basename(name).lower() in YAMLS:
            return yolo.read(place, name, images, split)
    if any(f.lower().endswith(".xml") for f in files):
        return voc.read(place, images, split)
    found = [f for f in files if f.lower().endswith(".json") and coco.is_coco(place.read(f, coco.LARGEST))]
    return _one_of(place, found, images, split) if found else None


def _one_of(place: Place, files: Sequence[str], images: Sequence[str], split: str | None) -> Annotations:
    """The COCO file of the part that is asked for."""
    named = {coco.split_of(f): f for f in files}
    chosen = choose_split([s for s in named if s], split, place.where)
    if len(files) > 1 and not chosen:
        raise UserError(f"{place.where} has several COCO files: {', '.join(files[:5])}; name the one")
    return coco.read(place, named[chosen] if chosen else files[0], images)
