"""Files that someone names are opened only if they are files: to open a pipe is to wait for its writer."""

from __future__ import annotations

import errno
import os
import stat

LARGEST = 64 * 2**20
"""Bytes of a file that is read as a whole: a manifest, a recipe, labels."""


def check(path: str | os.PathLike[str]) -> None:
    """Fail where a path is no regular file.

    Raises:
        OSError: It is absent, a folder, a pipe, a socket or a device; ``strerror`` says which.
    """
    _check(os.stat(path), path)


def read_bytes(path: str | os.PathLike[str], largest: int = LARGEST) -> bytes:
    """The whole content of a regular file.

    Raises:
        OSError: As `check`, or it is larger than ``largest`` bytes.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags), "rb") as file:
        _check(os.fstat(file.fileno()), path)
        data = file.read(largest + 1)
    if len(data) > largest:
        raise OSError(errno.EFBIG, f"it is larger than {largest >> 20} MiB", os.fspath(path))
    return data


def read_text(path: str | os.PathLike[str], encoding: str = "utf-8", largest: int = LARGEST) -> str:
    """The whole content of a regular file as text.

    Raises:
        OSError: As `read_bytes`.
        UnicodeDecodeError: It is no text of this encoding.
    """
    return read_bytes(path, largest).decode(encoding).replace("\r\n", "\n")


def _check(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(status.st_mode), "a device")
        raise OSError(errno.EINVAL, f"it is {kind}, no regular file", os.fspath(path))
