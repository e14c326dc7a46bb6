"""The ``benchmark_model`` binary that the user names: a file, or an address it is fetched from once."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from repedge.errors import DeviceError, UserError
from repedge.hashing import sha256

MAX_BYTES = 512 << 20
HINT = (
    "measuring on a phone needs TFLite's benchmark_model for Android: name it with "
    "--device-option benchmark-model=PATH or URL (builds: https://ai.google.dev/edge/litert/models/measurement)"
)


def locate(where: str, expected_sha: str = "") -> tuple[Path, str]:
    """The binary and its SHA-256.

    Raises:
        UserError: None is named, it is not there, no program for Android, or not the one expected.
        DeviceError: It can't be fetched.
    """
    if not where:
        raise UserError(HINT)
    path = _fetch(where) if "://" in where else Path(where).expanduser()
    if not path.is_file():
        raise UserError(f"there is no benchmark_model at {where}")
    with path.open("rb") as f:
        if f.read(4) != b"\x7fELF":
            raise UserError(
                f"{where} is no Android program (no ELF file); benchmark_model is meant, not the .apk"
            )
    digest = sha256(path)
    if expected_sha and digest != expected_sha.lower():
        raise UserError(f"{where} has the SHA-256 {digest}, not the expected {expected_sha}")
    return path, digest


def _fetch(url: str) -> Path:
    if urlsplit(url).scheme != "https":
        raise UserError(f"benchmark_model is fetched over https only, not from {url}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "repedge" / "benchmark_model"
    path = cache / hashlib.sha256(url.encode()).hexdigest()
    if path.exists():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=cache)
    try:
        with os.fdopen(handle, "wb") as f, urllib.request.urlopen(url, timeout=60) as answer:
            while chunk := answer.read(1 << 20):
                f.write(chunk)
                if f.tell() > MAX_BYTES:
                    raise UserError(f"{url} is larger than {MAX_BYTES >> 20} MiB; that is no benchmark_model")
        Path(part).replace(path)
    except (urllib.error.URLError, OSError) as e:
        raise DeviceError(f"benchmark_model can't be fetched from {url}: {e}") from e
    finally:
        Path(part).unlink(missing_ok=True)
    return path
