"""One Android phone: choosing it, copying files to it by hash, running a program on it."""

from __future__ import annotations

import difflib
import re
import shlex
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repedge.errors import DeviceError, MissingExtra, UserError

if TYPE_CHECKING:
    import adbutils

FOLDER = "/data/local/tmp/repedge"
KEEP_DAYS = 14
PID, EXIT = "repedge-pid:", "repedge-exit:"
# State that adb reports -> what to do about it.
STATES = {
    "unauthorized": "has not authorized this computer: unlock it and accept the dialog on its screen",
    "offline": "is offline: replug it, or restart adb with 'adb kill-server'",
    "authorizing": "is still authorizing: unlock it and try again",
    "no": "can't be opened by adb (no permissions): add the udev rules for Android, or replug it",
    "recovery": "is in recovery mode: start Android",
    "bootloader": "is in its bootloader: start Android",
    "sideload": "is in sideload mode: start Android",
}


def client(timeout_s: float) -> adbutils.AdbClient:
    """The adb server's client (``ANDROID_ADB_SERVER_HOST`` and ``_PORT`` are respected).

    Raises:
        UserError: adbutils is not installed.
    """
    try:
        import adbutils
    except ImportError as e:
        raise MissingExtra("adbutils", "devices", "measuring on Android phones") from e
    return adbutils.AdbClient(socket_timeout=timeout_s)


def listening(adb: adbutils.AdbClient) -> bool:
    """Whether the adb server runs."""
    try:
        socket.create_connection((adb.host, adb.port), 1).close()
    except OSError:
        return False
    return True


def ensure_server(adb: adbutils.AdbClient) -> None:
    """Start the adb server if it does not run. adbutils would, but lets it print to our stdout.

    Raises:
        DeviceError: It can't be started.
    """
    if listening(adb):
        return
    said = "it runs on another machine"
    if adb.host in ("127.0.0.1", "localhost", "::1"):
        said = _start_server(adb.port)
    if not listening(adb):
        raise DeviceError(f"the adb server at {adb.host}:{adb.port} does not answer ({said})")


