"""One file (or a few) per target; look one up with `get`."""

from __future__ import annotations

import difflib
import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from repedge.errors import UserError

if TYPE_CHECKING:
    from repedge.targets.base import Target

TARGETS = {
    "coreml": "repedge.targets.coreml:CoreML",
    "tflite": "repedge.targets.tflite:TFLite",
    "openvino": "repedge.targets.openvino:OpenVINO",
    "gpu": "repedge.targets.gpu:GPU",
}


def names() -> list[str]:
    """Built-in targets first, then those that other packages registered."""
    extra = {e.name for e in entry_points(group="repedge.targets")} - TARGETS.keys()
    return [*TARGETS, *sorted(extra)]


def get(name: str) -> Target:
    """The target called ``name``.

    Raises:
        UserError: There is no such target.
    """
    if name in TARGETS:
        module, _, cls = TARGETS[name].partition(":")
        return getattr(importlib.import_module(module), cls)()
    for entry in entry_points(group="repedge.targets"):
        if entry.name == name:
            return entry.load()()
    close = difflib.get_close_matches(name.lower(), names(), n=1)
    hint = f"did you mean {close[0]}? There are " if close else "there are "
    raise UserError(f"there is no target {name!r}; {hint}{', '.join(names())}")
