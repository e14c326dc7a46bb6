"""Folders that are whole or absent: renamed into place, swapped, and swept after a kill -9.

A folder is written under a hidden name beside its final one, ``.NAME.partial-PID-RANDOM``. One that is
replaced where folders can't be swapped is ``.NAME.old-RANDOM`` for a moment.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from repedge.errors import RepedgeError, UserError

FULL = (errno.ENOSPC, errno.EDQUOT)


def move(source: Path, final: Path, force: bool) -> None:
    """Give a finished folder its final name; with ``force`` it takes the place of what has it now.

    Raises:
        UserError: There is something (without force).
        OSError: The file system refuses.
    """
    for file in source.rglob("*"):  # on the disk before the name is
        if file.is_file():
            with file.open("rb+") as f:
                os.fsync(f.fileno())
    if not os.path.lexists(final):
        try:
            source.rename(final)
            return
        except OSError as e:  # another process may have been faster
            if e.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
    if not force:
        raise UserError(f"{final} appeared while it was being made; pass --force to replace it")
    old = final.with_name(f".{final.name}.old-{uuid.uuid4().hex[:8]}")
    if not swap(source, final):
        _replace(source, final, old)
    remove(source)  # which is the old bundle, where they were swapped
    remove(old)


def _replace(source: Path, final: Path, old: Path) -> None:
    """In two steps, where folders can't be swapped; a kill between them is mended by the next `sweep`."""
    final.rename(old)
    try:
        source.rename(final)
    except OSError:
        if not os.path.lexists(final):
            old.rename(final)
        raise


def swap(a: Path, b: Path) -> bool:
    """Exchange two names in one step, so that neither is ever absent; False where that can't be done.

    renameat2(2) of Linux and renamex_np(2) of macOS, on file systems that have it.
    """
    import ctypes

    names = os.fsencode(a), os.fsencode(b)
    here = -100  # AT_FDCWD: relative names start at the working directory
    exchange = 2  # RENAME_EXCHANGE, and RENAME_SWAP on macOS
    if os.name != "posix":
        return False
    libc = ctypes.CDLL(None)
    if hasattr(libc, "renameat2"):
        return libc.renameat2(here, names[0], here, names[1], exchange) == 0
    if hasattr(libc, "renamex_np"):
        return libc.renamex_np(*names, exchange) == 0
    return False


def sweep(final: Path) -> None:
    """Remove what killed processes left of writing ``final``, and put back what was moved aside."""
    name = glob.escape(f".{final.name}.")
    for leftover in final.parent.glob(f"{name}partial-*"):
        pid = leftover.name.rsplit("-", 2)[1]
        if not (pid.isdigit() and _alive(int(pid))):
            remove(leftover)
    for old in final.parent.glob(f"{name}old-*"):
        if os.path.lexists(final):
            remove(old)
        else:
            old.rename(final)


def remove(path: Path) -> None:
    """A folder, or a link to one; what can't be removed stays."""
    if path.is_symlink():
        with contextlib.suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def os_errors(final: Path) -> Iterator[None]:
    """Operating-system errors of writing -> one sentence.

    Writers in C++ (OpenVINO, coremltools) report a full disk as an error of their own, or as none.
    """
    try:
        yield
    except RepedgeError:
        raise
    except Exception as e:
        number = e.errno if isinstance(e, OSError) else None
        if number in FULL or _full(final.parent):
            raise UserError(
                f"the disk is full: {final} was not written; free some space or choose another --out"
            ) from e
        if number is not None:
            where = str(getattr(e, "filename", None) or "")
            elsewhere = f": {where}" if where and not where.startswith(str(final.parent)) else ""
            raise UserError(
                f"can't write {final} ({os.strerror(number)}{elsewhere}); choose another --out"
            ) from e
        raise


@contextlib.contextmanager
def foreign_writer(name: Path | str) -> Iterator[None]:
    """Writers in C++ raise RuntimeError where Python's raise OSError -> one sentence.

    Raises:
        UserError: ``name`` could not be written.
    """
    try:
        yield
    except RuntimeError as e:
        reason = str(e).strip().split("\n")[0].split(" [/")[0]  # without the paths of temporary files
        raise UserError(f"can't write {name}: {reason}; is the disk full?") from e


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for temporary files, removed afterwards.

    Raises:
        UserError: There is no place for one, or the disk is full.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="repedge-")
    except OSError as e:
        raise UserError(f"there is no place for temporary files ({e}); set TMPDIR to a folder") from e
    try:
        with folder as name:
            yield Path(name)
    except OSError as e:
        if e.errno not in FULL:
            raise
        raise UserError(
            f"the disk is full: no room for temporary files in {tempfile.gettempdir()}; free some space or "
            "set TMPDIR to another folder"
        ) from e


def _full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < 4096
    except OSError:
        return False
