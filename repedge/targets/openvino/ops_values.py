"""Lowerings of what normalizes, reduces, compares, converts and picks by index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import const, shape_of
from repedge.targets.openvino.build import Builder, Lowering, arg, given, needed

TYPES = {
    ir.DataType.FLOAT: np.float32,
    ir.DataType.INT64: np.int64,
    ir.DataType.INT32: np.int32,
    ir.DataType.UINT8: np.uint8,
    ir.DataType.INT8: np.int8,
    ir.DataType.BOOL: np.bool_,
}
"""Types that values may have."""


# --- normalization -----------------------------------------------------------------------------------------


def layer_norm(b: Builder, node: ir.Node) -> Any:
    """LayerNormalization -> MVN, which sees its axes' statistics at once, then scale and bias."""
    rank = len(shape_of(node.inputs[0]))
    y = _normalized(b, node, range(attr(node, "axis", -1) % rank, rank))
    for i, op in ((1, "multiply"), (2, "add")):
        if given(node, i):
            y = getattr(b.ops, op)(y, b.x(node, i))
    return y


def instance_norm(b: Builder, node: ir.Node) -> Any:
    """InstanceNormalization -> MVN over all axes behind the channels."""
    rank = len(shape_of(node.inputs[0]))
    y = _normalized(b, node, range(2, rank))
    column = [1, -1, *[1] * (rank - 2)]
    y = b.ops.multiply(y, b.const(needed(node, 1).reshape(column)))
    return b.ops.add(y, b.const(needed(node, 2).reshape(column)))


def _normalized(b: Builder, node: ir.Node, axes: Sequence[int]) -> Any:
    return b.ops.mvn(b.x(node, 0), b.ints(*axes), True, attr(node, "epsilon", 1e-5), "inside_sqrt")


def statistics_unread(node: ir.Node) -> str | None:
    """Refuses a normalization whose mean or deviation is read."""
    read = any(v.uses() or v.is_graph_output() for v in node.outputs[1:])
    return "its mean and deviation are read" if read else None


# --- reductions --------------------------------------------------------------------------------------------


def reduced_axes(node: ir.Node) -> list[int]:
    """Axes that a Reduce node reduces over, from the front; empty where it does nothing."""
    axes, rank = arg(node, 1), len(shape_of(node.inputs[0]))
    if axes is None or axes.size == 0:
        return [] if attr(node, "noop_with_empty_axes", 0) else list(range(rank))
    return sorted(int(i) % rank for i in axes.reshape(-1))


def reduction(name: str, before: str = "", after: str = "") -> Lowering:
    """A Reduce node; ``before`` and ``after`` are done to each element ahead of it and behind it."""

    def lower(b: Builder, node: ir.Node) -> Any:
        x, axes = b.x(node, 0), reduced_axes(node)
        if not axes:
            return x.get_node()
        if before:
            x = b.ops.multiply(x, x) if before == "square" else getattr(b.ops, before)(x)
        y = getattr(b.ops, name)(x, b.ints(*axes), keep_dims=bool(attr(node, "keepdims", 1)))
        return getattr(b.ops, after)(y) if after else y

    return lower


def log_sum_exp(b: Builder, node: ir.Node) -> Any:
    """max + log(sum(exp(x - max))), which can't overflow."""
    x, axes = b.x(node, 0), b.ints(*reduced_axes(node))
    top = b.ops.reduce_max(x, axes, keep_dims=True)
    total = b.ops.reduce_sum(b.ops.exp(b.ops.subtract(x, top)), axes, keep_dims=True)
    y = b.ops.add(top, b.ops.log(total))
    return y if attr(node, "keepdims", 1) else b.ops.squeeze(y, axes)


def over_some_axis(node: ir.Node) -> str | None:
    """Refuses a norm over no axes."""
    return None if reduced_axes(node) else "it reduces over no axes"


