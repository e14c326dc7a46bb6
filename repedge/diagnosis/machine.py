"""What is installed, and what each target could do on this machine."""

from __future__ import annotations

import importlib.util
import platform
from dataclasses import asdict, dataclass
from typing import Any

from repedge import targets
from repedge.compiler.toolchain import toolchain

EXTRAS = {"timm": "timm:NAME models", "litert_torch": "bench: the peer exporter"}


@dataclass(frozen=True)
class TargetHealth:
    """One target: whether it compiles and runs here, and why not."""

    name: str
    compiles: bool
    runs: bool
    executor: str
    note: str = ""


@dataclass(frozen=True)
class Health:
    """The answer of `doctor`."""

    host: str
    packages: dict[str, str]
    extras: dict[str, bool]
    targets: tuple[TargetHealth, ...]

    def as_json(self) -> dict[str, Any]:
        """The object that ``repedge doctor --json`` prints."""
        return asdict(self)


def doctor() -> Health:
    """Look at this machine; imports none of the heavy packages."""
    return Health(
        host=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        packages=toolchain(),
        extras={name: importlib.util.find_spec(name) is not None for name in EXTRAS},
        targets=tuple(_target(name) for name in targets.names()),
    )


def _target(name: str) -> TargetHealth:
    target = targets.get(name)
    missing = target.missing_modules()
    if missing:
        return TargetHealth(name, False, False, target.executor, f"not installed: {', '.join(missing)}")
    return TargetHealth(name, True, True, target.executor, target.note())
