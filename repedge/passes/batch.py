"""From batch size 1 to any: a symbolic batch axis, after a look at every node that could mix images."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from repedge.errors import UserError
from repedge.graph.attrs import attr
from repedge.graph.values import const, shape_of
from repedge.operators import UNARY
from repedge.passes.base import input_at, ints
from repedge.passes.lift import ALONG_AXIS, BATCH, BROADCASTING, FOLDED, REDUCTIONS, Lift

Rule = Callable[[ir.Node, set[ir.Value]], str | None]
"""(node, values that depend on the input) -> why it needs an axis of images of its own, or None."""


def dynamic_batch(model: ir.Model) -> ir.Model:
    """A copy of the clean graph for any number of images: the leading axis of inputs and outputs is ``N``.

    Most operators work on N images as they do on one. Those that fold, move or lose the batch axis get an
    axis of images in front (`repedge.passes.lift`).

    Args:
        model: A clean graph, batch size 1; it is not changed, and its weights are shared.

    Raises:
        UserError: A node mixes the images of a batch, or is not known not to; the message names it.
    """
    copy = model.clone()
    graph = copy.graph
    lift = Lift(graph)
    for node in list(graph):
        if not any(v in lift.batched for v in node.inputs):
            continue  # constants only: the same for every image
        reason = _batched(node, lift)
        if reason is not None:
            raise UserError(
                f"the batch size can't be made dynamic: {node.op_type} node {node.name!r} {reason}"
            )
    for value in graph.outputs:
        if value not in lift.batched:
            raise UserError(f"the batch size can't be made dynamic: the output {value.name!r} is a constant")
        if value in lift.lifted:
            raise UserError(
                f"the batch size can't be made dynamic: the output {value.name!r} is "
                f"{list(shape_of(value))}, whose first axis is not the batch"
            )
    lift.finish()
    _forget_unread(graph)
    return copy


def fixed_batch(model: ir.Model, count: int) -> ir.Model:
    """A copy of the clean graph for ``count`` images at once.

    Raises:
        UserError: As `dynamic_batch`, for more than one image.
    """
    if count == 1:
        return model.clone()
    copy = dynamic_batch(model)
    for value in (*copy.graph.inputs, *(v for node in copy.graph for v in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([count if str(d) == BATCH else d for d in value.shape])
    return copy


def _batched(node: ir.Node, lift: Lift) -> str | None:
    """Make the node work on N images; a reason where it can't."""
    if node.op_type == "Resize":
        _resize_map_only(node)
    plain = not any(v in lift.lifted for v in node.inputs)
    rule = RULES.get(node.op_type, _unknown)
    if plain and (rule(node, lift.batched) or _leading_axis(node)) is None:
        lift.batched.update(node.outputs)
        return None
    return lift.apply(node)


# --- what keeps images apart -------------------------------------------------------------------


def _unknown(node: ir.Node, _: set[ir.Value]) -> str | None:
    return "is not known to keep the images of a batch apart"


def _leading_axis(node: ir.Node) -> str | None:
    for value in node.outputs:
        if value.name and shape_of(value)[:1] != (1,):
            return f"gives {list(shape_of(value))}, whose first axis is not the batch"
    return None


def _data_input_only(node: ir.Node, batched: set[ir.Value]) -> str | None:
    if any(v in batched for v in node.inputs[1:]):
        return "has weights or parameters that depend on the image"
    return None


def _elementwise(node: ir.Node, batched: set[ir.Value]) -> str | None:
    rank = len(shape_of(node.outputs[0]))
    if any(v in batched and len(shape_of(v)) != rank for v in node.inputs):
        return "broadcasts the batch axis along another one"
    return None


def _axis_is_not_batch(node: ir.Node, batched: set[ir.Value]) -> str | None:
    axis = attr(node, "axis", -1)
    if axis == 0 or axis == -len(shape_of(node.inputs[0])):
        return "works along the batch axis"
    return _data_input_only(node, batched)


def _concat(node: ir.Node, batched: set[ir.Value]) -> str | None:
    if not all(v in batched for v in node.inputs):
        return "joins a constant made for one image"
    return (
        "works along the batch axis"
        if attr(node, "axis", 0) in (0, -len(shape_of(node.outputs[0])))
        else None
    )


def _reduction(node: ir.Node, _: set[ir.Value]) -> str | None:
    axes = const(input_at(node, 1))
    listed = attr(node, "axes") if axes is None else axes.tolist()
    rank = len(shape_of(node.inputs[0]))
    if not listed or any(a % rank == 0 for a in listed):
        return "reduces the batch axis"
    return None


def _reshape(node: ir.Node, _: set[ir.Value]) -> str | None:
    target = const(node.inputs[1])
    if target is None or attr(node, "allowzero", 0) or target.size == 0 or target[0] != 0:
        return "does not keep the batch axis"
    return None


