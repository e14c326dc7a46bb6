"""Photos of data sets that say what is to be found in them, boxes or masks: `repedge.tasks.annotations`."""

from __future__ import annotations

import os
from pathlib import Path

from repedge.disk import regular
from repedge.errors import UserError, shown
from repedge.photos import images
from repedge.photos.archives import LARGEST_PHOTO, Members
from repedge.photos.sources import Files
from repedge.tasks.annotations import Annotations, Place, find
from repedge.tasks.annotations import of_file as said_by

BESIDE = ("annotations", "labels")
"""Folders of COCO files, which lie beside those of the photos."""


class Folder:
    """A `Place` on the disk. Links to folders are not followed, and only regular files are opened."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self.home = path.resolve().as_posix()
        self._files = {
            shown(file.relative_to(path).as_posix()): file
            for folder, _, names in os.walk(path)
            for file in (Path(folder, name) for name in names)
        }
        self._names = sorted(self._files)

    def files(self) -> list[str]:
        """See `Place.files`."""
        return self._names

    def read(self, name: str, largest: int) -> bytes:
        """See `Place.read`."""
        try:
            return regular.read_bytes(self._files[name], largest)
        except OSError as e:
            raise UserError(f"{self.where}/{name} can't be read: {e.strerror or e}") from e


class Archive:
    """A `Place` in a .zip."""

    home = ""

    def __init__(self, path: Path, members: Members) -> None:
        self.where = str(path)
        self._members = members
        self._names = members.files()

    def files(self) -> list[str]:
        """See `Place.files`."""
        return list(self._names)

    def read(self, name: str, largest: int) -> bytes:
        """See `Place.read`."""
        return self._members.companion(name, largest)


def of_file(path: Path, kind: str | None, split: str | None, option: str) -> Files:
    """The photos that a ``data.yaml`` or a COCO file speaks of.

    Raises:
        UserError: See `repedge.tasks.annotations.of_file`, or no boxes are asked for.
    """
    if kind != "boxes":
        raise UserError(f"{path} speaks of boxes, which say nothing here; {option} takes the photos' folder")
    inside = path.suffix.lower() == ".json" and path.absolute().parent.name.lower() in BESIDE
    folder = path.parent.parent if inside and path.parent.name else path.parent
    place = Folder(folder)
    found = said_by(place, shown(path.relative_to(folder).as_posix()), _photos(place), split)
    return _files("folder", path.name, str(path), place, found)


def of_folder(path: Path, kind: str, split: str | None) -> Files | None:
    """The photos of a folder of which something of a kind is said; None if nothing is."""
    place = Folder(path)
    found = find(place, _photos(place), kind, split)
    return None if found is None else _files("folder", path.resolve().name, str(path), place, found)


def of_zip(path: Path, members: Members, kind: str, split: str | None) -> Files | None:
    """The photos of an archive of which something of a kind is said; None if nothing is."""
    place = Archive(path, members)
    found = find(place, members.names, kind, split)
    if found is None:
        return None
    files = Files("zip", path.name, str(path), list(found.photos), members.read, members.beside)
    files.annotations, files.found = found, found.found
    return files


def _photos(place: Place) -> list[str]:
    return [name for name in place.files() if images.is_image_name(name.rpartition("/")[2])]


def _files(kind: str, name: str, where: str, place: Folder, found: Annotations) -> Files:
    files = Files(
        kind, name, where, list(found.photos), lambda n: place.read(n, LARGEST_PHOTO), lambda n: None
    )  # fmt: skip
    files.annotations, files.found = found, found.found
    return files
