"""What reading an archive that is not whole raises."""

from __future__ import annotations

import struct
import zipfile
import zlib

ARCHIVE = (
    zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError,
    NotImplementedError, RuntimeError,
)  # fmt: skip
"""Of a .zip, and of all that is one: .npz, PyTorch's checkpoints."""
