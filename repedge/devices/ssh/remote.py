"""What runs at the other end of an SSH connection: keeps the upload cache, starts the agent, cleans up.

Sent over stdin and run by the remote Python, so: one file, Python 3.9, nothing but the standard
library. The conversation on stdin and stdout (answers begin with a mark):

    header: one JSON line          -> {"python", "runtimes"} and, unless only probing, {"missing": [sha256]}
    the missing files' bytes       -> {"stored": count}
    (the agent is started)         -> {"artifact", "samples"}
    lines for the agent; an empty line is a sign of life

When stdin ends, or nothing arrives for `SILENCE_S`, or a signal arrives, the agent and all its children
are killed and the run's folder is removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from importlib import metadata
from typing import IO, Any

MARK = "@repedge "
SILENCE_S = 60.0  # the other side writes a sign of life every 10 s
CHUNK = 1 << 20


class Refused(Exception):
    """The request can't be met here; ``kind`` as in the agent's errors."""

    def __init__(self, message: str, kind: str = "user") -> None:
        super().__init__(message)
        self.kind = kind


def say(message: dict[str, Any]) -> None:
    """One answer."""
    sys.stdout.write(MARK + json.dumps(message) + "\n")
    sys.stdout.flush()


def main(stdin: IO[bytes]) -> int:
    """Serve one connection."""
    over = threading.Event()
    for name in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(name, lambda *_: over.set())
    folder = None
    try:
        header = json.loads(stdin.readline())
        found = runtimes(header["runtimes"])
        about = {"python": ".".join(map(str, sys.version_info[:3])), "runtimes": found}
        if header["do"] == "probe":
            say(about)
            return 0
        if header["needs"] and not any(n in found for n in header["needs"]):
            raise Refused("no runtime for this artifact is installed there: pip install " + header["package"])
        cache = cache_folder()
        folder = run_folder(cache)
        store = cache if header["keep_bytes"] else folder
        sizes = dict(header["files"].values())
        missing = [sha for sha in sizes if not cached(store, sha)]
        say({**about, "missing": missing})
        for sha in missing:
            receive(stdin, store, sha, sizes[sha])
        for name, (sha, _) in header["files"].items():
            place(os.path.join(store, sha), os.path.join(folder, name))
        prune(store, header["keep_bytes"])
        say({"stored": len(missing)})
        return supervise(stdin, folder, header, over)
    except Refused as e:
        say({"error": str(e), "kind": e.kind})
        return 1
    except OSError as e:
        if e.errno == errno.EPIPE:
            return 1  # nobody listens any more
        full = "its disk is full" if e.errno in (errno.ENOSPC, errno.EDQUOT) else str(e)
        say({"error": "the upload failed: " + full, "kind": "runtime"})
        return 1
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def runtimes(wanted: dict[str, str]) -> dict[str, str]:
    """Module -> version (empty if unknown) of the runtimes installed here, without importing them."""
    found = {}
    for module, package in wanted.items():
        if importlib.util.find_spec(module) is not None:
            try:
                found[module] = metadata.version(package)
            except metadata.PackageNotFoundError:
                found[module] = ""
    return found


def cache_folder() -> str:
    """``~/.cache/repedge-agent``, ours alone; leftovers of runs that were killed outright are removed."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    cache = os.path.join(base, "repedge-agent")
    os.makedirs(cache, mode=0o700, exist_ok=True)
    for name in os.listdir(cache):
        path = os.path.join(cache, name)
        try:
            if name.startswith("part-") and time.time() - os.path.getmtime(path) > 3600:
                os.unlink(path)
            elif name.startswith("run-") and not locked(path):
                shutil.rmtree(path, ignore_errors=True)
        except OSError:  # another session removed it at the same time
            continue
    return cache


