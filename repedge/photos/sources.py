"""Where calibration images come from: folders, archives, arrays, iterables, noise; none is trusted.

A source says what it found before it reads, and gives items one at a time. Archives are never
unpacked to disk, and no pickle is ever loaded.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from repedge.config import Preprocess
from repedge.errors import UserError
from repedge.photos import images
from repedge.photos.archives import LARGEST_PHOTO, open_archive
from repedge.photos.arrays import Table, as_image, memory_table

RANDOM = "random"
"""The word that asks for noise in place of photos."""

TAKES = "a folder of photos, a .zip of photos, or a .npz of arrays"


@dataclass(frozen=True)
class Item:
    """One image of a source.

    Attributes:
        name: Unique within the source; never an absolute path.
        content: An image, or a network input float32 [C, H, W]; None if it could not be read.
        sha256: Of the file's bytes, or of the pixels' where there is no file.
        why: Why it could not be read.
    """

    name: str
    content: Image.Image | np.ndarray | None = None
    sha256: str = ""
    why: str = ""


class Source(Protocol):
    """A set of images, some of which will be read.

    Attributes:
        kind: folder, zip, npz, array, iterable or random.
        name: The last part of its path, or the name of its Python type.
        found: What was found in it, in words.
        total: Number of items; None for a stream, whose end is not known.
        ordered: Whether it must be read in rising order to be read fast.
    """

    kind: str
    name: str
    found: str
    total: int | None
    ordered: bool

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, Item]]:
        """Items with these indices, in this order; fewer where a stream ends."""
        ...


def open_source(given: Any, pre: Preprocess, seed: int = 0) -> Source:
    """Look at what the user gave, without reading images yet.

    Args:
        given: A path (or the word ``random``, where no such file exists), a uint8 [N, H, W, C] or
            float32 [N, C, H, W] array, or an iterable of paths, PIL images and uint8 [H, W, C] arrays.
        pre: The model's preprocessing; network inputs must have its size.
        seed: Of noise.

    Raises:
        UserError: It is nothing of that kind, it is empty, or an archive is damaged or a bomb.
    """
    if isinstance(given, (str, Path)):
        return _open_path(Path(given), pre, seed)
    if isinstance(given, np.ndarray):
        table = memory_table(given, pre)
        return _Rows("array", "ndarray", table)
    if isinstance(given, (bytes, dict)) or not isinstance(given, Iterable):
        raise UserError(f"calib is of type {type(given).__name__}; give {TAKES}, or an iterable of images")
    return _Items(given)


def _open_path(path: Path, pre: Preprocess, seed: int) -> Source:
    if path.is_dir():
        files = images.image_files(path)
        names = [p.relative_to(path).as_posix() for p in files]
        return _Files("folder", path.resolve().name, names, lambda name: _file_bytes(path / name))
    if not path.exists():
        if str(path) == RANDOM:
            return _Noise(pre, seed)
        raise UserError(f"there is nothing at {path}; --calib takes {TAKES}")
    if path.suffix.lower() in images.SUFFIXES:
        raise UserError(f"{path} is one image; --calib takes {TAKES}")
    archive = open_archive(path, pre)
    if isinstance(archive, Table):
        return _Rows("npz", path.name, archive)
    return _Files("zip", path.name, archive.names, archive.read)


def _file_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(LARGEST_PHOTO + 1)
    if len(data) > LARGEST_PHOTO:
        raise UserError(f"the file is larger than {LARGEST_PHOTO >> 20} MiB")
    return data


def _decoded(name: str, read: Callable[[], bytes]) -> Item:
    try:
        data = read()
        return Item(name, images.decode(io.BytesIO(data), "it", upright=True), _sha256(data))
    except (UserError, OSError) as e:
        return Item(name, why=str(e).removesuffix("; replace or remove it"))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Files:
    """Image files of a folder or an archive, by name."""

    ordered = False

    def __init__(self, kind: str, name: str, names: Sequence[str], read: Callable[[str], bytes]) -> None:
        self.kind, self.name, self._names, self._read = kind, name, names, read
        self.total: int | None = len(names)
        self.found = f"{len(names)} image files"

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, Item]]:
        for i in indices:
            name = self._names[i]
            yield i, _decoded(name, lambda name=name: self._read(name))  # type: ignore[misc]


class _Rows:
    """Rows of arrays: photos, or the network's own inputs."""

    ordered = True

    def __init__(self, kind: str, name: str, table: Table) -> None:
        self.kind, self.name, self._table = kind, name, table
        self.total: int | None = len(table)
        self.found = table.found

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, Item]]:
        for i, (name, row) in zip(indices, self._table.rows(indices), strict=True):
            digest = _sha256(np.ascontiguousarray(row).tobytes())
            if row.dtype == np.uint8:
                yield i, Item(name, as_image(row), digest)
            elif np.isfinite(row).all():
                yield i, Item(name, row, digest)
            else:
                yield i, Item(name, why="it holds NaN or infinite values")


class _Items:
    """Images from Python: a sequence is chosen from, a stream is read from its begin."""

    kind = "iterable"
    ordered = False

    def __init__(self, given: Iterable[Any]) -> None:
        self.name = type(given).__name__
        self._given = given
        self._stream: Iterator[Any] | None = None
        if isinstance(given, Sequence):
            self.total: int | None = len(given)
            self.found = f"{len(given)} items"
        else:
            self.total, self._stream = None, iter(given)
            self.found = "a stream of images"

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, Item]]:
        for i in indices:
            if self._stream is None:
                yield i, _item(i, self._given[i])  # type: ignore[index]
                continue
            try:
                value = next(self._stream)
            except StopIteration:
                return
            yield i, _item(i, value)


def _item(index: int, value: Any) -> Item:
    if isinstance(value, (str, Path)):
        path = Path(value)
        return _decoded(f"{index}: {path.name}", lambda: _file_bytes(path))
    name = str(index)
    if isinstance(value, Image.Image):
        try:
            image = images.eight_bits(images.turned(value))
        except (OSError, ValueError, SyntaxError) as e:  # a truncated file that was opened, not read
            return Item(name, why=str(e))
        return Item(name, image, _sha256(image.tobytes()))
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        photo = as_image(value)
        if photo is not None:
            return Item(name, photo, _sha256(photo.tobytes()))
    shape = getattr(value, "shape", None)
    what = type(value).__name__ + (f" {value.dtype} {list(shape)}" if shape is not None else "")
    raise UserError(
        f"item {index} of the calibration images is {what}; give PIL images, uint8 [H, W, 3] arrays or paths"
    )


class _Noise:
    """Uniform random pixels, for those who ask for them."""

    kind = RANDOM
    name = "uniform noise"
    ordered = False

    def __init__(self, pre: Preprocess, seed: int) -> None:
        self._shape = (*pre.size, 3)
        self._seed = seed
        self.total: int | None = None
        self.found = "no images: uniform random pixels"

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, Item]]:
        for i in indices:
            array = np.random.default_rng((self._seed, i)).integers(0, 256, self._shape, dtype=np.uint8)
            yield i, Item(f"noise {i}", Image.fromarray(array), _sha256(array.tobytes()))
