"""repedge puts re-parameterizable CNNs on phones, edge boxes and GPU servers.

    import repedge
    report = repedge.compile("repvgg_a0", weights="a0.pth", targets=["tflite", "coreml"])

Names are loaded on first use, so that ``import repedge`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "compare_bundles": "repedge.api",
    "compile": "repedge.api",
    "diagnose": "repedge.api",
    "doctor": "repedge.api",
    "evaluate": "repedge.api",
    "inspect": "repedge.api",
    "verify": "repedge.api",
    "Bundle": "repedge.bundle",
    "Preprocess": "repedge.config",
    "RepedgeError": "repedge.errors",
}
__all__ = [
    "Bundle",
    "Preprocess",
    "RepedgeError",
    "__version__",
    "compare_bundles",
    "compile",
    "diagnose",
    "doctor",
    "evaluate",
    "inspect",
    "verify",
]

if TYPE_CHECKING:
    from repedge.api import compare_bundles, compile, diagnose, doctor, evaluate, inspect, verify
    from repedge.bundle import Bundle
    from repedge.config import Preprocess
    from repedge.errors import RepedgeError


def __getattr__(name: str) -> Any:
    if name in ("devices", "profile"):
        return importlib.import_module(f"repedge.{name}")
    if name not in _NAMES:
        raise AttributeError(f"module 'repedge' has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)
