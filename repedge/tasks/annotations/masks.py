"""Masks: for each photo a PNG whose pixels are the numbers of classes."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from repedge.errors import UserError
from repedge.tasks.annotations.base import (
    Annotations,
    Marked,
    Mask,
    Place,
    choose_split,
    common_folder,
    part_of,
)
from repedge.tasks.annotations.voc import lists, stem_of

LARGEST = 64 * 2**20
"""Bytes of a mask's file."""

MOST_PIXELS = 1 << 26

MODES = ("L", "P", "1", "I;16", "I;16B", "I")
"""What Pillow calls PNGs of one number a pixel."""

PHOTOS = ("images", "image", "img", "imgs", "img_dir", "jpegimages", "photos", "leftimg8bit")
MASKS = (
    "masks",
    "mask",
    "labels",
    "label",
    "annotations",
    "annotation",
    "ann_dir",
    "segmentationclass",
    "gt",
)
"""What folders of either are called, in lower case; and ``valannot`` has the masks of ``val``."""


def read(place: Place, images: Sequence[str], split: str | None) -> Annotations:
    """The masks of a data set.

    The mask of ``images/val/a.jpg`` is ``masks/val/a.png``, with any of the names `PHOTOS` and `MASKS`; that
    of ``val/a.jpg`` is ``valannot/a.png``; else it is beside its photo, ``a.png`` or ``a_mask.png``.

    Args:
        place: The data set.
        images: Names of all image files in it.
        split: Which part; None takes the first of `DEFAULT_SPLITS` that there is, else all.

    Raises:
        UserError: There are no masks, or there is no such part.
    """
    found = paired(images)
    if not found:
        raise UserError(
            f"{place.where} has no PNG masks that belong to photos: the mask of images/a.jpg is masks/a.png"
        )
    listed = lists(place, "Segmentation")
    part = {n: part_of(n) for n in found}
    there = list(listed) or sorted({p for p in part.values() if p})
    chosen = choose_split(there, split, place.where)
    if listed and chosen:
        part = {n: chosen if stem_of(n) in listed[chosen] else None for n in found}
    photos: dict[str, Callable[[], Marked | Mask] | None] = {
        name: partial(_mask, place, file)
        for name, file in found.items()
        if not chosen or part[name] == chosen
    }
    if not photos:
        raise UserError(f"{place.where} has no photos of the part {chosen!r} that have masks")
    return Annotations("masks", "PNG masks", place.where, photos, None, chosen)


def paired(images: Sequence[str]) -> dict[str, str]:
    """Photo -> its mask, of the photos that have one, in name order."""
    masks: dict[str, list[str]] = {}
    for name in images:
        if name.lower().endswith(".png"):
            masks.setdefault(_common(name, True), []).append(name)
    found = {}
    for name in images:
        for mask in masks.get(_common(name, False), []):
            if mask != name and _belongs(name, mask):
                found[name] = mask
    taken = set(found.values())
    return {photo: mask for photo, mask in found.items() if photo not in taken}


def masks_apart(images: Sequence[str]) -> set[str]:
    """Masks that are in folders of their own, beside those of their photos."""
    return {mask for mask in paired(images).values() if _in_masks(mask)}


def _in_masks(name: str) -> bool:
    return any(_is_folder(part, MASKS) for part in PurePosixPath(name).parts[:-1])


def _belongs(photo: str, mask: str) -> bool:
    """Whether a PNG is the mask of a photo, which has the same `_common`, and not the other way round."""
    sides = [_in_masks(photo), _in_masks(mask)]
    if sides == [False, False]:
        if re.search(r"_mask\.png$", mask.lower()):
            return True
        return common_folder(mask) == common_folder(photo) and not photo.lower().endswith(".png")
    return sides == [False, True]


def _is_folder(part: str, known: Sequence[str]) -> bool:
    return part.lower() in known or (known is MASKS and part.lower().endswith("annot") and len(part) > 5)


def _common(name: str, mask: bool) -> str:
    """What the paths of a photo and of its mask have in common."""
    path = PurePosixPath(name)
    kept = [p[:-5] if p.lower().endswith("annot") and len(p) > 5 else p for p in path.parts[:-1]]
    kept = [p for p in kept if not (_is_folder(p, MASKS) or _is_folder(p, PHOTOS))]
    stem = re.sub(r"(?i)_(mask|label|labels|gt)$", "", path.stem) if mask else path.stem
    return "/".join([*kept, stem])


def _mask(place: Place, file: str) -> Mask:
    where = f"{place.where}/{file}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the next line is stricter
            with Image.open(io.BytesIO(place.read(file, LARGEST)), formats=("PNG",)) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise ValueError(f"{image.width}x{image.height} pixels are too many")
                if image.mode not in MODES:
                    raise UserError(
                        f"{where} has colours ({image.mode}); a mask has the number of a class in each pixel"
                    )
                ids = np.asarray(image)
    except UserError:
        raise
    except Exception as e:  # Pillow's readers raise nearly anything on damaged files
        raise UserError(f"{where} can't be read as a mask ({e}); replace or remove it") from e
    return Mask(ids.astype(np.uint8 if ids.max(initial=0) < 256 else np.uint16), where)
