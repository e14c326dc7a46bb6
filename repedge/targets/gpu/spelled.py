"""What TensorRT takes in another form: Resize by scales for all axes, or as products where it has no mode.

Source of the modes: TensorRT's ONNX parser, ``docs/operators.md`` of onnx/onnx-tensorrt (10.x).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import add_initializer, const, shape_of
from repedge.passes.base import floats, insert, ints, rewrite
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
    """Whether TensorRT's Resize has all the attributes of this one, and takes the same pixels by scales."""
    if any(attr(node, name, DEFAULTS.get(name, values[0])) not in values for name, values in NATIVE.items()):
        return False
    given = const(node.inputs[2]) if len(node.inputs) > 2 else None
    if attr(node, "mode", "nearest") != "nearest" or (given is not None and given.size):
        return True
    sizes = [(shape_of(node.inputs[0])[axis], shape_of(node.outputs[0])[axis]) for axis in (2, 3)]
    return all(
        np.array_equal(resampling.nearest(node, axis), resampling.nearest(node, axis, float(_scale(*size))))
        for axis, size in zip((2, 3), sizes, strict=True)
    )


def spell_out(model: ir.Model) -> ir.Model:
    """Operators that can't go through as they are, by others; a copy if there are any.

    Resize that is not `native` becomes Gather of rows and of columns, or MatMul by weights. Celu, which ONNX
    has for float32 only, becomes alpha * Elu(x / alpha).
    """

    def stays(node: ir.Node) -> bool:
        return node.op_type != "Celu" and (node.op_type != "Resize" or native(node))

    if all(map(stays, model.graph)):
        return model
    copy = model.clone()
    graph = copy.graph
    for node in [n for n in graph if not stays(n)]:
        if node.op_type == "Celu":
            _celu(node)
        elif attr(node, "mode", "nearest") == "nearest":
            _gather(node)
        else:
            _weigh(graph, node)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
    return copy


def _celu(node: ir.Node) -> None:
    alpha, out = attr(node, "alpha", 1.0), node.outputs[0]
    if alpha == 1.0:
        rewrite(out, "Elu", [node.inputs[0]])
        return
    scaled = insert(node, "Mul", [node.inputs[0], floats(node, "inverse", 1 / alpha)], shape=shape_of(out))
    curve = insert(node, "Elu", [scaled], shape=shape_of(out))
    rewrite(out, "Mul", [curve, floats(node, "alpha", alpha)])


def _between(node: ir.Node) -> tuple[int, ...]:
    """The shape when rows are resized and columns are not."""
    return (*shape_of(node.outputs[0])[:3], *shape_of(node.inputs[0])[3:])


def _gather(node: ir.Node) -> None:
    rows, columns = (ints(node, "pixels", resampling.nearest(node, axis).tolist()) for axis in (2, 3))
    picked = insert(node, "Gather", [node.inputs[0], rows], {"axis": 2}, shape=_between(node))
    rewrite(node.outputs[0], "Gather", [picked, columns], {"axis": 3})


def _weigh(graph: ir.Graph, node: ir.Node) -> None:
    rows = add_initializer(graph, f"{node.name}/rows", resampling.matrix(node, 2).astype(np.float32))
    columns = resampling.matrix(node, 3).T.astype(np.float32)
    weighed = insert(node, "MatMul", [rows, node.inputs[0]], shape=_between(node))
    rewrite(node.outputs[0], "MatMul", [weighed, add_initializer(graph, f"{node.name}/columns", columns)])


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
