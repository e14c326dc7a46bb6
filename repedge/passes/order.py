"""Channels in another order ahead of a layer: the layer's weights in that order.

A network that was trained on BGR begins with such a Gather, which would stand between the preprocessing
and the first convolution, and between the pixels and its integers.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import const, only_reader, shape_of
from repedge.passes.base import floats, input_at, nodes_of


def fold_orders(model: ir.Model) -> int:
    """Conv(Gather(x, order)) -> Conv(x); likewise Gemm. No number changes."""
    count = 0
    for node in nodes_of(model, "Gather"):
        x, order = node.inputs[0], const(node.inputs[1])
        layer = only_reader(node.outputs[0])
        if x is None or order is None or order.ndim != 1 or layer is None or attr(node, "axis", 0) != 1:
            continue
        channels = shape_of(x)[1]
        if sorted(order % channels) != list(range(channels)) or not _takes(layer, node.outputs[0]):
            continue
        weight = const(layer.inputs[1])
        assert weight is not None, "seen by _takes"
        axis = 1 if layer.op_type == "Conv" or attr(layer, "transB", 0) else 0
        back = np.argsort(order % channels)
        layer.replace_input_with(0, x)
        layer.replace_input_with(1, floats(layer, "ordered", weight.take(back, axis)))
        count += 1
    return count


def _takes(layer: ir.Node, value: ir.Value) -> bool:
    """Whether the value is the data of a layer that mixes all channels by a constant weight."""
    weight = const(input_at(layer, 1))
    if weight is None or weight.dtype != np.float32 or layer.inputs[0] is not value:
        return False
    if layer.op_type == "Conv":
        return attr(layer, "group", 1) == 1
    return layer.op_type == "Gemm" and not attr(layer, "transA", 0)
