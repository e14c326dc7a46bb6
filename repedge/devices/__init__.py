"""Devices: places where an artifact can be measured, each behind a URI.

A device is one class in one file, listed in ``DEVICES`` of ``repedge.devices.base`` or in the
entry-point group ``repedge.devices`` of another package.
"""

from __future__ import annotations

from repedge.devices.base import (
    DEVICES,
    Device,
    DeviceURI,
    Found,
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
    "Found",
    "Session",
    "get",
    "get_all",
    "load_class",
    "parse",
    "schemes",
]
