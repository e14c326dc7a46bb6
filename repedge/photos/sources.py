"""Where photos come from: folders, archives, arrays, iterables, noise; none is trusted.

A source says what it found before it reads, and gives items one at a time. Archives are never unpacked
to disk, no pickle is ever loaded, and only regular files are opened. Every class here is a
`repedge.photos.photos.Photos`, which says what the attributes mean.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from repedge.config import Preprocess
from repedge.disk import regular
from repedge.errors import UserError, shown
from repedge.photos import images
from repedge.photos.archives import LARGEST_COMPANION, LARGEST_PHOTO, Members
from repedge.photos.arrays import Table, as_image
from repedge.tasks.annotations.base import Annotations
from repedge.tasks.annotations.masks import masks_apart

DEMO = "demo"
"""The kind of the photos that come with repedge."""

RANDOM = "random"
"""The word that asks for noise in place of photos."""


@dataclass(frozen=True)
class Item:
    """One photo of a source.

    Attributes:
        name: Unique within the source; never an absolute path.
        content: An image, or a network input float32 [C, H, W]; None if it could not be read.
        sha256: Of the file's bytes, or of the pixels' where there is no file.
        why: Why it could not be read.
        told: What the source says of it: the second of a pair, or the row's entry of each of the
            `Photos.columns` by name; None if it says nothing.
    """

    name: str
    content: Image.Image | np.ndarray | None = None
    sha256: str = ""
    why: str = ""
    told: Any = None


class _Source:
    """What a source says that has nothing but images."""

    ordered = False
    names: tuple[str, ...] | None = None
    columns: Mapping[str, np.ndarray] = MappingProxyType({})
    annotations: Annotations | None = None

    def __init__(self, kind: str, name: str, where: str, found: str, total: int | None) -> None:
        self.kind, self.name, self.where, self.found, self.total = kind, name, where, found, total

    def beside(self, name: str) -> bytes | None:
        return None


class Files(_Source):
    """Image files by name, read by ``read``; companions by ``companion``."""

    def __init__(
        self, kind: str, name: str, where: str, names: Sequence[str],
        read: Callable[[str], bytes], companion: Callable[[str], bytes | None],
    ) -> None:  # fmt: skip
        super().__init__(kind, name, where, f"{len(names)} image files", len(names))
        self.names = self._names = tuple(names)
        self._read, self._companion = read, companion

    def read(self, indices: Sequence[int], upright: bool = False) -> Iterator[tuple[int, Item]]:
        """See `Photos.read`."""
        for i in indices:
            name = self._names[i]
            yield i, _decoded(name, lambda name=name: self._read(name), upright)  # type: ignore[misc]

    def beside(self, name: str) -> bytes | None:
        """See `Photos.beside`."""
        return self._companion(name)


def folder(path: Path) -> Files:
    """All image files below a folder in name order.

    Raises:
        UserError: There are none.
    """
    files = sorted(p for p in path.rglob("*") if images.is_image_name(p.name) and p.is_file())
    if not files:
        raise UserError(f"{path} holds no images ({', '.join(sorted(images.SUFFIXES))})")

    def companion(name: str) -> bytes | None:
        file = path / name
        return _file_bytes(file, LARGEST_COMPANION, str(file)) if file.is_file() else None

    places = {shown(p.relative_to(path).as_posix()): p for p in files}  # names that are no text stay readable
    return _without_masks(
        "folder", path.resolve().name, str(path), list(places), lambda n: _file_bytes(places[n]), companion
    )


def zipped(path: Path, members: Members) -> Files:
    """The image files of a .zip in name order."""
    return _without_masks("zip", path.name, str(path), members.names, members.read, members.beside)


def _without_masks(kind: str, name: str, where: str, names: Sequence[str], *how: Any) -> Files:
    """All but the masks of a segmenter's data set, which nobody photographed."""
    apart = masks_apart(names)
    files = Files(kind, name, where, [n for n in names if n not in apart], *how)
    if apart:
        files.found += f", {len(apart)} masks left out"
    return files


def _file_bytes(path: Path, largest: int = LARGEST_PHOTO, called: str = "the file") -> bytes:
    try:
        return regular.read_bytes(path, largest)
    except OSError as e:
        raise UserError(f"{called} can't be read: {e.strerror or e}") from e


