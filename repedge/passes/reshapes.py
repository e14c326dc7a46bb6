"""Operators that move no data, or only move it: one Flatten, one Reshape, one Transpose; forward Slices."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import const, shape_of
from repedge.passes.base import bypass, input_at, insert, ints, nodes_of, rewrite

RESHAPING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def unify_reshapes(model: ir.Model) -> int:
    """Reshape, Flatten, Squeeze, Unsqueeze, alone or in a row -> Flatten where that says it, else Reshape.

    The batch axis of a Reshape is written as 0 (keep) and all others as numbers.
    """
    count = 0
    for node in nodes_of(model, *RESHAPING):
        x = node.inputs[0]
        inner = x.producer() if x is not None else None
        if inner is not None and inner.op_type in RESHAPING:
            x = inner.inputs[0]
        if x is not None:
            count += write_reshape(node, x)
    return count


def write_reshape(node: ir.Node, x: ir.Value) -> bool:
    """Make the node's output a Flatten or Reshape of ``x``; False if it is that already."""
    source, target = shape_of(x), shape_of(node.outputs[0])
    keeps_batch = source[:1] == target[:1]
    if keeps_batch and len(target) == 2:
        if node.op_type == "Flatten" and node.inputs[0] is x and attr(node, "axis", 1) == 1:
            return False
        rewrite(node.outputs[0], "Flatten", [x], {"axis": 1})
        return True
    wanted = [0, *target[1:]] if keeps_batch and target else list(target)
    if node.op_type == "Reshape" and node.inputs[0] is x and not attr(node, "allowzero", 0):
        given = const(node.inputs[1])
        if given is not None and given.tolist() == wanted:
            return False
    rewrite(node.outputs[0], "Reshape", [x, ints(node, "shape", wanted)])
    return True


def unify_transposes(model: ir.Model) -> int:
    """Transposes in a row -> one; one that only moves axes of length 1 -> Reshape."""
    count = 0
    for node in nodes_of(model, "Transpose"):
        x = node.inputs[0]
        if x is None:
            continue
        perm = permutation(node)
        inner = x.producer()
        if inner is not None and inner.op_type == "Transpose":
            first = permutation(inner)
            rewrite(node.outputs[0], "Transpose", [inner.inputs[0]], {"perm": [first[i] for i in perm]})
            count += 1
        elif perm == sorted(perm):
            continue  # the identity, which drop_noops takes out
        elif perm[0] == 0 and _keeps_order(perm, shape_of(x)):
            count += write_reshape(node, x)
        elif "perm" not in node.attributes:
            node.attributes["perm"] = ir.AttrInt64s("perm", perm)
            count += 1
    return count


def unify_gathers(model: ir.Model) -> int:
    """Gather(x, constant positions at even steps) -> Slice, and a Reshape where the axis goes."""
    count = 0
    for node in nodes_of(model, "Gather"):
        x, index = node.inputs[0], const(node.inputs[1])
        if x is None or index is None or index.ndim > 1 or index.size == 0 or const(x) is not None:
            continue
        shape = shape_of(x)
        axis = attr(node, "axis", 0) % len(shape)
        positions = index.reshape(-1).astype(np.int64) % shape[axis]
        steps = np.diff(positions)
        step = int(steps[0]) if steps.size else 1
        if step < 1 or (steps != step).any():
            continue
        bounds = {"starts": positions[0], "ends": positions[-1] + 1, "axes": axis, "steps": step}
        inputs = [x, *(ints(node, name, [int(number)]) for name, number in bounds.items())]
        if index.ndim == 1:
            rewrite(node.outputs[0], "Slice", inputs)
        else:
            kept = (*shape[:axis], 1, *shape[axis + 1 :])
            write_reshape(node, insert(node, "Slice", inputs, shape=kept))
        count += 1
    return count


def forward_slices(model: ir.Model) -> int:
    """Slice with negative steps -> a Gather of the positions, and a Slice of what goes forward."""
    count = 0
    for node in nodes_of(model, "Slice"):
        x, given = node.inputs[0], [const(input_at(node, i)) for i in range(1, 5)]
        starts, ends, axes, steps = given
        if x is None or starts is None or ends is None or steps is None or (steps > 0).all():
            continue
        shape, out = shape_of(x), shape_of(node.outputs[0])
        axes = np.arange(len(starts)) if axes is None else axes % len(shape)
        value, left = x, []
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            if step > 0:
                left.append((int(start), int(end), int(axis), int(step)))
                continue
            size = shape[axis]
            first = min(max(int(start) + (size if start < 0 else 0), 0), size - 1)
            positions = ints(node, "positions", [first + int(step) * i for i in range(out[axis])])
            kept = tuple(out[axis] if a == axis else n for a, n in enumerate(shape_of(value)))
            value = insert(node, "Gather", [value, positions], {"axis": int(axis)}, shape=kept)
        if left:
            bounds = zip(("starts", "ends", "axes", "steps"), zip(*left, strict=True), strict=True)
            rewrite(node.outputs[0], "Slice", [value, *(ints(node, name, list(b)) for name, b in bounds)])
        else:
            bypass(node, value)
        count += 1
    return count


