"""The files of an artifact, with their hashes, for devices that copy them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from repedge.errors import UserError


def artifact_files(artifact: Path) -> dict[str, Path]:
    """Every file that belongs to an artifact: name relative to the artifact's folder -> file.

    A .mlpackage is a folder; an OpenVINO .xml has a .bin beside it; an .onnx may keep its weights in
    files beside it.

    Raises:
        UserError: A file is missing, or an .onnx names one outside of its folder.
    """
    if artifact.is_dir():
        inside = sorted(p for p in artifact.rglob("*") if p.is_file())
        return {p.relative_to(artifact.parent).as_posix(): p for p in inside}
    names = [artifact.name]
    if artifact.suffix == ".xml":
        names.append(artifact.with_suffix(".bin").name)
    elif artifact.suffix == ".onnx":
        names += _external_data(artifact)
    files = {name: artifact.parent / name for name in dict.fromkeys(names)}
    for name, path in files.items():
        if not path.is_file():
            raise UserError(f"{artifact} needs {name} beside it, but there is no such file")
    return files


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _external_data(model: Path) -> list[str]:
    """Names of the files with an .onnx file's weights."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(str(model), load_external_data=False).graph
    except (DecodeError, OSError) as e:
        raise UserError(f"{model} is not an ONNX model: {e}") from e
    names = []
    for tensor in graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        if tensor.data_location == onnx.TensorProto.EXTERNAL and "location" in where:
            name = where["location"]
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise UserError(f"{model} keeps weights in {name!r}, outside of its folder")
            names.append(name)
    return names
