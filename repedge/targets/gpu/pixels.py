"""Pixels that are the integers of the first convolution: they stay uint8 from the input to its kernel.

`repedge.passes.preprocess` gives such a graph a border of the mean pixel, which is float32 NCHW between two
roundings of scale 1 each. What a file does instead is join uint8 NHWC tensors: ONNX Runtime has then one
Transpose in front of the convolution, which it merges into that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import add_initializer, const, only_reader
from repedge.targets import qdq

WHOLE = qdq.Params(np.float32(1), 0, "uint8")


@dataclass(frozen=True)
class Join:
    """Constant pixels beside the image: an axis of NHWC, and uint8 [1, H, W, C], None for the image."""

    axis: int
    parts: tuple[np.ndarray | None, ...]


def take(model: ir.Model) -> tuple[ir.Model, tuple[Join, ...]] | None:
    """A copy whose image is uint8 [1, C, H, W] with the border around it, and how it comes by that.

    None where the pixels are not the integers that the network reads.
    """
    copy = model.clone()
    value, joins, read = copy.graph.inputs[0], [], None
    image = value
    while (found := _rounding(value)) is not None:
        read, value = found, found.outputs[0]
        node = only_reader(value)
        join = None if node is None else _join(node, value)
        if node is None or join is None:
            break
        joins.append(join)
        value = node.outputs[0]
    if read is None or (joins and value is not read.outputs[0]):
        return None
    image.shape, image.type = read.outputs[0].shape, ir.TensorType(ir.DataType.UINT8)
    read.replace_input_with(0, image)
    _drop(copy.graph, read)
    return copy, tuple(joins)


def _rounding(value: ir.Value) -> ir.Node | None:
    """The DequantizeLinear behind the QuantizeLinear that alone reads ``value``, if both change no pixel."""
    quantize = only_reader(value)
    if quantize is None or quantize.op_type != "QuantizeLinear" or qdq.params(quantize) != WHOLE:
        return None
    dequantize = only_reader(quantize.outputs[0])
    return dequantize if dequantize is not None and dequantize.op_type == "DequantizeLinear" else None


def _join(node: ir.Node, value: ir.Value) -> Join | None:
    """What a Concat of ``value`` and constant pixels does; None if it is something else."""
    if node.op_type != "Concat":
        return None
    axis = attr(node, "axis", 1) % 4
    arrays = [None if v is value else _pixels(v) for v in node.inputs]
    known = all((v is value) == (a is None) for v, a in zip(node.inputs, arrays, strict=True))
    return Join(axis - 1, tuple(arrays)) if known and axis > 1 else None


def _pixels(value: ir.Value | None) -> np.ndarray | None:
    """A constant's integers, uint8 [1, H, W, C]."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or qdq.params(node) != WHOLE:
        return None
    array = const(node.inputs[0])
    return None if array is None or array.ndim != 4 else array.transpose(0, 2, 3, 1)


def _drop(graph: ir.Graph, kept: ir.Node) -> None:
    """Take out what stood between the image and ``kept``, which reads it now."""
    for node in reversed([n for n in graph if n is not kept]):
        if not any(v.uses() or v.is_graph_output() for v in node.outputs):
            graph.remove(node, safe=True)
    qdq.drop_unread(graph)


def enter(graph: ir.Graph, joins: Sequence[Join]) -> None:
    """Make the image, uint8 [N, C, H, W] with its border, uint8 [N, H, W, C] without, and add the border."""
    image = graph.inputs[0]
    name, readers = str(image.name), list(image.uses())
    planes: list[Any] = list(image.shape or ())
    n, c, h, w = planes
    sizes = [n, h, w, c]
    for join in joins:
        sizes[join.axis] -= sum(a.shape[join.axis] for a in join.parts if a is not None)
    image.shape = ir.Shape(sizes)
    made: list[ir.Node] = []

    def add(
        op: str, inputs: Sequence[ir.Value], shape: Sequence[Any], kind: ir.DataType, **attributes: Any
    ) -> ir.Value:
        label = f"{name}/{op.lower()}_{len(made)}"
        out = ir.Value(name=label, shape=ir.Shape(shape), type=ir.TensorType(kind))
        made.append(ir.node(op, inputs, attributes, outputs=[out], name=f"{label}/node"))
        return out

    def whole(array: np.ndarray) -> ir.Value:
        """The pixels for all images of a batch."""
        label = f"{name}/border_{len(made)}"
        if isinstance(n, int):
            return add_initializer(graph, label, np.repeat(array, n, 0))
        rest = add_initializer(graph, f"{label}/size", np.array(array.shape[1:], np.int64))
        batch = add("Shape", [image], [1], ir.DataType.INT64, start=0, end=1)
        size = add("Concat", [batch, rest], [4], ir.DataType.INT64, axis=0)
        return add(
            "Expand", [add_initializer(graph, label, array), size], [n, *array.shape[1:]], ir.DataType.UINT8
        )

    value = image
    for join in joins:
        inputs = [value if a is None else whole(a) for a in join.parts]
        sizes[join.axis] += sum(a.shape[join.axis] for a in join.parts if a is not None)
        value = add("Concat", inputs, sizes, ir.DataType.UINT8, axis=join.axis)
    value = add("Transpose", [value], planes, ir.DataType.UINT8, perm=(0, 3, 1, 2))
    for use in readers:
        use.node.replace_input_with(use.idx, value)
    graph.insert_before(graph[0], made)
