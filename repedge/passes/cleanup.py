"""What computes nothing goes; what is computed twice is computed once; attributes get one spelling."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from repedge.errors import UserError
from repedge.graph.attrs import attr
from repedge.graph.values import const, shape_of
from repedge.passes.base import bypass, floats, input_at, insert, ints, nodes_of, rewrite, same_shape, scalar

AXIS_ATTRIBUTE = {
    "ArgMax": 0,
    "ArgMin": 0,
    "Concat": None,
    "Flatten": 1,
    "Gather": 0,
    "Hardmax": -1,
    "LogSoftmax": -1,
    "Softmax": -1,
    "Split": 0,
}
"""Operators with an ``axis`` attribute and its default, None where it is required."""


def sort_nodes(model: ir.Model) -> int:
    """Put the nodes in topological order, keeping their order where it is one."""
    before = list(model.graph)
    model.graph.sort()
    return sum(a is not b for a, b in zip(before, model.graph, strict=True))


def require_inference_form(model: ir.Model) -> int:
    """Refuse graphs that were exported in training mode; tidy the flag away otherwise.

    Raises:
        UserError: A BatchNormalization would use the statistics of its batch, or a Dropout would drop.
    """
    count = 0
    for node in nodes_of(model, "BatchNormalization", "Dropout"):
        if node.op_type == "Dropout":
            training = scalar(input_at(node, 2)) if input_at(node, 2) is not None else 0
        else:
            training = attr(node, "training_mode", 0)
        if training != 0:
            raise UserError(
                f"{node.op_type} node {node.name!r} is in training mode; call model.eval() before exporting"
            )
        count += node.attributes.pop("training_mode", None) is not None
    return count


# --- no-ops ------------------------------------------------------------------------------------


def drop_noops(model: ir.Model) -> int:
    """noop(x) -> x, where NOOPS says when a node of that kind is one."""
    count = 0
    for node in nodes_of(model, *NOOPS):
        x = node.inputs[0] if node.inputs else None
        if x is None:
            continue
        if node.op_type in NEUTRAL:
            x = _other_than(node, NEUTRAL[node.op_type])
        if node.op_type not in ("Identity", "Dropout") and not same_shape(x, node.outputs[0]):
            continue
        if NOOPS[node.op_type](node) and bypass(node, x):
            count += 1
    return count


def _always(_: ir.Node) -> bool:
    return True


def _other_than(node: ir.Node, neutral: float) -> ir.Value | None:
    """The operand that is returned unchanged because the other is the neutral element throughout."""
    a, b = node.inputs
    if _is_filled_with(b, neutral):
        return a
    return b if node.op_type in ("Add", "Mul") and _is_filled_with(a, neutral) else None


def _is_filled_with(value: ir.Value | None, number: float) -> bool:
    array = const(value) if value is not None and value.is_initializer() else None
    return array is not None and array.size > 0 and bool(np.all(array == number))


def _is_same_cast(node: ir.Node) -> bool:
    return node.inputs[0] is not None and node.inputs[0].dtype == node.outputs[0].dtype


def _is_empty_pad(node: ir.Node) -> bool:
    pads = const(input_at(node, 1))
    return pads is not None and not pads.any()


def _is_identity_permutation(node: ir.Node) -> bool:
    perm = attr(node, "perm")
    return perm is not None and tuple(perm) == tuple(range(len(perm)))


def _is_full_slice(node: ir.Node) -> bool:
    steps = const(input_at(node, 4)) if input_at(node, 4) is not None else np.ones(1)
    return steps is not None and bool((steps == 1).all())  # the shape is unchanged, so all is kept


def _is_unit_window(node: ir.Node) -> bool:
    kernel = attr(node, "kernel_shape", ())
    pads = attr(node, "pads", (0,))
    return len(node.outputs) == 1 and all(k == 1 for k in kernel) and not any(pads)


def _is_unit_resize(node: ir.Node) -> bool:
    """The size stays and so does each pixel: not so for a scale such as 1.01 that rounds to the same size."""
    if attr(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return False
    scales, sizes = input_at(node, 2), input_at(node, 3)
    if sizes is not None:
        return const(sizes) is not None
    return _is_filled_with(scales, 1.0)


NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0, "Pow": 1.0}
"""The second operand (of Add and Mul: either) that changes nothing."""

NOOPS: dict[str, Callable[[ir.Node], bool]] = {
    "Identity": _always,
    "Dropout": lambda node: len(node.outputs) == 1,
    "Cast": _is_same_cast,
    "CastLike": _is_same_cast,
    "Pad": _is_empty_pad,
    "Reshape": _always,  # to the shape that it has
    "Flatten": _always,
    "Squeeze": _always,
    "Unsqueeze": _always,
    "Expand": _always,
    "Tile": _always,
    "Transpose": _is_identity_permutation,
    "Slice": _is_full_slice,
    "Concat": lambda node: len(node.inputs) == 1,
    "Split": lambda node: len(node.outputs) == 1,
    "Sum": lambda node: len(node.inputs) == 1,
    "Mean": lambda node: len(node.inputs) == 1,
    "Max": lambda node: len(node.inputs) == 1,
    "Min": lambda node: len(node.inputs) == 1,
    "AveragePool": _is_unit_window,
    "MaxPool": _is_unit_window,
    "Resize": _is_unit_resize,
    **dict.fromkeys(NEUTRAL, _always),  # after the look at the operands
}
"""When a node that keeps its input's shape (checked before) also keeps its values."""


# --- one spelling ------------------------------------------------------------------------------


