"""Reading and writing ONNX files around their big weights, by protobuf's wire format.

Parsing a file with protobuf holds every weight two or three times, serializing a message likewise.
Here only the *skeleton* (everything but the big weights) goes through protobuf; the weights are
mapped from the file, or streamed to it from their own memory.

Source: protobuf encoding specification; field numbers of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np

MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_NAME, TENSOR_RAW_DATA = 7, 5, 8, 9
_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5


def split(data: memoryview, big: int) -> tuple[bytes, dict[str, memoryview]]:
    """Take the initializers' raw data of more than ``big`` bytes out of a serialized ModelProto.

    Returns:
        The message without them, and ``{initializer name: its raw data, a view of data}``.

    Raises:
        ValueError: The bytes are no well-formed message, or two initializers have one name.
    """
    weights: dict[str, memoryview] = {}
    kept = bytearray()
    for field, whole, body in _fields(data):
        if field != MODEL_GRAPH or body is None:
            kept += whole
            continue
        graph = bytearray()
        for inner, part, tensor in _fields(body):
            if inner == GRAPH_INITIALIZER and tensor is not None and len(tensor) > big:
                small = _take_raw_data(tensor, big, weights)
                graph += _key(GRAPH_INITIALIZER, len(small)) + small
            else:
                graph += part
        kept += _key(MODEL_GRAPH, len(graph)) + graph
    return bytes(kept), weights


def _take_raw_data(tensor: memoryview, big: int, weights: dict[str, memoryview]) -> bytes:
    name, raw, kept = "", None, bytearray()
    for field, whole, body in _fields(tensor):
        if field == TENSOR_RAW_DATA and body is not None and len(body) > big:
            raw = body
            continue
        if field == TENSOR_NAME and body is not None:
            name = bytes(body).decode()
        kept += whole
    if raw is not None:
        if name in weights:
            raise ValueError(f"two initializers are named {name!r}")
        weights[name] = raw
    return bytes(kept)


def write(file: BinaryIO, header: bytes, graph: bytes, weights: Iterable[tuple[bytes, np.ndarray]]) -> None:
    """Write a ModelProto: ``header``, then its graph, whose last fields are the big initializers.

    The order of fields in a message is free, and raw_data is the last field of a TensorProto here,
    so each weight is a few bytes in front and its own memory.

    Args:
        file: Open for writing.
        header: The serialized ModelProto without its graph.
        graph: The serialized GraphProto without its big initializers.
        weights: Serialized TensorProto without data, and the data, per big initializer.
    """
    heads = []
    for tensor, array in weights:
        body = tensor + _key(TENSOR_RAW_DATA, array.nbytes)
        heads.append((_key(GRAPH_INITIALIZER, len(body) + array.nbytes) + body, array))
    file.write(header)
    file.write(_key(MODEL_GRAPH, len(graph) + sum(len(head) + array.nbytes for head, array in heads)))
    file.write(graph)
    for head, array in heads:
        file.write(head)
        write_array(file, array)


def write_array(file: BinaryIO, array: np.ndarray) -> None:
    """The array's bytes in ONNX's order."""
    file.write(little_endian(array).data.cast("B"))


def little_endian(array: np.ndarray) -> np.ndarray:
    """Contiguous, in ONNX's byte order; no copy on the machines that have it."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview, memoryview | None]]:
    """Field number, whole field and, if it is length-delimited, its content."""
    at = 0
    while at < len(data):
        start = at
        tag, at = _varint(data, at)
        body = None
        kind = tag & 7
        if kind == _VARINT:
            _, at = _varint(data, at)
        elif kind == _LEN:
            length, at = _varint(data, at)
            body = data[at : at + length]
            at += length
        elif kind in (_I64, _I32):
            at += 8 if kind == _I64 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {start}")
        if at > len(data):
            raise ValueError("a field reaches past the end")
        yield tag >> 3, data[start:at], body


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("a number reaches past the end")
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at


def _key(field: int, length: int) -> bytes:
    """Tag of a length-delimited field, and its length."""
    return _encoded(field << 3 | _LEN) + _encoded(length)


def _encoded(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
