"""Latency on the device: one protocol, numbers that can be compared.

with repedge.profile.hook(model) as timeline:   # every layer of a torch module, or op of an artifact
    model(x)

result = repedge.profile("build/repvit_demo-tflite-fp32")    # what `repedge profile` does
report = repedge.profile("build/a", "build/b")               # interleaved run by run

The room is its own verb: called with one artifact it is `repedge.profile.measure.measure`, with several (or
several devices) `repedge.profile.measure.compare`.

Names are loaded on first use: the agent imports this package on machines that have little else.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
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


class _Verb(ModuleType):
    """The module, callable."""

    def __call__(
        self,
        *artifacts: str | Path | Iterable[str | Path],
        device: str | Iterable[str] = "local",
        **options: Any,
    ) -> Any:
        """One artifact on one device: its profile; several: their comparison.

        Args:
            artifacts: Bundles, artifact files or models.
            device: Where; see ``repedge devices``.
            options: See `repedge.profile.measure.measure` and `repedge.profile.measure.compare`.
        """
        from repedge.profile.measure import compare, measure

        whats = [what for given in artifacts for what in _several(given)]
        where = _several(device)
        if len(whats) == len(where) == 1:
            return measure(whats[0], device=str(where[0]), **options)
        return compare(whats, devices_=[str(one) for one in where], **options)


def _several(given: str | Path | Iterable[Any]) -> list[Any]:
    return [given] if isinstance(given, (str, Path)) else list(given)


sys.modules[__name__].__class__ = _Verb
