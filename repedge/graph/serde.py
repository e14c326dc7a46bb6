"""Graph <-> ONNX bytes: deterministic, and without a second copy of the weights.

A model is handled as its *skeleton* (everything but the big initializers), which protobuf reads and
writes, and its weights, which stay where they are; see ``wire``.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
import onnx_ir as ir

from repedge.graph import bounds, wire

if TYPE_CHECKING:
    import onnx

_T = TypeVar("_T")
IR_VERSION = 10
PRODUCER = "repedge"
BIG = 1024
"""Initializers of more bytes than this stay out of a skeleton."""
PROTO_LIMIT = 2**31 - 2**20
"""protobuf messages end at 2 GiB; a file that would be larger puts its weights beside it."""
ALIGN = 64
"""Offsets of external weights are multiples of this, so that they can be memory-mapped."""


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The model as one protobuf message, weights embedded (one copy of them).

    ``ir_version`` is 10 and the producer ``repedge``, so that the same graph gives the same bytes.

    Raises:
        ValueError: The weights exceed protobuf's 2 GiB (when the message is serialized).
    """
    proto, arrays = skeleton(model)
    for tensor in proto.graph.initializer:
        if tensor.name in arrays:
            _embed(tensor)
            tensor.raw_data = wire.little_endian(arrays[tensor.name]).tobytes()
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


def with_small_proto(model: ir.Model, function: Callable[[Any], _T]) -> _T:
    """Call an API of ONNX on the model without its big weights, which become its last inputs.

    Weights never change the answer of the checker, the converter or shape inference; only small
    initializers (shapes, axes, scales) do.
    """
    proto, arrays = skeleton(model)
    drop_initializers(proto, arrays)
    inputs = {i.name for i in proto.graph.input}
    for name in arrays:
        if name not in inputs:
            proto.graph.input.append(ir.serde.serialize_value(model.graph.initializers[name]))
    return function(proto)


def inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    """ONNX's shape inference on a graph of opset 20.

    It runs by the rules of opset 22: up to opset 21 they count a pool's last window in ceil_mode even
    where it begins in the padding, which the operators have left out since opset 19 (ONNX AveragePool-19)
    and the runtimes ever since they had the mode.

    Raises:
        onnx.shape_inference.InferenceError: Shapes contradict each other.
        UserError: A value would not fit into memory.
    """
    import onnx.shape_inference

    for imported in proto.opset_import:
        if imported.domain in ("", "ai.onnx") and imported.version == 20:
            imported.version = 22
    follow = bounds.is_short(proto.graph)
    found = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=follow)
    bounds.check_sizes(found.graph)
    return found


def first_line(error: BaseException) -> str:
    """What an error of onnx or onnx_ir says, on one line without a full stop."""
    while isinstance(error.__cause__, ValueError):  # onnx_ir says where, its cause says what
        error = error.__cause__
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if not lines:
        return type(error).__name__
    whole = " ".join(lines) if lines[0].endswith(":") else lines[0]  # onnx puts the node on lines of its own
    return whole[:300].rstrip(".")


def drop_known_types(graph: onnx.GraphProto) -> None:
    """Remove from ``value_info`` what the message says elsewhere.

    That is the type and shape of initializers, and of what Quantize- and DequantizeLinear give: the
    shape is their input's, the type that of the zero point or the scale.
    """
    known = {tensor.name for tensor in graph.initializer}
    known |= {
        name for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear") for name in n.output
    }
    kept = [info for info in graph.value_info if info.name not in known]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def save_onnx(model: ir.Model, path: str | os.PathLike) -> None:
    """Write ``model`` to ``path``; over 2 GiB the weights go to ``path + ".data"`` beside it."""
    path = Path(path)
    location = f"{path.name}.data"
    proto, arrays = skeleton(model, location)
    drop_known_types(proto.graph)
    total = sum(a.nbytes for a in arrays.values())
    if total + proto.ByteSize() > PROTO_LIMIT:
        _replace(path.with_name(location), lambda file: _write_aligned(file, arrays.values()))
        _replace(path, lambda file: file.write(proto.SerializeToString(deterministic=True)))
        return
    weights = []
    for tensor in proto.graph.initializer:
        if tensor.name in arrays:
            _embed(tensor)
            weights.append((tensor.SerializeToString(deterministic=True), arrays[tensor.name]))
    drop_initializers(proto, arrays)
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    header = proto.SerializeToString(deterministic=True)
    _replace(path, lambda file: wire.write(file, header, graph, weights))


def _write_aligned(file: BinaryIO, arrays: Iterable[np.ndarray]) -> None:
    for array in arrays:
        file.write(b"\0" * (-file.tell() % ALIGN))
        wire.write_array(file, array)


def _replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write beside ``path``, then rename: the model may be mapped from the very file it replaces."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(draft, "wb") as file:
            write(file)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def read_onnx(path: str | os.PathLike) -> ir.Model:
    """The graph of a file, unchecked; big weights are mapped from it, so it must stay as it is.

    Raises:
        ValueError: The file is no ONNX model, or is cut short.
    """
    import onnx

    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise ValueError("it is empty")
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    small, weights = wire.split(data, BIG)
    try:
        proto = onnx.ModelProto.FromString(small)
    except Exception as error:  # protobuf's DecodeError, whose module differs between versions
        raise ValueError(str(error)) from error
    for tensor in proto.graph.initializer:
        if tensor.name in weights and ir.DataType(tensor.data_type) not in _NUMPY_DTYPES:
            tensor.raw_data = bytes(weights.pop(tensor.name))
    model = from_proto(proto)
    for name, raw in weights.items():
        value = model.graph.initializers[name]
        declared = value.const_value
        assert declared is not None, "an initializer always has a tensor"
        array = np.frombuffer(raw, declared.dtype.numpy()).reshape(declared.shape.numpy())
        value.const_value = ir.Tensor(array, name=name)
    return model


def _embed(tensor: onnx.TensorProto) -> None:
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


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
