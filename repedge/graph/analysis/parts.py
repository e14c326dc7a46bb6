"""Parts of an output that hold numbers of different kinds, such as boxes beside scores.

A detector's output [1, N, 4 + classes] is a concatenation of branches. Taken as one tensor, the pixels of its
boxes hide whatever becomes of its probabilities; so the concatenation is looked for in the graph, and each
branch is judged alone. Concatenations over positions (the maps of several scales) join numbers of one
kind, and cut nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import const
from repedge.operators import LAYERS, UNARY
from repedge.tasks.base import Part

DEPTH = 64
"""Operators that are followed back from an output."""

MOST = 24
"""An output in more pieces than these is taken as one."""

JOINING = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where"})

Cuts = dict[int, frozenset[int]]
"""Axis -> positions between which numbers of another kind begin."""


def parts_of(model: ir.Model) -> tuple[tuple[Part, ...], ...]:
    """The parts of each output of a graph; empty where an output is of one kind, or its shape is open."""
    return tuple(_parts(value) for value in model.graph.outputs)


def mixed_nodes(model: ir.Model) -> tuple[ir.Node, ...]:
    """The nodes that give numbers of several kinds in one tensor, on the way to an output that has parts.

    One scale for all of them would serve the largest alone.
    """
    found: dict[ir.Node, None] = {}
    pending = [value for value in model.graph.outputs if _parts(value)]
    while pending:
        value = pending.pop()
        node = value.producer()
        if node is None or node in found or not any(_cuts(value, DEPTH).values()):
            continue
        found[node] = None
        pending += [v for v in node.inputs if v is not None]
    return tuple(node for node in model.graph if node in found)


def _parts(value: ir.Value) -> tuple[Part, ...]:
    shape = _shape(value)
    cuts = {axis: places for axis, places in _cuts(value, DEPTH).items() if axis > 0 and places}
    if shape is None or len(cuts) != 1:
        return ()
    ((axis, places),) = cuts.items()
    if len(places) >= MOST:
        return ()
    return tuple(Part(axis, start, stop) for start, stop in pairwise([0, *sorted(places), shape[axis]]))


def _shape(value: ir.Value | None) -> tuple[int, ...] | None:
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(int(d) for d in value.shape)  # type: ignore[arg-type]


def _cuts(value: ir.Value | None, depth: int) -> Cuts:
    node = None if value is None else value.producer()
    if value is None or node is None or depth == 0 or _shape(value) is None:
        return {}
    rule = RULES.get(node.op_type)
    if rule is not None:
        return rule(node, value, depth - 1)
    if node.op_type in UNARY or node.op_type in ("Softmax", "LogSoftmax", "Dropout"):
        return _joined(node, value, depth - 1)
    return {}


def _concat(node: ir.Node, value: ir.Value, depth: int) -> Cuts:
    shapes = [_shape(v) for v in node.inputs]
    if any(s is None for s in shapes):
        return {}
    rank = len(shapes[0] or ())
    axis = int(attr(node, "axis", 0)) % rank
    inner = [_cuts(v, depth) for v in node.inputs]
    branches = [c for c, v in zip(inner, node.inputs, strict=True) if const(v) is None]
    found: Cuts = {
        a: frozenset.intersection(*(c.get(a, frozenset()) for c in branches))
        for a in range(rank)
        if a != axis and branches
    }
    if not _over_positions(node.inputs):
        places: set[int] = set()
        start = 0
        for cuts, shape in zip(inner, shapes, strict=True):
            assert shape is not None
            places |= {start, *(start + p for p in cuts.get(axis, ()))}
            start += shape[axis]
        found[axis] = frozenset(places - {0})
    return found


def _over_positions(values: Sequence[ir.Value | None]) -> bool:
    """Whether branches come from maps of different sizes: they are places of one kind of answer."""
    sizes = [_source_size(v) for v in values if const(v) is None]
    known = {s for s in sizes if s is not None}
    return len(known) > 1


def _source_size(value: ir.Value | None) -> tuple[int, ...] | None:
    """Height and width of the map that a branch was computed as; None if it was none."""
    for _ in range(DEPTH):
        node = None if value is None else value.producer()
        if node is None:
            return None
        shape = _shape(node.outputs[0])
        if node.op_type in LAYERS:
            return shape[2:] if shape is not None and len(shape) == 4 else None
        value = next((v for v in node.inputs if v is not None and const(v) is None), None)
    return None


def _joined(node: ir.Node, value: ir.Value, depth: int) -> Cuts:
    """Element by element: what any operand of the whole shape is cut into."""
    found: Cuts = {}
    for operand in node.inputs:
        if operand is not None and _shape(operand) == _shape(value):
            for axis, places in _cuts(operand, depth).items():
                found[axis] = found.get(axis, frozenset()) | places
    return found


def _transpose(node: ir.Node, value: ir.Value, depth: int) -> Cuts:
    rank = len(_shape(value) or ())
    order = [int(a) for a in attr(node, "perm", None) or reversed(range(rank))]
    inner = _cuts(node.inputs[0], depth)
    return {new: inner[old] for new, old in enumerate(order) if old in inner}


def _reshape(node: ir.Node, value: ir.Value, depth: int) -> Cuts:
    """Axes that keep their size, and the number of elements before them, stay what they are."""
    before, after = _shape(node.inputs[0]), _shape(value)
    if before is None or after is None:
        return {}
    places = {(_size(after[:a]), after[a]): a for a in range(len(after)) if after[a] > 1}
    found: Cuts = {}
    for axis, cuts in _cuts(node.inputs[0], depth).items():
        new = places.get((_size(before[:axis]), before[axis]))
        if new is not None:
            found[new] = cuts
    return found


def _size(shape: Sequence[int]) -> int:
    size = 1
    for d in shape:
        size *= d
    return size


def _cut_out(node: ir.Node, value: ir.Value, depth: int) -> Cuts:
    """Axes of unchanged size keep their cuts; one of which a stretch is taken keeps those within."""
    before, after = _shape(node.inputs[0]), _shape(value)
    if before is None or after is None or len(before) != len(after):
        return {}
    starts = _starts(node, value)
    found: Cuts = {}
    for axis, cuts in _cuts(node.inputs[0], depth).items():
        if axis in starts:
            found[axis] = frozenset(p - starts[axis] for p in cuts if 0 < p - starts[axis] < after[axis])
        elif before[axis] == after[axis]:
            found[axis] = cuts
    return found


def _starts(node: ir.Node, value: ir.Value) -> dict[int, int]:
    """Axis -> where a stretch that a Slice or a Split takes out begins, as far as that is known."""
    rank = len(_shape(value) or ())
    if node.op_type == "Split":
        axis = int(attr(node, "axis", 0)) % rank
        earlier = [_shape(v) for v in node.outputs[: list(node.outputs).index(value)]]
        return {} if None in earlier else {axis: sum(s[axis] for s in earlier if s)}
    if node.op_type != "Slice":
        return {}
    given = [const(v) for v in node.inputs[1:]] + [None] * 4
    starts, axes, steps = given[0], given[2], given[3]
    if starts is None or (steps is not None and (steps != 1).any()):
        return {}
    size = _shape(node.inputs[0]) or ()
    numbers = [int(v) for v in (range(len(starts)) if axes is None else axes)]
    return {a % rank: _clamped(int(s), size[a % rank]) for a, s in zip(numbers, starts, strict=True)}


def _clamped(start: int, size: int) -> int:
    return max(0, min(start + size if start < 0 else start, size))


RULES: dict[str, Callable[[ir.Node, ir.Value, int], Cuts]] = {
    "Concat": _concat,
    "Transpose": _transpose,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("Slice", "Gather", "Split"), _cut_out),
    **dict.fromkeys(JOINING, _joined),
}
"""Operator -> how its output is cut; functions of one number are cut as what they read."""
