"""Tensors of many axes, for runtimes that have few: each operator on them works on merged axes instead.

Window attention reads ``[N, H, W, C]`` as ``[N, H/w, w, W/w, w, C]`` and swaps two of the six axes. Axes that
an operator treats alike and that stand side by side are one axis to it, so the same can be computed on
``[N * H/w, w, W/w, w * C]``; a permutation that needs more axes at once is done in steps. Between two such
operators only Reshapes are left, which become one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import add_initializer, const, shape_of
from repedge.operators import UNARY
from repedge.passes.base import fresh_node_name, fresh_value_name, insert, ints, nodes_of, sweep
from repedge.passes.reshapes import permutation, unify_reshapes

Groups = list[list[int]]
"""Runs of axes that become one axis each."""

BROADCASTING = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "PRelu", "Where", "And", "Or", "Mod"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
    }
)
REDUCING = frozenset(
    f"Reduce{what}" for what in ("Mean", "Sum", "Max", "Min", "L1", "L2", "Prod", "SumSquare", "LogSumExp")
)
ALONG_AXIS = frozenset({"Softmax", "LogSoftmax", "Split", "Concat", "ArgMax", "ArgMin"})


def fit_rank(model: ir.Model, limit: int) -> ir.Model:
    """The graph with as few values of more than ``limit`` axes as can be; a copy if there are any.

    Args:
        model: A clean graph, float or quantized; it is not changed.
        limit: Axes that a tensor may have.
    """
    if not any(_high(node, limit) for node in model.graph):
        return model
    copy = model.clone()
    for node in nodes_of(copy):
        rule = RULES.get(node.op_type)
        if rule is not None and _high(node, limit):
            rule(node, limit)
    while unify_reshapes(copy):
        sweep(copy)
    sweep(copy)
    return copy


def _high(node: ir.Node, limit: int) -> bool:
    return any(v is not None and v.shape is not None and len(v.shape) > limit for v in _values(node))


def _values(node: ir.Node) -> list[ir.Value | None]:
    return [*node.inputs, *node.outputs]


# --- merging axes ----------------------------------------------------------------------------------------


def _merged(shape: Sequence[int], groups: Groups) -> tuple[int, ...]:
    return tuple(prod(shape[a] for a in group) for group in groups)


def _runs(count: int, split_at: Callable[[int], bool]) -> Groups:
    """Axes 0 .. count - 1 in runs; a new run begins where ``split_at`` says so."""
    groups: Groups = []
    for axis in range(count):
        if not groups or split_at(axis):
            groups.append([])
        groups[-1].append(axis)
    return groups


def _reshaped(node: ir.Node, value: ir.Value, shape: Sequence[int]) -> ir.Value:
    """``value`` in another shape, ahead of a node; of a constant, another constant."""
    if shape_of(value) == tuple(shape):
        return value
    array = const(value)
    if array is not None:
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        return add_initializer(graph, f"{value.name}/{'x'.join(map(str, shape))}", array.reshape(shape))
    return insert(node, "Reshape", [value, ints(node, "shape", shape)], shape=shape, dtype=value.dtype)


def _replace(
    node: ir.Node, op: str, inputs: Sequence[ir.Value | None], shapes: Sequence[Sequence[int]]
) -> None:
    """Compute the node's outputs as Reshapes of those of another node with the same attributes."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    made = ir.Node(
        "",
        op,
        list(inputs),
        list(node.attributes.values()),
        num_outputs=len(node.outputs),
        name=fresh_node_name(graph, f"{node.name}/merged"),
        metadata_props=dict(node.metadata_props),
    )
    graph.insert_before(node, made)
    for old, new, shape in zip(node.outputs, made.outputs, shapes, strict=True):
        new.name = fresh_value_name(graph, f"{old.name}/merged")
        new.shape, new.type = ir.Shape(shape), old.type
    _give(node, list(made.outputs))