def spell_out(model: ir.Model) -> int:
    """Non-negative axes, explicit split sizes, n-ary sums as Adds, slices in full."""
    count = 0
    for node in nodes_of(model, *AXIS_ATTRIBUTE):
        count += _positive_axis(node)
    for node in nodes_of(model, "Split"):
        count += _explicit_split(node)
    for node in nodes_of(model, "Sum"):
        count += _sum_to_adds(node)
    for node in nodes_of(model, "Mean"):
        count += _mean_to_adds(node)
    for node in nodes_of(model, "Slice"):
        count += _full_slice_inputs(node)
    return count


def _positive_axis(node: ir.Node) -> bool:
    axis = attr(node, "axis", AXIS_ATTRIBUTE[node.op_type])
    if axis is None or node.inputs[0] is None:
        return False
    rank = len(shape_of(node.inputs[0]))
    positive = axis + rank if axis < 0 else axis
    if attr(node, "axis") == positive:
        return False
    node.attributes["axis"] = ir.AttrInt64("axis", positive)
    return True


def _explicit_split(node: ir.Node) -> bool:
    if input_at(node, 1) is not None and "num_outputs" not in node.attributes:
        return False
    axis = attr(node, "axis", 0)
    sizes = ints(node, "split", [shape_of(v)[axis] for v in node.outputs])
    node.attributes.pop("num_outputs", None)
    node.resize_inputs(2)
    node.replace_input_with(1, sizes)
    return True


def _sum_to_adds(node: ir.Node) -> bool:
    total, *rest = node.inputs
    if total is None or not rest:
        return False
    for value in rest[:-1]:
        shape = np.broadcast_shapes(shape_of(total), shape_of(value))
        total = insert(node, "Add", [total, value], shape=shape)
    rewrite(node.outputs[0], "Add", [total, rest[-1]])
    return True


def _mean_to_adds(node: ir.Node) -> bool:
    """Mean of n values -> their sum, times 1 / n."""
    total, *rest = node.inputs
    if total is None or not rest:
        return False
    for value in rest:
        shape = np.broadcast_shapes(shape_of(total), shape_of(value))
        total = insert(node, "Add", [total, value], shape=shape)
    rewrite(node.outputs[0], "Mul", [total, floats(node, "share", 1 / len(node.inputs))])
    return True


def _full_slice_inputs(node: ir.Node) -> bool:
    """Starts and ends inside the tensor, axes and steps given; only forward steps are touched."""
    x = node.inputs[0]
    given = [const(input_at(node, i)) for i in range(1, 5)]
    starts, ends, axes, steps = given
    if x is None or starts is None or ends is None:
        return False
    shape = shape_of(x)
    axes = np.arange(len(starts)) if axes is None else axes % len(shape)
    steps = np.ones(len(starts), np.int64) if steps is None else steps
    if (steps < 1).any():
        return False
    dims = np.asarray([shape[a] for a in axes], np.int64)
    starts, ends = (np.clip(np.where(e < 0, e + dims, e), 0, dims) for e in (starts, ends))
    wanted = [a.astype(np.int64) for a in (starts, ends, axes, steps)]
    if all(a is not None and np.array_equal(a, b) for a, b in zip(given, wanted, strict=True)):
        return False
    node.resize_inputs(5)
    for i, (name, array) in enumerate(zip(("starts", "ends", "axes", "steps"), wanted, strict=True)):
        node.replace_input_with(i + 1, ints(node, name, array.tolist()))
    return True


# --- duplicates --------------------------------------------------------------------------------


OPAQUE_ATTRIBUTES = (
    ir.AttributeType.GRAPH,
    ir.AttributeType.GRAPHS,
    ir.AttributeType.TENSOR,
    ir.AttributeType.TENSORS,
    ir.AttributeType.SPARSE_TENSOR,
)
"""Nodes with one of these are not compared."""


def merge_duplicates(model: ir.Model) -> int:
    """Equal initializers -> one; nodes with equal operator, attributes and inputs -> one."""
    return _merge_initializers(model.graph) + _merge_nodes(model)


def _merge_initializers(graph: ir.Graph) -> int:
    count = 0
    kept: dict[tuple[object, ...], list[tuple[ir.Value, np.ndarray]]] = {}
    for value in tuple(graph.initializers.values()):
        array = None if value.is_graph_input() or value.is_graph_output() else const(value)
        if array is None or array.dtype == object:
            continue
        # A sample of the elements tells almost all weights apart without reading them whole.
        sample = array.reshape(-1)[:: max(1, array.size // 64)].tobytes()
        candidates = kept.setdefault((value.dtype, array.shape, sample), [])
        twin = next((v for v, a in candidates if a.tobytes() == array.tobytes()), None)
        if twin is None:
            candidates.append((value, array))
        elif value.uses():
            value.replace_all_uses_with(twin)
            count += 1
    return count


def _merge_nodes(model: ir.Model) -> int:
    count = 0
    kept: dict[tuple[object, ...], ir.Node] = {}
    for node in nodes_of(model):
        if any(a.type in OPAQUE_ATTRIBUTES for a in node.attributes.values()):
            continue
        if node.op_type.startswith(("Random", "Multinomial", "Bernoulli")):
            continue
        attributes = tuple(sorted((k, repr(attr(node, k))) for k in node.attributes))
        key = (node.domain, node.op_type, len(node.outputs), attributes, tuple(map(id, node.inputs)))
        twin = kept.setdefault(key, node)
        if twin is node or any(v.is_graph_output() for v in node.outputs):
            continue
        for mine, other in zip(node.outputs, twin.outputs, strict=True):
            mine.replace_all_uses_with(other)
        count += 1
    return count
