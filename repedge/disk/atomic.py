"""Folders that are whole or absent: renamed into place, swapped, and swept after a kill -9.

A folder is written under a hidden name beside its final one, ``.NAME.partial-PID-RANDOM``, and held by a
lock while it is (`repedge.disk.leftovers`). One that is replaced where folders can't be swapped is
``.NAME.old-RANDOM`` for a moment. A folder is only ever replaced if all that is in it was written by repedge;
what is not, is never removed.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from repedge.disk import leftovers
from repedge.errors import RepedgeError, UserError

FULL = (errno.ENOSPC, errno.EDQUOT)

SHOWN = 3
"""Files that a message names."""


@dataclass(frozen=True)
class Kind:
    """A kind of folder that repedge writes.

    Attributes:
        word: What people call it.
        files: Says which files of a folder repedge wrote into it, as relative paths with forward slashes;
            None if the folder is not of this kind, or does not say.
    """

    word: str
    files: Callable[[Path], frozenset[str] | None]


def check_own(folder: Path, kind: Kind) -> None:
    """Fail where a folder is not of this kind, or holds anything that repedge did not write.

    Raises:
        UserError: Names the first of the files that are somebody else's.
    """
    listed = kind.files(folder)
    if listed is None:
        raise UserError(
            f"{folder} exists and is no {kind.word} that repedge wrote, so --force will not replace it; "
            "move it away"
        )
    if folder.is_symlink():
        return  # the link goes, what it leads to stays
    if strange := _foreign(folder, listed):
        some = ", ".join(repr(name) for name in strange[:SHOWN])
        more = f" and {len(strange) - SHOWN} more" if len(strange) > SHOWN else ""
        raise UserError(
            f"{folder} holds {some}{more}, which repedge did not write, so --force will not replace it; "
            "move what is yours away"
        )


def _foreign(folder: Path, listed: frozenset[str]) -> list[str]:
    """Everything in a folder but folders and the listed files; links are not followed."""
    return sorted(name for name, _ in _entries(folder) if name not in listed)


def _entries(folder: Path) -> Iterator[tuple[str, str]]:
    """(relative path with forward slashes, path) of all files and links."""
    for here, folders, files in os.walk(folder):
        for name in (*files, *(f for f in folders if os.path.islink(os.path.join(here, f)))):
            path = os.path.join(here, name)
            yield os.path.relpath(path, folder).replace(os.sep, "/"), path


def move(source: Path, final: Path, replace: Kind | None) -> None:
    """Give a finished folder its final name.

    Args:
        source, final: Its name now, and then.
        replace: What it may take the place of; None: nothing.

    Raises:
        UserError: There is something that may not be replaced.
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
    if replace is None:
        raise UserError(f"{final} appeared while it was being made; pass --force to replace it")
    check_own(final, replace)
    old = final.with_name(f".{final.name}.old-{uuid.uuid4().hex[:8]}")
    if not swap(source, final):
        _replace(source, final, old)
    for former in (source, old):  # the first is the old one, where they were swapped
        discard(former, replace, final.parent)


def discard(folder: Path, kind: Kind, place: Path, *, unfinished: bool = False) -> None:
    """Remove a folder of ours, or a link; anything that repedge did not write is kept, in ``place``.

    Args:
        folder: What to remove; it may be absent.
        kind: What it is.
        place: A folder on the same file system.
        unfinished: Whether a folder that is not of this kind is one that repedge never finished.
    """
    if not os.path.lexists(folder):
        return
    listed = kind.files(folder)
    if folder.is_symlink() or (unfinished and listed is None):
        remove(folder)
        return
    for name, path in list(_entries(folder)):
        if name in (listed or ()):
            with contextlib.suppress(OSError):
                os.unlink(path)
    for here, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(here)
    if folder.exists():
        base = folder.name.lstrip(".").partition(".partial-")[0].partition(".old-")[0]
        with contextlib.suppress(OSError):
            folder.rename(place / f"{base}.kept-{uuid.uuid4().hex[:8]}")


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


def sweep(final: Path, kind: Kind) -> None:
    """Remove what killed processes left in the folder of ``final``, and put back what was moved aside."""
    leftovers.sweep(
        final.parent, leftovers.PARTIAL, lambda folder: discard(folder, kind, final.parent, unfinished=True)
    )
    for old in final.parent.glob(glob.escape(f".{final.name}.old-") + 8 * "[0-9a-f]"):
        if not os.path.lexists(final):
            old.rename(final)
        elif old.is_symlink() or kind.files(old) is not None:
            discard(old, kind, final.parent)


def remove(path: Path) -> None:
    """A folder, or a link to one; what can't be removed stays."""
    if path.is_symlink():
        with contextlib.suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


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
    """A folder for temporary files, removed afterwards, or by the next process where this one is killed.

    Raises:
        UserError: There is no place for one, or the disk is full.
    """
    leftovers.sweep_temporary()
    try:
        folder, lock = leftovers.make(Path(tempfile.gettempdir()), "repedge-scratch", 0o700)
    except OSError as e:
        raise UserError(f"there is no place for temporary files ({e}); set TMPDIR to a folder") from e
    try:
        yield folder
    except OSError as e:
        if e.errno not in FULL:
            raise
        raise UserError(
            f"the disk is full: no room for temporary files in {tempfile.gettempdir()}; free some space or "
            "set TMPDIR to another folder"
        ) from e
    finally:
        remove(folder)
        leftovers.release(lock)


def _full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < 4096
    except OSError:
        return False
