"""The float network inside a quantized ONNX file.

A file with QuantizeLinear and DequantizeLinear nodes says which numbers its integers stand for. Without the
rounding of activations it is a float network again: weights and biases are the numbers that their integers
stand for. What an asymmetric QuantizeLinear cuts off at its ends stays, as a Clip, since quantizers take a
Relu or Clip out whose work it does. Source: both operators in the ONNX specification.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from repedge.errors import UserError
from repedge.graph.attrs import attr
from repedge.graph.values import add_initializer, const


def without_rounding(model: ir.Model) -> int:
    """Make the graph of a quantized file a float one, in place; how many activations were rounded.

    Raises:
        UserError: Integers go through other operators, or scales are computed.
    """
    graph = model.graph
    for node in [n for n in graph if n.op_type == "DequantizeLinear"]:
        if (array := _constant(node)) is not None:
            out = node.outputs[0]
            _replace(graph, node, add_initializer(graph, f"{out.name}/real", array))
    count = 0
    for node in [n for n in graph if n.op_type == "QuantizeLinear"]:
        _pass_through(graph, node)
        count += 1
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
    return count


def _pass_through(graph: ir.Graph, node: ir.Node) -> None:
    """Let what reads the dequantized numbers read those that were quantized, within their ends."""
    x, integers = node.inputs[0], node.outputs[0]
    assert x is not None
    readers = [use.node for use in integers.uses()]
    other = next((r for r in readers if r.op_type != "DequantizeLinear"), None)
    parameters = _parameters(node)
    if other is not None or integers.is_graph_output() or parameters is None:
        what = "computed scales" if other is None else f"integers that go into {other.op_type} {other.name!r}"
        raise UserError(
            f"the file is quantized, and its QuantizeLinear node {node.name!r} has {what}: compile the float "
            "network that it was made from"
        )
    for reader in readers:
        if _parameters(reader) != parameters:
            raise UserError(
                f"the file is quantized, and {reader.name!r} has another scale than {node.name!r}, which it "
                "reads: compile the float network that it was made from"
            )
    low, high = parameters
    if low != -high:
        x = _clipped(graph, node, x, low, high)
    for reader in readers:
        _replace(graph, reader, x)
    graph.remove(node, safe=True)


def _clipped(graph: ir.Graph, node: ir.Node, x: ir.Value, low: float, high: float) -> ir.Value:
    name = str(node.outputs[0].name)
    bounds = [
        add_initializer(graph, f"{name}/{end}", np.array(number, np.float32))
        for end, number in (("low", low), ("high", high))
    ]
    out = ir.Value(name=f"{name}/clipped", shape=node.outputs[0].shape, type=ir.TensorType(ir.DataType.FLOAT))
    clip = ir.node("Clip", [x, *bounds], outputs=[out], name=f"{node.name}/clip")
    graph.insert_before(node, clip)
    return out


def _parameters(node: ir.Node) -> tuple[float, float] | None:
    """The numbers that the least and the greatest integer stand for; of symmetric ones -x and x."""
    scale, zero = (const(node.inputs[i]) if i < len(node.inputs) else None for i in (1, 2))
    if scale is None or scale.size != 1 or (zero is None and len(node.inputs) > 2 and node.inputs[2]):
        return None
    dtype = np.dtype(np.uint8) if zero is None else zero.dtype
    point, limits, step = (
        0 if zero is None else int(zero.reshape(())),
        np.iinfo(dtype),
        float(scale.reshape(())),
    )
    if dtype.kind == "i" and point == 0:
        return -step * limits.max, step * limits.max
    return (limits.min - point) * step, (limits.max - point) * step


def _constant(node: ir.Node) -> np.ndarray | None:
    """What a DequantizeLinear of a constant gives, also of one that a QuantizeLinear rounds first."""
    values = const(node.inputs[0])
    scale, zero = (const(node.inputs[i]) if i < len(node.inputs) else None for i in (1, 2))
    if values is None or scale is None or attr(node, "block_size", 0):
        return None
    shape = [-1 if i == attr(node, "axis", 1) % max(values.ndim, 1) else 1 for i in range(values.ndim)]
    real = values.astype(np.float32)
    if zero is not None:
        real = real - (zero if zero.size == 1 else zero.reshape(shape)).astype(np.float32)
    return np.asarray(real * (scale if scale.size == 1 else scale.reshape(shape)), np.float32).reshape(
        values.shape
    )


def _replace(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Take a node out; what read its output reads ``value``, and an output of the graph keeps its name."""
    out = node.outputs[0]
    if out.is_graph_output():
        name, kept = str(out.name), ir.Value(name=None, shape=out.shape, type=value.type)
        out.replace_all_uses_with(kept, replace_graph_outputs=True)
        out.name, kept.name = f"{name}/dequantized", name
        graph.insert_before(node, ir.node("Identity", [value], outputs=[kept], name=f"{node.name}/output"))
    else:
        out.replace_all_uses_with(value)
    graph.remove(node, safe=True)
