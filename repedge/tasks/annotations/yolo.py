"""YOLO: a ``data.yaml`` that names the classes and the parts, and a text file of boxes for each photo."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from repedge.errors import UserError
from repedge.tasks.annotations.base import (
    SMALL_FILE,
    SPLITS,
    Annotations,
    Marked,
    Mask,
    Place,
    choose_split,
    common_folder,
    objects,
    within,
)

LARGEST = 2**20
"""Bytes of the file."""

NAMES = 100_000
"""Most classes of a data set."""


def read(place: Place, file: str, images: Sequence[str], split: str | None) -> Annotations:
    """The boxes of a data set in the layout of YOLOv5 and Ultralytics.

    As there, a part is a folder, a list of photos in a text file, or several of them, relative to ``path``,
    which is relative to the file; and the labels of ``images/a.jpg`` are in ``labels/a.txt``, or beside it
    where no folder is called ``images``. A photo without labels has no objects.

    Args:
        place: Where it is.
        file: Its name there.
        images: Names of the photos that are there.
        split: Which part; None takes ``val``, else ``test``.

    Raises:
        UserError: It is no such file, a path leaves its folder, a part is empty, or no photo has labels.
    """
    where = f"{place.where}/{file}"
    table = _table(place.read(file, LARGEST), where)
    names = _names(table, where)
    parts = {part: next((table[w] for w in words if table.get(w)), None) for part, words in SPLITS.items()}
    chosen = choose_split([p for p, found in parts.items() if found], split, where)
    if not chosen:
        raise UserError(f"{where} names no photos to judge on: it has neither val nor test")
    photos = _photos(place, images, _roots(place, table, file), parts[chosen], chosen, where)
    there = set(place.files())
    labelled: dict[str, Callable[[], Marked | Mask] | None] = {}
    for name in photos:
        labels = label_file(name)
        known = labels in there
        labelled[name] = partial(_marked, place, labels if known else None, len(names), name)
    if not any(label_file(name) in there for name in photos):
        raise UserError(
            f"{where}: none of the {len(photos)} photos of {chosen} has labels; those of {photos[0]!r} "
            f"would be in {label_file(photos[0])!r}"
        )
    return Annotations("boxes", "YOLO", where, labelled, names, chosen, upright=True)


def label_file(photo: str) -> str:
    """``images/val/a.jpg`` -> ``labels/val/a.txt``; beside the photo where no folder is called images."""
    path = photo.removesuffix(PurePosixPath(photo).suffix)
    before, folder, after = f"/{path}".rpartition("/images/")
    return (f"{before}/labels/{after}" if folder else f"/{path}")[1:] + ".txt"


def _table(data: bytes, where: str) -> dict[str, Any]:
    import yaml

    try:
        table = yaml.safe_load(data)  # not the one in C, whose stack a deep file overflows
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError, OverflowError) as e:
        said = " ".join(str(e).split())[:200]
        raise UserError(f"{where} is no YAML that can be read ({said})") from e
    if not isinstance(table, dict):
        raise UserError(f"{where} is no data.yaml: it wants val: and names:")
    return {k: v for k, v in table.items() if isinstance(k, str)}


def _names(table: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Names of the classes, by index; numbers where only ``nc`` is given."""
    names, count = table.get("names"), table.get("nc")
    if names is None and isinstance(count, int) and 0 < count <= NAMES:
        return tuple(str(i) for i in range(count))
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise UserError(f"{where}: names must be numbered from 0 on, without a gap")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not 0 < len(names) <= NAMES:
        raise UserError(f"{where} wants names: a list of the classes")
    if not all(isinstance(n, (str, int, float)) for n in names):
        raise UserError(f"{where}: names has more than words in it; it is a list of the classes")
    if count is not None and count != len(names):
        said = count if isinstance(count, int) else "something else"
        raise UserError(f"{where} has {len(names)} names, but nc says {said}")
    return tuple(str(n) for n in names)


