"""COCO: one JSON file of images, categories and annotations."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from repedge.errors import UserError
from repedge.tasks.annotations.base import Annotations, Marked, Mask, Place, common_folder, objects, part_of

LARGEST = 512 * 2**20
"""Bytes of the file: that of COCO's own training photos has 450 MB."""


def read(place: Place, file: str, images: Sequence[str]) -> Annotations:
    """The boxes of a COCO file.

    Photos are looked for by the ``file_name`` of each image below the file's place: a data set does not
    say in which folder they are. Categories are numbered in the order of their ids, as all training code
    does.

    Args:
        place: Where it is.
        file: Its name there.
        images: Names of the photos that are there.

    Raises:
        UserError: It is no COCO file, or what it says can't be true, or none of its photos is there.
    """
    where = f"{place.where}/{file}"
    table = _table(place.read(file, LARGEST), where)
    categories = _by_id(table["categories"], "category", where)
    order = {key: i for i, key in enumerate(sorted(categories))}
    names = tuple(str(categories[key].get("name", key)) for key in sorted(categories))
    entries = _by_id(table["images"], "image", where)
    rows: dict[int, list[Any]] = defaultdict(list)
    for key, entry in _by_id(table["annotations"], "annotation", where).items():
        for field, known in (("image_id", entries), ("category_id", order)):
            if not _is_id(entry.get(field)) or entry[field] not in known:
                what = field.removesuffix("_id")
                raise UserError(f"{where}: annotation {key} is of a {what} that is not in its list")
        rows[entry["image_id"]].append((key, entry))
    found = _places(entries, images, file, where)
    photos: dict[str, Callable[[], Marked | Mask] | None] = {}
    for key, name in found.items():
        photos[name] = partial(_marked, entries[key], rows[key], order, where)
    if not photos:
        raise UserError(
            f"none of the {len(entries)} photos that {where} lists is below {place.where}; put the file "
            "beside the folder of its photos"
        )
    ordered = dict(sorted(photos.items()))
    return Annotations("boxes", "COCO", where, ordered, names, split_of(file))


def split_of(file: str) -> str:
    """The part of its data set that a file speaks of, as far as its name or its folder says; else empty."""
    stem = PurePosixPath(file).stem.removeprefix("instances_")
    return part_of(f"{stem}/x") or part_of(file) or ""


def is_coco(data: bytes) -> bool:
    """Whether a JSON file's keys are those of COCO, as far as a look at its text tells."""
    return all(f'"{key}"'.encode() in data for key in ("images", "annotations", "categories"))


def _table(data: bytes, where: str) -> dict[str, list[Any]]:
    try:
        table = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where} is no JSON that can be read ({e})") from e
    keys = ("images", "annotations", "categories")
    if not isinstance(table, dict) or not all(isinstance(table.get(k), list) for k in keys):
        raise UserError(f"{where} is no COCO file: it wants the lists {', '.join(keys)}")
    return table


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _by_id(entries: list[Any], what: str, where: str) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not _is_id(entry.get("id")):
            raise UserError(f"{where}: a {what} has no id that is a whole number")
        if entry["id"] in found:
            raise UserError(f"{where}: the {what} id {entry['id']} is given twice; give each its own")
        found[entry["id"]] = entry
    return found


def _places(
    entries: dict[int, dict[str, Any]], images: Sequence[str], file: str, where: str
) -> dict[int, str]:
    """Id of each image -> the photo that it is; those that are not there are left out."""
    by_base: dict[str, list[str]] = defaultdict(list)
    for image in images:
        by_base[image.rpartition("/")[2]].append(image)
    hints = [common_folder(file), PurePosixPath(file).stem.removeprefix("instances_") + "/"]
    found: dict[int, str] = {}
    taken: dict[str, int] = {}
    for key, entry in entries.items():
        given = entry.get("file_name")
        if not isinstance(given, str) or not given:
            raise UserError(f"{where}: image {key} has no file_name")
        path = given.replace("\\", "/")
        if ".." in path.split("/") or path.startswith("/") or re.match("[A-Za-z]:/", path):
            raise UserError(f"{where}: image {key} is at {given!r}, which leaves the data set's folder")
        name = _nearest(path.removeprefix("./"), by_base, hints, where)
        if name is None:
            continue
        if name in taken:
            raise UserError(f"{where}: images {taken[name]} and {key} are the same photo, {given!r}")
        taken[name] = key
        found[key] = name
    return found


def _nearest(path: str, by_base: dict[str, list[str]], hints: Sequence[str], where: str) -> str | None:
    """The photo whose path ends in ``path``; of several the one in a folder that the file's name hints at."""
    same = [n for n in by_base[path.rpartition("/")[2]] if n == path or n.endswith(f"/{path}")]
    for hint in hints:
        if len(same) > 1:
            same = [n for n in same if n.startswith(hint) or f"/{hint}" in f"/{n}"] or same
    if len(same) > 1:
        raise UserError(
            f"{where}: {path!r} may be {same[0]!r} or {same[1]!r}; put the file into the folder of its photos"
        )
    return same[0] if same else None


def _marked(entry: dict[str, Any], rows: list[Any], order: dict[int, int], where: str) -> Marked:
    size = _size(entry, where)
    found = []
    for key, row in rows:
        box = row.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(v) for v in box):
            raise UserError(f"{where}: annotation {key} has no bbox of 4 numbers: left, top, width, height")
        x, y, w, h = box
        found.append(((x, y, x + w, y + h), order[row["category_id"]], bool(row.get("iscrowd"))))
    return objects(found, size, f"{where}, {entry['file_name']!r}")


def _size(entry: dict[str, Any], where: str) -> tuple[float, float] | None:
    width, height = entry.get("width"), entry.get("height")
    if width is None and height is None:
        return None
    if not (_is_number(width) and _is_number(height) and width and height and min(width, height) > 0):
        raise UserError(f"{where}: image {entry['id']} has no width and height above 0")
    return float(width), float(height)


def _is_number(value: Any) -> bool:
    """Whether JSON has a number of a size that pixels have; NaN is one, to be found out as a box."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not abs(value) >= 1e9
