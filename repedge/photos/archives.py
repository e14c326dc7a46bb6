"""Photos in a .zip and arrays in a .npz, read in place from files that are not trusted.

Nothing is unpacked to disk, sizes are checked before a byte is inflated, a member never gives more
bytes than its header says (zipfile stops there), and arrays of Python objects are refused.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from repedge.config import Preprocess
from repedge.disk import damaged
from repedge.errors import UserError
from repedge.photos import images
from repedge.photos.arrays import Block, Table, check_row, role, sentence

MEMBERS = 200_000
"""Most members of an archive."""

LARGEST_PHOTO = 128 * 2**20
"""Bytes of one image file; larger ones are left out, so that memory stays bounded."""

LARGEST_COMPANION = 64 * 2**20
"""Bytes of a file or an array that says what is in the photos."""

LARGEST_ARRAY = 64 * 2**30
"""Bytes of one inflated array; it is read row by row."""

BOMB = 200
"""Times that a member may shrink in the archive, if it is more than `BOMB_FROM` bytes. Photos hardly
shrink, pixels of photos some 2 times; deflate's limit, reached by zeros, is about 1030."""

BOMB_FROM = 2**20

METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}  # others may want gigabytes of window


class Members:
    """The image files of a .zip in name order, and what lies beside them.

    Args:
        path: The archive.
        names: Of the image files.
        members: Name -> entry of the table of contents, of every file.
    """

    def __init__(self, path: Path, names: list[str], members: dict[str, zipfile.ZipInfo]) -> None:
        self.names = names
        self._path = path
        self._members = members
        self._archive: zipfile.ZipFile | None = None  # its table of contents is read once

    def files(self) -> Sequence[str]:
        """Every file in it in name order."""
        return sorted(self._members)

    def companion(self, name: str, largest: int = LARGEST_COMPANION) -> bytes:
        """The bytes of a file that says what is in the photos.

        Raises:
            UserError: It is larger than ``largest`` bytes, encrypted, damaged or a bomb.
        """
        _check_member(self._path, self._members[name], largest)
        try:
            return self.read(name)
        except UserError as e:
            raise UserError(f"{name!r} in {self._path} can't be read: {e}") from e

    def read(self, name: str) -> bytes:
        """The bytes of one file.

        Raises:
            UserError: The archive is damaged there.
        """
        try:
            if self._archive is None:
                self._archive = zipfile.ZipFile(self._path)
            return self._archive.read(name)
        except damaged.ARCHIVE as e:
            raise UserError(f"it is damaged in the archive ({e})") from e

    def beside(self, name: str) -> bytes | None:
        """The bytes of a companion of the photos: at the top, or in the one folder that all photos are in.

        Raises:
            UserError: It is larger than `LARGEST_COMPANION`, encrypted, damaged or a bomb.
        """
        tops = {n.partition("/")[0] for n in self.names}
        for place in (name, *(f"{top}/{name}" for top in tops if len(tops) == 1)):
            if place in self._members:
                return self.companion(place)
        return None


def open_archive(path: Path, pre: Preprocess | None, option: str) -> Members | Table:
    """The photos of a .zip, or the arrays of a .npz, after looking at its table of contents.

    Args:
        path: Of a regular file.
        pre: The model's preprocessing; network inputs are refused without it.
        option: What asked for photos, for errors.

    Raises:
        UserError: No such archive, a damaged, encrypted or empty one, a zip bomb, or arrays that are
            neither photos nor network inputs.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {m.filename: m for m in archive.infolist() if not m.is_dir()}
            if len(archive.infolist()) > MEMBERS:
                raise UserError(f"{path} has more than {MEMBERS} members; give fewer")
            if members and all(name.endswith(".npy") for name in members):
                return _arrays(path, archive, members, pre)
    except damaged.ARCHIVE as e:
        kinds = "a folder of photos, a .zip of photos or a .npz of arrays"
        raise UserError(f"{path} can't be read as an archive ({e}); {option} takes {kinds}") from e
    names = sorted(n for n in members if _is_photo(n))
    if not names:
        raise UserError(f"{path} holds no images ({', '.join(sorted(images.SUFFIXES))})")
    for name in names:
        _check_member(path, members[name], LARGEST_PHOTO)
    return Members(path, names, members)


def _is_photo(name: str) -> bool:
    path = PurePosixPath(name)
    return images.is_image_name(path.name) and "__MACOSX" not in path.parts


def _check_member(path: Path, member: zipfile.ZipInfo, largest: int) -> None:
    where = f"{member.filename!r} in {path}"
    if member.flag_bits & 1:
        raise UserError(f"{where} is encrypted; give an archive without a password")
    if member.compress_type not in METHODS:
        raise UserError(f"{where} is compressed in a way that is not read; use plain zip (deflate)")
    if member.file_size > largest:
        raise UserError(
            f"{where} inflates to {member.file_size >> 20} MiB, more than {largest >> 20}; it is not read"
        )
    if member.file_size > max(BOMB_FROM, BOMB * member.compress_size):
        raise UserError(
            f"{where} would inflate {member.file_size // max(1, member.compress_size)} times, like a zip "
            "bomb; if it is what it should be, unpack the archive and give the folder"
        )


# --- arrays --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Header:
    """What the head of a .npy says, and where the data begin."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int


