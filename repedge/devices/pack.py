"""The agent as one file that any Python 3.9+ runs: a zip with a ``__main__``."""

from __future__ import annotations

import importlib.util
import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from repedge.errors import UserError

FOLDER = Path(__file__).parent / "agent"
_MAIN = "import runpy\n\nrunpy.run_module('repedge.devices.agent', run_name='__main__', alter_sys=True)\n"


def agent_bytes(modules: Sequence[str]) -> bytes:
    """The agent's zip; the same bytes every time, so that a device can keep it by its hash.

    Args:
        modules: Those of the engine, each one file, of any package; the packages above them are empty there.

    Raises:
        UserError: A module is not a Python file.
    """
    files = {"__main__.py": _MAIN}
    for source in sorted(FOLDER.glob("*.py")):
        files[f"repedge/devices/agent/{source.name}"] = source.read_text(encoding="utf-8")
    for module in modules:
        files[module.replace(".", "/") + ".py"] = _source(module)
    for name in [name for file in files for name in _above(file)]:
        files.setdefault(f"{name}/__init__.py", "")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as z:
        for name, text in sorted(files.items()):
            z.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text.encode())
    return buffer.getvalue()


def _above(file: str) -> Iterator[str]:
    """The packages that a file is in."""
    parts = file.split("/")[:-1]
    for i in range(1, len(parts) + 1):
        yield "/".join(parts[:i])


def _source(module: str) -> str:
    try:
        found = importlib.util.find_spec(module)
    except ImportError:
        found = None
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        raise UserError(f"the engine's module {module} is not a Python file that could be sent to a device")
    return Path(found.origin).read_text(encoding="utf-8")
