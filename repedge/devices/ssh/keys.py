"""Host keys: known or refused. The one way to add a key is to name its fingerprint."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repedge.errors import UserError

if TYPE_CHECKING:
    import asyncssh

FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")


def fingerprint(text: str) -> str:
    """A fingerprint as OpenSSH prints it (``ssh-keygen -lf KEY``), checked.

    Raises:
        UserError: It is no SHA-256 fingerprint.
    """
    text = text.strip().rstrip("=")
    if not FINGERPRINT.fullmatch(text):
        raise UserError(
            "--accept-host-key takes a fingerprint such as SHA256:... (43 letters and digits), as printed on "
            "the device by: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"
        )
    return text


@dataclass
class HostKeys:
    """The known hosts of this user, and the verdict on the key that a host showed.

    Attributes:
        path: The file that keys are added to (``~/.ssh/known_hosts``).
        system: A second file that is only read.
        accept: Fingerprint that may be added, or empty.
        refusal: Why the key was refused, in one sentence; empty before and if it was not.
    """

    path: Path
    system: Path = Path("/etc/ssh/ssh_known_hosts")
    accept: str = ""
    refusal: str = field(default="", init=False)

    def load(self) -> asyncssh.SSHKnownHosts:
        """The known keys.

        Raises:
            UserError: A file can't be read.
        """
        import asyncssh

        text = ""
        for path in (self.path, self.system):
            try:
                text += path.read_text(encoding="utf-8", errors="replace") + "\n" if path.exists() else ""
            except OSError as e:
                raise UserError(f"the known SSH hosts in {path} can't be read: {e.strerror}") from e
        try:
            return asyncssh.import_known_hosts(text)
        except ValueError as e:
            raise UserError(f"{self.path} is damaged: {e}") from e

    def client(self) -> type[asyncssh.SSHClient]:
        """A client class that asks `judge` about every key that is not known."""
        import asyncssh

        keys = self

        class Client(asyncssh.SSHClient):
            def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
                return keys.judge(host, addr, port, key)

        return Client

    def judge(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Whether a key that is not known may be added; it is, if so."""
        shown = key.get_fingerprint()
        kind = key.get_algorithm().removeprefix("ssh-")
        name, address = (host, addr) if port == 22 else (f"[{host}]:{port}", f"[{addr}]:{port}")
        known = self.load()
        if known.match(name, "", None)[0] or known.match(address, "", None)[0]:
            self.refusal = (
                f"THE HOST KEY OF {name} HAS CHANGED: it now shows {shown} ({kind}), which is not the key in "
                f"{self.path}; someone may be listening in, so nothing was sent; if the device was set up "
                f"anew, remove the old key first: ssh-keygen -f {self.path} -R '{name}'"
            )
            return False
        if shown == self.accept:
            self._add(name, key)
            return True
        if self.accept:
            self.refusal = f"the host key of {name} is {shown} ({kind}), not the one to accept, {self.accept}"
            return False
        self.refusal = (
            f"the host key of {name} is not known: {shown} ({kind}); compare it with the one printed on the "
            f"device by 'ssh-keygen -lf /etc/ssh/ssh_host_{kind}_key.pub', then add --accept-host-key {shown}"
        )
        return False

    def _add(self, name: str, key: asyncssh.SSHKey) -> None:
        kind, data = key.export_public_key("openssh").decode().split()[:2]
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            old = self.path.read_bytes() if self.path.exists() else b""
            with self.path.open("ab") as f:
                f.write(
                    (b"\n" if old and not old.endswith(b"\n") else b"") + f"{name} {kind} {data}\n".encode()
                )
            if not old:
                self.path.chmod(0o600)
        except OSError as e:
            raise UserError(f"the host key can't be added to {self.path}: {e.strerror}") from e


def user_hosts(config: Path) -> list[tuple[str, dict[str, Any]]]:
    """Hosts named in an OpenSSH client configuration (no patterns): alias -> its settings."""
    try:
        lines = config.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    hosts: list[tuple[str, dict[str, Any]]] = []
    current: list[dict[str, Any]] = []
    for line in lines:
        key, _, value = line.strip().replace("=", " ", 1).partition(" ")
        if key.lower() == "host":
            plain = [name for name in value.split() if not set(name) & set("*?!")]
            current = [{} for _ in plain]
            hosts += list(zip(plain, current, strict=True))
        elif key.lower() == "match":
            current = []
        else:
            for settings in current:
                settings.setdefault(key.lower(), value.strip())
    return hosts
