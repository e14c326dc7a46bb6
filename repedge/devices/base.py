"""What a device is: one small class that opens an artifact and measures it where it runs.

Two ways to write one. A device with Python on it hands a `Transport` to `AgentSession`, and the agent
(``repedge.devices.agent``) does the rest. Any other device overrides `Device.profile` alone and sets
``live = False``.
"""

from __future__ import annotations

import difflib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import ValidationError

from repedge.devices.protocol import ProfileRequest, RawProfile
from repedge.errors import DeviceError, RepedgeError, UserError


@dataclass(frozen=True)
class DeviceURI:
    """``SCHEME://REST``, or the scheme alone (``local``)."""

    scheme: str
    rest: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.rest}" if self.rest else self.scheme


@dataclass(frozen=True)
class Listed:
    """One line of ``repedge devices``.

    Attributes:
        uri: What to pass as ``--device``.
        state: ``ready``, or why it is not, in a few words.
        note: What it is.
    """

    uri: str
    state: str
    note: str = ""


class Session(AbstractContextManager["Session"], ABC):
    """A loaded artifact on a device. Leaving the context ends its process and removes what was copied."""

    @abstractmethod
    def warm(self) -> None:
        """Run untimed, as the request says, until the times are stable.

        Raises:
            DeviceError: The runtime failed, fell silent or died.
        """

    @abstractmethod
    def time(self, runs: int, prime: int = 0) -> list[float]:
        """Milliseconds of ``runs`` runs, each after ``prime`` untimed ones; raises as `warm`."""

    @abstractmethod
    def finish(self) -> RawProfile:
        """Everything measured so far, with per-operator times if the request asks; raises as `warm`."""


class Device(ABC):
    """A place where artifacts run. Class attributes are the description."""

    scheme: ClassVar[str]
    title: ClassVar[str]
    example: ClassVar[str]
    """A complete URI, for help and error messages."""
    options: ClassVar[Mapping[str, str]] = {}
    """Options of this device (``--device-option NAME=VALUE``): name -> one line of help."""
    live: ClassVar[bool] = True
    """Whether `open` gives sessions that can be interleaved run by run."""

    def __init__(self, uri: DeviceURI, options: Mapping[str, str]) -> None:
        self.uri = uri
        self.given = options

    @abstractmethod
    def describe(self) -> str:
        """What it is, in a few words, without connecting."""

    @classmethod
    def found(cls) -> Sequence[Listed]:
        """Devices of this kind that can be seen from here; quick, and never an error."""
        return ()

    def open(self, artifact: Path, request: ProfileRequest) -> Session:
        """Load an artifact there.

        Raises:
            UserError: The device has no runtime for the artifact, or the runtime refuses it.
            DeviceError: The device can't be reached or fails.
        """
        raise UserError(f"{self.uri.scheme} devices measure whole runs only and can't be interleaved")

    def profile(self, artifact: Path, request: ProfileRequest) -> RawProfile:
        """Measure an artifact by the one protocol: load, first run, warm-up, timed runs; raises as `open`."""
        with self.open(artifact, request) as session:
            session.warm()
            session.time(request.runs)
            return session.finish()


# Every scheme, its module and class; another package adds one in the entry-point group
# ``repedge.devices`` (name = scheme, object = the class).
DEVICES: dict[str, str] = {
    "local": "repedge.devices.local:Local",
    "ssh": "repedge.devices.ssh.device:SSH",
    "adb": "repedge.devices.adb.device:ADB",
    "iphone": "repedge.devices.iphone.device:IPhone",
    "aihub": "repedge.devices.aihub:AIHub",
}
GROUP = "repedge.devices"


def schemes() -> list[str]:
    """Every scheme, the built-in ones first."""
    from importlib.metadata import entry_points

    others = sorted(e.name for e in entry_points(group=GROUP) if e.name not in DEVICES)
    return [*DEVICES, *others]


def load_class(scheme: str) -> type[Device]:
    """The class of a scheme.

    Raises:
        UserError: It is unknown, or its plug-in is broken.
    """
    import importlib
    from importlib.metadata import entry_points

    if scheme in DEVICES:
        module, _, name = DEVICES[scheme].partition(":")
        found: type[Device] = getattr(importlib.import_module(module), name)
        return found
    for entry in entry_points(group=GROUP):
        if entry.name == scheme:
            try:
                loaded = entry.load()
            except Exception as e:  # a plug-in may fail in any way
                raise UserError(f"the device plug-in {entry.value} does not load: {e}") from e
            if not (isinstance(loaded, type) and issubclass(loaded, Device)):
                raise UserError(f"the device plug-in {entry.value} is not a repedge.devices.Device")
            return loaded
    raise _unknown(scheme)


def parse(text: str) -> DeviceURI:
    """Read a device's URI.

    Raises:
        UserError: Malformed or of an unknown scheme, with a did-you-mean.
    """
    match = re.fullmatch(r"(?P<scheme>[A-Za-z][A-Za-z0-9_+.-]*)(?:://(?P<rest>.*))?", text.strip())
    if match is None:
        bad = text if text.isprintable() else ascii(text)
        raise UserError(f"{bad!r} is no device: write one of {', '.join(_examples())}")
    scheme, rest = match["scheme"].lower(), match["rest"] or ""
    if scheme not in schemes():
        raise _unknown(scheme)
    return DeviceURI(scheme, rest)


