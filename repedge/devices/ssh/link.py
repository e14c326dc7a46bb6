"""One SSH connection with the remote agent at its end, as a `repedge.devices.base.Transport`.

asyncssh runs in a thread of its own; the methods here are called from ordinary code.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import queue
import shlex
import threading
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from repedge.devices.base import MARK
from repedge.devices.ssh import remote
from repedge.devices.ssh.keys import HostKeys
from repedge.errors import DeviceError, RepedgeError, UserError

if TYPE_CHECKING:
    import asyncssh

T = TypeVar("T")
CONNECT_S = 20.0
LIFE_SIGN_S = 10.0
# Reads the real program from stdin. Understood by every Python since 2.6, to tell the old ones kindly;
# no shell finds anything in it to expand.
BOOTSTRAP = (
    "import sys;sys.version_info>=(3,9) or sys.exit('python-too-old %d.%d'%sys.version_info[:2]);"
    "f=sys.stdin.buffer;n=int(f.readline());exec(compile(f.read(n),'repedge','exec'))"
)


@dataclass(frozen=True)
class Address:
    """Where to connect and how.

    Attributes:
        host, port, user: As in the URI; None: as the user's SSH configuration says.
        identity: Private key file; empty: the agent and the usual key files.
        python: The remote Python.
    """

    host: str
    port: int | None = None
    user: str | None = None
    identity: str = ""
    python: str = "python3"

    def __str__(self) -> str:
        at = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{at}{host}" + (f":{self.port}" if self.port else "")


@dataclass
class Upload:
    """What a run needs there.

    Attributes:
        files: Name in the run's folder -> (SHA-256, file or bytes).
        header: Further fields of the header; see `repedge.devices.ssh.remote`.
    """

    files: Mapping[str, tuple[str, Path | bytes]]
    header: Mapping[str, Any] = field(default_factory=dict)

    def sizes(self) -> dict[str, tuple[str, int]]:
        """Name -> (SHA-256, bytes)."""
        return {
            name: (sha, len(what) if isinstance(what, bytes) else what.stat().st_size)
            for name, (sha, what) in self.files.items()
        }


class Link:
    """A connection and, once `start` was called, the agent at its end."""

    def __init__(self, address: Address, keys: HostKeys) -> None:
        self.address = address
        self.uploaded_bytes = 0
        self._keys = keys
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._errors: list[str] = []
        self._lost = ""
        self._ready = False  # the agent runs, and an empty line means: still here
        self._connection: asyncssh.SSHClientConnection | None = None
        self._process: asyncssh.SSHClientProcess[bytes] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="repedge-ssh")
        self._thread.start()

    def start(self, header: Mapping[str, Any], upload: Upload | None, silence_s: float) -> dict[str, Any]:
        """Connect, run the remote program, send what is missing there; returns its last answer.

        Raises:
            UserError: The key, the host key or the remote Python is wrong, or a runtime is missing.
            DeviceError: The host can't be reached, or fails.
        """
        try:
            self._run(self._connect(), CONNECT_S * 2)
            self._run(self._launch(), CONNECT_S)
            sizes = upload.sizes() if upload else {}
            self._write(json.dumps({**header, "files": sizes}).encode() + b"\n")
            answer = self._answer(silence_s)
            if upload is None:
                return answer
            self._send_files(upload, answer.get("missing", []), silence_s)
            self._answer(silence_s)
            return {**answer, **self._answer(silence_s)}
        except BaseException:
            self.close()
            raise

    def send(self, line: str) -> None:
        """See `Transport.send`."""
        self._write(line.encode() + b"\n")

    def receive(self, timeout: float) -> str | None:
        """See `Transport.receive`."""
        try:
            return self._lines.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None

    def trouble(self) -> str:
        """See `Transport.trouble`."""
        return self._lost or "; ".join(self._errors[-1:])

    def close(self) -> None:
        """See `Transport.close`; waits until the other side has cleaned up."""
        if not self._loop.is_running():
            return
        with contextlib.suppress(RepedgeError):  # if it is gone, the other side cleans up by itself
            self._run(self._shut(), 15)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        if not self._thread.is_alive():
            self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T], timeout: float) -> T:
        import asyncssh

        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout)
        except (TimeoutError, concurrent.futures.TimeoutError) as e:
            future.cancel()
            raise DeviceError(f"{self.address} did not answer within {timeout:g} s") from e
        except asyncssh.HostKeyNotVerifiable as e:
            raise UserError(self._keys.refusal or f"{self.address}: {e.reason}") from e
        except asyncssh.PermissionDenied as e:
            raise UserError(
                f"{self.address} refused the login: none of the keys is accepted there; name the right "
                f"one with --device-option identity=FILE, or load it into ssh-agent (passwords are not used)"
            ) from e
        except asyncssh.KeyImportError as e:
            raise UserError(f"the SSH key can't be used: {e}; load a protected key into ssh-agent") from e
        except (asyncssh.Error, OSError) as e:
            reason = getattr(e, "reason", None) or getattr(e, "strerror", None) or str(e)
            raise DeviceError(f"{self.address} can't be reached: {reason}") from e

    async def _connect(self) -> None:
        import asyncssh

        t = self.address
        given: dict[str, Any] = {"port": t.port, "username": t.user}
        if t.identity:
            given |= {"client_keys": [t.identity], "agent_path": None}
        self._connection = await asyncssh.connect(
            t.host,
            **{k: v for k, v in given.items() if v is not None or k == "agent_path"},
            known_hosts=self._keys.load(),
            client_factory=self._keys.client(),
            preferred_auth=["publickey"],
            connect_timeout=CONNECT_S,
            login_timeout=CONNECT_S,
            keepalive_interval=15,
            keepalive_count_max=3,
        )

    async def _launch(self) -> None:
        assert self._connection is not None
        command = f"{shlex.quote(self.address.python)} -u -c {shlex.quote(BOOTSTRAP)}"
        self._process = await self._connection.create_process(command, encoding=None)
        program = Path(remote.__file__).read_bytes()
        self._process.stdin.write(b"%d\n" % len(program) + program)
        pumps = (self._pump_answers(), self._pump_errors(), self._live())
        self._tasks = [asyncio.create_task(p) for p in pumps]

    async def _pump_answers(self) -> None:
        import asyncssh

        assert self._process is not None
        try:
            while line := await self._process.stdout.readline():
                self._lines.put(line.decode("utf-8", "replace").rstrip("\r\n"))
            await self._process.wait_closed()
        except (asyncssh.Error, OSError) as e:
            self._lost = f"the SSH connection was lost: {getattr(e, 'reason', None) or e}"
        else:
            if self._process.exit_status is None and self._process.exit_signal is None:
                self._lost = "the SSH connection was cut"
        self._lines.put(None)

    async def _pump_errors(self) -> None:
        import asyncssh

        assert self._process is not None
        try:
            while line := await self._process.stderr.readline():
                text = line.decode("utf-8", "replace").strip()
                self._errors = [*self._errors[-9:], text[:300]] if text else self._errors
        except (asyncssh.Error, OSError):  # told by `_pump_answers`
            return

    async def _live(self) -> None:
        assert self._process is not None
        while not self._process.stdin.is_closing():
            await asyncio.sleep(LIFE_SIGN_S)
            if self._ready:
                self._process.stdin.write(b"\n")

    async def _shut(self) -> None:
        import asyncssh

        try:
            if self._process is not None:
                self._process.stdin.write_eof()
                await asyncio.wait_for(self._process.wait_closed(), 10)
        except (asyncssh.Error, OSError, TimeoutError, asyncio.TimeoutError):
            pass
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._connection is not None:
            self._connection.close()
            await self._connection.wait_closed()

    def _write(self, data: bytes) -> None:
        async def write() -> None:
            assert self._process is not None
            if not self._process.stdin.is_closing():  # the reason is read in `receive`
                self._process.stdin.write(data)

        self._run(write(), CONNECT_S)

    def _send_files(self, upload: Upload, missing: list[str], silence_s: float) -> None:
        contents = dict(upload.files.values())
        for sha in missing:
            what = contents.get(sha)
            if what is None:
                raise DeviceError(f"{self.address} answered with garbage: it asks for an unknown file")
            data = what if isinstance(what, bytes) else what.read_bytes()
            self._run(self._stream(data), max(silence_s, 600))
            self.uploaded_bytes += len(data)
        self._ready = True

    async def _stream(self, data: bytes) -> None:
        assert self._process is not None
        view = memoryview(data)
        try:
            for start in range(0, len(view), 1 << 18):
                if not self._lines.empty():
                    return  # it has said why it wants no more
                self._process.stdin.write(bytes(view[start : start + (1 << 18)]))
                await self._process.stdin.drain()
        except OSError:  # the reason is the next answer
            return

    def _answer(self, silence_s: float) -> dict[str, Any]:
        """The next answer of the remote program; what shells print at login is passed over."""
        while True:
            try:
                line = self.receive(silence_s)
            except TimeoutError as e:
                raise DeviceError(f"{self.address} said nothing for {silence_s:g} s and was given up") from e
            if line is None:
                raise self._no_program()
            if line.startswith(MARK):
                break
        try:
            answer = json.loads(line[len(MARK) :])
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise DeviceError(f"{self.address} answered with garbage")
        if "error" in answer:
            kind = UserError if answer.get("kind") == "user" else DeviceError
            raise kind(f"{self.address}: {answer['error']}")
        return answer

    def _no_program(self) -> RepedgeError:
        said = "; ".join(self._errors[-1:])
        status = self._process.exit_status if self._process else None
        python = self.address.python
        if said.startswith("python-too-old"):
            return UserError(
                f"{self.address} has Python {said.split()[-1]} as {python}, but 3.9 or newer is needed; "
                f"name another with --device-option python=PATH"
            )
        if status in (126, 127) or "not found" in said:
            return UserError(
                f"{self.address} has no {python}: install Python 3.9 or newer there, or name it with "
                f"--device-option python=PATH"
            )
        if self._lost:
            return DeviceError(f"{self.address}: {self._lost}")
        return DeviceError(f"{self.address}: the remote program ended early{f' ({said})' if said else ''}")