def _arrays(
    path: Path, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], pre: Preprocess | None
) -> Table:
    kinds: dict[str, list[str]] = {}
    blocks: list[Block] = []
    columns: dict[str, np.ndarray] = {}
    for name in sorted(members):
        short = name.removesuffix(".npy")
        label = f"the array {short!r} of {path}"
        _check_member(path, members[name], LARGEST_ARRAY)
        with archive.open(name) as file:
            header = _header(label, file, members[name].file_size)
        kind = role(label, header.shape, header.dtype, pre)
        kinds.setdefault(kind, []).append(f"{short} {header.dtype} {list(header.shape)}")
        if kind:
            single = kind == "photo"
            check_row(label, header.shape, header.dtype, single)
            rows = None if single else header.shape[0]
            blocks.append(Block(short, rows, _reader(path, name, header, single)))
        elif _is_column(header) and members[name].file_size <= LARGEST_COMPANION:
            columns[short] = np.frombuffer(archive.read(name), header.dtype, offset=header.start)
    try:
        return Table(blocks, sentence(kinds), columns)
    except UserError as e:
        raise UserError(f"{path}: {e}") from e


def _is_column(header: _Header) -> bool:
    return len(header.shape) == 1 and header.dtype.kind in "iu"


def _header(label: str, file: IO[bytes], size: int) -> _Header:
    """Read the head of a .npy; numpy parses it as a literal, of a bounded length."""
    try:
        version = np.lib.format.read_magic(file)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in readers:
            raise ValueError(f"version {version} of .npy")
        shape, fortran, dtype = readers[version](file)
        if any(n < 0 for n in shape):
            raise ValueError(f"its shape is {list(shape)}")
    except Exception as e:  # numpy parses it as Python, and what that raises is not documented
        raise UserError(f"{label} can't be read ({e})") from e
    if dtype.hasobject:
        raise UserError(f"{label} holds Python objects, that is a pickle, which is never loaded")
    if fortran and len(shape) > 1:
        raise UserError(f"{label} is in Fortran order; save np.ascontiguousarray of it")
    start = file.tell()
    expected = start + int(np.prod([int(n) for n in shape], dtype=object)) * dtype.itemsize
    if expected != size:
        raise UserError(f"{label} is damaged: {size} bytes, where its header asks for {expected}")
    return _Header(tuple(int(n) for n in shape), dtype, start)


def _reader(path: Path, name: str, header: _Header, single: bool) -> Any:
    shape = header.shape if single else header.shape[1:]
    size = int(np.prod(shape)) * header.dtype.itemsize

    def read(indices: Sequence[int]) -> Iterator[np.ndarray]:
        try:
            with zipfile.ZipFile(path) as archive, archive.open(name) as file:
                for i in indices:
                    file.seek(header.start + i * size)
                    data = file.read(size)
                    if len(data) != size:
                        raise EOFError("it ends too early")
                    yield np.frombuffer(data, header.dtype).reshape(shape)
        except damaged.ARCHIVE as e:
            raise UserError(f"the array {name!r} of {path} is damaged ({e})") from e

    return read
