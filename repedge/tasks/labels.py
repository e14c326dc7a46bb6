"""The class of each photo, as far as the set that it is in says so."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from repedge.errors import UserError

COLUMNS = ("labels", "label", "y", "targets")
"""Names that an array of class indices in a .npz may have."""

MOST = 1 << 31
"""No model has as many classes."""

ClassOf = Callable[[str, Any], int | None]
"""(name of a photo, what its source says of it) -> index of its class; None where nobody knows."""


class Told(Protocol):
    """What of `repedge.photos.photos.Photos`, a room above this one, can speak of classes."""

    kind: str
    where: str
    names: tuple[str, ...] | None
    columns: Mapping[str, np.ndarray]

    def beside(self, name: str) -> bytes | None:
        """A file that came with the photos."""
        ...


def class_indices(photos: Told, labels: Sequence[str] = ()) -> ClassOf | None:
    """The class of each photo of a set; None if the set says nothing of classes.

    The first of these that there is:

    1. a ``labels.json`` (file name -> index) beside the photos;
    2. class sub-folders: matched with ``labels`` by name where every sub-folder is one, read as numbers
       where all are, else numbered in sorted order if there are as many as ``labels`` (or no labels);
    3. an array of the .npz that has one of the names `COLUMNS`;
    4. the second of each pair (image, index) of an iterable.

    The bundled photos have classes for a model with their class names only.

    Args:
        photos: The set.
        labels: The model's class names.

    Raises:
        UserError: An unusable labels.json, folders that are no classes of the model, or an index that no
            model has; the last of a pair as it is asked for.
    """
    if photos.kind == "demo":
        classes = {n.partition("/")[0] for n in photos.names or ()}
        return _told if tuple(labels) == tuple(sorted(classes)) else None
    if photos.names is not None:
        table = photos.beside("labels.json")
        if table is not None:
            return _by_table(_read(table, f"{photos.where}/labels.json"), photos)
        return _by_folder(photos, labels)
    for column in COLUMNS:
        if column in photos.columns:
            return _by_column(column, photos)
    return _told if photos.kind == "iterable" else None


def _by_table(table: dict[str, int], photos: Told) -> ClassOf:
    names = photos.names or ()
    packed = _packed_folder(photos)

    def find(name: str, told: Any) -> int | None:
        keys = (name, name.removeprefix(packed), name.rpartition("/")[2])
        return next((table[key] for key in keys if key in table), None)

    if table and all(find(name, None) is None for name in names):
        raise UserError(f"{photos.where}/labels.json names none of the {len(names)} images in {photos.where}")
    return find


def _read(data: bytes, file: str) -> dict[str, int]:
    try:
        table = json.loads(data.decode("utf-8-sig"))
        for name, index in table.items():
            if isinstance(index, bool) or not isinstance(index, int):
                raise TypeError(f"{name!r} has {index!r}, not the index of a class")
            if not 0 <= index < MOST:
                raise ValueError(f"{name!r} has {index}, which no model has as a class")
        return table
    except (ValueError, AttributeError, TypeError, RecursionError) as e:
        raise UserError(f'{file} must be a JSON object like {{"photo.jpg": 3}} ({e})') from e


def _by_folder(photos: Told, labels: Sequence[str]) -> ClassOf | None:
    names = photos.names or ()
    packed = _packed_folder(photos)
    if packed and not _is_class(packed[:-1], labels):
        names = tuple(name.removeprefix(packed) for name in names)
    else:
        packed = ""
    if not names or any("/" not in name for name in names):
        return None
    classes = sorted({name.partition("/")[0] for name in names})
    strange = [c for c in classes if c not in labels] if labels else []
    if labels and not strange:
        by_name = {name: labels.index(name) for name in classes}
    elif all(_is_number(c) for c in classes):
        by_name = {c: int(c) for c in classes}
    elif labels and (len(strange) < len(classes) or len(classes) != len(labels)):
        raise UserError(
            f"the folder {strange[0]!r} in {photos.where} is none of the model's {len(labels)} class names; "
            'rename it, or put a labels.json {"photo.jpg": class index} beside the photos'
        )
    else:
        by_name = {name: i for i, name in enumerate(classes)}
    return lambda name, told: by_name[name.removeprefix(packed).partition("/")[0]]


def _packed_folder(photos: Told) -> str:
    """The folder, with a slash, that a .zip was made of, if all its photos are in one; else empty text."""
    tops = {name[: name.find("/") + 1] for name in photos.names or ()}
    return tops.pop() if photos.kind == "zip" and len(tops) == 1 else ""


def _is_class(name: str, labels: Sequence[str]) -> bool:
    return name in labels or _is_number(name)


def _is_number(name: str) -> bool:
    return name.isdecimal() and len(name) < 10


def _by_column(name: str, photos: Told) -> ClassOf:
    column = photos.columns[name]
    for worst in (column.min(initial=0), column.max(initial=0)):
        if not 0 <= worst < MOST:
            raise UserError(
                f"the array {name!r} of {photos.where} has {worst}, which no model has as a class"
            )
    return lambda photo, told: int(told[name])


def _told(name: str, told: Any) -> int | None:
    if told is None:
        return None
    try:
        index = operator.index(told)
    except TypeError:
        index = -1
    if isinstance(told, bool) or not 0 <= index < MOST:
        raise UserError(f"photo {name} comes with {told!r}, not the index of a class")
    return index