def _start_server(port: int) -> str:
    """What starting it printed."""
    with failures("adb"):
        import adbutils

        command = [adbutils.adb_path(), "-P", str(port), "start-server"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        except subprocess.TimeoutExpired as e:
            raise DeviceError("the adb server did not start within 20 s") from e
    return " ".join(done.stderr.split())[-200:]


def choose(adb: adbutils.AdbClient, serial: str) -> str:
    """The serial of the phone that is meant; the only ready one if none is named.

    Raises:
        UserError: There are several, or none of that serial.
        DeviceError: There is none at all, or it is not ready.
    """
    ensure_server(adb)
    with failures("adb"):
        states = {d.serial: d.state for d in adb.list()}
    if not states:
        raise DeviceError("no Android phone is connected: cable one, with USB debugging on")
    if not serial:
        ready = [name for name, state in states.items() if state == "device"] or list(states)
        if len(ready) > 1:
            raise UserError(
                f"several phones are connected, name one: {', '.join(f'adb://{s}' for s in ready)}"
            )
        serial = ready[0]
    if serial not in states:
        close = difflib.get_close_matches(serial, states, n=1)
        hint = f"did you mean adb://{close[0]}?" if close else f"connected: {', '.join(states)}"
        raise UserError(f"no phone {serial} is connected; {hint}")
    if states[serial] != "device":
        raise DeviceError(
            f"the phone {serial} " + STATES.get(states[serial], f"is not ready: {states[serial]}")
        )
    return serial


@contextmanager
def failures(place: str) -> Iterator[None]:
    """What adbutils raises, as a `DeviceError`."""
    import adbutils

    try:
        yield
    except adbutils.AdbTimeout as e:
        raise DeviceError(f"{place} did not answer in time; is the phone awake and cabled?") from e
    except (adbutils.AdbError, OSError, EOFError) as e:
        reason = " ".join(str(e).split()) or type(e).__name__
        raise DeviceError(f"{place} failed: {reason[:300]}") from e


@dataclass
class Phone:
    """A phone that is ready.

    Attributes:
        device: adbutils' handle.
        serial: Its serial.
        timeout_s: Longest silence before it is given up.
        pushed_bytes: What had to be copied.
        status: Exit status of the last `run`.
    """

    device: adbutils.AdbDevice
    serial: str
    timeout_s: float
    pushed_bytes: int = 0
    status: int = 0

    def shell(self, command: str) -> tuple[int, str]:
        """Exit status and output of a short command; raises DeviceError."""
        with failures(f"the phone {self.serial}"):
            done = self.device.shell2(command, timeout=self.timeout_s)
        return int(done.returncode), str(done.output)

    def has(self, path: str, sha: str) -> bool:
        """Whether a file is there, whole."""
        status, output = self.shell(f"sha256sum {path}")
        if status == 127:
            raise DeviceError(f"the phone {self.serial} has no sha256sum; Android 8 or newer is needed")
        return status == 0 and output.split()[:1] == [sha]

    def keep(self, source: Path | bytes, sha: str, suffix: str = "", mode: int = 0o644) -> str:
        """Copy a file unless it is there; returns its path there.

        Raises:
            DeviceError: It did not arrive; nothing of it stays.
        """
        path = f"{FOLDER}/{sha}{suffix}"
        if self.has(path, sha):
            self.shell(f"touch {path}")
            return path
        self.shell(f"mkdir -p {FOLDER}")
        part = f"{path}.part"
        try:
            with failures(f"the phone {self.serial}"):
                self.pushed_bytes += self.device.sync.push(source, part, mode=mode)
            if not self.has(part, sha):
                raise DeviceError(f"the copy on {self.serial} is damaged")
        except DeviceError as e:
            self._forget([part])
            raise DeviceError(f"copying to {FOLDER} failed, its storage may be full ({e})") from e
        self.shell(f"mv {part} {path}")
        return path

    def run(self, program: Sequence[str]) -> str:
        """Output of a program; killed there if it falls silent, or if we are interrupted.

        Raises:
            DeviceError: It fell silent, or the phone went away.
        """
        inner = f"echo {PID}$$; exec {shlex.join(program)}"
        command = f"sh -c {shlex.quote(inner)} 2>&1; echo {EXIT}$?"
        text = ""
        done = False
        try:
            with failures(f"the phone {self.serial}"):
                stream: Any = self.device.shell(command, stream=True)
                with stream:
                    stream.conn.settimeout(self.timeout_s)
                    while chunk := stream.recv(1 << 16):
                        text += chunk.decode("utf-8", "replace")
            done = EXIT in text
        finally:
            if not done:
                self._kill(text)
        if not done:
            raise DeviceError(f"the phone {self.serial} was disconnected in mid-run")
        report, _, status = text.rpartition(EXIT)
        self.status = int(status.split()[0]) if status.split() and status.split()[0].isdigit() else 1
        return re.sub(rf"{PID}\d+\r?\n", "", report, count=1)

    def tidy(self, forget: Sequence[str] = ()) -> None:
        """Remove these files, and those not used for `KEEP_DAYS`; never fails."""
        old = f"find {FOLDER} -type f -mtime +{KEEP_DAYS} -exec rm -f {{}} +"
        self._quietly(lambda: self.shell(old))
        self._forget(forget)

    def _forget(self, paths: Sequence[str]) -> None:
        if paths:
            self._quietly(lambda: self.shell(f"rm -f {shlex.join(paths)}; rmdir {FOLDER} 2>/dev/null"))

    def _kill(self, text: str) -> None:
        if found := re.search(rf"{PID}(\d+)", text):
            self._quietly(lambda: self.shell(f"kill -9 {found[1]}"))

    def _quietly(self, work: Callable[[], object]) -> None:
        try:
            work()
        except DeviceError:  # it is gone, and so is what we would have cleaned up
            return
