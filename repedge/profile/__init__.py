"""Latency on the device: one protocol, numbers that can be compared.

with repedge.profile.hook(model) as timeline:   # every layer of a torch module, or op of an artifact
    model(x)

result = repedge.profile.measure("build/repvit_demo-tflite-fp32")    # what `repedge profile` does
report = repedge.profile.compare(["build/a", "build/b"])             # interleaved run by run

Names are loaded on first use: the agent imports this package on machines that have little else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_NAMES = {
    "compare": "repedge.profile.measure",
    "hook": "repedge.profile.hooks",
    "measure": "repedge.profile.measure",
    "predict": "repedge.profile.predict",
    "stopwatch": "repedge.profile.hooks",
}
__all__ = ["compare", "hook", "measure", "predict", "stopwatch"]

if TYPE_CHECKING:
    from repedge.profile.hooks import hook, stopwatch
    from repedge.profile.measure import compare, measure
    from repedge.profile.predict import predict


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'repedge.profile' has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)