def get(text: str, options: Mapping[str, str] | None = None) -> Device:
    """The device that a URI names.

    Raises:
        UserError: The URI or an option is wrong.
    """
    return get_all([text], options)[0]


def get_all(texts: Sequence[str], options: Mapping[str, str] | None = None) -> list[Device]:
    """The devices that several URIs name; each is given the options that its kind takes.

    Raises:
        UserError: A URI is wrong, or none of the devices takes an option.
    """
    uris = [parse(text) for text in texts]
    classes = [load_class(uri.scheme) for uri in uris]
    known = list(dict.fromkeys(name for cls in classes for name in cls.options))
    options = dict(options or {})
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known) or 'none'}"
            schemes_ = " and ".join(dict.fromkeys(uri.scheme for uri in uris))
            raise UserError(f"{schemes_} devices have no option {name!r}; {hint}")
    return [
        cls(uri, {k: v for k, v in options.items() if k in cls.options})
        for cls, uri in zip(classes, uris, strict=True)
    ]


def _unknown(scheme: str) -> UserError:
    close = difflib.get_close_matches(scheme, schemes(), n=1, cutoff=0.5)
    hint = f"did you mean {load_class(close[0]).example}?" if close else f"write {', '.join(_examples())}"
    return UserError(f"there is no device {scheme!r}; {hint}")


def _examples() -> list[str]:
    return [load_class(scheme).example for scheme in DEVICES]


class Transport(Protocol):
    """Lines to and from a running agent."""

    def send(self, line: str) -> None:
        """Write one line (without its end).

        Raises:
            DeviceError: The agent is gone.
        """

    def receive(self, timeout: float) -> str | None:
        """The next line of the agent's stdout; None at its end.

        Raises:
            TimeoutError: Nothing for that many seconds.
        """

    def trouble(self) -> str:
        """The end of stderr and how the process ended, for the error message; may be empty."""

    def close(self) -> None:
        """End the process and remove what was copied; called once, also after errors."""


MARK = "@repedge "
"""Begins the lines that are the agent's own; shells and runtimes may print others."""
_MAX_LINE = 64 << 20


@dataclass
class AgentSession(Session):
    """A `Session` with the agent at the other end of a transport.

    Attributes:
        transport: Lines to and from the agent, already started.
        place: The device's name for error messages.
        timeout_s: Longest silence.
    """

    transport: Transport
    place: str
    timeout_s: float
    _stray: list[str] = field(default_factory=list)

    def start(self, artifact: str, request: ProfileRequest) -> AgentSession:
        """Have the agent load ``artifact`` (a path on its machine); closes the transport on failure."""
        try:
            self.ask("open", artifact=artifact, request=request.model_dump(mode="json"))
        except BaseException:
            self.transport.close()
            raise
        return self

    def warm(self) -> None:
        """See `Session.warm`."""
        self.ask("warm")

    def time(self, runs: int, prime: int = 0) -> list[float]:
        """See `Session.time`."""
        answer = self.ask("time", runs=runs, prime=prime).get("samples_ms")
        good = isinstance(answer, list) and len(answer) == runs and all(_positive(x) for x in answer)
        if not good or not isinstance(answer, list):
            raise DeviceError(f"{self.place} answered with garbage instead of {runs} times: {_short(answer)}")
        return [float(x) for x in answer]

    def finish(self) -> RawProfile:
        """See `Session.finish`."""
        try:
            return RawProfile.model_validate(self.ask("finish").get("profile"))
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(map(str, first["loc"])) or "profile"
            raise DeviceError(f"{self.place} answered with garbage: {where}: {first['msg']}") from e

    def __exit__(self, *error: object) -> None:
        self.transport.close()

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        """One command and its answer.

        Raises:
            UserError: The agent says that the request can't be met there.
            DeviceError: The runtime failed, or the agent fell silent, died or answered garbage.
        """
        self.transport.send(json.dumps({"do": do, **more}, allow_nan=False))
        while True:
            answer = self._next()
            if "progress" not in answer:
                break
        if "error" in answer:
            kind: type[RepedgeError] = UserError if answer.get("kind") == "user" else DeviceError
            raise kind(f"{self.place}: {_short(answer['error'], 600)}")
        return answer

    def _next(self) -> dict[str, Any]:
        while True:
            try:
                line = self.transport.receive(self.timeout_s)
            except TimeoutError as e:
                raise DeviceError(
                    f"{self.place} said nothing for {self.timeout_s:g} s and was given up (--timeout)"
                ) from e
            if line is None:
                said = self.transport.trouble() or " ".join(self._stray[-3:])
                raise DeviceError(f"the profiling process on {self.place} ended early{_because(said)}")
            if not line.startswith(MARK):
                self._stray = [*self._stray[-9:], line[:200]]
                continue
            try:
                answer = json.loads(line[len(MARK) :]) if len(line) <= _MAX_LINE else None
            except ValueError:
                answer = None
            if not isinstance(answer, dict):
                raise DeviceError(f"{self.place} answered with garbage: {_short(line)}")
            return answer


def _positive(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < 1e9


def _short(value: object, limit: int = 120) -> str:
    text = " ".join(str(value).split())
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _because(said: str) -> str:
    return f" ({_short(said, 300)})" if said.strip() else ""
