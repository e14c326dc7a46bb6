"""Importing openvino without its telemetry."""

from __future__ import annotations

import importlib
import sys
from typing import Any


def import_openvino() -> Any:
    """The openvino package.

    Its import sends an event to the vendor from a forked process; where ``openvino_telemetry`` can't be
    imported, openvino falls back to a stub of its own.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")
