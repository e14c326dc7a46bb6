"""An adb server for the tests: speaks the host protocol and sync on a socket, its phones are scripted.

Written from the protocol's own description (OVERVIEW.TXT, SERVICES.TXT and SYNC.TXT of Android's adb).
"""

from __future__ import annotations

import hashlib
import re
import shlex
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

Program = Callable[[list[str]], "str | Hang | Cut"]


@dataclass
class Hang:
    """The program prints this and goes on for ever."""

    text: str = ""


@dataclass
class Cut:
    """The cable is pulled after this."""

    text: str = ""


@dataclass
class Phone:
    """A scripted phone: its files, and what running a program prints."""

    serial: str
    state: str = "device"
    program: Program = lambda arguments: ""
    files: dict[str, bytes] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    room: int = 1 << 30
    ran: list[list[str]] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    pushed: int = 0

    def command(self, line: str) -> tuple[int, str]:
        """Exit status and output of one of the commands that repedge uses."""
        words = shlex.split(line.replace(" 2>/dev/null", ""))
        match words[0]:
            case "sha256sum":
                data = self.files.get(words[1])
                if data is None:
                    return 1, f"sha256sum: {words[1]}: No such file or directory\n"
                return 0, f"{hashlib.sha256(data).hexdigest()}  {words[1]}\n"
            case "mv":
                self.files[words[2]] = self.files.pop(words[1])
                self.modes[words[2]] = self.modes.pop(words[1])
            case "rm":
                for path in words[1:]:
                    self.files.pop(path, None)
            case "kill":
                self.killed.append(words[2])
            case "getprop":
                known = {"ro.product.manufacturer": "Acme", "ro.product.model": "P1", "ro.soc.model": "X9"}
                return 0, known.get(words[1], "14") + "\n"
            case "nproc":
                return 0, "8\n"
            case "mkdir" | "touch" | "find" | "rmdir":
                pass
            case _:
                return 127, f"/system/bin/sh: {words[0]}: inaccessible or not found\n"
        return 0, ""

    def shell(self, line: str) -> str | Hang | Cut:
        """What a whole ``shell:`` line prints."""
        line, _, exit_marker = line.rpartition("; echo ")
        if started := re.match(r"sh -c (.*) 2>&1$", line, re.S):
            inner = shlex.split(started[1])[0]
            arguments = shlex.split(inner.partition("exec ")[2])
            self.ran.append(arguments)
            printed = self.program(arguments)
            head = "repedge-pid:4321\n"
            if isinstance(printed, Hang | Cut):
                return type(printed)(head + printed.text)
            return head + printed + "repedge-exit:0\n"
        status, output = 0, ""
        for part in line.split("; "):
            status, text = self.command(part)
            output += text
        return output + exit_marker.replace("$?", str(status)) + "\n"


class AdbServer:
    """Serves `phones` on a free port of loopback."""

    def __init__(self, phones: list[Phone]) -> None:
        self.phones = {phone.serial: phone for phone in phones}
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                try:
                    Conversation(self.request, outer.phones).serve()
                except (ConnectionError, EOFError):
                    return

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


class Conversation:
    """One connection: requests to the host, then, after a transport was chosen, to the phone."""

    def __init__(self, connection: socket.socket, phones: dict[str, Phone]) -> None:
        self._socket, self._phones = connection, phones

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            chunk = self._socket.recv(count - len(data))
            if not chunk:
                raise EOFError
            data += chunk
        return data

    def _okay(self, text: str | None = None) -> None:
        block = b"" if text is None else f"{len(text):04x}{text}".encode()
        self._socket.sendall(b"OKAY" + block)

    def _fail(self, text: str) -> None:
        self._socket.sendall(f"FAIL{len(text):04x}{text}".encode())

    def serve(self) -> None:
        phone: Phone | None = None
        while True:
            request = self._read(int(self._read(4), 16)).decode()
            if request == "host:version":
                self._okay("0029")  # 41
            elif request.startswith("host:devices"):
                rows = [f"{p.serial}\t{p.state} model:P_1\n" for p in self._phones.values()]
                if request == "host:devices":
                    rows = [f"{p.serial}\t{p.state}\n" for p in self._phones.values()]
                self._okay("".join(rows))
            elif request.startswith("host:tport:serial:"):
                serial = request.split(":", 3)[3]
                phone = self._phones.get(serial)
                if phone is None:
                    return self._fail(f"device '{serial}' not found")
                self._okay()
                self._socket.sendall(struct.pack("<Q", 1))
                continue
            elif phone is not None and request.startswith("shell:"):
                self._okay()
                return self._shell(phone, request[len("shell:") :])
            elif phone is not None and request == "sync:":
                self._okay()
                return self._sync(phone)
            else:
                return self._fail(f"unknown service {request}")
            return None

    def _shell(self, phone: Phone, line: str) -> None:
        printed = phone.shell(line)
        if isinstance(printed, str):
            self._socket.sendall(printed.encode())
            return
        self._socket.sendall(printed.text.encode())
        if isinstance(printed, Hang):
            time.sleep(30)  # the other side gives up long before
        else:
            del self._phones[phone.serial]

    def _sync(self, phone: Phone) -> None:
        while True:
            kind, size = struct.unpack("<4sI", self._read(8))
            argument = self._read(size).decode() if kind != b"QUIT" else ""
            if kind == b"STAT":
                data = phone.files.get(argument)
                mode = 0 if data is None else 0o100000 | phone.modes[argument]
                self._socket.sendall(struct.pack("<4sIII", b"STAT", mode, len(data or b""), 0))
            elif kind == b"SEND":
                self._receive(phone, *argument.rsplit(",", 1))
            else:
                return

    def _receive(self, phone: Phone, path: str, mode: str) -> None:
        data = b""
        while True:
            kind, size = struct.unpack("<4sI", self._read(8))
            if kind == b"DONE":
                break
            data += self._read(size)
        if sum(map(len, phone.files.values())) + len(data) > phone.room:
            text = b"couldn't write: No space left on device"
            self._socket.sendall(struct.pack("<4sI", b"FAIL", len(text)) + text)
            return
        phone.files[path], phone.modes[path] = data, int(mode) & 0o777
        phone.pushed += len(data)
        self._socket.sendall(struct.pack("<4sI", b"OKAY", 0))