def unify_scatters(model: ir.Model) -> int:
    """ScatterND and ScatterElements at constant places (an assignment to a slice) -> Slices and a Concat.

    Where the places alternate too often for that, a Gather picks from both tensors.
    """
    count = 0
    for node in nodes_of(model, "ScatterND", "ScatterElements"):
        data, places, updates = node.inputs[0], const(node.inputs[1]), node.inputs[2]
        if data is None or updates is None or places is None or attr(node, "reduction", "none") != "none":
            continue
        shape = shape_of(data)
        if node.op_type == "ScatterND":
            depth = places.shape[-1]
            index = tuple(places.reshape(-1, depth).T % np.reshape(shape[:depth], (-1, 1)))
        else:
            depth, axis = len(shape), attr(node, "axis", 0) % len(shape)
            index = tuple(places.reshape(-1) % shape[a] if a == axis else i.reshape(-1)
                          for a, i in enumerate(np.indices(places.shape)))  # fmt: skip
        if not 0 < np.prod(shape[:depth]) <= MAX_PLACES:
            continue
        _write_rows(node, depth, np.ravel_multi_index(index, shape[:depth]))
        count += 1
    return count


MAX_PLACES = 1 << 20
"""A scatter over more places than this is no assignment to a slice."""

MAX_RUNS = 8
"""Up to so many pieces are cut and joined; more are picked one by one."""


def _write_rows(node: ir.Node, depth: int, places: np.ndarray) -> None:
    """The first ``depth`` axes are one, where ``updates`` take the ``places``; a batch of 1 stays apart."""
    data, updates = node.inputs[0], node.inputs[2]
    assert data is not None, "seen before"
    assert updates is not None, "seen before"
    shape = shape_of(data)
    rows, rest = int(np.prod(shape[:depth])), shape[depth:]
    head = (1,) if depth > 1 and shape[0] == 1 else ()
    axis = len(head)
    source = np.arange(rows)
    source[places] = rows + np.arange(len(places))
    sides = [_shaped(node, v, (*head, n, *rest)) for v, n in ((data, rows), (updates, len(places)))]
    starts = [0, *(np.flatnonzero((np.diff(source) != 1) | (source[1:] == rows)) + 1), rows]
    full = (*head, rows, *rest)
    if len(starts) - 1 <= MAX_RUNS:
        parts = []
        for start, end in pairwise(starts):
            side = int(source[start] >= rows)
            value, first = sides[side], int(source[start]) - side * rows
            if end - start != shape_of(value)[axis]:
                bounds = {"starts": first, "ends": first + end - start, "axes": axis, "steps": 1}
                inputs = [value, *(ints(node, name, [int(number)]) for name, number in bounds.items())]
                value = insert(node, "Slice", inputs, shape=(*head, int(end - start), *rest))
            parts.append(value)
        result = insert(node, "Concat", parts, {"axis": axis}, shape=full) if len(parts) > 1 else parts[0]
    else:
        both = insert(node, "Concat", sides, {"axis": axis}, shape=(*head, rows + len(places), *rest))
        result = insert(
            node, "Gather", [both, ints(node, "rows", source.tolist())], {"axis": axis}, shape=full
        )
    rewrite(node.outputs[0], "Reshape", [result, ints(node, "shape", shape)])


def _shaped(node: ir.Node, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    if shape_of(value) == shape:
        return value
    return insert(node, "Reshape", [value, ints(node, "rows_shape", shape)], shape=shape, dtype=value.dtype)


def permutation(node: ir.Node) -> list[int]:
    """The axes of a Transpose's input in the order of its output."""
    rank = len(shape_of(node.inputs[0]))
    return list(attr(node, "perm", tuple(reversed(range(rank)))))


def _keeps_order(perm: list[int], shape: tuple[int, ...]) -> bool:
    moved = [axis for axis in perm if shape[axis] != 1]
    return moved == sorted(moved)
