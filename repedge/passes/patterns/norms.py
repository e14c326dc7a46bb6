"""A normalization spelled out -> one LayerNormalization, in float16 without an overflow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import const, only_reader, shape_of
from repedge.passes.base import floats, input_at, insert, nodes_of, rewrite, scalar


@dataclass(frozen=True)
class Norm:
    """``(x - mean) / sqrt(variance + epsilon)`` over some axes of ``x``."""

    x: ir.Value
    axes: tuple[int, ...]
    epsilon: float


def fuse_norms(model: ir.Model) -> int:
    """(x - mean) / sqrt(mean((x - mean)^2) + epsilon) * scale + bias -> LayerNormalization.

    Over the last axes as it is; over the channels of [N, C, H, W] (torch's LayerNorm2d) between Transposes.
    """
    count = 0
    for node in nodes_of(model, "Div", "Mul"):
        found = None if node.graph is None else _norm(node)  # an earlier one may have taken it along
        if found is not None and (_trailing(found) or _channels(found)):
            _write(node, found)
            count += 1
    return count


def _norm(node: ir.Node) -> Norm | None:
    """What a Div by a deviation, or a Mul by its inverse, normalizes."""
    for centred, other in ((0, 1), (1, 0)) if node.op_type == "Mul" else ((0, 1),):
        difference, deviation = node.inputs[centred], node.inputs[other]
        raised = _under_root(deviation, inverse=node.op_type == "Mul")
        found = None if raised is None else _over(difference, raised)
        if found is not None:
            return found
    return None


def _made_by(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type in op_types else None


def _under_root(value: ir.Value | None, inverse: bool) -> ir.Value | None:
    """v of sqrt(v), or of its inverse."""
    node = _made_by(value, "Sqrt", "Reciprocal", "Pow", "Div")
    if node is None:
        return None
    if node.op_type == "Pow":
        return node.inputs[0] if scalar(node.inputs[1]) == (-0.5 if inverse else 0.5) else None
    if inverse:
        if node.op_type == "Div" and scalar(node.inputs[0]) != 1:
            return None
        root = node.inputs[-1] if node.op_type in ("Reciprocal", "Div") else None
        return _under_root(root, inverse=False)
    return node.inputs[0] if node.op_type == "Sqrt" else None


def _over(difference: ir.Value | None, raised: ir.Value) -> Norm | None:
    """The norm whose numerator is ``difference`` and whose variance plus epsilon is ``raised``."""
    total, sub = _made_by(raised, "Add"), _made_by(difference, "Sub")
    if total is None or sub is None:
        return None
    for variance, constant in (total.inputs, total.inputs[::-1]):
        epsilon, mean = scalar(constant), _mean(variance)
        if epsilon is None or mean is None or not 0 < epsilon < 1:
            continue
        centre = _mean(sub.inputs[1])
        same = centre is not None and centre[0] is sub.inputs[0] and centre[1] == mean[1]
        if same and _squares(mean[0], sub) and sub.inputs[0] is not None:
            return Norm(sub.inputs[0], mean[1], float(epsilon))
    return None


def _mean(value: ir.Value | None) -> tuple[ir.Value | None, tuple[int, ...]] | None:
    """What a ReduceMean that keeps its axes averages, and over which."""
    node = _made_by(value, "ReduceMean")
    axes = None if node is None else const(input_at(node, 1))
    if node is None or axes is None or axes.size == 0 or not attr(node, "keepdims", 1):
        return None
    rank = len(shape_of(node.inputs[0]))
    return node.inputs[0], tuple(sorted(int(a) % rank for a in axes.reshape(-1)))


def _squares(value: ir.Value | None, sub: ir.Node) -> bool:
    """Whether a value is the square of what ``sub`` gives, or of the same difference computed again."""
    node = _made_by(value, "Mul", "Pow")
    if node is None or (node.op_type == "Pow" and scalar(node.inputs[1]) != 2):
        return False
    factors = node.inputs if node.op_type == "Mul" else node.inputs[:1]
    makers = [_made_by(f, "Sub") for f in factors]
    return all(m is not None and list(m.inputs) == list(sub.inputs) for m in makers)


def _trailing(found: Norm) -> bool:
    rank = len(shape_of(found.x))
    return found.axes == tuple(range(found.axes[0], rank)) and found.axes[0] > 0


def _channels(found: Norm) -> bool:
    return found.axes == (1,) and len(shape_of(found.x)) == 4


def _write(node: ir.Node, found: Norm) -> None:
    shape = shape_of(found.x)
    size = [shape[a] for a in found.axes]
    scale, last = _parameter(node.outputs[0], "Mul", found, size)
    bias, last = _parameter(last, "Add", found, size)
    end = last.producer()
    assert end is not None, "it is this node or one behind it"
    x = found.x
    if not _trailing(found):
        x = insert(end, "Transpose", [x], {"perm": (0, 2, 3, 1)}, shape=[shape[i] for i in (0, 2, 3, 1)])
    inputs = [x, floats(end, "scale", np.ones(size) if scale is None else scale)]
    if bias is not None:
        inputs.append(floats(end, "bias", bias))
    attributes = {"axis": len(shape) - len(size), "epsilon": found.epsilon}
    if _trailing(found):
        rewrite(last, "LayerNormalization", inputs, attributes)
        return
    y = insert(end, "LayerNormalization", inputs, attributes, shape=shape_of(x))
    rewrite(last, "Transpose", [y], {"perm": (0, 3, 1, 2)})


def _parameter(
    value: ir.Value, op_type: str, found: Norm, size: list[int]
) -> tuple[np.ndarray | None, ir.Value]:
    """The constant that the value's only reader scales or shifts it by, in the norm's shape; the result."""
    reader = only_reader(value)
    if reader is None or reader.op_type != op_type:
        return None, value
    other = reader.inputs[1] if reader.inputs[0] is value else reader.inputs[0]
    array = const(other)
    if array is None or shape_of(reader.outputs[0]) != shape_of(value):
        return None, value
    wide = array.reshape((1,) * (len(shape_of(value)) - array.ndim) + array.shape)
    if any(n != 1 for axis, n in enumerate(wide.shape) if axis not in found.axes):
        return None, value  # it differs along other axes
    return np.broadcast_to(wide.reshape([wide.shape[a] for a in found.axes]), size), reader.outputs[0]
