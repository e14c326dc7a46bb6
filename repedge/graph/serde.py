"""Graph <-> ONNX bytes: deterministic, and without a second copy of the weights.

A large model is written as its *skeleton* (everything but the big initializers, serialized by
protobuf) followed by the weights, streamed one by one from their own memory. Serializing the whole
message would hold the weights three times.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    import onnx

IR_VERSION = 10
PRODUCER = "repedge"
BIG = 1024
"""Initializers of more bytes than this stay out of a skeleton."""
PROTO_LIMIT = 2**31 - 2**20
"""protobuf messages end at 2 GiB; a file that would be larger puts its weights beside it."""
ALIGN = 64
"""Offsets of external weights are multiples of this, so that they can be memory-mapped."""

# Field numbers of onnx.proto (ModelProto.graph, GraphProto.initializer, TensorProto.raw_data).
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 5, 9


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The model as one protobuf message, weights embedded (one copy of them).

    ``ir_version`` is 10 and the producer ``repedge``, so that the same graph gives the same bytes.

    Raises:
        ValueError: The weights exceed protobuf's 2 GiB (when the message is serialized).
    """
    proto, arrays = skeleton(model)
    for tensor in proto.graph.initializer:
        if tensor.name in arrays:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = _little_endian(arrays[tensor.name]).tobytes()
    return proto


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """The graph of a protobuf message; weights share the message's memory."""
    return ir.serde.deserialize_model(proto)


def skeleton(model: ir.Model, location: str = "") -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The message without its big initializers, and those as arrays that share the graph's memory.

    Args:
        model: Any graph; unchanged afterwards.
        location: File name recorded as the place of the big initializers' data.

    Returns:
        The message, in which a big initializer is external data at an `ALIGN`-ed offset of
        ``location``, and ``{initializer name: array}`` in the order of their offsets.
    """
    with _weights_outside(model, location) as arrays:
        proto = ir.serde.serialize_model(model)
    _stamp(proto)
    return proto, arrays


def drop_initializers(proto: onnx.ModelProto, names: Container[str]) -> None:
    """Remove the named initializers from a message."""
    for i in reversed(range(len(proto.graph.initializer))):
        if proto.graph.initializer[i].name in names:
            del proto.graph.initializer[i]


def save_onnx(model: ir.Model, path: str | os.PathLike) -> None:
    """Write ``model`` to ``path``; over 2 GiB the weights go to ``path + ".data"`` beside it."""
    path = Path(path)
    location = f"{path.name}.data"
    proto, arrays = skeleton(model, location)
    total = sum(a.nbytes for a in arrays.values())
    if total + proto.ByteSize() > PROTO_LIMIT:
        with open(path.with_name(location), "wb") as file:
            for array in arrays.values():
                file.write(b"\0" * (-file.tell() % ALIGN))
                _write_array(file, array)
        path.write_bytes(proto.SerializeToString(deterministic=True))
        return
    with open(path, "wb") as file:
        _stream(file, proto, arrays)


def _stamp(proto: onnx.ModelProto) -> None:
    proto.ir_version = IR_VERSION
    proto.producer_name = PRODUCER
    proto.ClearField("producer_version")


@contextmanager
def _weights_outside(model: ir.Model, location: str) -> Iterator[dict[str, np.ndarray]]:
    """Big initializers replaced by references to ``location`` for the length of the block."""
    kept: dict[str, ir.TensorProtocol] = {}
    arrays: dict[str, np.ndarray] = {}
    offset = 0
    try:
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is None or tensor.nbytes <= BIG or not _plain(tensor):
                continue
            kept[name] = tensor
            arrays[name] = tensor.numpy()
            offset += -offset % ALIGN
            value.const_value = ir.ExternalTensor(
                location, offset, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
            )
            offset += tensor.nbytes
        yield arrays
    finally:
        for name, tensor in kept.items():
            model.graph.initializers[name].const_value = tensor


def _plain(tensor: ir.TensorProtocol) -> bool:
    """Whether numpy's own dtypes hold the values as ONNX stores them (no 4-bit packing, no strings)."""
    return tensor.dtype in _NUMPY_DTYPES


_NUMPY_DTYPES = {
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
    ir.DataType.FLOAT16,
    ir.DataType.INT8,
    ir.DataType.UINT8,
    ir.DataType.INT16,
    ir.DataType.UINT16,
    ir.DataType.INT32,
    ir.DataType.UINT32,
    ir.DataType.INT64,
    ir.DataType.UINT64,
}


def _stream(file: BinaryIO, proto: onnx.ModelProto, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a ModelProto whose graph message ends with the big initializers.

    The order of fields in a protobuf message is free (protobuf encoding spec, "Field order"), and
    raw_data is a TensorProto's last field here, so each weight is a short header and its own bytes.
    """
    heads: list[tuple[bytes, np.ndarray]] = []
    for tensor in (t for t in proto.graph.initializer if t.name in arrays):
        array = arrays[tensor.name]
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        body = tensor.SerializeToString(deterministic=True) + _key(_TENSOR_RAW_DATA, array.nbytes)
        heads.append((_key(_GRAPH_INITIALIZER, len(body) + array.nbytes) + body, array))
    drop_initializers(proto, arrays)
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    file.write(proto.SerializeToString(deterministic=True))
    size = len(graph) + sum(len(head) + array.nbytes for head, array in heads)
    file.write(_key(_MODEL_GRAPH, size))
    file.write(graph)
    for head, array in heads:
        file.write(head)
        _write_array(file, array)


def _write_array(file: BinaryIO, array: np.ndarray) -> None:
    file.write(_little_endian(array).data.cast("B"))


def _little_endian(array: np.ndarray) -> np.ndarray:
    """ONNX's byte order; no copy on the machines that have it."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def _key(field: int, length: int) -> bytes:
    """Tag of a length-delimited protobuf field, and its length."""
    return _varint(field << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
