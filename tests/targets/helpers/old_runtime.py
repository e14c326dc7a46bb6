"""tflite-runtime 2.14 in an environment of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from places import ROOT

PYTHON = ROOT / ".venv-tflite-runtime" / "bin" / "python"

needed = pytest.mark.skipif(
    not PYTHON.exists(),
    reason="no .venv-tflite-runtime; make it with: sh tests/targets/tflite/old_runtime_env.sh",
)


def check(folder: Path) -> dict[str, dict]:
    """File name -> errors and metadata, for every .tflite and its .npz of inputs and wanted outputs."""
    script = Path(__file__).with_name("tflite_runtime_check.py")
    done = subprocess.run([PYTHON, script, folder], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def nhwc(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
