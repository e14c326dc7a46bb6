"""Files that file managers write into any folder that they show: no part of what we or anyone put there."""

from __future__ import annotations

import stat
from pathlib import Path

NAMES = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
"""Finder's, and Windows Explorer's two; Finder's ``._NAME`` on disks of other systems comes beside them."""


def is_litter(path: Path) -> bool:
    """Whether a path is a regular file that Finder or Explorer wrote."""
    if path.name not in NAMES and not path.name.startswith("._"):
        return False
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False
