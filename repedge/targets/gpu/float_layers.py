"""Layers that stay float between integers, kept from ONNX Runtime's own quantizer.

A layer with float32 weights that reads a DequantizeLinear and feeds a QuantizeLinear gets int8 weights
from ONNX Runtime when it loads the file, nearest and with one scale in all
(``core/optimizer/qdq_transformer/weight_bias_quantization.cc``): a layer that was left in float because
integers cost too much would lose that and more. It looks through Relu and Clip, past what only moves
numbers, for it carries quantization there itself, and past what it fuses into the layer; not past Max.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from repedge.graph.values import add_initializer, const
from repedge.operators import ELEMENTWISE, LAYERS, MOVES

SEEN_THROUGH = MOVES | ELEMENTWISE | {"Relu", "Clip", "Squeeze", "Unsqueeze", "BatchNormalization", "Div"}
"""Operators between a layer and its integers, or that it makes part of the layer."""


def keep_float(graph: ir.Graph) -> int:
    """Put ``Max(y, lowest float32)``, which changes nothing, behind each such layer; how many there were."""
    found = [node for node in graph if _would_be_quantized(node)]
    for node in found:
        out = node.outputs[0]
        readers, name = list(out.uses()), str(out.name)
        lowest = add_initializer(graph, "float32/lowest", np.array(np.finfo(np.float32).min, np.float32))
        kept = ir.Value(name=f"{name}/float", shape=out.shape, type=out.type)
        guard = ir.node("Max", [out, lowest], outputs=[kept], name=f"{node.name}/float")
        graph.insert_after(node, guard)
        for use in readers:
            use.node.replace_input_with(use.idx, kept)
    return len(found)


def _would_be_quantized(node: ir.Node) -> bool:
    weight = node.inputs[1] if node.op_type in LAYERS else None
    if const(weight) is None or node.outputs[0].is_graph_output():
        return False
    return _from_integers(node.inputs[0]) and _to_integers(node.outputs[0])


def _from_integers(value: ir.Value | None) -> bool:
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "DequantizeLinear":
            return True
        if node.op_type not in SEEN_THROUGH:
            return False
        value = node.inputs[0]
    return False


def _to_integers(value: ir.Value) -> bool:
    for use in value.uses():
        if use.node.op_type == "QuantizeLinear":
            return True
        if use.node.op_type in SEEN_THROUGH and any(map(_to_integers, use.node.outputs)):
            return True
    return False
