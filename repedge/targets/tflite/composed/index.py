"""Operators that pick by index or repeat: Gather and its kin, Expand, Tile."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import const, shape_of
from repedge.operators import MOVES
from repedge.targets.tflite.emit import Emitter
from repedge.targets.tflite.layout import Layout, stored
from repedge.targets.tflite.ops_math import operand

NEVER_NEGATIVE = frozenset({"ArgMax", "ArgMin", "TopK", "NonZero"})
"""Operators whose results count from the front of the axis."""

KEEPING = MOVES | {"Cast", "Squeeze", "Unsqueeze", "Expand", "Tile", "Gather"}
"""Operators whose results are among their inputs, or none of them negative."""


def counted_from_front(value: ir.Value | None) -> bool:
    """Whether computed indices can't be negative, as far as the graph says."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in KEEPING and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type in NEVER_NEGATIVE


def _indices(c: Emitter, node: ir.Node, size: int) -> int:
    """The indices at input 1 as int32 in ONNX's order of axes, none of them negative."""
    value = node.inputs[1]
    assert value is not None
    array = const(value)
    if array is not None:
        return c.ints(np.where(array < 0, array + size, array))
    plain = c.read(value, tuple(range(len(shape_of(value)))))
    if counted_from_front(value):
        return plain
    return c.step("FLOOR_MOD", [plain, c.number(f"{node.name}/size", size, plain)], f"{value.name}/positive")


def gather(c: Emitter, node: ir.Node) -> None:
    """Gather -> GATHER along the axis where it is stored; the axes of the indices take its place."""
    value, out = node.inputs[0], node.outputs[0]
    shape = shape_of(value)
    layout, width = c.layout(value), len(shape_of(node.inputs[1]))  # type: ignore[arg-type]
    axis = attr(node, "axis", 0) % len(shape)
    after: list[int] = []
    for a in layout:
        after += range(axis, axis + width) if a == axis else [a if a < axis else a + width - 1]
    indices = _indices(c, node, shape[axis])
    c.op("GATHER", [c.read(value), indices], [c.write(out, tuple(after))], axis=layout.index(axis))


def gather_elements(c: Emitter, node: ir.Node) -> None:
    """GatherElements -> GATHER from the flat tensor: index * stride + the place of the other axes."""
    value, out = node.inputs[0], node.outputs[0]
    before, after = shape_of(value), shape_of(out)
    plain: Layout = tuple(range(len(before)))
    axis = attr(node, "axis", 0) % len(before)
    strides = [prod(before[i + 1 :]) for i in plain]
    others = sum(
        np.arange(after[i]).reshape([-1 if j == i else 1 for j in plain]) * strides[i]
        for i in plain
        if i != axis
    )
    at = _places(c, node, before[axis], strides[axis], np.asarray(others), after)
    flat = c.read(value, plain)
    line = c.like(f"{value.name}/flat", (prod(before),), flat)  # type: ignore[union-attr]
    c.reshape(flat, line)
    c.op("GATHER", [line, at], [c.write(out, plain)], axis=0)


def _places(
    c: Emitter, node: ir.Node, size: int, stride: int, others: np.ndarray, shape: tuple[int, ...]
) -> int:
    """index * stride + others, in ``shape``; a constant where the indices are one."""
    array = const(node.inputs[1])
    if array is not None:
        return c.ints(np.where(array < 0, array + size, array) * stride + others)
    at, name = _indices(c, node, size), node.outputs[0].name
    if stride != 1:
        at = c.step("MUL", [at, c.number(f"{node.name}/stride", stride, at)], f"{name}/along")
    if np.any(others):
        at = c.step("ADD", [at, c.ints(others)], f"{name}/place", shape)
    return at


def gather_nd(c: Emitter, node: ir.Node) -> None:
    """GatherND -> GATHER_ND; batch axes of length 1 are left out."""
    value, indices, out = node.inputs[0], node.inputs[1], node.outputs[0]
    lead = attr(node, "batch_dims", 0)
    before, wanted = shape_of(value), shape_of(indices)
    x = c.read(value, tuple(range(len(before))))
    array = const(indices)
    if array is not None:
        sizes = np.array(before[lead : lead + wanted[-1]])
        at = c.ints(np.where(array < 0, array + sizes, array))
    else:
        at = c.read(indices, tuple(range(len(wanted))))
    result = c.write(out, tuple(range(len(shape_of(out)))))
    if lead == 0:
        c.op("GATHER_ND", [x, at], [result])
        return
    inner, places = (
        c.like(f"{node.name}/{i}", c.writer.tensors[t].shape[lead:], t) for i, t in enumerate((x, at))
    )
    c.reshape(x, inner)
    c.reshape(at, places)
    found = c.like(f"{out.name}/found", shape_of(out)[lead:], x)
    c.op("GATHER_ND", [inner, places], [found])
    c.reshape(found, result)


def refuse_gather_nd(node: ir.Node) -> str | None:
    """Why a GatherND can't be lowered."""
    lead = attr(node, "batch_dims", 0)
    if any(n != 1 for n in shape_of(node.inputs[0])[:lead]):
        return "it has batch axes of more than one entry"
    if const(node.inputs[1]) is None and not counted_from_front(node.inputs[1]):
        return "its indices are computed and may be negative"
    return None


def expand(c: Emitter, node: ir.Node) -> None:
    """Expand and Tile -> TILE."""
    value, out = node.inputs[0], node.outputs[0]
    after = shape_of(out)
    layout: Layout = c.layout(value) if len(shape_of(value)) == len(after) else tuple(range(len(after)))  # type: ignore[arg-type]
    x = operand(c, value, len(after), layout)
    wanted = stored(after, layout)
    times = [n // m for n, m in zip(wanted, c.writer.tensors[x].shape, strict=True)]
    c.op("TILE", [x, c.ints(times)], [c.write(out, layout)])


def refuse_computed_size(node: ir.Node) -> str | None:
    """Why an Expand or Tile can't be lowered."""
    return "its size is computed, not constant" if const(node.inputs[1]) is None else None
