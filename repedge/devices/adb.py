"""``adb://SERIAL``: an Android phone (under construction in this commit's successor)."""

from __future__ import annotations

from typing import ClassVar

from repedge.devices.base import Device


class ADB(Device):
    """An Android phone."""

    scheme: ClassVar[str] = "adb"
    title: ClassVar[str] = "an Android phone over adb"
    example: ClassVar[str] = "adb://R58M12ABCDE"

    def describe(self) -> str:
        """See `Device.describe`."""
        return "an Android phone"
