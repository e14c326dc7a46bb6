"""Writing an ONNX file without copies of its weights.

``SerializeToString`` of a whole model holds three more copies of all weights at its peak. Here the graph
without its large weights goes through protobuf, and the weights follow from their own memory: fields of
a message may stand in any order, and repeated ones apart from each other (Protocol Buffers, "Encoding").
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from repedge.errors import CheckFailed, UserError
from repedge.graph.serde import drop_known_types

if TYPE_CHECKING:
    import onnx

PROTOBUF_LIMIT = 2**31 - 1
"""Bytes of the largest message that protobuf reads."""

LARGE = 1024
"""Elements from which on an initializer is a weight, and no shape, scale or the like."""

LENGTH_DELIMITED = 2
"""The wire type of strings, bytes and messages."""


def save(model: ir.Model, path: Path) -> None:
    """Write the model, whose graph loses its large weights on the way, and check it.

    Raises:
        UserError: The file would be larger than protobuf reads.
        CheckFailed: onnx.checker refuses the model.
    """
    import onnx

    graph = model.graph
    large = [
        v for v in graph.initializers.values() if v.const_value is not None and v.const_value.size >= LARGE
    ]
    for value in large:
        del graph.initializers[str(value.name)]
    for value in graph.initializers.values():  # small ones that are kept beside the user's own file
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.Tensor(value.const_value.numpy(), name=value.name)
    rest = ir.to_proto(model)
    drop_known_types(rest.graph)
    _check(rest, large, path.name)

    heads = [_tensor_head(value) for value in large]
    skeleton = rest.graph.SerializeToString(deterministic=True)
    rest.ClearField("graph")
    size = len(skeleton)
    for value, head in zip(large, heads, strict=True):
        size += len(_field(onnx.GraphProto, "initializer", n := len(head) + _nbytes(value))) + n
    if size + len(rest.SerializeToString()) + 16 > PROTOBUF_LIMIT:
        raise UserError(f"the model takes {size} bytes, more than one ONNX file can hold (2 GiB)")
    with path.open("wb") as file:
        file.write(rest.SerializeToString(deterministic=True))
        file.write(_field(onnx.ModelProto, "graph", size))
        file.write(skeleton)
        for value, head in zip(large, heads, strict=True):
            file.write(_field(onnx.GraphProto, "initializer", len(head) + _nbytes(value)))
            file.write(head)
            file.write(_array(value).data.cast("B"))


def _check(rest: onnx.ModelProto, large: list[ir.Value], name: str) -> None:
    """The full check of onnx.checker, with inputs of the same type and shape for the large weights."""
    import onnx

    whole = onnx.ModelProto()
    whole.CopyFrom(rest)
    for value in large:
        array = _array(value)
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        whole.graph.input.append(onnx.helper.make_tensor_value_info(str(value.name), kind, array.shape))
    try:
        onnx.checker.check_model(whole, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckFailed(f"onnx.checker refuses {name}: {error}") from error


def _tensor_head(value: ir.Value) -> bytes:
    """A TensorProto up to its bytes."""
    import onnx

    array = _array(value)
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    head = onnx.TensorProto(name=str(value.name), data_type=kind, dims=array.shape)
    return head.SerializeToString(deterministic=True) + _field(onnx.TensorProto, "raw_data", array.nbytes)


def _field(message: type, name: str, length: int) -> bytes:
    """Tag and length of a field."""
    number: int = message.DESCRIPTOR.fields_by_name[name].number  # type: ignore[attr-defined]
    return _varint(number << 3 | LENGTH_DELIMITED) + _varint(length)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _array(value: ir.Value) -> np.ndarray:
    """The weight in the byte order and layout of ``raw_data``."""
    array = value.const_value.numpy()  # type: ignore[union-attr]
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def _nbytes(value: ir.Value) -> int:
    return int(value.const_value.nbytes)  # type: ignore[union-attr]


def external_files(model: Path) -> list[str]:
    """Names of the files that an .onnx file keeps weights in.

    Raises:
        UserError: It is no ONNX model.
    """
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
            names.append(where["location"])
    return names
