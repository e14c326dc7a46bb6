"""Resize for TensorRT: scales for all axes, and matrix products for what it has no mode for.

Source of the modes: TensorRT's ONNX parser, ``docs/operators.md`` of onnx/onnx-tensorrt (10.x).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import add_initializer, const, shape_of
from repedge.passes.base import insert, rewrite
from repedge.targets import resampling

NATIVE = {
    "mode": ("nearest", "linear"),
    "coordinate_transformation_mode": (
        "half_pixel",
        "pytorch_half_pixel",
        "tf_half_pixel_for_nn",
        "asymmetric",
        "align_corners",
    ),
    "nearest_mode": ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"),
    "keep_aspect_ratio_policy": ("stretch",),
    "antialias": (0,),
    "exclude_outside": (0,),
}
"""Attribute values that TensorRT's Resize takes, the ONNX default first or among them."""

DEFAULTS = {"nearest_mode": "round_prefer_floor"}


def native(node: ir.Node) -> bool:
    """Whether TensorRT's Resize has all the attributes of this one."""
    return all(attr(node, name, DEFAULTS.get(name, values[0])) in values for name, values in NATIVE.items())


def weigh_resizes(model: ir.Model) -> ir.Model:
    """Resize -> MatMul(MatMul(rows, x), columns) where it is not `native`; then a copy."""
    if all(node.op_type != "Resize" or native(node) for node in model.graph):
        return model
    copy = model.clone()
    graph = copy.graph
    for node in [n for n in graph if n.op_type == "Resize" and not native(n)]:
        x, out = node.inputs[0], node.outputs[0]
        rows = add_initializer(graph, f"{node.name}/rows", resampling.matrix(node, 2).astype(np.float32))
        columns = resampling.matrix(node, 3).T.astype(np.float32)
        shape = (*shape_of(x)[:2], *shape_of(out)[2:3], *shape_of(x)[3:])
        weighed = insert(node, "MatMul", [rows, x], shape=shape)
        rewrite(out, "MatMul", [weighed, add_initializer(graph, f"{node.name}/columns", columns)])
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
    return copy


def scale_resizes(graph: ir.Graph) -> None:
    """Give every Resize scales for all axes: sizes hold the batch's, and TensorRT wants all axes."""
    for node in graph:
        if node.op_type == "Resize":
            shapes = [tuple(v.shape)[2:] for v in (node.inputs[0], node.outputs[0]) if v and v.shape]
            scales = np.array(
                [1, 1, *(_scale(int(i), int(o)) for i, o in zip(*shapes, strict=True))], np.float32
            )
            given = const(node.inputs[2]) if len(node.inputs) > 2 else None
            if given is not None and given.size:  # the coordinates depend on the very scales
                scales[list(attr(node, "axes", range(4)))] = given
            node.resize_inputs(3)
            node.replace_input_with(2, add_initializer(graph, f"{node.name}/scales", scales))
            node.attributes.pop("axes", None)
            node.attributes.pop("keep_aspect_ratio_policy", None)


def _scale(size: int, wanted: int) -> np.float32:
    """The float32 scale for which ``floor(size * scale)`` is the wanted size, however it is computed."""
    scale = np.float32(wanted / size)
    return scale if size * float(scale) >= wanted else np.nextafter(scale, np.float32(np.inf))
