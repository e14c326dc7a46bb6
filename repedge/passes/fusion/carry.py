"""Per-channel affine maps through what only moves channels, into the layers behind it.

BatchNormalization(Concat(Conv(x), Conv(y)))  ->  Concat(Conv(x), Conv(y))      each with its share
BatchNormalization(Split(Conv(x))[i])         ->  Split(Conv(x))[i]
BatchNormalization(Reshape(MatMul(x, w)))     ->  Reshape(Add(MatMul(x, w s), t))

A map is carried along the axis that holds its channels, wherever Concat, Split, Slice, Reshape and
Transpose put that axis. It is carried only where every layer it reaches takes its share, so that nothing
is left of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from repedge.errors import RepedgeError
from repedge.graph.attrs import attr
from repedge.graph.values import add_initializer, const, only_reader, shape_of
from repedge.passes.fusion.affine import AFTER, Scaled, fold_after
from repedge.passes.fusion.geometry import Refused
from repedge.passes.fusion.merges import MergePlan
from repedge.passes.fusion.operators import Affine
from repedge.passes.fusion.read import affine


@dataclass(frozen=True)
class Share:
    """``scale * x + shift`` along one axis of a value.

    Attributes:
        value: What is mapped.
        axis: Holds the channels.
        scale, shift: float64 [channels]; 1 and 0 where a channel is only passing.
    """

    value: ir.Value
    axis: int
    scale: np.ndarray
    shift: np.ndarray

    def on(self, value: ir.Value | None, axis: int | None = None) -> Share:
        """The same numbers on another value."""
        assert value is not None, "operators that move elements have an input"
        return Share(value, self.axis if axis is None else axis, self.scale, self.shift)

    def among(self, value: ir.Value | None, places: np.ndarray) -> Share:
        """The same map on some channels of a wider value; the others pass."""
        assert value is not None, "operators that move elements have an input"
        channels = shape_of(value)[self.axis]
        scale, shift = np.ones(channels), np.zeros(channels)
        scale[places], shift[places] = self.scale, self.shift
        return Share(value, self.axis, scale, shift)


def carry(plan: MergePlan) -> bool:
    """BatchNormalization(Concat(Conv(x), ...)) -> Concat(Conv(x), ...)."""
    changed = False
    for node in plan.nodes():
        share = _share(node)
        if share is None:
            continue
        try:
            _require_reader(share.value, node)
            ends = _by_layer(_ends(plan, share))
        except Refused as why:
            if node.op_type == "BatchNormalization":  # a factor of an attention is no leftover
                plan.refuse(AFTER, (str(node.name),), str(why))
            continue
        for end in ends:
            _take(plan, end, node)
        plan.take_over(node.outputs[0], share.value)
        plan.remove([node])
        changed = True
    return changed


def _share(node: ir.Node) -> Share | None:
    """What an affine node does to a value that something moved; None for other nodes."""
    parts = affine(node)
    if parts is not None:
        value = node.inputs[parts[0]]
        behind = value.producer() if value is not None else None
        moved = behind is not None and behind.op_type in MOVES
        return Share(value, 1, parts[1], parts[2]) if moved and value is not None else None
    if node.op_type != "Mul":
        return None
    for value, other in (node.inputs, node.inputs[::-1]):
        factor = const(other)
        if value is None or factor is None or value.shape is None or len(value.shape) < 3:
            continue
        channels = value.shape[-1]
        if factor.size == channels == factor.shape[-1] and node.outputs[0].shape == value.shape:
            scale = factor.reshape(-1).astype(np.float64)
            return Share(value, len(value.shape) - 1, scale, np.zeros_like(scale))
    return None


# --- back to the layers ----------------------------------------------------------------------------


def _ends(plan: MergePlan, share: Share) -> Iterator[Share]:
    """The layers that take the map, each with its share.

    Raises:
        Refused: One of them can't; the message says why.
    """
    node = share.value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        raise Refused(f"it reaches {share.value.name!r}, which no layer computes")
    if node.op_type in MOVES:
        for behind in MOVES[node.op_type](share, node):
            yield from _ends(plan, behind)
        return
    if not _is_layer(plan, node, share.axis):
        raise Refused(f"it reaches {node.op_type} {node.name!r}, which is no layer with constant weights")
    yield share


def _by_layer(ends: Iterator[Share]) -> list[Share]:
    """One share per layer: halves of a map that change places are maps of the same layer."""
    found: dict[ir.Value, Share] = {}
    for end in ends:
        first = found.setdefault(end.value, end)
        if first is not end:
            shift = first.shift * end.scale + end.shift
            found[end.value] = Share(end.value, end.axis, first.scale * end.scale, shift)
    return list(found.values())


def _require_reader(value: ir.Value | None, reader: ir.Node) -> None:
    assert value is not None, "operators that move elements have inputs"
    if only_reader(value) is not reader:
        node = value.producer()
        what = f"{node.op_type} {node.name!r}" if node is not None else repr(value.name)
        raise Refused(f"the output of {what} is read elsewhere")


def _is_layer(plan: MergePlan, node: ir.Node, axis: int) -> bool:
    rank = len(shape_of(node.outputs[0]))
    if node.outputs[0].dtype != ir.DataType.FLOAT:
        return False
    if node.op_type == "Add":
        return axis == rank - 1 and _biased(node) is not None
    if node.op_type == "MatMul" and rank > 2:
        return axis == rank - 1 and _has_matrix(node)
    if node.op_type in ("Conv", "ConvTranspose"):
        return axis == 1 and all(const(v) is not None for v in node.inputs[1:] if v is not None)
    return node.op_type in ("Gemm", "MatMul") and axis == 1 and plan.op(node) is not None


def _has_matrix(matmul: ir.Node) -> bool:
    weight = const(matmul.inputs[1])
    return weight is not None and weight.ndim == 2


def _biased(add: ir.Node) -> tuple[ir.Node, np.ndarray] | None:
    """The MatMul of rank 3 or more and the bias [channels] that an Add gives it."""
    for value, other in (add.inputs, add.inputs[::-1]):
        node = value.producer() if value is not None else None
        bias = const(other)
        if value is None or node is None or bias is None or only_reader(value) is not add:
            continue
        shape = shape_of(value)
        if node.op_type == "MatMul" and len(shape) > 2 and bias.shape == shape[-1:] and _has_matrix(node):
            return node, bias
    return None


# --- what moves channels ---------------------------------------------------------------------------


def _through_concat(share: Share, node: ir.Node) -> Iterator[Share]:
    start = 0
    for value in node.inputs:
        _require_reader(value, node)
        if attr(node, "axis") % len(shape_of(share.value)) != share.axis:
            yield share.on(value)
            continue
        end = start + shape_of(value)[share.axis]
        yield Share(value, share.axis, share.scale[start:end], share.shift[start:end])  # type: ignore[arg-type]
        start = end


def _through_split(share: Share, node: ir.Node) -> Iterator[Share]:
    _require_reader(node.inputs[0], node)
    axis = attr(node, "axis", 0) % len(shape_of(share.value))
    if axis != share.axis:
        raise Refused(f"{node.op_type} {node.name!r} cuts another axis than that of the channels")
    sizes = [shape_of(v)[axis] for v in node.outputs]
    index = list(node.outputs).index(share.value)
    start = sum(sizes[:index])
    yield share.among(node.inputs[0], np.arange(start, start + sizes[index]))


def _through_slice(share: Share, node: ir.Node) -> Iterator[Share]:
    """Other Slices may read the same value if they take other channels."""
    source, places = node.inputs[0], _places(node, share.axis)
    assert source is not None, "Slice has an input"
    if places is None:
        raise Refused(f"the bounds of Slice {node.name!r} are computed")
    for use in source.uses():
        others = _places(use.node, share.axis) if use.node.op_type == "Slice" else None
        if use.node is not node and (others is None or np.isin(others, places).any()):
            raise Refused(f"what Slice {node.name!r} cuts is read elsewhere")
    if source.is_graph_output():
        raise Refused(f"what Slice {node.name!r} cuts is an output")
    yield share.among(source, places)


def _places(node: ir.Node, axis: int) -> np.ndarray | None:
    """The channels that a Slice takes."""
    source = node.inputs[0]
    bounds = [const(v) for v in node.inputs[1:]]
    if source is None or len(bounds) != 4 or any(b is None for b in bounds):
        return None
    every = np.arange(shape_of(source)[axis])
    for start, end, a, step in zip(*bounds, strict=True):  # type: ignore[arg-type]
        if a % len(shape_of(source)) == axis:
            every = every[start:end:step]
    return every


def _through_reshape(share: Share, node: ir.Node) -> Iterator[Share]:
    """The axis of as many elements with as many behind it."""
    _require_reader(node.inputs[0], node)
    source, shape = shape_of(node.inputs[0]), shape_of(share.value)
    behind = math.prod(shape[share.axis + 1 :])
    for axis, n in enumerate(source):
        if n == shape[share.axis] and math.prod(source[axis + 1 :]) == behind:
            yield share.on(node.inputs[0], axis)
            return
    raise Refused(f"{node.op_type} {node.name!r} takes the channels apart")


def _through_transpose(share: Share, node: ir.Node) -> Iterator[Share]:
    _require_reader(node.inputs[0], node)
    rank = len(shape_of(share.value))
    yield share.on(node.inputs[0], attr(node, "perm", tuple(reversed(range(rank))))[share.axis])


MOVES: dict[str, Callable[[Share, ir.Node], Iterator[Share]]] = {
    "Concat": _through_concat,
    "Split": _through_split,
    "Slice": _through_slice,
    "Reshape": _through_reshape,
    "Flatten": _through_reshape,
    "Squeeze": _through_reshape,
    "Unsqueeze": _through_reshape,
    "Transpose": _through_transpose,
}
"""Operators that a map is carried through: (share of the output, node) -> shares of the inputs."""


# --- into a layer ----------------------------------------------------------------------------------


def _take(plan: MergePlan, end: Share, node: ir.Node) -> None:
    """Merge a share of the affine node into the layer behind it."""
    layer = end.value.producer()
    assert layer is not None, "the walk ends at layers"
    if layer.op_type == "Add" or (layer.op_type == "MatMul" and len(shape_of(end.value)) > 2):
        _scale_matmul(plan, end, node)
        return
    arrays = (end.scale, end.shift, np.zeros_like(end.scale), np.ones_like(end.scale))
    # In float64, for it is read at once and is gone then.
    values = [add_initializer(plan.graph, plan.fresh(f"{node.name}/share"), a) for a in arrays]
    share = _behind(plan, end.value, "BatchNormalization", values, str(node.name), epsilon=0.0)
    if len(shape_of(end.value)) in (2, 4):
        plan.adopt([share], Affine(str(node.name), node.op_type, end.scale, end.shift))
    if not fold_after(plan, share, layer):
        raise RepedgeError(f"{layer.op_type} {layer.name!r} does not take its share of {node.name!r}")


def _behind(
    plan: MergePlan, value: ir.Value, op: str, inputs: list[ir.Value], name: str, **attributes: float
) -> ir.Node:
    """Put a node between a value and what reads it."""
    layer = value.producer()
    assert layer is not None, "the walk ends at layers"
    out = ir.Value(name=plan.fresh(f"{value.name}_mapped"), shape=value.shape, type=value.type)
    value.replace_all_uses_with(out, replace_graph_outputs=True)
    node = ir.node(op, [value, *inputs], attributes, outputs=[out], name=name)
    node.metadata_props.update(layer.metadata_props)
    plan.graph.insert_after(layer, node)
    return node


def _scale_matmul(plan: MergePlan, end: Share, node: ir.Node) -> None:
    """A product with a constant matrix over the last axis: its columns, and the bias that an Add gives."""
    layer, bias = end.value.producer(), None
    assert layer is not None, "the walk ends at layers"
    if layer.op_type == "Add":
        found = _biased(layer)
        assert found is not None, "seen before"
        layer, bias = found
    weight = const(layer.inputs[1])
    assert weight is not None, "seen before"
    scaled = layer.meta.get("scaled") or Scaled(weight, bias, True, 1, (), (str(layer.name),))
    layer.meta["scaled"] = scaled.then(end.scale, end.shift, str(node.name))
    plan.kinds.setdefault(layer, []).append(AFTER)
    if bias is None:
        zeros = np.zeros(len(end.scale), np.float32)
        _behind(
            plan,
            end.value,
            "Add",
            [add_initializer(plan.graph, plan.fresh("bias"), zeros)],
            f"{layer.name}/bias",
        )