def _give(node: ir.Node, values: Sequence[ir.Value]) -> None:
    """Let the readers of a node read these values, in its outputs' shapes, and take it out."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    for old, new in zip(node.outputs, values, strict=True):
        name = old.name
        shape = ints(node, "shape", shape_of(old))
        wide = insert(node, "Reshape", [new, shape], shape=shape_of(old), dtype=old.dtype)
        old.replace_all_uses_with(wide, replace_graph_outputs=True)
        old.name = None
        wide.name = name
    graph.remove(node, safe=True)


# --- a rule for each kind --------------------------------------------------------------------------------


def _unary(node: ir.Node, limit: int) -> None:
    x = node.inputs[0]
    assert x is not None
    if attr(node, "axis") is not None and len(node.inputs) > 1 and shape_of(node.inputs[1]):
        return  # quantized along an axis
    shape = shape_of(x)
    flat = (prod(shape[: len(shape) - limit + 1]), *shape[len(shape) - limit + 1 :])
    _replace(node, node.op_type, [_reshaped(node, x, flat), *node.inputs[1:]], [flat])


def _broadcast(node: ir.Node, limit: int) -> None:
    """Axes merge where every operand has all of both, or one of both."""
    out = shape_of(node.outputs[0])
    wide = [(1,) * (len(out) - len(shape_of(v))) + shape_of(v) for v in node.inputs]

    def pattern(axis: int) -> tuple[bool, ...]:
        return tuple(shape[axis] == out[axis] for shape in wide)

    groups = _apart(out, pattern)
    if len(groups) > limit:
        return
    inputs = [
        _reshaped(node, v, _merged(shape, groups))
        for v, shape in zip(node.inputs, wide, strict=True)
        if v is not None
    ]
    _replace(node, node.op_type, inputs, [_merged(out, groups)])


def _apart(out: Sequence[int], pattern: Callable[[int], Any]) -> Groups:
    """Runs of axes of one pattern; an axis of length 1 goes with any."""
    groups: Groups = []
    last: Any = None
    for axis, size in enumerate(out):
        if not groups or (size != 1 and last is not None and pattern(axis) != last):
            groups.append([])
        groups[-1].append(axis)
        last = pattern(axis) if size != 1 else last
    return groups


def _along(node: ir.Node, limit: int) -> None:
    """One axis counts; those before it are one, and those after it."""
    x, out = node.inputs[0], node.outputs[0]
    rank = len(shape_of(x))
    axis = attr(node, "axis", -1 if node.op_type.endswith("oftmax") else 0) % rank
    groups = _runs(rank, lambda a: a in (axis, axis + 1))
    place = next(i for i, group in enumerate(groups) if group == [axis])
    count = len(node.inputs) if node.op_type == "Concat" else 1
    inputs = [_reshaped(node, v, _merged(shape_of(v), groups)) for v in node.inputs[:count] if v is not None]
    inputs += node.inputs[count:]  # type: ignore[arg-type]
    node.attributes["axis"] = ir.AttrInt64("axis", place)
    if len(shape_of(out)) < rank:  # ArgMax that does not keep the axis
        node.attributes["keepdims"] = ir.AttrInt64("keepdims", 1)
    shapes = [
        [
            size if i != place else _size_along(v, axis, rank)
            for i, size in enumerate(_merged(shape_of(x), groups))
        ]
        for v in node.outputs
    ]
    _replace(node, node.op_type, inputs, shapes)


def _size_along(value: ir.Value, axis: int, rank: int) -> int:
    shape = shape_of(value)
    return shape[axis] if len(shape) == rank else 1


def _reduction(node: ir.Node, limit: int) -> None:
    """Reduced axes merge with reduced neighbours, the others with others."""
    x, axes = node.inputs[0], _axes(node)
    assert x is not None
    if axes is None:
        return
    shape = shape_of(x)
    groups = _runs(len(shape), lambda a: (a in axes) != (a - 1 in axes))
    if len(groups) > limit:
        return
    merged = _merged(shape, groups)
    places = [i for i, group in enumerate(groups) if group[0] in axes]
    node.attributes["keepdims"] = ir.AttrInt64("keepdims", 1)
    kept = [1 if i in places else size for i, size in enumerate(merged)]
    _replace(node, node.op_type, [_reshaped(node, x, merged), ints(node, "axes", places)], [kept])


def _axes(node: ir.Node) -> list[int] | None:
    rank = len(shape_of(node.inputs[0]))
    given = const(node.inputs[1]) if len(node.inputs) > 1 else None
    if given is None or not given.size:
        return None if len(node.inputs) > 1 or attr(node, "noop_with_empty_axes", 0) else list(range(rank))
    return [int(a) % rank for a in given]


def _slice(node: ir.Node, limit: int) -> None:
    """Axes that are cut stand alone."""
    x = node.inputs[0]
    assert x is not None
    parts = [const(v) for v in node.inputs[1:]]
    if len(parts) < 3 or any(part is None for part in parts):
        return
    shape = shape_of(x)
    axes = [int(a) % len(shape) for a in np.atleast_1d(parts[2])]  # type: ignore[arg-type]
    groups = _runs(len(shape), lambda a: a in axes or a - 1 in axes)
    if len(groups) > limit:
        return
    places = ints(node, "axes", [next(i for i, g in enumerate(groups) if g == [a]) for a in axes])
    inputs = [_reshaped(node, x, _merged(shape, groups)), *node.inputs[1:3], places, *node.inputs[4:]]
    _replace(node, "Slice", inputs, [_merged(shape_of(node.outputs[0]), groups)])


def _gather(node: ir.Node, limit: int) -> None:
    x, index = node.inputs
    assert x is not None
    shape, places = shape_of(x), shape_of(index)
    axis = attr(node, "axis", 0) % len(shape)
    if const(x) is not None:
        return
    groups = _runs(len(shape), lambda a: a in (axis, axis + 1))
    merged = _merged(shape, groups)
    place = next(i for i, group in enumerate(groups) if group == [axis])
    node.attributes["axis"] = ir.AttrInt64("axis", place)
    picked = (*merged[:place], *places, *merged[place + 1 :])
    _replace(node, "Gather", [_reshaped(node, x, merged), index], [picked])


def _matmul(node: ir.Node, limit: int) -> None:
    """Batch axes merge where both operands have all of them, or one has ones."""
    out = shape_of(node.outputs[0])
    operands = [v for v in node.inputs if v is not None]
    if any(len(shape_of(v)) < 2 for v in operands):
        return
    wide = [(1,) * (len(out) - len(shape_of(v))) + shape_of(v) for v in operands]
    batch = len(out) - 2
    groups = _apart(out[:batch], lambda axis: tuple(shape[axis] == out[axis] for shape in wide))
    if len(groups) + 2 > limit:
        return
    groups += [[batch], [batch + 1]]
    inputs = [
        _reshaped(node, v, _merged(shape, groups)) if len(shape_of(v)) > 2 else v
        for v, shape in zip(operands, wide, strict=True)
    ]
    _replace(node, "MatMul", inputs, [_merged(out, groups)])


def _last_axes(node: ir.Node, limit: int) -> None:
    """LayerNormalization: the axes before those that are normalized are one."""
    x = node.inputs[0]
    assert x is not None
    shape = shape_of(x)
    axis = attr(node, "axis", -1) % len(shape)
    if len(shape) - axis + 1 > limit or len(node.outputs) > 1:
        return
    merged = (prod(shape[:axis]), *shape[axis:])
    node.attributes["axis"] = ir.AttrInt64("axis", 1)
    _replace(node, node.op_type, [_reshaped(node, x, merged), *node.inputs[1:]], [merged])


def _expand(node: ir.Node, limit: int) -> None:
    x, out = node.inputs[0], shape_of(node.outputs[0])
    assert x is not None
    wide = (1,) * (len(out) - len(shape_of(x))) + shape_of(x)
    groups = _apart(out, lambda axis: wide[axis] == out[axis])
    if len(groups) > limit:
        return
    merged = _merged(out, groups)
    _replace(node, "Expand", [_reshaped(node, x, _merged(wide, groups)), ints(node, "to", merged)], [merged])


def _transpose(node: ir.Node, limit: int) -> None:
    """A permutation of merged axes, in steps that each bring one run of axes to its place."""
    x = node.inputs[0]
    assert x is not None
    shape, perm = shape_of(x), permutation(node)
    order = [a for a in perm if shape[a] != 1]
    current = sorted(order)
    value = x
    while current != order:
        value, current = _step(node, value, shape, current, order, limit)
    _give(node, [value])


def _step(
    node: ir.Node, value: ir.Value, shape: Sequence[int], current: list[int], order: list[int], limit: int
) -> tuple[ir.Value, list[int]]:
    """One Transpose of at most ``limit`` axes towards ``order``: all of it if that fits, else one run."""
    position = {axis: i for i, axis in enumerate(current)}
    runs = _runs(len(order), lambda i: position[order[i]] != position[order[i - 1]] + 1)
    blocks = [[order[i] for i in run] for run in runs]  # as wanted
    before = sorted(blocks, key=lambda block: position[block[0]])  # as they stand
    if len(blocks) > limit:
        done = next(i for i, (a, b) in enumerate(zip(blocks, before, strict=True)) if a != b)
        place = before.index(blocks[done])
        parts = [before[:done], before[done:place], [before[place]], before[place + 1 :]]
        before = [[a for block in part for a in block] for part in parts if part]
        blocks = [
            *before[: bool(done)],
            before[bool(done) + 1],
            before[bool(done)],
            *before[bool(done) + 2 :],
        ]
    sizes = [prod(shape[a] for a in block) for block in before]
    perm = [before.index(block) for block in blocks]
    flat = _reshaped(node, value, sizes)
    moved = insert(
        node, "Transpose", [flat], {"perm": perm}, shape=[sizes[i] for i in perm], dtype=value.dtype
    )
    return moved, [a for block in blocks for a in block]


RULES: dict[str, Callable[[ir.Node, int], None]] = {
    **dict.fromkeys(UNARY | {"Not", "Clip"}, _unary),
    **dict.fromkeys(BROADCASTING, _broadcast),
    **dict.fromkeys(ALONG_AXIS, _along),
    **dict.fromkeys(REDUCING, _reduction),
    "Slice": _slice,
    "Gather": _gather,
    "MatMul": _matmul,
    "LayerNormalization": _last_axes,
    "Expand": _expand,
    "Transpose": _transpose,
}
"""What has no row keeps its axes, and the target refuses it."""
