"""PASCAL VOC: an XML file for each photo, and lists of names for the parts of the data set."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any
from xml.parsers import expat

from repedge.errors import UserError
from repedge.tasks.annotations.base import (
    SMALL_FILE,
    SPLITS,
    Annotations,
    Marked,
    Mask,
    Place,
    choose_split,
    objects,
)

DEEPEST = 64
"""Elements within elements; annotations have four."""

FOLDERS = ("Annotations/", "JPEGImages/", "SegmentationClass/", "images/", "labels/", "annotations/", "xmls/")


def read(place: Place, images: Sequence[str], split: str | None) -> Annotations:
    """The boxes of XML files that have the names of photos; classes are numbered in the order of their names.

    Args:
        place: The data set.
        images: Names of the photos in it.
        split: Which part; None takes the first of `DEFAULT_SPLITS` that has a list in ``ImageSets/Main``,
            else all.

    Raises:
        UserError: No XML file has the name of a photo, there is no such part, or an XML file is none of VOC's
            or says what can't be true.
    """
    listed = lists(place, "Main")
    chosen = choose_split(list(listed), split, place.where)
    wanted = listed.get(chosen)
    files = pairs([f for f in place.files() if f.lower().endswith(".xml")])
    found = {}
    for name in images:
        if wanted is None or stem_of(name) in wanted:
            file = files(name)
            found[name] = None if file is None else _objects(_tree(place, file), f"{place.where}/{file}")
    if all(rows is None for rows in found.values()):
        part = f" of the part {chosen!r}" if chosen else ""
        raise UserError(f"no XML file in {place.where} has the name of a photo{part}")
    names = sorted({name for rows in found.values() if rows for _, name, _ in rows[0]})
    photos = {name: _reader(rows, names) for name, rows in found.items()}
    return Annotations("boxes", "VOC", place.where, photos, tuple(names), chosen)


def lists(place: Place, kind: str) -> dict[str, set[str]]:
    """The data set's parts and the photos of each, by `stem_of` their names.

    Args:
        place: The data set.
        kind: ``Main`` for boxes, ``Segmentation`` for masks.
    """
    found: dict[str, set[str]] = {}
    files = {f: PurePosixPath(f) for f in place.files() if f.endswith(".txt")}
    for part, words in SPLITS.items():
        for file, path in files.items():
            if path.parts[-3:-1] != ("ImageSets", kind) or path.stem not in words:
                continue
            root = "".join(f"{p}/" for p in path.parts[:-3])
            lines = place.read(file, SMALL_FILE).decode("utf-8", "replace").splitlines()
            found.setdefault(part, set()).update(root + line.split()[0] for line in lines if line.strip())
    return found


def stem_of(name: str) -> str:
    """``VOC2007/JPEGImages/a.jpg`` -> ``VOC2007/a``: what a photo and what is said of it have in common."""
    path = name.removesuffix(PurePosixPath(name).suffix)
    for folder in FOLDERS:
        at = f"/{path}".find(f"/{folder}")
        if at >= 0:
            return path[:at] + path[at + len(folder) :]
    return path


def pairs(files: Sequence[str]) -> Callable[[str], str | None]:
    """Finds the file of a photo: by `stem_of`, else by the bare name where only one file has it."""
    by_stem = {stem_of(f): f for f in files}
    bare = {f: PurePosixPath(f).stem for f in files}
    count = Counter(bare.values())
    by_base = {stem: f for f, stem in bare.items() if count[stem] == 1}
    return lambda photo: by_stem.get(stem_of(photo)) or by_base.get(PurePosixPath(photo).stem)


Row = tuple[tuple[float, float, float, float], str, bool]
Rows = tuple[list[Row], tuple[float, float] | None, str]
"""(box, name of the class, whether it is difficult) of each object; size of the photo; what errors call it"""


def _reader(found: Rows | None, names: Sequence[str]) -> Callable[[], Marked | Mask] | None:
    if found is None:
        return None
    rows, size, where = found
    marked = objects([(box, names.index(name), ignored) for box, name, ignored in rows], size, where)
    return lambda: marked


def _objects(root: ET.Element, where: str) -> Rows:
    sides = [_number(root, f"size/{side}", where, 0.0) for side in ("width", "height")]
    size = (sides[0], sides[1]) if min(sides) > 0 else None  # some tools write 0
    rows = []
    for one in root.findall("object"):
        name = (one.findtext("name") or "").strip()
        if not name:
            raise UserError(f"{where}: an object has no name; say what it is")
        x0, y0, x1, y1 = (_number(one, f"bndbox/{key}", where) for key in ("xmin", "ymin", "xmax", "ymax"))
        rows.append(((x0, y0, x1, y1), name, _number(one, "difficult", where, 0.0) != 0))
    return rows, size, where


def _number(element: ET.Element, path: str, where: str, default: float | None = None) -> float:
    text = (element.findtext(path) or "").strip()
    if not text and default is not None:
        return default
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{where}: {path} is {text[:40]!r}, which is no number") from None


class _Builder:
    """An XML file as a tree, refused as soon as it declares anything: entities may grow without end."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._tree = ET.TreeBuilder()
        self._depth = 0
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self._declared
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._tree.data

    def _declared(self, *what: Any) -> None:
        raise UserError(f"{self._where} declares a document type, which annotations never need; remove it")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > DEEPEST:
            raise UserError(f"{self._where} has elements within elements {DEEPEST} deep; it is no annotation")
        self._tree.start(tag, attributes)

    def _end(self, tag: str) -> None:
        self._depth -= 1
        self._tree.end(tag)

    def parse(self, data: bytes) -> ET.Element:
        self.parser.Parse(data, True)
        return self._tree.close()


def _tree(place: Place, file: str) -> ET.Element:
    where = f"{place.where}/{file}"
    try:
        root = _Builder(where).parse(place.read(file, SMALL_FILE))
    except (expat.ExpatError, ValueError, LookupError) as e:
        raise UserError(f"{where} is no XML that can be read ({e})") from e
    if root.tag != "annotation":
        raise UserError(f"{where} is no annotation of VOC: it begins with <{root.tag[:40]}>")
    return root
