"""A real OpenSSH server on loopback for the tests: keys and port of its own, nothing of the system's used."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

SSHD = shutil.which("sshd") or next(
    (p for p in ("/usr/sbin/sshd", "/usr/libexec/sshd") if os.path.exists(p)), None
)


def keypair(path: Path) -> Path:
    """An ed25519 key pair without a passphrase."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def fingerprint(key: Path) -> str:
    """As ssh-keygen prints it."""
    shown = subprocess.run(
        ["ssh-keygen", "-lf", f"{key}.pub"], check=True, capture_output=True, text=True
    ).stdout
    return shown.split()[1]


def descendants(pid: int) -> list[int]:
    """Every process below one, from /proc."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found, pending = [], [pid]
    while pending:
        children = parents.get(pending.pop(), [])
        found += children
        pending += children
    return found


def command_of(pid: int) -> str:
    """Its command line; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@dataclass
class Server:
    """sshd under ``folder``, started by `start`."""

    folder: Path
    port: int = 0
    user: str = field(default_factory=getpass.getuser)
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"ssh://{self.user}@127.0.0.1:{self.port}"

    @property
    def cache(self) -> Path:
        """Where the device keeps uploads."""
        return self.folder / "cache" / "repedge-agent"

    @property
    def identity(self) -> Path:
        return self.folder / "user_key"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    def options(self, **more: str) -> dict[str, str]:
        """Device options that use this server's keys and this Python, which has the runtimes."""
        given = {
            "identity": str(self.identity),
            "known-hosts": str(self.known_hosts),
            "python": sys.executable,
        }
        return {**given, **more}

    def start(self) -> Server:
        keypair(self.folder / "host_key")
        keypair(self.identity)
        shutil.copy(f"{self.identity}.pub", self.folder / "authorized_keys")
        (self.folder / "cache").mkdir()
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.run(self.folder / "host_key")
        self.trust(self.folder / "host_key")
        return self

    def run(self, host_key: Path) -> None:
        """Start the daemon with a host key."""
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # a root sshd insists on it
        settings = {
            "ListenAddress": f"127.0.0.1:{self.port}",
            "HostKey": host_key,
            "AuthorizedKeysFile": self.folder / "authorized_keys",
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "PermitRootLogin": "prohibit-password",
            "PrintMotd": "no",
            "SetEnv": f"XDG_CACHE_HOME={self.folder / 'cache'}",
        }
        config = self.folder / "sshd_config"
        config.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
        log = (self.folder / "sshd.log").open("ab")
        self.process = subprocess.Popen(
            [str(SSHD), "-D", "-e", "-f", str(config)], stderr=log, stdin=subprocess.DEVNULL
        )
        log.close()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise RuntimeError(f"sshd does not start: {(self.folder / 'sshd.log').read_text()}")

    def trust(self, host_key: Path) -> None:
        kind, data = Path(f"{host_key}.pub").read_text().split()[:2]
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {kind} {data}\n")

    def sessions(self) -> list[int]:
        """The sshd processes that serve connections."""
        assert self.process is not None
        return [p for p in descendants(self.process.pid) if command_of(p).startswith("sshd")]

    def children(self) -> list[int]:
        """What runs for the connections: shells, Python."""
        assert self.process is not None
        return [p for p in descendants(self.process.pid) if not command_of(p).startswith("sshd")]

    def cut(self) -> None:
        """Kill what serves the connections, as a network that goes away would look to the device."""
        for pid in self.sessions():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """End the daemon and its connections."""
        if self.process is not None:
            self.cut()
            self.process.kill()
            self.process.wait()
            self.process = None
