"""Several forks of one process that has imported everything, each with a share of the work."""

from __future__ import annotations

import os
import pickle
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def parallel(share: Callable[[int, Path], T], jobs: int, root: Path) -> list[T]:
    """What each of ``jobs`` forks makes of its number and of a folder of its own.

    Args:
        share: Runs in the fork; what it returns is pickled.
        jobs: How many.
        root: Has a folder ``corpus``, which is found in each fork's folder, too.

    Raises:
        RuntimeError: A fork ended before its share did; the others have ended then, too.
    """
    places = [root / f"job{job}" for job in range(jobs)]
    workers = []
    for job, place in enumerate(places):
        place.mkdir()
        (place / "corpus").symlink_to(root / "corpus")
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            try:
                (place / "found").write_bytes(pickle.dumps(share(job, place)))
            except BaseException:
                os.write(2, traceback.format_exc().encode("utf-8", "backslashreplace"))
                os._exit(1)
            os._exit(0)
        workers.append(pid)
    ends = [os.waitpid(pid, 0)[1] for pid in workers]
    if any(ends):
        raise RuntimeError("a server ended before its share did")
    return [pickle.loads((place / "found").read_bytes()) for place in places]


def own_bytes() -> int:
    """What this process has in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def data_bytes() -> int:
    """What of it counts for RLIMIT_DATA."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData"))