def _roots(place: Place, table: Mapping[str, Any], file: str) -> list[str]:
    """Folders that the parts may be relative to: ``path``, and the file's own, where it was moved to."""
    own = common_folder(file)
    path = table.get("path")
    inside = within(place, own, path) if isinstance(path, str) else None
    return [own] if inside is None else [f"{inside}/" if inside else "", own]


def _photos(
    place: Place, images: Sequence[str], roots: Sequence[str], part: Any, split: str, where: str
) -> list[str]:
    """Names of the photos of a part, in name order."""
    found: set[str] = set()
    for entry in part if isinstance(part, list) else [part]:
        if not isinstance(entry, str):
            raise UserError(f"{where}: {split} must be a folder or a list of photos, or several of them")
        found |= _entry(place, images, roots, entry, split, where)
    return sorted(found)


def _entry(
    place: Place, images: Sequence[str], roots: Sequence[str], entry: str, split: str, where: str
) -> set[str]:
    shorter = entry.removeprefix("../")  # as Ultralytics reads what Roboflow writes
    tried = [within(place, root, e) for e in dict.fromkeys((entry, shorter)) for root in roots]
    inside = [path for path in tried if path is not None]
    if not inside:
        raise UserError(
            f"{where}: {split} is {entry[:200]!r}, which leaves the file's folder; put the file into the "
            "data set's folder, and give a path within it"
        )
    for path in inside:
        if path in place.files():
            return _listed(place, images, roots, path)
        under = {n for n in images if n.startswith(f"{path}/") or not path}
        if under:
            return under
    raise UserError(f"{where}: {split} is {entry[:200]!r}, and there are no photos in {inside[0]!r}")


def _listed(place: Place, images: Sequence[str], roots: Sequence[str], file: str) -> set[str]:
    """The photos that a text file lists, a line each."""
    where, there = f"{place.where}/{file}", set(images)
    lines = place.read(file, 16 * SMALL_FILE).decode("utf-8", "replace").splitlines()
    found, absent = set(), []
    for line in filter(None, map(str.strip, lines)):
        places = [within(place, root, line) for root in (common_folder(file), *roots)]
        if all(p is None for p in places):
            raise UserError(f"{where}: {line[:200]!r} leaves the data set's folder; give a path within it")
        name = next((p for p in places if p in there), None)
        if name is None:
            absent.append(line)
        else:
            found.add(name)
    if not found:
        raise UserError(f"{where}: none of its {len(absent)} photos is there, as {absent[:1]}")
    return found


def _marked(place: Place, file: str | None, count: int, photo: str) -> Marked:
    if file is None:
        return objects([], (1, 1), photo)
    where = f"{place.where}/{file}"
    rows = []
    lines = place.read(file, SMALL_FILE).decode("utf-8-sig", "replace").splitlines()
    for number, line in enumerate(lines, 1):
        if line.strip():
            rows.append(_row(line.split(), count, f"{where} line {number}"))
    return objects(list(dict.fromkeys(rows)), (1, 1), where)


def _row(words: Sequence[str], count: int, where: str) -> tuple[tuple[float, ...], int, bool]:
    """``class cx cy w h`` or ``class x y x y x y ...``, the outline of an object, in shares of the sides."""
    try:
        numbers = [float(w) for w in words]
        index = int(numbers[0])
    except (ValueError, OverflowError):
        raise UserError(f"{where} is no row of numbers: class, centre x, centre y, width, height") from None
    if index != numbers[0] or not 0 <= index < count:
        raise UserError(f"{where} has the class {words[0][:20]}, but there are {count}, numbered from 0")
    if len(numbers) == 5:
        x, y, w, h = numbers[1:]
        return (x - w / 2, y - h / 2, x + w / 2, y + h / 2), index, False
    if len(numbers) >= 7 and len(numbers) % 2:
        xs, ys = numbers[1::2], numbers[2::2]
        return (min(xs), min(ys), max(xs), max(ys)), index, False
    raise UserError(
        f"{where} has {len(numbers)} numbers; wanted are class, centre x, centre y, width, height"
    )
