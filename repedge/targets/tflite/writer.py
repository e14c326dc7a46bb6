"""Writes a .tflite file: tensors, operators and signature in, flatbuffer and weights out.

The graph's tables are a few kilobytes and are built with the official schema's own builder. The
weights are not pushed through it: each Buffer table gets a placeholder where the offset of its data
belongs, the weights are streamed behind the tables one block at a time, and the placeholders are
patched. A flatbuffer offset may point forward to anywhere in the file, so the result is an ordinary
file that every runtime reads, and writing needs no second copy of the weights.

Sources: tensorflow/lite/schema/schema.fbs (version 3, identifier TFL3), the flatbuffers internals
document.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, BinaryIO

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from repedge.errors import UserError
from repedge.targets.tflite.model import Operator, Quant, Tensor
from repedge.targets.tflite.versions import CHANNELWISE_DENSE, OPS

_ALIGN = 16  # force_align of Buffer.data in the schema
_BLOCK = 4 << 20  # bytes of one streamed block
_SCALE = 2  # slot of QuantizationParameters.scale in the schema
_LIMIT = 2**31 - 1  # offsets of a flatbuffer are signed where they are read


@dataclass
class Writer:
    """Collects one graph and writes it. Tensors and operators are numbered in the order they come."""

    tensors: list[Tensor] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)

    def tensor(self, tensor: Tensor) -> int:
        """Add a tensor and return its index."""
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def op(
        self, name: str, inputs: Sequence[int], outputs: Sequence[int], version: int = 1, **options: Any
    ) -> None:
        """Add an operator of `OPS`; ``options`` are fields of its options table, in camelCase.

        ``version`` is the one that its options ask for; integer data may raise it.
        """
        version = max(version, self._integer_version(name, inputs, outputs))
        if version not in OPS[name].since:
            raise KeyError(f"OPS does not say which release first ran {name} version {version}")
        self.operators.append(Operator(name, version, inputs, outputs, options))

    def _channelwise(self, tensor: int) -> bool:
        quant = self.tensors[tensor].quant
        return quant is not None and len(quant.scale) > 1

    def _integer_version(self, name: str, inputs: Sequence[int], outputs: Sequence[int]) -> int:
        row = OPS[name]
        if row.data >= len(inputs):
            return 1
        if row.dynamic and self.tensors[inputs[0]].quant is None:  # float data, perhaps integer weights
            weight = self.tensors[inputs[1]].quant
            return 1 if weight is None else row.dynamic[len(weight.scale) > 1]
        typed = outputs[0] if name == "QUANTIZE" else inputs[row.data]
        quant = self.tensors[typed].quant
        if quant is None or quant.dtype not in ("int8", "int16"):
            return 1
        if name == "DEQUANTIZE" and len(quant.scale) > 1:
            return 5
        version = row.int8 if quant.dtype == "int8" else row.int16
        if not version:
            raise KeyError(f"OPS has no {quant.dtype} version of {name}")
        return version

    def min_runtime(self) -> str:
        """The first TensorFlow Lite release that runs every operator in its version."""
        releases = [OPS[o.name].since[o.version] for o in self.operators] or ["1.5.0"]
        if any(o.name == "FULLY_CONNECTED" and self._channelwise(o.inputs[1]) for o in self.operators):
            releases.append(CHANNELWISE_DENSE)
        return max(releases, key=lambda release: tuple(map(int, release.split("."))))

    def write(
        self,
        path: Path,
        inputs: Mapping[str, int],
        outputs: Mapping[str, int],
        metadata: Mapping[str, bytes],
        description: str,
    ) -> None:
        """Write the file.

        Args:
            path: File to write.
            inputs, outputs: Name in the signature ``serving_default`` to tensor index, in order.
            metadata: Entries of Model.metadata, each with a buffer of its own.
            description: Free text in the file.

        Raises:
            UserError: The file would pass the format's limit of 2 GiB.
        """
        tables, patches, blobs = _Tables(self).build(inputs, outputs, metadata, description)
        starts, end = _places(len(tables), blobs)
        if end > _LIMIT:
            raise UserError(f"the .tflite file would take {end} bytes; the format ends at {_LIMIT}")
        for patch, start in zip(patches, starts, strict=True):
            struct.pack_into("<I", tables, patch, start - patch)
        with open(path, "wb") as file:
            file.write(tables)
            for start, blob in sorted(zip(starts, blobs, strict=True), key=lambda placed: placed[0]):
                file.write(bytes(start - file.tell()))
                if isinstance(blob, bytes):
                    file.write(blob)
                    continue
                file.write(struct.pack("<I", blob.nbytes))
                _stream(file, blob)


def _places(cursor: int, blobs: Sequence[Tensor | bytes]) -> tuple[list[int], int]:
    """Where each blob begins, and where the last one ends.

    Data of tensors is aligned, with its length right before it. Bytes, which are small vectors, go into
    the gaps between them while there are any.
    """
    starts, small = [0] * len(blobs), [i for i, blob in enumerate(blobs) if isinstance(blob, bytes)][::-1]

    def fill(end: float) -> int:
        at = -(-cursor // 4) * 4
        while small and at + len(blob := blobs[small[-1]]) <= end:  # type: ignore[arg-type]
            starts[small.pop()] = at
            at += len(blob)  # type: ignore[arg-type]
        return at

    for i, blob in enumerate(blobs):
        if isinstance(blob, Tensor):
            starts[i] = -(-(cursor + 4) // _ALIGN) * _ALIGN - 4
            fill(starts[i])
            cursor = starts[i] + 4 + blob.nbytes
    return starts, fill(inf) if small else cursor


def _stream(file: BinaryIO, tensor: Tensor) -> None:
    """Write a constant in blocks of its first axis, so that a transposed weight is never copied whole."""
    assert tensor.load is not None
    array = tensor.load()
    if array.shape != tensor.shape:
        raise ValueError(f"constant {tensor.name!r} has shape {array.shape}, announced was {tensor.shape}")
    if array.ndim == 0:
        array = array.reshape(1)
    rows = max(1, _BLOCK * len(array) // max(1, tensor.nbytes))
    for i in range(0, len(array), rows):
        file.write(np.ascontiguousarray(array[i : i + rows], dtype=tensor.dtype).data)


class _Tables:
    """The flatbuffer without the weights."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.builder = flatbuffers.Builder(1 << 16)
        self.fields: list[int] = []  # offsets, from the end, of the placeholders
        self.blobs: list[Tensor | bytes] = []  # what these stand for
        self.vectors: dict[tuple[int, ...], int] = {}
        self.zero_points: dict[tuple[int, int], int] = {}
        self.quants: dict[tuple[tuple[float, ...], int, int], int] = {}
        self.options: dict[tuple[str, str], int] = {}

    def build(
        self,
        inputs: Mapping[str, int],
        outputs: Mapping[str, int],
        metadata: Mapping[str, bytes],
        description: str,
    ) -> tuple[bytearray, list[int], list[Tensor | bytes]]:
        """The tables, the positions of the offsets to patch in them, and the blobs these belong to.

        A blob is a tensor's data, or the bytes of a vector of the flatbuffer.
        """
        b, w = self.builder, self.writer
        blobs = [t for t in w.tensors if t.load is not None]
        first_entry = 1 + len(blobs)
        blobs += [_bytes_blob(name, data) for name, data in metadata.items()]
        codes = [code for code, _ in Counter((o.name, o.version) for o in w.operators).most_common()]
        fields = {
            "OperatorCodes": self._vector([self._code(*c) for c in codes]),
            "Subgraphs": self._vector([self._subgraph(codes, inputs, outputs)]),
            "Description": b.CreateString(description),
            "Buffers": self._vector([self._buffer(None), *(self._buffer(blob) for blob in blobs)]),
            "Metadata": self._vector([self._entry(n, first_entry + i) for i, n in enumerate(metadata)]),
            "SignatureDefs": self._vector([self._signature(inputs, outputs)]),
        }
        schema.ModelStart(b)
        schema.ModelAddVersion(b, 3)
        for name, offset in fields.items():
            getattr(schema, f"ModelAdd{name}")(b, offset)
        b.Finish(schema.ModelEnd(b), file_identifier=b"TFL3")
        tables = bytearray(b.Output())
        return tables, [len(tables) - offset for offset in self.fields], self.blobs

    def _vector(self, offsets: Sequence[int]) -> int:
        self.builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        return self.builder.EndVector()

    def _ints(self, values: Sequence[int]) -> int:
        """A vector; equal ones (shapes above all) are stored once."""
        key = tuple(values)
        if key not in self.vectors:
            self.vectors[key] = self.builder.CreateNumpyVector(np.asarray(values, np.int32))
        return self.vectors[key]

    def _buffer(self, blob: Tensor | None) -> int:
        b = self.builder
        schema.BufferStart(b)
        if blob is not None:
            self._later(0, blob)
        return schema.BufferEnd(b)

    def _later(self, slot: int, blob: Tensor | bytes) -> None:
        """Put a placeholder for the offset of a vector that is written behind the tables."""
        self.builder.PrependUint32Slot(slot, 0xFFFFFFFF, 0)  # an offset is a uint32 as well
        self.fields.append(self.builder.Offset())
        self.blobs.append(blob)

    def _code(self, name: str, version: int) -> int:
        code = getattr(schema.BuiltinOperator, name)
        schema.OperatorCodeStart(self.builder)
        # Readers older than 2.4 know only the one-byte field.
        schema.OperatorCodeAddDeprecatedBuiltinCode(self.builder, min(code, 127))
        schema.OperatorCodeAddVersion(self.builder, version)
        schema.OperatorCodeAddBuiltinCode(self.builder, code)
        return schema.OperatorCodeEnd(self.builder)

    def _subgraph(
        self, codes: Sequence[tuple[str, int]], inputs: Mapping[str, int], outputs: Mapping[str, int]
    ) -> int:
        b, buffers, tensors = self.builder, 0, []
        numbered = self._numbered() - {*inputs.values(), *outputs.values()}
        for i, tensor in enumerate(self.writer.tensors):
            buffers += tensor.load is not None
            name = str(i) if i in numbered else tensor.name
            tensors.append(self._tensor(tensor, name, buffers if tensor.load is not None else 0))
        number = {code: i for i, code in enumerate(codes)}
        operators = [self._operator(o, number[o.name, o.version]) for o in self.writer.operators]
        fields = {
            "Tensors": self._vector(tensors),
            "Inputs": self._ints(list(inputs.values())),
            "Outputs": self._ints(list(outputs.values())),
            "Operators": self._vector(operators),
            "Name": b.CreateString("main"),
        }
        schema.SubGraphStart(b)
        for name, offset in fields.items():
            getattr(schema, f"SubGraphAdd{name}")(b, offset)
        return schema.SubGraphEnd(b)

    def _numbered(self) -> set[int]:
        """Tensors whose names nobody looks for, and would be 0.3 % of a small network's file.

        They are integer constants, which TensorFlow's converter numbers as well, and activations that
        only change from integers to floats or back: layers are known by the tensors that they give.
        """
        tensors = self.writer.tensors
        found = {i for i, t in enumerate(tensors) if t.load is not None and t.quant is not None}
        for op in self.writer.operators:
            if op.name in ("QUANTIZE", "DEQUANTIZE") and tensors[op.inputs[0]].load is None:
                found.update(op.outputs)
        return found

    def _tensor(self, tensor: Tensor, name: str, buffer: int) -> int:
        b = self.builder
        text, shape = b.CreateString(name), self._ints(tensor.shape)
        quantization = None if tensor.quant is None else self._quantization(tensor.quant)
        schema.TensorStart(b)
        schema.TensorAddShape(b, shape)
        schema.TensorAddBuffer(b, buffer)
        schema.TensorAddName(b, text)
        if quantization is not None:
            schema.TensorAddQuantization(b, quantization)
        schema.TensorAddType(b, getattr(schema.TensorType, tensor.dtype.upper()))  # the two bytes together
        schema.TensorAddHasRank(b, True)
        return schema.TensorEnd(b)

    def _quantization(self, quant: Quant) -> int:
        """A table that all tensors with the same scales share."""
        b, key = self.builder, (quant.scale, quant.zero_point, quant.axis)
        if key not in self.quants:
            several = len(quant.scale) > 1
            scale = b.CreateNumpyVector(np.array(quant.scale, np.float32)) if several else 0
            zero_point = self._zero_points(len(quant.scale), quant.zero_point)
            schema.QuantizationParametersStart(b)
            if several:
                schema.QuantizationParametersAddScale(b, scale)
            else:
                self._later(_SCALE, struct.pack("<If", 1, quant.scale[0]))
            schema.QuantizationParametersAddZeroPoint(b, zero_point)
            schema.QuantizationParametersAddQuantizedDimension(b, quant.axis)
            self.quants[key] = schema.QuantizationParametersEnd(b)
        return self.quants[key]

    def _zero_points(self, count: int, value: int) -> int:
        """A vector that all tensors with as many scales share; eight bytes a channel add up."""
        if (count, value) not in self.zero_points:
            array = np.full(count, value, np.int64)
            self.zero_points[count, value] = self.builder.CreateNumpyVector(array)
        return self.zero_points[count, value]

    def _operator(self, op: Operator, code: int) -> int:
        b, kind = self.builder, OPS[op.name].options
        inputs, outputs = self._ints(op.inputs), self._ints(op.outputs)
        options = self._options(kind, op.options) if kind else None
        schema.OperatorStart(b)
        schema.OperatorAddOpcodeIndex(b, code)
        schema.OperatorAddInputs(b, inputs)
        schema.OperatorAddOutputs(b, outputs)
        if options is not None:
            schema.OperatorAddBuiltinOptionsType(b, getattr(schema.BuiltinOptions, kind))
            schema.OperatorAddBuiltinOptions(b, options)
        return schema.OperatorEnd(b)

    def _options(self, kind: str, given: Mapping[str, Any]) -> int:
        """An options table, which operators with the same options share."""
        key = (kind, repr(sorted(given.items())))
        if key not in self.options:
            self.options[key] = getattr(schema, f"{kind}T")(**given).Pack(self.builder)
        return self.options[key]

    def _entry(self, name: str, buffer: int) -> int:
        text = self.builder.CreateString(name)
        schema.MetadataStart(self.builder)
        schema.MetadataAddName(self.builder, text)
        schema.MetadataAddBuffer(self.builder, buffer)
        return schema.MetadataEnd(self.builder)

    def _signature(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> int:
        b = self.builder
        fields = {
            "Inputs": self._vector([self._named(n, i) for n, i in inputs.items()]),
            "Outputs": self._vector([self._named(n, i) for n, i in outputs.items()]),
            "SignatureKey": b.CreateString("serving_default"),
        }
        schema.SignatureDefStart(b)
        for name, offset in fields.items():
            getattr(schema, f"SignatureDefAdd{name}")(b, offset)
        return schema.SignatureDefEnd(b)

    def _named(self, name: str, tensor: int) -> int:
        text = self.builder.CreateString(name)
        schema.TensorMapStart(self.builder)
        schema.TensorMapAddName(self.builder, text)
        schema.TensorMapAddTensorIndex(self.builder, tensor)
        return schema.TensorMapEnd(self.builder)


def _bytes_blob(name: str, data: bytes) -> Tensor:
    array = np.frombuffer(data, np.uint8)
    return Tensor(name, array.shape, "uint8", lambda: array)