def _transpose(node: ir.Node, _: set[ir.Value]) -> str | None:
    return "moves the batch axis" if attr(node, "perm", (-1,))[0] != 0 else None


def _gemm(node: ir.Node, batched: set[ir.Value]) -> str | None:
    bias = input_at(node, 2)
    if attr(node, "transA", 0) or node.inputs[1] in batched:
        return "multiplies images with each other"
    if bias is not None and bias not in batched and len(shape_of(bias)) == 2 and shape_of(bias)[0] != 1:
        return "has one bias per image"
    return None


def _matmul(node: ir.Node, batched: set[ir.Value]) -> str | None:
    a, b = node.inputs
    rank = len(shape_of(node.outputs[0]))
    ranks = [len(shape_of(v)) for v in (a, b) if v in batched]
    if any(r != rank for r in ranks) or (b in batched and rank < 3):
        return "multiplies images with each other"
    return None


def _gather(node: ir.Node, batched: set[ir.Value]) -> str | None:
    """Of constants by an image's indices, along the first axis, an image gets its own."""
    axis = attr(node, "axis", 0) % len(shape_of(node.inputs[0]))
    if node.inputs[0] in batched:
        return _axis_is_not_batch(node, batched)
    return None if axis == 0 else "picks from constants by the image, behind another axis than the first"


def _gather_elements(node: ir.Node, batched: set[ir.Value]) -> str | None:
    if not all(v in batched for v in node.inputs):
        return "has data or indices made for one image"
    return None if attr(node, "axis", 0) % len(shape_of(node.inputs[0])) else "works along the batch axis"


def _gather_nd(node: ir.Node, batched: set[ir.Value]) -> str | None:
    if node.inputs[1] in batched and (node.inputs[0] not in batched or attr(node, "batch_dims", 0) > 0):
        return None
    return "picks the images themselves"


def _repeat(node: ir.Node, batched: set[ir.Value]) -> str | None:
    """Expand and Tile: no new axis in front, and the batch as it is."""
    size = const(node.inputs[1])
    if size is None or len(shape_of(node.inputs[0])) != len(shape_of(node.outputs[0])):
        return "makes an axis in front of the batch"
    return None if len(size) < len(shape_of(node.outputs[0])) or size[0] == 1 else "repeats the batch axis"


def _running(node: ir.Node, batched: set[ir.Value]) -> str | None:
    axis = const(node.inputs[1])
    if axis is None or int(axis.reshape(())) % len(shape_of(node.inputs[0])) == 0:
        return "works along the batch axis"
    return None


def _slice(node: ir.Node, batched: set[ir.Value]) -> str | None:
    axes = const(input_at(node, 3))
    if axes is None or (axes % len(shape_of(node.inputs[0])) == 0).any():
        return "cuts the batch axis"
    return _data_input_only(node, batched)


def _pad(node: ir.Node, batched: set[ir.Value]) -> str | None:
    rank = len(shape_of(node.inputs[0]))
    pads, axes = const(input_at(node, 1)), const(input_at(node, 3))
    if pads is None:
        return "pads by an amount that is not constant"
    padded = list(range(rank)) if axes is None else [int(a) % rank for a in axes]
    if any(begin or end for a, begin, end in zip(padded, pads, pads[len(padded) :], strict=False) if a == 0):
        return "pads the batch axis"
    return _data_input_only(node, batched)


def _resize(node: ir.Node, batched: set[ir.Value]) -> str | None:
    if shape_of(node.inputs[0])[:2] != shape_of(node.outputs[0])[:2]:
        return "resizes the batch or channel axis"
    return _data_input_only(node, batched)


RULES: dict[str, Rule] = {
    **dict.fromkeys(FOLDED, _data_input_only),
    **dict.fromkeys(UNARY, _data_input_only),
    **dict.fromkeys(BROADCASTING, _elementwise),
    **dict.fromkeys((*ALONG_AXIS, "Flatten"), _axis_is_not_batch),
    **dict.fromkeys(REDUCTIONS, _reduction),
    "Concat": _concat,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Expand": _repeat,
    "Tile": _repeat,
    "CumSum": _running,
    "Pad": _pad,
    "Resize": _resize,
}
"""Every operator that is known; anything else is refused."""


# --- edits -------------------------------------------------------------------------------------


def _resize_map_only(node: ir.Node) -> None:
    """Give a Resize by sizes the sizes of rows and columns only: its others would fix the batch at 1."""
    sizes = input_at(node, 3)
    if sizes is None or "axes" in node.attributes:
        return
    node.replace_input_with(3, ints(node, "sizes", shape_of(node.outputs[0])[2:]))
    node.attributes["axes"] = ir.AttrInt64s("axes", [2, 3])


def _forget_unread(graph: ir.Graph) -> None:
    for name, value in tuple(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]
