"""A small bundle, whole or changed by whoever means harm."""

from __future__ import annotations

import json
from pathlib import Path

from repedge import __version__
from repedge.bundle.folder import Bundle, writing
from repedge.bundle.manifest import Manifest, Origin, Verification, digest_of
from repedge.config import Preprocess


def manifest() -> Manifest:
    return Manifest(
        repedge=__version__,
        name="net",
        target="tflite",
        precision="fp32",
        artifact="net.tflite",
        input_kind="uint8",
        inputs=(),
        outputs=(),
        preprocess=Preprocess(),
        origin=Origin(model="onnx", description="a test"),
        verification=Verification(
            passed=True, n=1, max_abs_err=0, max_rel_err=0, sqnr_db=99, executor="a test", images="none"
        ),
    )


def make(final: Path, content: bytes = b"artifact", force: bool = False) -> Bundle:
    with writing(final, force) as draft:
        (draft.path / "net.tflite").write_bytes(content)
        (draft.path / "golden").mkdir()
        (draft.path / "golden" / "0.png").write_bytes(b"png")
        draft.seal(manifest())
        return Bundle.open(draft.publish())


def change_manifest(bundle: Path, change: dict) -> None:
    """Replace entries of a manifest and compute its digest anew, as whoever means harm does."""
    file = bundle / "manifest.json"
    data = {**json.loads(file.read_text()), **change}
    file.write_text(json.dumps({**data, "digest": digest_of(data)}))
