"""``ssh://user@host[:port]``: a board, a server or a Mac over SSH.

Nothing is installed there but Python and a runtime.

The agent and the artifact are uploaded once (``~/.cache/repedge-agent`` there, by hash) and run in a
folder that is removed afterwards, also when the connection is cut. Timing happens on the device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from repedge.devices.base import AgentSession, Device, DeviceURI, Listed, Session
from repedge.devices.iphone.device import require_core_ml
from repedge.devices.protocol import EngineRef, ProfileRequest
from repedge.devices.ssh.keys import HostKeys, fingerprint, user_hosts
from repedge.devices.ssh.link import Address, Link, Upload
from repedge.errors import MissingExtra, UserError
from repedge.hashing import sha256

KEEP_BYTES = 2 << 30  # the cache on the device forgets what was used longest ago beyond this


class SSH(Device):
    """A machine reached over SSH."""

    scheme: ClassVar[str] = "ssh"
    title: ClassVar[str] = "a board, server or Mac over SSH"
    example: ClassVar[str] = "ssh://pi@raspberrypi.local"
    options: ClassVar[Mapping[str, str]] = {
        "accept-host-key": "add the host's key to the known ones, if it has this SHA256 fingerprint",
        "identity": "private key file; without it, the SSH agent and the usual files",
        "python": "Python 3.9 or newer on the device (python3)",
        "known-hosts": "file of known host keys (~/.ssh/known_hosts)",
        "cache": "keep: uploads are kept on the device for the next time (the default); no: nothing stays",
        "on": "iphone or iphone:UDID, for an iPhone cabled to that Mac",
        "team": "Apple development team that signs the measuring app, for --on iphone",
    }

    def __init__(self, uri: DeviceURI, options: Mapping[str, str]) -> None:
        super().__init__(uri, options)
        self.address = _address(uri, options)
        hosts = Path(options.get("known-hosts") or "~/.ssh/known_hosts").expanduser()
        accept = fingerprint(options["accept-host-key"]) if "accept-host-key" in options else ""
        self.keys = HostKeys(hosts, accept=accept)
        if options.get("cache", "keep") not in ("keep", "no"):
            raise UserError(f"the option cache is 'keep' or 'no', but got {options['cache']!r}")
        self.phone = _phone(options)

    def describe(self) -> str:
        """See `Device.describe`."""
        return f"{'an iPhone on ' if self.phone is not None else ''}{self.address.host} over SSH"

    @classmethod
    def found(cls) -> Sequence[Listed]:
        """Hosts named in ``~/.ssh/config``; none is contacted. See `Device.found`."""
        hosts = user_hosts(Path("~/.ssh/config").expanduser())
        return [Listed(f"ssh://{name}", "not tried", str(s.get("hostname", "")) or name) for name, s in hosts]

    def probe(self, modules: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
        """What the machine has: ``{"python": version, "runtimes": {module: version}}``; raises as `open`.

        Args:
            modules: Module -> distribution of the runtimes to look for.
        """
        link = _link(self.address, self.keys)
        try:
            answer = link.start({"do": "probe", "runtimes": dict(modules)}, None, 30)
        finally:
            link.close()
        return {"python": str(answer.get("python", "")), "runtimes": dict(answer.get("runtimes", {}))}

    def open(self, artifact: Path, request: ProfileRequest) -> Session:
        """See `Device.open`."""
        if request.runtime == "torch":
            raise UserError(f"torch modules are measured on 'local' only, not on {self.address}")
        if self.phone is not None:
            require_core_ml(artifact, request)
        upload, request = self._upload(artifact, request)
        link = _link(self.address, self.keys)
        answer = link.start({"do": "run", **upload.header}, upload, request.timeout_s)
        if request.samples is not None:
            there = request.samples.model_copy(update={"path": str(answer.get("samples", ""))})
            request = request.model_copy(update={"samples": there})
        session = SSHSession(link, str(self.address), request.timeout_s)
        session.start(str(answer.get("artifact", "")), request)
        return session

    def _upload(self, artifact: Path, request: ProfileRequest) -> tuple[Upload, ProfileRequest]:
        engine = request.engine
        agent = agent_file(self.phone is not None, engine)
        files: dict[str, tuple[str, Path | bytes]] = {"agent.pyz": (hashlib.sha256(agent).hexdigest(), agent)}
        for name in request.files or (artifact.name,):
            files[f"artifact/{name}"] = (sha256(artifact.parent / name), artifact.parent / name)
        if request.samples is not None:
            samples = Path(request.samples.path)
            files["samples"] = (sha256(samples), samples)
        header = {
            "runtimes": {module: module.replace("_", "-") for module in engine.needs},
            "needs": list(engine.needs),
            "package": engine.package,
            "keep_bytes": 0 if self.given.get("cache") == "no" else KEEP_BYTES,
            "artifact": f"artifact/{artifact.name}",
            "samples": "samples",
            "agent": "agent.pyz",
            "arguments": []
            if self.phone is None
            else ["--udid", self.phone, "--team", self.given.get("team", "")],
        }
        return Upload(files, header), request


class SSHSession(AgentSession):
    """An `AgentSession` that knows what it sent."""

    @property
    def uploaded_bytes(self) -> int:
        """Bytes of files that the device did not have yet."""
        assert isinstance(self.transport, Link)
        return self.transport.uploaded_bytes


def _link(address: Address, keys: HostKeys) -> Link:
    try:
        import asyncssh  # noqa: F401 - the link needs it
    except ImportError as e:
        raise MissingExtra("asyncssh", "devices", "measuring over SSH") from e
    return Link(address, keys)


def _address(uri: DeviceURI, options: Mapping[str, str]) -> Address:
    form = "write ssh://user@host or ssh://user@host:port"
    try:
        parts = urlsplit(f"ssh://{uri.rest}")
        port = parts.port
    except ValueError as e:
        raise UserError(f"the SSH device's address is malformed; {form}") from e
    if parts.password is not None:  # not repeated in the message, nor is the rest
        raise UserError("a password does not belong in a device's address; use an SSH key or ssh-agent")
    if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment or port == 0:
        raise UserError(f"{uri} is no SSH device; {form}")
    user = unquote(parts.username) if parts.username else None
    identity = options.get("identity", "")
    if identity and not Path(identity).expanduser().is_file():
        raise UserError(f"there is no private key at {identity}")
    python = options.get("python") or "python3"
    return Address(parts.hostname, port, user, str(Path(identity).expanduser()) if identity else "", python)


def _phone(options: Mapping[str, str]) -> str | None:
    """The UDID of the iPhone asked for, empty for whichever is there; None: none is asked for."""
    if "on" not in options:
        return None
    kind, _, udid = options["on"].partition(":")
    if kind != "iphone":
        raise UserError(f"--on takes iphone or iphone:UDID, but got {options['on']!r}")
    return udid


def agent_file(phone: bool, engine: EngineRef) -> bytes:
    """The agent as one file for the remote Python: the usual one, or the one for a cabled iPhone."""
    if phone:
        from repedge.devices.iphone import agent

        return Path(agent.__file__).read_bytes()
    from repedge.devices import pack

    return pack.agent_bytes([engine.agent.partition(":")[0], *engine.modules])