def run_folder(cache: str) -> str:
    """A folder for this run; held by a lock that goes with the process, however it ends."""
    folder = tempfile.mkdtemp(prefix="run-", dir=cache)
    try:
        lock = os.open(os.path.join(folder, ".lock"), os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.mkdir(os.path.join(folder, "tmp"))
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def locked(folder: str) -> bool:
    """Whether the process of a run's folder still lives (a folder just made counts as such)."""
    try:
        lock = os.open(os.path.join(folder, ".lock"), os.O_RDWR)
    except OSError:
        return time.time() - os.path.getmtime(folder) < 60
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


def cached(store: str, sha: str) -> bool:
    """Whether a file is in the cache and still is what its name says."""
    path = os.path.join(store, sha)
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as f:
            for chunk in iter(lambda: f.read(CHUNK), b""):
                digest.update(chunk)
        os.utime(path)
    except OSError:
        return False
    return digest.hexdigest() == sha


def receive(stdin: IO[bytes], store: str, sha: str, size: int) -> None:
    """One file from stdin into the cache: whole under its hash, or absent."""
    handle, part = tempfile.mkstemp(prefix="part-", dir=store)
    try:
        digest = hashlib.sha256()
        with os.fdopen(handle, "wb") as f:
            left = size
            while left:
                chunk = stdin.read(min(CHUNK, left))
                if not chunk:
                    raise Refused("the upload was cut off", "runtime")
                digest.update(chunk)
                f.write(chunk)
                left -= len(chunk)
        if digest.hexdigest() != sha:
            raise Refused("the upload arrived damaged", "runtime")
        os.replace(part, os.path.join(store, sha))
    except BaseException:
        os.unlink(part)
        raise


def place(blob: str, path: str) -> None:
    """The cached file under the name that the runtime expects; no copy is made."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        os.link(blob, path)
    except OSError:  # file systems without hard links
        os.symlink(blob, path)


def prune(store: str, keep_bytes: int) -> None:
    """Forget the files used longest ago once the cache holds more than ``keep_bytes``."""
    blobs = []
    for name in os.listdir(store):
        path = os.path.join(store, name)
        if len(name) == 64 and os.path.isfile(path):
            info = os.stat(path)
            blobs.append((info.st_mtime, info.st_size, path))
    total = sum(size for _, size, _ in blobs)
    for _, size, path in sorted(blobs):
        if not keep_bytes or total <= keep_bytes:
            return
        os.unlink(path)
        total -= size


def supervise(stdin: IO[bytes], folder: str, header: dict[str, Any], over: threading.Event) -> int:
    """Run the agent until it ends or the other side is gone."""
    inside = os.path.join(folder, "tmp")
    say(
        {
            "artifact": os.path.join(folder, header["artifact"]),
            "samples": os.path.join(folder, header["samples"]),
        }
    )
    agent = subprocess.Popen(
        [sys.executable, "-u", os.path.join(folder, header["agent"]), *header["arguments"]],
        stdin=subprocess.PIPE,
        cwd=inside,
        env={**os.environ, "TMPDIR": inside, "PYTHONDONTWRITEBYTECODE": "1"},
        start_new_session=True,  # a group of its own, killed as one
    )
    heard = [time.monotonic()]

    def forward() -> None:
        assert agent.stdin is not None
        for line in iter(stdin.readline, b""):
            heard[0] = time.monotonic()
            if line != b"\n":
                try:
                    agent.stdin.write(line)
                    agent.stdin.flush()
                except OSError:  # it ended; `wait` below says so
                    return
        over.set()

    def wait() -> None:
        agent.wait()
        over.set()

    for task in (forward, wait):
        threading.Thread(target=task, daemon=True).start()
    while not over.wait(10):
        if time.monotonic() - heard[0] > SILENCE_S:
            break
    code = agent.poll()
    with contextlib.suppress(OSError):
        os.killpg(agent.pid, signal.SIGKILL)  # its children too, if it left some
    agent.wait()
    if code is not None and code < 0:
        sys.stderr.write(f"killed by {signal.Signals(-code).name}\n")
        sys.stderr.flush()
    return 0 if code == 0 else 1


if __name__ == "__main__":
    status = main(sys.stdin.buffer)
    sys.stderr.flush()
    os._exit(status)  # the thread that reads stdin would hold the process up
