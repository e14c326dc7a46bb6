"""Which packages had a hand in an artifact."""

from __future__ import annotations

import contextlib
import platform
from importlib.metadata import PackageNotFoundError, version

TOOLS = (
    "torch", "onnx", "onnxruntime", "onnxsim", "coremltools", "ai-edge-litert", "openvino", "numpy", "pillow",
)  # fmt: skip


def toolchain() -> dict[str, str]:
    """Versions of what had a hand in the artifact."""
    found = {"python": platform.python_version()}
    for name in TOOLS:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