def _decoded(name: str, read: Callable[[], bytes], upright: bool, told: Any = None) -> Item:
    try:
        data = read()
        image = images.decode(io.BytesIO(data), "it", upright=upright)
    except (UserError, OSError) as e:
        return Item(name, why=str(e).removesuffix("; replace or remove it"), told=told)
    return Item(name, image, _sha256(data), told=told)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Rows(_Source):
    """Rows of arrays: photos, or the network's own inputs."""

    ordered = True

    def __init__(self, kind: str, name: str, where: str, table: Table) -> None:
        super().__init__(kind, name, where, table.found, len(table))
        self.columns = table.columns
        self._table = table

    def read(self, indices: Sequence[int], upright: bool = False) -> Iterator[tuple[int, Item]]:
        """See `Photos.read`."""
        for i, (name, row) in zip(indices, self._table.rows(indices), strict=True):
            told = {k: column[i].item() for k, column in self.columns.items()} or None
            digest = _sha256(np.ascontiguousarray(row).tobytes())
            if row.dtype == np.uint8:
                yield i, Item(name, as_image(row), digest, told=told)
            elif np.isfinite(row).all():
                yield i, Item(name, row, digest, told=told)
            else:
                yield i, Item(name, why="it holds NaN or infinite values", told=told)


class Items(_Source):
    """Images from Python, or pairs with what is known of each.

    A sequence is chosen from, a stream is read from its begin.

    Args:
        given: Paths, PIL images, uint8 [H, W] or [H, W, 1 | 3 | 4] arrays, or tuples of one and anything.
        called: What errors call the items.
    """

    def __init__(self, given: Iterable[Any], called: str) -> None:
        whole = isinstance(given, Sequence)
        name = type(given).__name__
        total = len(given) if isinstance(given, Sequence) else None
        super().__init__("iterable", name, name, f"{total} items" if whole else "a stream of images", total)
        self._given, self._called = given, called
        self._stream = None if whole else iter(given)

    def read(self, indices: Sequence[int], upright: bool = False) -> Iterator[tuple[int, Item]]:
        """See `Photos.read`."""
        for i in indices:
            if self._stream is None:
                value = self._given[i]  # type: ignore[index]
            else:
                try:
                    value = next(self._stream)
                except StopIteration:
                    return
            yield i, self._item(i, value, upright)

    def _item(self, index: int, value: Any, upright: bool) -> Item:
        value, told = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
        if isinstance(value, (str, Path)):
            path = Path(value)
            return _decoded(f"{index}: {path.name}", lambda: _file_bytes(path), upright, told)
        name = str(index)
        if isinstance(value, Image.Image):
            try:
                image = images.eight_bits(images.turned(value) if upright else value)
            except (OSError, ValueError, SyntaxError) as e:  # a truncated file that was opened, not read
                return Item(name, why=str(e), told=told)
            return Item(name, image, _sha256(image.tobytes()), told=told)
        if isinstance(value, np.ndarray) and value.dtype == np.uint8:
            photo = as_image(value)
            if photo is not None:
                return Item(name, photo, _sha256(photo.tobytes()), told=told)
        shape = getattr(value, "shape", None)
        what = type(value).__name__ + (f" {value.dtype} {list(shape)}" if shape is not None else "")
        raise UserError(
            f"item {index} of the {self._called} is {what}; give PIL images, uint8 [H, W, 3] arrays or paths"
        )


class Noise(_Source):
    """Uniform random pixels of a network's size, for those who ask for them."""

    def __init__(self, pre: Preprocess, seed: int) -> None:
        super().__init__(RANDOM, "uniform noise", RANDOM, "no images: uniform random pixels", None)
        self._shape = (*pre.size, 3)
        self._seed = seed

    def read(self, indices: Sequence[int], upright: bool = False) -> Iterator[tuple[int, Item]]:
        """See `Photos.read`."""
        for i in indices:
            array = np.random.default_rng((self._seed, i)).integers(0, 256, self._shape, dtype=np.uint8)
            yield i, Item(f"noise {i}", Image.fromarray(array), _sha256(array.tobytes()))


class Demo(_Source):
    """Square photos cut out of a sheet, row by row, each with the index of its class."""

    def __init__(self, sheet: Image.Image, side: int, names: Sequence[str], labels: Sequence[int]) -> None:
        super().__init__(DEMO, "bundled CIFAR-10 test photos", DEMO, f"{len(names)} photos", len(names))
        self.names = self._names = tuple(names)
        self._sheet, self._side, self._labels = sheet, side, labels

    def read(self, indices: Sequence[int], upright: bool = False) -> Iterator[tuple[int, Item]]:
        """See `Photos.read`."""
        side, columns = self._side, self._sheet.width // self._side
        for i in indices:
            x, y = i % columns * side, i // columns * side
            image = self._sheet.crop((x, y, x + side, y + side))
            yield i, Item(self._names[i], image, _sha256(image.tobytes()), told=self._labels[i])
