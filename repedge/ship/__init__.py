"""Packages that drop into an iOS, Android, C++ or Python app and prove themselves there.

from repedge.ship import ship
ship(["build/repvit_demo-tflite-fp32"], to="python", out="repvit_py")
"""

from __future__ import annotations

from repedge.ship.package import Shipped, ship
from repedge.ship.platforms import PLATFORMS, Platform

__all__ = ["PLATFORMS", "Platform", "Shipped", "ship"]
