"""Reductions, the places of extremes, and running sums, in whatever layout the input has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import const, shape_of
from repedge.targets.tflite.emit import Emitter
from repedge.targets.tflite.layout import Layout, stored

Lower = Callable[[Emitter, ir.Node], None]


def reduced_axes(node: ir.Node) -> tuple[int, ...]:
    """The ONNX axes of a Reduce node."""
    rank = len(shape_of(node.inputs[0]))
    given = const(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if given is None or given.size == 0:
        return () if attr(node, "noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(int(axis) % rank for axis in given.reshape(-1)))


def left_over(layout: Layout, axes: tuple[int, ...], keep: bool) -> Layout:
    """The layout of what a reduction over ``axes`` leaves of a tensor of ``layout``."""
    if keep:
        return layout
    left = [axis for axis in range(len(layout)) if axis not in axes]
    return tuple(left.index(axis) for axis in layout if axis not in axes)


def reduce(op: str, before: str = "", after: str = "") -> Lower:
    """A Reduce node as an operator over the stored axes.

    Args:
        op: The reduction.
        before, after: Operators on each element ahead of it and behind it; empty where there is none.
    """

    def lower(c: Emitter, node: ir.Node) -> None:
        axes, value, out = reduced_axes(node), node.inputs[0], node.outputs[0]
        layout, keep = c.layout(value), bool(attr(node, "keepdims", 1))  # type: ignore[arg-type]
        x = c.read(value)
        if before:
            x = c.step(before, [x], f"{out.name}/{before.lower()}")
        places = c.ints(sorted(layout.index(axis) for axis in axes))
        rest = left_over(layout, axes, keep)
        if not after:
            c.op(op, [x, places], [c.write(out, rest)], keepDims=keep)
            return
        sums = c.step(op, [x, places], f"{out.name}/sum", stored(shape_of(out), rest), keepDims=keep)
        c.op(after, [sums], [c.write(out, rest)])

    return lower


def reduce_log_sum_exp(c: Emitter, node: ir.Node) -> None:
    """log(sum(exp(x))) as max + log(sum(exp(x - max))), which can't overflow."""
    axes, value, out = reduced_axes(node), node.inputs[0], node.outputs[0]
    layout, keep = c.layout(value), bool(attr(node, "keepdims", 1))  # type: ignore[arg-type]
    x, places = c.read(value), c.ints(sorted(layout.index(axis) for axis in axes))
    shape = c.writer.tensors[x].shape
    kept = [1 if i in (layout.index(a) for a in axes) else n for i, n in enumerate(shape)]
    top = c.step("REDUCE_MAX", [x, places], f"{out.name}/max", kept, keepDims=True)
    y = c.step("SUB", [x, top], f"{out.name}/below")
    y = c.step("EXP", [y], f"{out.name}/exp")
    y = c.step("SUM", [y, places], f"{out.name}/sum", kept, keepDims=True)
    y = c.step("LOG", [y], f"{out.name}/log")
    rest = left_over(layout, axes, keep)
    if keep:
        c.op("ADD", [y, top], [c.write(out, rest)])
        return
    c.reshape(c.step("ADD", [y, top], f"{out.name}/kept"), c.write(out, rest))


def refuse_reduction(node: ir.Node) -> str | None:
    """Why a Reduce node can't be lowered."""
    if any(const(v) is None for v in node.inputs[1:] if v is not None):
        return "its axes are computed, not constant"
    if not reduced_axes(node) and node.op_type not in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"):
        return "it reduces over no axes"
    return None


def extreme_place(op: str) -> Lower:
    """ArgMax, ArgMin -> ARG_MAX, ARG_MIN, which give int32 and drop the axis."""

    def lower(c: Emitter, node: ir.Node) -> None:
        value, out = node.inputs[0], node.outputs[0]
        layout = c.layout(value)  # type: ignore[arg-type]
        axis = attr(node, "axis", 0) % len(layout)
        keep, place = bool(attr(node, "keepdims", 1)), layout.index(axis)
        options: dict[str, Any] = {"outputType": 2}  # TensorType.INT32
        x, where = c.read(value), c.number(f"{node.name}/axis", place, c.ints((0,)))
        rest = left_over(layout, (axis,), keep)
        if not keep:
            c.op(op, [x, where], [c.write(out, rest)], **options)
            return
        shape = c.writer.tensors[x].shape
        dropped = c.step(
            op, [x, where], f"{out.name}/dropped", shape[:place] + shape[place + 1 :], "int32", **options
        )
        c.reshape(dropped, c.write(out, rest))

    return lower


def refuse_extreme_place(node: ir.Node) -> str | None:
    """Why an ArgMax or ArgMin can't be lowered."""
    if attr(node, "select_last_index", 0):
        return "of equal numbers it wants the last one's place; TensorFlow Lite gives the first one's"
    return None


def topk(c: Emitter, node: ir.Node) -> None:
    """TopK -> TOPK_V2 along the last stored axis; the smallest are the largest of the negatives."""
    value, (values, indices) = node.inputs[0], node.outputs
    rank = len(shape_of(value))
    axis, layout = attr(node, "axis", -1) % rank, c.layout(value)  # type: ignore[arg-type]
    if layout[-1] != axis:
        layout = (*(a for a in layout if a != axis), axis)
    x, largest = c.read(value, layout), bool(attr(node, "largest", 1))
    count = shape_of(values)[axis]
    k = c.number(f"{node.name}/k", count, c.ints((0,)))
    places = (
        c.write(indices, layout)
        if indices.name
        else c.scratch(f"{node.name}/places", stored(shape_of(values), layout), None, "int32")
    )
    if largest:
        c.op("TOPK_V2", [x, k], [c.write(values, layout), places])
        return
    negated = c.step("NEG", [x], f"{values.name}/negated")
    found = c.like(f"{values.name}/found", stored(shape_of(values), layout), x)
    c.op("TOPK_V2", [negated, k], [found, places])
    c.op("NEG", [found], [c.write(values, layout)])


def refuse_topk(node: ir.Node) -> str | None:
    """Why a TopK can't be lowered."""
    return "its number is computed, not constant" if const(node.inputs[1]) is None else None


def cumsum(c: Emitter, node: ir.Node) -> None:
    """CumSum -> CUMSUM."""
    value = node.inputs[0]
    layout, given = c.layout(value), const(node.inputs[1])  # type: ignore[arg-type]
    assert given is not None
    place = layout.index(int(given.reshape(())) % len(layout))
    axis = c.number(f"{node.name}/axis", place, c.ints((0,)))
    options = {"exclusive": bool(attr(node, "exclusive", 0)), "reverse": bool(attr(node, "reverse", 0))}
    c.op("CUMSUM", [c.read(value), axis], [c.write(node.outputs[0], layout)], **options)


def refuse_cumsum(node: ir.Node) -> str | None:
    """Why a CumSum can't be lowered."""
    return "its axis is computed, not constant" if const(node.inputs[1]) is None else None
