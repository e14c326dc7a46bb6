"""``local``: this machine. The artifact runs in a process of its own."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, ClassVar

from repedge.devices.base import AgentSession, Device, DeviceURI, Listed, Session
from repedge.devices.protocol import ProfileRequest
from repedge.disk import leftovers
from repedge.errors import DeviceError, UserError


class Local(Device):
    """This machine."""

    scheme: ClassVar[str] = "local"
    title: ClassVar[str] = "this machine"
    example: ClassVar[str] = "local"

    def __init__(self, uri: DeviceURI, options: Mapping[str, str]) -> None:
        super().__init__(uri, options)
        if uri.rest:
            raise UserError(f"'local' is this machine and takes nothing after it, but got {uri}")

    def describe(self) -> str:
        """See `Device.describe`."""
        return "this machine"

    @classmethod
    def found(cls) -> Sequence[Listed]:
        """See `Device.found`."""
        from repedge.devices.agent import host

        info = host.read()
        return [Listed("local", "ready", f"{info['cpu'] or info['model'] or 'CPU'}, {info['cores']} cores")]

    def open(self, artifact: Path, request: ProfileRequest) -> Session:
        """See `Device.open`."""
        command = [sys.executable, "-m", "repedge.devices.agent"]
        transport = Subprocess(command)
        return AgentSession(transport, "local", request.timeout_s).start(str(artifact.resolve()), request)


class Subprocess:
    """A `repedge.devices.base.Transport` over the pipes of a child process."""

    def __init__(self, command: Sequence[str]) -> None:
        leftovers.sweep_temporary()
        folder, self._lock = leftovers.make(Path(tempfile.gettempdir()), "repedge-profile", 0o700)
        self._scratch = str(folder)
        self._stderr: IO[bytes] = (Path(self._scratch) / "stderr").open("w+b")
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env={
                    **os.environ,
                    "TMPDIR": self._scratch,
                    "REPEDGE_SCRATCH": self._scratch,
                    "PYTHONUNBUFFERED": "1",
                },
                start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends the child
            )
        except OSError as e:
            self._clean()
            raise DeviceError(f"the profiling process does not start: {e}") from e
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._pumping = threading.Thread(target=self._pump, daemon=True)
        self._pumping.start()

    def _pump(self) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            self._lines.put(raw.decode("utf-8", "replace").rstrip("\r\n"))
        self._lines.put(None)

    def send(self, line: str) -> None:
        """See `Transport.send`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except OSError:  # the reason is read in `receive`
            return

    def receive(self, timeout: float) -> str | None:
        """See `Transport.receive`."""
        try:
            return self._lines.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None

    def trouble(self) -> str:
        """See `Transport.trouble`."""
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            code = None
        self._stderr.seek(0)
        lines = [x.strip() for x in self._stderr.read().decode("utf-8", "replace").splitlines() if x.strip()]
        return "; ".join([_ending(code), *lines[-1:]])

    def close(self) -> None:
        """See `Transport.close`."""
        with contextlib.suppress(OSError):  # the whole group: runtimes start processes of their own
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._pumping.join(10)
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # what was not yet written is lost, as it should be
                if stream is not None:
                    stream.close()
        self._clean()

    def _clean(self) -> None:
        self._stderr.close()
        shutil.rmtree(self._scratch, ignore_errors=True)
        leftovers.release(self._lock)


def _ending(code: int | None) -> str:
    if code is None:
        return "it closed its output but still runs"
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit status {code}"
