"""Runs inside .venv-tflite-runtime, not under pytest.

    python tflite_runtime_check.py FOLDER

For each NAME.tflite of FOLDER, runs it on x of NAME.npz and compares with the other arrays there, and
reads its metadata with tflite-support's schema. Prints one JSON object: NAME -> what was found.
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
from tensorflow_lite_support.metadata import metadata_schema_py_generated as meta
from tensorflow_lite_support.metadata import schema_py_generated as lite
from tflite_runtime.interpreter import Interpreter


def outputs(path: Path) -> dict[str, float]:
    """Error of each output relative to its largest magnitude."""
    data = dict(np.load(path.with_suffix(".npz")))
    runner = Interpreter(str(path), num_threads=1).get_signature_runner("serving_default")
    (name,) = runner.get_input_details()
    found = runner(**{name: data.pop("x")})
    if {k: v.shape for k, v in found.items()} != {k: v.shape for k, v in data.items()}:
        raise SystemExit(f"{path.name}: other outputs than expected")
    return {k: float(np.abs(found[k] - v).max() / np.abs(v).max()) for k, v in data.items()}


def described(path: Path) -> dict[str, object]:
    """The metadata as the official reader sees it."""
    content = path.read_bytes()
    model = lite.Model.GetRootAsModel(content, 0)
    entries = {}
    for i in range(model.MetadataLength()):
        entry = model.Metadata(i)
        entries[entry.Name().decode()] = model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()
    root = meta.ModelMetadata.GetRootAsModelMetadata(entries["TFLITE_METADATA"], 0)
    tree = meta.ModelMetadataT.InitFromObj(root)
    graph = tree.subgraphMetadata[0]
    image, result = graph.inputTensorMetadata[0], graph.outputTensorMetadata[0]
    options = image.processUnits[0].options if image.processUnits else None
    files = result.associatedFiles or []
    labels = ""
    if files:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            labels = archive.read(files[0].name.decode()).decode()
    return {
        "identifier": meta.ModelMetadata.ModelMetadataBufferHasIdentifier(entries["TFLITE_METADATA"], 0),
        "name": tree.name.decode(),
        "min_parser_version": tree.minParserVersion.decode(),
        "min_runtime_version": entries["min_runtime_version"].rstrip(b"\0").decode(),
        "input": image.name.decode(),
        "color_space": getattr(image.content.contentProperties, "colorSpace", None),
        "mean": [] if options is None else list(map(float, options.mean)),
        "std": [] if options is None else list(map(float, options.std)),
        "output": result.name.decode(),
        "label_type": files[0].type if files else None,
        "labels": labels.splitlines(),
    }


if __name__ == "__main__":
    paths = sorted(Path(sys.argv[1]).glob("*.tflite"))
    print(json.dumps({p.stem: {"errors": outputs(p), "metadata": described(p)} for p in paths}))
