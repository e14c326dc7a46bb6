"""Which packages had a hand in an artifact."""

from __future__ import annotations

import contextlib
import platform
from importlib.metadata import PackageNotFoundError, version

from repedge import targets

CORE = ("torch", "onnx", "onnxruntime", "onnxsim", "numpy", "pillow")


def toolchain() -> dict[str, str]:
    """Versions of what may have had a hand in an artifact: the core's packages and every target's own."""
    found = {"python": platform.python_version()}
    own = [name for target in targets.installed() for name in target.packages]
    for name in dict.fromkeys((*CORE, *own)):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
