"""Folders of a running process, which the next process removes where this one is killed (kill -9).

A folder is held by a lock on the folder itself (flock(2)), which the kernel lets go of when the process ends,
however it ends, and which other machines and containers with the same disk see, too. Where a file system has
no such locks, nothing is ever taken for a leftover.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TEMPORARY = re.compile(r"repedge-(scratch|profile)-[0-9]+-[0-9a-f]{8}")
"""Names of repedge's folders in the place for temporary files."""

PARTIAL = re.compile(r"\..+\.partial-[0-9]+-[0-9a-f]{8}")
"""Names of hidden folders beside what is being written in them."""

TRIES = 100


def make(parent: Path, prefix: str, mode: int = 0o777) -> tuple[Path, int | None]:
    """A new folder ``PREFIX-PID-RANDOM`` and the lock that holds it; None where there are no locks.

    Raises:
        OSError: The folder can't be made.
    """
    for _ in range(TRIES):
        folder = parent / f"{prefix}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        folder.mkdir(mode)
        try:
            return folder, _lock(folder)
        except OSError:  # another process took it for a leftover before it was locked
            shutil.rmtree(folder, ignore_errors=True)
    raise FileNotFoundError(f"folders in {parent} vanish as they are made")


def release(lock: int | None) -> None:
    """Let go of a folder."""
    if lock is not None:
        os.close(lock)


@contextlib.contextmanager
def held(parent: Path, prefix: str, mode: int = 0o700) -> Iterator[Path]:
    """A new folder for the length of the block.

    Raises:
        OSError: It can't be made.
    """
    folder, lock = make(parent, prefix, mode)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        release(lock)


def sweep(parent: Path, names: re.Pattern[str], remove: Callable[[Path], object] | None = None) -> None:
    """Remove folders of our own user with such names that no process holds.

    Args:
        parent: Where to look.
        names: What the whole name must match.
        remove: How; None removes the folder with all that is in it.
    """
    for folder in _mine(parent, names):
        try:
            lock = _lock(folder)
        except OSError:  # it is held, or another process sweeps it now
            continue
        if lock is None:
            continue
        try:
            if remove is None:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                remove(folder)
        finally:
            release(lock)


def sweep_temporary() -> None:
    """Remove what killed processes left in the place for temporary files."""
    with contextlib.suppress(OSError):  # there is none: whoever needs one says so
        sweep(Path(tempfile.gettempdir()), TEMPORARY)


def _mine(parent: Path, names: re.Pattern[str]) -> list[Path]:
    found = []
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if names.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False) and _is_own(entry.stat(follow_symlinks=False)):
                        found.append(Path(entry.path))
    return found


def _is_own(status: os.stat_result) -> bool:
    return not hasattr(os, "geteuid") or status.st_uid == os.geteuid()


def _lock(folder: Path) -> int | None:
    """Lock a folder; None where that can't be done.

    Raises:
        OSError: Another process holds it, or it is gone.
    """
    if fcntl is None:
        return None
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(folder, follow_symlinks=False).st_ino != os.fstat(file).st_ino:
            raise FileNotFoundError(folder)
    except (BlockingIOError, FileNotFoundError):
        os.close(file)
        raise
    except OSError:  # this file system has no locks
        os.close(file)
        return None
    return file
