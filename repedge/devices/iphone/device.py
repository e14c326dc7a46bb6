"""``iphone://UDID``: an iPhone cabled to this Mac, through coremltools' remote device.

From elsewhere: ``ssh://mac`` with ``--on iphone``, which runs the same agent on that Mac.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from repedge.devices.base import AgentSession, Device, DeviceURI, Listed, Session
from repedge.devices.protocol import ProfileRequest
from repedge.errors import UserError

CORE_ML = (".mlpackage", ".mlmodelc", ".mlmodel")
"""Endings of models that an iPhone runs."""


class IPhone(Device):
    """An iPhone on this Mac's cable."""

    scheme: ClassVar[str] = "iphone"
    title: ClassVar[str] = "an iPhone cabled to this Mac"
    example: ClassVar[str] = "iphone://00008110-000A1B2C3D4E5F60"
    options: ClassVar[Mapping[str, str]] = {"team": "Apple development team that signs the measuring app"}

    def __init__(self, uri: DeviceURI, options: Mapping[str, str]) -> None:
        super().__init__(uri, options)
        if not re.fullmatch(r"[0-9A-Za-z-]*", uri.rest):
            raise UserError(
                f"{uri} is no iPhone; write {self.example}, or 'iphone' for the only one connected"
            )

    def describe(self) -> str:
        """See `Device.describe`."""
        return f"iPhone {self.uri.rest}".rstrip()

    @classmethod
    def found(cls) -> Sequence[Listed]:
        """See `Device.found`."""
        return [Listed(f"iphone://{d.udid}", "ready", f"{d.name}, iOS {d.os_version}") for d in _connected()]

    def open(self, artifact: Path, request: ProfileRequest) -> Session:
        """See `Device.open`."""
        from repedge.devices.iphone import agent
        from repedge.devices.local import Subprocess

        if sys.platform != "darwin":
            raise UserError(
                "an iPhone is measured from the Mac it is cabled to, and this is no Mac: run repedge there, "
                "or use --device ssh://user@mac --on iphone from here"
            )
        require_core_ml(artifact, request)
        arguments = ["--udid", self.uri.rest, "--team", self.given.get("team", "")]
        transport = Subprocess([sys.executable, agent.__file__, *arguments])
        return AgentSession(transport, str(self.uri), request.timeout_s).start(
            str(artifact.resolve()), request
        )


def require_core_ml(artifact: Path, request: ProfileRequest) -> None:
    """Refuse what is no Core ML model.

    Raises:
        UserError: It is for another runtime.
    """
    if artifact.suffix not in CORE_ML:
        raise UserError(f"an iPhone runs Core ML models only, and {artifact.name} is for {request.runtime}")


def _connected() -> list[Any]:
    """The iPhones that are connected; none elsewhere than on a Mac with Xcode."""
    if sys.platform != "darwin":
        return []
    try:
        from coremltools.models.ml_program.experimental import remote_device

        return list(remote_device.Device.get_connected_devices(remote_device.DeviceType.IPHONE))
    except Exception:  # no Xcode, no permission: nothing to list, and listing never fails
        return []