def extreme_place(mode: str) -> Lowering:
    """ArgMax, ArgMin -> TopK of one; of equal numbers the first."""

    def lower(b: Builder, node: ir.Node) -> Any:
        axis = attr(node, "axis", 0) % len(shape_of(node.inputs[0]))
        found = b.ops.topk(b.x(node, 0), b.const(np.array(1)), axis, mode, "value", "i64", True)
        places = found.output(1)
        if attr(node, "keepdims", 1):
            return b.ops.convert(places, np.int64)
        return b.ops.squeeze(places, b.ints(axis))

    return lower


def first_of_equal(node: ir.Node) -> str | None:
    """Refuses the last place of equal numbers."""
    return "of equal numbers it wants the last one's place" if attr(node, "select_last_index", 0) else None


def topk(b: Builder, node: ir.Node) -> Any:
    mode = "max" if attr(node, "largest", 1) else "min"
    axis = attr(node, "axis", -1) % len(shape_of(node.inputs[0]))
    count = b.const(np.array(int(needed(node, 1).reshape(()))))
    return b.ops.topk(b.x(node, 0), count, axis, mode, "value", "i64", True)


def cumsum(b: Builder, node: ir.Node) -> Any:
    axis = b.const(np.array(int(needed(node, 1).reshape(())) % len(shape_of(node.inputs[0]))))
    return b.ops.cum_sum(b.x(node, 0), axis, bool(attr(node, "exclusive", 0)), bool(attr(node, "reverse", 0)))


# --- functions and types -----------------------------------------------------------------------------------


def reciprocal(b: Builder, node: ir.Node) -> Any:
    return b.ops.divide(b.number(1.0), b.x(node, 0))


def remainder(b: Builder, node: ir.Node) -> Any:
    """Mod with the divisor's sign, or with the dividend's (fmod)."""
    op = b.ops.mod if attr(node, "fmod", 0) else b.ops.floor_mod
    return op(b.x(node, 0), b.x(node, 1))


def cast(b: Builder, node: ir.Node) -> Any:
    """Cast -> Convert; to bool a comparison with 0, for Convert would truncate first."""
    dtype = node.outputs[0].dtype
    if dtype == ir.DataType.BOOL:
        return b.ops.not_equal(b.x(node, 0), b.const(np.array(0, TYPES[node.inputs[0].dtype])))  # type: ignore[union-attr, index]
    return b.ops.convert(b.x(node, 0), TYPES[dtype])  # type: ignore[index]


def round_half_even(b: Builder, node: ir.Node) -> Any:
    return b.ops.round(b.x(node, 0), "half_to_even")


# --- indices -----------------------------------------------------------------------------------------------


def gather(b: Builder, node: ir.Node) -> Any:
    axis = attr(node, "axis", 0) % len(shape_of(node.inputs[0]))
    return b.ops.gather(b.x(node, 0), b.x(node, 1), b.const(np.array(axis)))


def gather_elements(b: Builder, node: ir.Node) -> Any:
    rank, size = len(shape_of(node.inputs[0])), shape_of(node.inputs[0])
    axis = attr(node, "axis", 0) % rank
    at = b.x(node, 1)
    array = const(node.inputs[1])
    if array is not None:  # the CPU plugin reads negative indices as they are
        at = b.const(np.where(array < 0, array + size[axis], array))
    return b.ops.gather_elements(b.x(node, 0), at, axis)


def gather_nd(b: Builder, node: ir.Node) -> Any:
    lead, shape = attr(node, "batch_dims", 0), shape_of(node.inputs[0])
    at, array = b.x(node, 1), const(node.inputs[1])
    if array is not None:
        sizes = np.array(shape[lead : lead + array.shape[-1]])
        at = b.const(np.where(array < 0, array + sizes, array))
    return b.ops.gather_nd(b.x(node, 0), at, lead)


def expand(b: Builder, node: ir.Node) -> Any:
    """Expand -> Broadcast in both directions, so that a free batch axis stays free."""
    return b.ops.broadcast(b.x(node, 0), b.ints(*needed(node, 1).tolist()), broadcast_spec="BIDIRECTIONAL")


def tile(b: Builder, node: ir.Node) -> Any:
    return b.ops.tile(b.x(node, 0), b.ints(*needed(node, 1).tolist()))
