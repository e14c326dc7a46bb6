"""Results that are worth keeping between runs, in the user's cache folder.

Nothing depends on it: what is missing or damaged is computed again, and a folder that can't be written
only means that nothing is kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from repedge.disk import regular

FOLDER = "REPEDGE_CACHE"
"""Environment variable that names another folder."""

DAYS = 90
"""Entries that were not used for so long are removed."""


def cache_folder() -> Path:
    r"""Where the platform wants a program's cache.

    ``$REPEDGE_CACHE``, else ``$XDG_CACHE_HOME/repedge`` or ``~/.cache/repedge`` on Linux,
    ``~/Library/Caches/repedge`` on macOS, ``%LOCALAPPDATA%\\repedge\\cache`` on Windows.
    """
    if given := os.environ.get(FOLDER):
        return Path(given)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "repedge"
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return (Path(base) if base else Path.home() / "AppData" / "Local") / "repedge" / "cache"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "repedge"


class Store:
    """JSON objects by key, one file each, written to the side and renamed.

    Args:
        kind: Name of the sub-folder.
        root: Folder; None: `cache_folder`.
    """

    def __init__(self, kind: str, root: Path | None = None) -> None:
        self.folder = (root or cache_folder()) / kind
        with contextlib.suppress(OSError):
            self._sweep()

    def get(self, key: str) -> Any | None:
        """What was put, or None."""
        file = self.folder / f"{key}.json"
        try:
            value = json.loads(regular.read_bytes(file))
            if value["key"] != key:
                return None
            os.utime(file)
            return value["value"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def put(self, key: str, value: Any) -> None:
        """Keep a JSON-able value."""
        temporary = self.folder / f".{key[:16]}-{uuid.uuid4().hex[:8]}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({"key": key, "value": value}), encoding="utf-8")
            temporary.replace(self.folder / f"{key}.json")
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def _sweep(self) -> None:
        oldest = time.time() - DAYS * 86400
        for file in self.folder.iterdir() if self.folder.is_dir() else ():
            if file.stat().st_mtime < oldest:
                file.unlink()
