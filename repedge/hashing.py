"""sha256, as every file that repedge lists or keeps is known by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

PIECE = 1 << 20


def sha256(file: Path) -> str:
    """Hex digest of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with file.open("rb") as f:
        while piece := f.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def key_of(*parts: bytes | str) -> str:
    """Hex digest over parts; a length ahead of each keeps ``a, bc`` and ``ab, c`` apart."""
    return _digest(part.encode() if isinstance(part, str) else part for part in parts)


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for data in parts:
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()
