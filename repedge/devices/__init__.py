"""Devices: places where an artifact can be measured, each behind a URI.

A device is one class in one file, listed in ``DEVICES`` of ``repedge.devices.base`` or in the
entry-point group ``repedge.devices`` of another package. ``agent`` is what runs there.

Names are loaded on first use: the agent imports this package on machines that have little else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repedge.devices.base import (
        DEVICES,
        Device,
        DeviceURI,
        Listed,
        Session,
        get,
        get_all,
        load_class,
        parse,
        schemes,
    )

__all__ = [
    "DEVICES",
    "Device",
    "DeviceURI",
    "Listed",
    "Session",
    "get",
    "get_all",
    "load_class",
    "parse",
    "schemes",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'repedge.devices' has no attribute {name!r}")
    return getattr(importlib.import_module("repedge.devices.base"), name)
