"""Manifests made to hurt: one bounded sentence from every reader."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from bundles import change_manifest, make

from repedge.bundle.folder import Bundle
from repedge.errors import UserError

DEEP: Any = 1
for _ in range(150):
    DEEP = {"a": [DEEP]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": [{"path": "n" * 300, "size": 1, "sha256": "0"}]}, "lacks 'nnn"),
        ({"files": [{"path": "a/" * 3000, "size": 1, "sha256": "0"}]}, "lacks 'a/a"),
        ({"files": [{"path": "net.tflite", "size": 10**400, "sha256": "0"}]}, "damaged|sha256 differs"),
        ({"artifact": "n" * 10**6}, "has no artifact"),
        ({"options": {"min_sqnr": 10**400}}, "not a number of decibels"),
        ({"quantization": {"calibration": 5}}, "calibration is not an object"),
        ({"quantization": 5}, "damaged"),
        ({"schema_version": 10**400}, "newer|damaged"),
        ({"labels": ["\ud800"]}, "damaged"),
        ({"preprocess": {"mean": [10**400] * 3}}, "damaged"),
        ({"name": "x" * 10**6, "target": 5}, "damaged"),
    ],
)
def test_crafted_fields(tmp_path: Path, change: dict, message: str) -> None:
    make(tmp_path / "net")
    try:
        change_manifest(tmp_path / "net", change)
    except UnicodeEncodeError:  # no digest can be computed of it, by nobody
        file = tmp_path / "net" / "manifest.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match=message) as caught:
        Bundle.open(tmp_path / "net")
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize("field", ["fusion", "options", "quantization", "verification", "toolchain"])
def test_deep_nesting(tmp_path: Path, field: str) -> None:
    """Nothing looks into it, or it is refused; nothing runs out of stack."""
    make(tmp_path / "net")
    change_manifest(tmp_path / "net", {field: {"deep": DEEP}})
    with contextlib.suppress(UserError):
        Bundle.open(tmp_path / "net")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_other_encodings(tmp_path: Path, encoding: str) -> None:
    make(tmp_path / "net")
    change_manifest(tmp_path / "net", {"name": "café"})
    file = tmp_path / "net" / "manifest.json"
    text = json.dumps(json.loads(file.read_text()), ensure_ascii=False)
    file.write_bytes(text.encode(encoding))
    with pytest.raises(UserError, match="damaged"):
        Bundle.open(tmp_path / "net")
