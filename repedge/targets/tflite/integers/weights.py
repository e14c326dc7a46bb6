"""8-bit weights without images, and whether a graph's integers are those of a precision."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from repedge.errors import UserError
from repedge.graph.values import add_initializer, const
from repedge.targets.tflite.integers.constants import channel_axis
from repedge.targets.tflite.integers.graph import LAYERS, IntegerGraph
from repedge.targets.tflite.integers.rules import RULES
from repedge.targets.tflite.model import Quant


def round_weights(model: ir.Model) -> IntegerGraph:
    """A copy of a float graph whose layers have 8-bit weights: nearest, one scale per output channel."""
    result = IntegerGraph(model.clone())
    graph = result.model.graph
    for node in _layers(graph):
        weight, axis = node.inputs[1], channel_axis(node)
        array = const(weight)
        assert array is not None
        assert weight is not None
        if node.op_type == "MatMul" and array.ndim != 2:
            continue
        others = tuple(a for a in range(array.ndim) if a != axis)
        largest = np.abs(array).max(axis=others, keepdims=True)
        scale = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
        integers = np.clip(np.rint(array / scale), -127, 127).astype(np.int8)
        value = add_initializer(graph, f"{weight.name}/int8", integers)
        result.quants[value] = Quant("int8", tuple(map(float, scale.reshape(-1))), 0, axis or 0)
        node.replace_input_with(1, value)
    return result


def _layers(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph:
        if node.op_type in LAYERS and const(node.inputs[1]) is not None and RULES[node.op_type].able(node):
            yield node


_TYPES = {"w8a8": "int8", "w8a16": "int16"}


def check_integers(graph: IntegerGraph, precision: str, pixels: bool) -> None:
    """Refuse a graph whose integers are not those of the precision.

    Args:
        graph: The graph.
        precision: The job's precision word.
        pixels: Whether its input must be able to hold pixels, 0 to 255.

    Raises:
        UserError: See above.
    """
    activations = {v: q for v, q in graph.quants.items() if const(v) is None}
    wanted = _TYPES.get(precision)
    if wanted is not None and wanted not in {q.dtype for q in activations.values()}:
        raise UserError(
            f"tflite {precision} needs a QDQ graph with {wanted} activations, and this one has none; "
            "calibrate the model first (repedge.calib)"
        )
    if wanted is None and activations:
        name = next(iter(activations)).name
        raise UserError(f"tflite {precision} has float activations, but the graph quantizes {name!r}")
    for value in graph.model.graph.inputs[:1] if pixels else ():
        for use in value.uses():
            quant = graph.quants.get(use.node.outputs[0]) if use.node.op_type == "QuantizeLinear" else None
            if quant is not None and quant.reals[1] < _BRIGHT:
                raise UserError(
                    f"the input {value.name!r} is quantized up to {quant.reals[1]:.3g}, which holds no "
                    "pixels of 0 to 255: fold the preprocessing into the graph before it is calibrated"
                )


_BRIGHT = 64.0
"""An input range that ends below this is one of normalised values."""
