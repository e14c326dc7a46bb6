"""repedge puts re-parameterizable CNNs on phones, edge boxes and GPU servers.

    import repedge
    report = repedge.compile("repvgg_a0", weights="a0.pth", targets=["tflite", "coreml"])

Names are loaded on first use, so that ``import repedge`` costs nothing.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from repedge.version import __version__

OLDEST = (3, 10)
"""Of Python; this file is in syntax that older ones read, too."""


def _require_python(version: tuple[int, ...], program: str) -> None:
    """One sentence for whoever starts repedge with an older Python.

    Raises:
        SystemExit: It is the program that was started.
        ImportError: It is imported.
    """
    if version[:2] >= OLDEST:
        return
    text = "repedge needs Python {}.{} or later; this is Python {}.{}".format(*OLDEST, *version[:2])
    if program == "-m" or os.path.basename(program).startswith("repedge"):
        sys.stderr.write("error: " + text + "\n")
        raise SystemExit(2)
    raise ImportError(text)


_require_python(tuple(sys.version_info[:2]), sys.argv[0] if getattr(sys, "argv", None) else "")

_NAMES = {
    "compare_bundles": "repedge.api",
    "compile": "repedge.api",
    "diagnose": "repedge.api",
    "doctor": "repedge.api",
    "evaluate": "repedge.api",
    "inspect": "repedge.api",
    "verify": "repedge.api",
    "Budget": "repedge.compiler.budget",
    "Bundle": "repedge.bundle.folder",
    "Calibration": "repedge.compiler.quantization",
    "Check": "repedge.compiler.request",
    "Preprocess": "repedge.config",
    "RepedgeError": "repedge.errors",
    "SupportSet": "repedge.judge.support_set",
}
_ROOMS = ("devices", "profile", "ship")
__all__ = [
    "Budget",
    "Bundle",
    "Calibration",
    "Check",
    "Preprocess",
    "RepedgeError",
    "SupportSet",
    "__version__",
    "compare_bundles",
    "compile",
    "devices",
    "diagnose",
    "doctor",
    "evaluate",
    "inspect",
    "profile",
    "ship",
    "verify",
]

if TYPE_CHECKING:
    from repedge import devices, profile, ship
    from repedge.api import compare_bundles, compile, diagnose, doctor, evaluate, inspect, verify
    from repedge.bundle.folder import Bundle
    from repedge.compiler.budget import Budget
    from repedge.compiler.quantization import Calibration
    from repedge.compiler.request import Check
    from repedge.config import Preprocess
    from repedge.errors import RepedgeError
    from repedge.judge.support_set import SupportSet


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"repedge.{name}")
    if name not in _NAMES:
        raise AttributeError(f"module 'repedge' has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
