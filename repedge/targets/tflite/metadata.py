"""TensorFlow Lite Metadata: what the Task Library and Android Studio read from a .tflite file.

A flatbuffer of its own (identifier M001) in the model's metadata entry ``TFLITE_METADATA``, and the
label file in a zip archive behind the model. Source: metadata_schema.fbs of tflite-support; field
numbers below count the fields of its tables in order, a union taking two (type, value). What MediaPipe wants
to know of a segmenter is a flatbuffer in that one: image_segmenter_metadata_schema.fbs of mediapipe.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np

from repedge.errors import UserError
from repedge.targets.base import Job, TensorSpec

ENTRY = "TFLITE_METADATA"
LABELS_FILE = "labels.txt"
PARSER_VERSION = "1.0.0"
"""Every field written here is in the first version of the schema."""

_RGB, _GRAYSCALE, _UNKNOWN = 1, 2, 0  # ColorSpaceType
_FEATURE, _IMAGE = 1, 2  # ContentProperties
_NORMALIZATION = 1  # ProcessUnitOptions
_AXIS_LABELS = 2  # AssociatedFileType
_ACTIVATIONS = {"NONE": 0, "SIGMOID": 1, "SOFTMAX": 2}  # of a segmenter
_ALIGNED = 16  # bytes: of custom metadata


@dataclass(frozen=True)
class Byte:
    """A one-byte enum or union type."""

    value: int


Table = Mapping[int, Any]
"""Field number -> str, Byte, int (uint), float32 array, bytes, Table or list of Tables."""


def serialize(root: Table, identifier: bytes = b"M001") -> bytes:
    """A metadata flatbuffer."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(_table(builder, root), file_identifier=identifier)
    return bytes(builder.Output())


def _table(b: flatbuffers.Builder, table: Table) -> int:
    """Children first, then the table: a flatbuffer is built from its leaves."""
    offsets = {i: _child(b, v) for i, v in table.items() if not isinstance(v, Byte | int)}
    b.StartObject(max(table) + 1 if table else 0)
    for i, value in table.items():
        if isinstance(value, Byte):
            b.PrependUint8Slot(i, value.value, 0)
        elif isinstance(value, int):
            b.PrependUint32Slot(i, value, 0)
        else:
            b.PrependUOffsetTRelativeSlot(i, offsets[i], 0)
    return b.EndObject()


def _child(b: flatbuffers.Builder, value: Any) -> int:
    if isinstance(value, str):
        return b.CreateString(value)
    if isinstance(value, np.ndarray):
        return b.CreateNumpyVector(value.astype(np.float32))
    if isinstance(value, bytes):
        b.StartVector(1, len(value), _ALIGNED)
        for byte in reversed(value):
            b.PrependByte(byte)
        return b.EndVector()
    if isinstance(value, Mapping):
        return _table(b, value)
    offsets = [_table(b, item) for item in value]
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        b.PrependUOffsetTRelative(offset)
    return b.EndVector()


def metadata(job: Job, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bytes:
    """The metadata of a compiled model.

    Raises:
        UserError: There are labels, but no output has one element (or channel) for each.
    """
    labelled = _labelled(job, outputs)
    graph: dict[int, Any] = {
        2: [_input(job, inputs[0]), *({0: s.name, 3: {0: Byte(_FEATURE), 1: {}}} for s in inputs[1:])],
        3: [_output(spec, i == labelled) for i, spec in enumerate(outputs)],
    }
    graph |= _segmenter(job)
    texts = {0: job.name, 1: job.description, 2: job.version, 4: job.author, 5: job.license}
    return serialize({**{i: t for i, t in texts.items() if t}, 3: [graph], 7: PARSER_VERSION})


def _segmenter(job: Job) -> Table:
    """What MediaPipe's ImageSegmenter reads: the activation that is still to be applied."""
    about = job.task.metadata("mediapipe") if job.task is not None else {}
    if about.get("kind") != "segmenter":
        return {}
    options = serialize({0: Byte(_ACTIVATIONS[about["activation"]]), 1: PARSER_VERSION}, b"V001")
    return {9: [{0: "SEGMENTER_METADATA", 1: options}]}


def _labelled(job: Job, outputs: Sequence[TensorSpec]) -> int | None:
    """Which output the labels belong to: the task's, or the first whose last axis has as many entries."""
    if not job.labels:
        return None
    if job.task is not None and job.task.named is not None:
        named = outputs[job.task.named]
        if named.shape and named.shape[-1] == len(job.labels):
            return job.task.named
    for i, spec in enumerate(outputs):
        if spec.shape and spec.shape[-1] == len(job.labels):
            return i
    if job.task is not None and job.task.scores is None:
        return None  # of boxes and maps, where they may stand beside other numbers
    sizes = ", ".join(f"{o.name} {list(o.shape)}" for o in outputs)
    raise UserError(
        f"there are {len(job.labels)} labels, but no output ends in an axis of that size ({sizes})"
    )


def _input(job: Job, spec: TensorSpec) -> Table:
    """An image and how its pixels become the artifact's input: ``(pixel - mean) / std``."""
    if len(spec.shape) != 4:
        return {0: spec.name, 3: {0: Byte(_FEATURE), 1: {}}}
    pre, height, width = job.preprocess, spec.shape[1], spec.shape[2]
    if job.input_kind == "uint8":  # the model normalises by itself
        color = _GRAYSCALE if spec.shape[3] == 1 else _RGB
        mean, std = np.zeros(1), np.ones(1)
        described = f"{spec.shape[3]}-channel 8-bit pixels, 0 to 255"
    else:
        color = {"RGB": _RGB, "GRAY": _GRAYSCALE}.get(pre.color, _UNKNOWN)
        mean, std = np.array(pre.mean) * 255, np.array(pre.std) * 255
        described = f"normalised {pre.color} pixels"
    image = {0: Byte(color), 1: {0: width, 1: height}}
    return {
        0: spec.name,
        1: f"Image of {width} x {height}, {described}",
        3: {0: Byte(_IMAGE), 1: image},
        4: [{0: Byte(_NORMALIZATION), 1: {0: mean, 1: std}}],
        5: {0: (255 - mean) / std, 1: -mean / std},
    }


def _output(spec: TensorSpec, labelled: bool) -> Table:
    table: dict[int, Any] = {0: spec.name, 3: {0: Byte(_FEATURE), 1: {}}}
    if labelled:
        table[6] = [{0: LABELS_FILE, 1: "Names of the classes, in output order", 2: Byte(_AXIS_LABELS)}]
    return table


def append_labels(path: Path, labels: Sequence[str]) -> None:
    """Put the label file behind the model as a zip archive, stored and without a clock.

    Readers of the model stop at its end, readers of the archive start at the file's: the Task Library
    opens the same file as both. The file has one label on each line, so a line break inside a label is
    written as a space; the bundle's manifest keeps it.
    """
    lines = [" ".join(label.splitlines()) for label in labels]
    info = zipfile.ZipInfo(LABELS_FILE, date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system, info.external_attr = 3, 0o644 << 16
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(info, "".join(f"{line}\n" for line in lines))
