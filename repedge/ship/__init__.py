"""Packages that drop into an iOS, Android, C++ or Python app and prove themselves there.

import repedge
repedge.ship(["build/repvit_demo-tflite-fp32"], to="python", out="repvit_py")

The room is its own verb: called, it is `repedge.ship.package.ship`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from repedge.ship.package import Shipped, ship
from repedge.ship.platforms import PLATFORMS, Platform

__all__ = ["PLATFORMS", "Platform", "Shipped", "ship"]


class _Verb(ModuleType):
    """The module, callable."""

    def __call__(
        self,
        bundles: Sequence[Path | str],
        to: str,
        out: Path | str,
        *,
        name: str | None = None,
        force: bool = False,
        allow_unverified: bool = False,
    ) -> Shipped:
        """See `repedge.ship.package.ship`."""
        return ship(bundles, to, out, name=name, force=force, allow_unverified=allow_unverified)


sys.modules[__name__].__class__ = _Verb
