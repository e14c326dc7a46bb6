"""Windows over one axis become windows over a map of one row, which every target and every pass knows.

Conv(x [N, C, L], w [O, I, k])  ->  Reshape(Conv(Reshape(x) [N, C, 1, L], w [O, I, 1, k])) [N, O, L']
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import add_initializer, const, shape_of
from repedge.operators import ACTIVATIONS
from repedge.passes.base import input_at, insert, ints, nodes_of, rewrite

WINDOWS = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool")
GLOBAL = ("GlobalAveragePool", "GlobalMaxPool")

WIDENED = {
    "kernel_shape": lambda v: (1, *v),
    "strides": lambda v: (1, *v),
    "dilations": lambda v: (1, *v),
    "output_padding": lambda v: (0, *v),
    "output_shape": lambda v: (1, *v),
    "pads": lambda v: (0, v[0], 0, v[1]),
}
"""Attribute of one axis -> that of two, the new one in front and untouched."""


def widen_lines(model: ir.Model) -> int:
    """Convolutions, pools and resizes of [N, C, L] -> those of [N, C, 1, L], and what stands between them."""
    count = 0
    for node in nodes_of(model, *WINDOWS, *GLOBAL, "Resize", "BatchNormalization", *ACTIVATIONS):
        x = node.inputs[0]
        if x is None or x.shape is None or len(x.shape) != 3 or len(node.outputs) > 1:
            continue
        if node.op_type in ("BatchNormalization", *ACTIVATIONS) and _map_of(x) is None:
            continue  # not behind a window: it can stay a line
        if node.op_type == "Resize" and not _resizes_length(node):
            continue
        _widen(node, x)
        count += 1
    return count


def _map_of(x: ir.Value) -> ir.Value | None:
    """The map [N, C, 1, L] that a line was made of."""
    node = x.producer()
    if node is None or node.op_type != "Reshape" or node.inputs[0] is None:
        return None
    n, c, length = shape_of(x)
    return node.inputs[0] if shape_of(node.inputs[0]) == (n, c, 1, length) else None


def _widen(node: ir.Node, x: ir.Value) -> None:
    n, c, length = shape_of(x)
    wide = _map_of(x)
    if wide is None:
        wide = insert(node, "Reshape", [x, ints(node, "map", (0, c, 1, length))], shape=(n, c, 1, length))
    inputs = [wide, *node.inputs[1:]]
    attributes = {name: WIDENED.get(name, lambda v: v)(attr(node, name)) for name in node.attributes}
    if node.op_type in ("Conv", "ConvTranspose"):
        inputs[1] = _wide_weight(node)
    if node.op_type == "Resize":
        inputs[1:] = _wide_sizes(node)
        attributes.pop("axes", None)
    out = node.outputs[0]
    batch, channels, *rest = shape_of(out)
    made = insert(node, node.op_type, inputs, attributes, shape=(batch, channels, 1, *rest))
    rewrite(out, "Reshape", [made, ints(node, "line", (0, channels, *rest))])


def _wide_weight(node: ir.Node) -> ir.Value | None:
    weight = node.inputs[1]
    outs, ins, kernel = shape_of(weight)
    array, shape = const(weight), (outs, ins, 1, kernel)
    if array is None:
        return insert(node, "Reshape", [weight, ints(node, "kernel", shape)], shape=shape)
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    return add_initializer(graph, f"{weight.name}/map", array[:, :, None])  # type: ignore[union-attr]


def _resizes_length(node: ir.Node) -> bool:
    before, after = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    known = all(const(v) is not None for v in node.inputs[1:] if v is not None)
    return (
        before[:2] == after[:2] and known and attr(node, "keep_aspect_ratio_policy", "stretch") == "stretch"
    )


def _wide_sizes(node: ir.Node) -> list[ir.Value | None]:
    """Inputs roi, scales and sizes of a Resize of the map."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    scales = const(input_at(node, 2))
    if scales is not None and scales.size:
        wide = np.array([1, 1, 1, scales.reshape(-1)[-1]], np.float32)
        return [None, add_initializer(graph, f"{node.name}_scales", wide)]
    n, c, length = shape_of(node.outputs[0])
    return [None, None, ints(node, "sizes", (n, c, 1, length))]
