"""The agent as one file that any Python 3.9+ runs: a zip with a ``__main__``."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

FOLDER = Path(__file__).parent / "agent"
_STUBS = ("repedge/__init__.py", "repedge/devices/__init__.py")
_MAIN = "import runpy\n\nrunpy.run_module('repedge.devices.agent', run_name='__main__', alter_sys=True)\n"


def agent_bytes() -> bytes:
    """The agent's zip; the same bytes every time, so that a device can keep it by its hash."""
    files = dict.fromkeys(_STUBS, "")
    files["__main__.py"] = _MAIN
    for source in sorted(FOLDER.glob("*.py")):
        files[f"repedge/devices/agent/{source.name}"] = source.read_text(encoding="utf-8")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as z:
        for name, text in sorted(files.items()):
            z.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text.encode())
    return buffer.getvalue()
