"""Normalization by an image's own statistics: LayerNormalization, InstanceNormalization, GroupNormalization.

Each is ``(x - mean) / sqrt(variance + epsilon) * scale + bias`` over some axes, in operators that XNNPACK
takes. The variance is the mean of squared distances, not a difference of squares, which would cancel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import const
from repedge.targets.tflite.emit import Emitter
from repedge.targets.tflite.layout import Layout
from repedge.targets.tflite.ops_math import operand


def layer_normalization(c: Emitter, node: ir.Node) -> None:
    """LayerNormalization, whatever its axis."""
    value = node.inputs[0]
    layout = c.layout(value)  # type: ignore[arg-type]
    first = attr(node, "axis", -1) % len(layout)
    places = [i for i, axis in enumerate(layout) if axis >= first]
    y = _normalized(c, node, c.read(value), places)
    parameters = [operand(c, v, len(layout), layout) for v in node.inputs[1:] if v is not None]
    _scaled(c, node, y, parameters, layout)


def instance_normalization(c: Emitter, node: ir.Node) -> None:
    """InstanceNormalization: over all axes behind the channels."""
    value = node.inputs[0]
    layout = c.layout(value)  # type: ignore[arg-type]
    places = [i for i, axis in enumerate(layout) if axis >= 2]
    y = _normalized(c, node, c.read(value), places)
    column = [1, -1, *[1] * (len(layout) - 2)]
    parameters = []
    for name, given in zip(("scale", "bias"), node.inputs[1:], strict=True):
        array = const(given)
        assert array is not None
        parameters.append(c.floats(f"{node.name}/{name}", array.reshape(column).transpose(layout)))
    _scaled(c, node, y, parameters, layout)


def refuse_normalization(node: ir.Node) -> str | None:
    """Why one of them can't be lowered."""
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return "its mean and deviation are read"
    if node.op_type != "LayerNormalization" and any(const(v) is None for v in node.inputs[1:]):
        return "its scale and bias are computed, not constant"
    return None


def _normalized(c: Emitter, node: ir.Node, x: int, places: Sequence[int]) -> int:
    """(x - mean) / sqrt(variance + epsilon) over stored axes."""
    name = node.outputs[0].name
    kept = [1 if i in places else n for i, n in enumerate(c.writer.tensors[x].shape)]
    axes = c.ints(places)
    mean = c.step("MEAN", [x, axes], f"{name}/mean", kept, keepDims=True)
    centred = c.step("SUB", [x, mean], f"{name}/centred")
    squares = c.step("SQUARE", [centred], f"{name}/squares")
    variance = c.step("MEAN", [squares, axes], f"{name}/variance", kept, keepDims=True)
    epsilon = c.floats(f"{node.name}/epsilon", np.array(attr(node, "epsilon", 1e-5)))
    raised = c.step("ADD", [variance, epsilon], f"{name}/raised")
    inverse = c.step("RSQRT", [raised], f"{name}/inverse")
    return c.step("MUL", [centred, inverse], f"{name}/normalized")


def _scaled(c: Emitter, node: ir.Node, y: int, parameters: Sequence[int], layout: Layout) -> None:
    """y * scale + bias as the node's output; an activation behind it is taken along."""
    steps = list(zip(("MUL", "ADD"), parameters, strict=False))
    out, activation = c.tail(node)
    for op, parameter in steps[:-1]:
        y = c.step(op, [y, parameter], f"{node.outputs[0].name}/scaled")
    op, parameter = steps[-1]
    c.op(op, [y, parameter], [c.write(out, layout)], fusedActivationFunction=activation)
