"""What a pass is, how passes are run, and the few edits that all of them are made of.

A pass is a plain function ``(model) -> int``: it changes the model in place and says how many
rewrites it made. Passes only rewire; what nothing reads any more is swept by the runner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from repedge.errors import RepedgeError
from repedge.graph.check import Signature, first_problem
from repedge.graph.values import add_initializer, const, shape_of, unused

Pass = Callable[[ir.Model], int]

MAX_ROUNDS = 16
"""Rounds over a list of passes before two of them are taken to undo each other's work."""

UNUSED_OUTPUTS = frozenset({"BatchNormalization", "Dropout", "MaxPool"})
"""Operators whose outputs after the first are optional."""


def run_passes(model: ir.Model, passes: Sequence[Pass], *, static: bool = True) -> dict[str, int]:
    """Run ``passes`` in order, over and over, until a whole round changes nothing.

    After each pass that rewrote something, and after the last round, the invariants of
    ``repedge.graph.check`` are checked.

    Args:
        model: Changed in place.
        passes: Each at most once; order matters within a round.
        static: Whether every value has a static shape and dtype already.

    Returns:
        How many rewrites each pass made, by function name.

    Raises:
        RepedgeError: A pass broke an invariant (a bug in repedge; the message names the pass), or
            the passes never came to rest.
    """
    counts = dict.fromkeys((p.__name__ for p in passes), 0)
    sweep(model)
    _require(model, None, static, "the graph is broken before the first pass")
    signature = Signature.of(model.graph) if static else None
    changed: list[str] = []
    for _ in range(MAX_ROUNDS):
        changed = []
        for run in passes:
            count = run(model)
            if count:
                sweep(model)
                _require(model, signature, static, f"the pass {run.__name__} broke the graph")
                counts[run.__name__] += count
                changed.append(run.__name__)
        if not changed:
            _require(model, signature, static, "a pass that reported no change broke the graph")
            return counts
    raise RepedgeError(f"the passes {', '.join(changed)} still change the graph after {MAX_ROUNDS} rounds")


def _require(model: ir.Model, signature: Signature | None, static: bool, who: str) -> None:
    problem = first_problem(model, signature, static)
    if problem is not None:
        raise RepedgeError(f"{who}: {problem}")


# --- looking -----------------------------------------------------------------------------------


def nodes_of(model: ir.Model, *op_types: str) -> Iterator[ir.Node]:
    """Nodes of the main graph with one of the default-domain ``op_types`` (all nodes if none is given).

    The list is drawn up before the first node is handed out, so the caller may edit the graph; nodes
    that were removed meanwhile are left out.
    """
    for node in tuple(model.graph):
        wanted = not op_types or (node.op_type in op_types and node.domain in ("", "ai.onnx"))
        if wanted and node.graph is not None:
            yield node


def scalar(value: ir.Value | None) -> float | None:
    """The number in a constant of one element, or None."""
    if value is None or (value.shape is not None and any(d != 1 for d in value.shape)):
        return None  # without reading a big weight
    array = const(value)
    if array is None or array.size != 1 or array.dtype.kind not in "fiub":
        return None
    return float(array.reshape(()))


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """The node's input, or None where it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def close(a: float, b: float, tolerance: float = 1e-6) -> bool:
    """Whether two float constants mean the same number (relative; float32 rounding is 6e-8)."""
    return abs(a - b) <= tolerance * max(abs(a), abs(b))


# --- editing -----------------------------------------------------------------------------------


def insert(
    before: ir.Node,
    op_type: str,
    inputs: Iterable[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    shape: Sequence[int],
    dtype: ir.DataType | None = None,
) -> ir.Value:
    """Add a node ahead of ``before`` with its source note; its one output of ``shape`` is returned."""
    graph = _graph_of(before)
    out = ir.Value(
        name=fresh_value_name(graph, f"{before.name}_{op_type.lower()}"),
        shape=ir.Shape(shape),
        type=ir.TensorType(dtype or before.outputs[0].dtype or ir.DataType.FLOAT),
    )
    name = fresh_node_name(graph, f"{before.name}_{op_type}")
    node = ir.node(op_type, list(inputs), dict(attributes or {}), outputs=[out], name=name)
    node.metadata_props.update(before.metadata_props)
    graph.insert_before(before, node)
    return out


def rewrite(
    old: ir.Value,
    op_type: str,
    inputs: Iterable[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
) -> ir.Node:
    """Compute ``old`` by another node, which takes over its name, shape, readers and source note."""
    node = old.producer()
    if node is None or len(node.outputs) != 1:
        raise RepedgeError(f"only the single output of a node can be recomputed, and {old.name!r} is none")
    graph = _graph_of(node)
    name, node_name = old.name, node.name
    out = ir.Value(name=fresh_value_name(graph, f"{name}_new"), shape=old.shape, type=old.type)
    new = ir.node(op_type, list(inputs), dict(attributes or {}), outputs=[out], name=node_name)
    new.metadata_props.update(node.metadata_props)
    graph.insert_before(node, new)
    old.replace_all_uses_with(out, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    old.name = None
    out.name = name
    return new


def bypass(node: ir.Node, value: ir.Value | None) -> bool:
    """Let the readers of the node's first output read ``value``; False where that can't be.

    It can't where the output is an output of the graph and ``value`` is an input, a constant or
    another output: the graph's output names must survive.
    """
    out = node.outputs[0]
    if value is None:
        return False
    if not out.is_graph_output():
        out.replace_all_uses_with(value)
    elif value.producer() is None or value.is_graph_output():
        return False
    else:
        name = out.name
        out.replace_all_uses_with(value, replace_graph_outputs=True)
        out.name, value.name = None, name
    _graph_of(node).remove(node, safe=True)
    return True


def ints(node: ir.Node, suffix: str, values: Sequence[int]) -> ir.Value:
    """A new int64 vector initializer for one of the node's inputs."""
    return add_initializer(_graph_of(node), f"{node.name}_{suffix}", np.asarray(values, np.int64))


def floats(node: ir.Node, suffix: str, values: Any) -> ir.Value:
    """A new float32 initializer for one of the node's inputs."""
    return add_initializer(_graph_of(node), f"{node.name}_{suffix}", np.asarray(values, np.float32))


def _graph_of(node: ir.Node) -> ir.Graph:
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise RepedgeError(f"{node.op_type} node {node.name!r} is in no graph")
    return graph


def fresh_value_name(graph: ir.Graph, name: str) -> str:
    """``name``, or ``name_N`` where that is taken."""
    taken = {v.name for n in graph for v in n.outputs}
    taken.update(graph.initializers, (v.name for v in graph.inputs))
    return unused(name, taken)


def fresh_node_name(graph: ir.Graph, name: str) -> str:
    """``name``, or ``name_N`` where that is taken."""
    return unused(name, {n.name for n in graph})


# --- sweeping ----------------------------------------------------------------------------------


def sweep(model: ir.Model) -> int:
    """Remove nodes and initializers that nothing reads and name what has no name; returns how many."""
    graph = model.graph
    count = 0
    for node in reversed(tuple(graph)):
        if not any(v.uses() or v.is_graph_output() for v in node.outputs):
            graph.remove(node, safe=True)
            count += 1
        else:
            count += _drop_optional_outputs(node)
    for name, value in tuple(graph.initializers.items()):
        if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
            del graph.initializers[name]
            count += 1
    return count + _name_all(graph)


def _drop_optional_outputs(node: ir.Node) -> int:
    unread = [v for v in node.outputs[1:] if not v.uses() and not v.is_graph_output()]
    if node.op_type not in UNUSED_OUTPUTS or not unread or len(unread) != len(node.outputs) - 1:
        return 0
    node.resize_outputs(1)
    return len(unread)


def _name_all(graph: ir.Graph) -> int:
    """Give nodes without a name, or with another's, the name ``Op_output``: it does not depend on order."""
    count = 0
    taken: set[str | None] = set()
    for node in graph:
        if not node.name or node.name in taken:
            node.name = unused(f"{node.op_type}_{node.outputs[0].name}", taken)
            count += 1
        taken.add(node.name)
    values: set[str | None] = {v.name for v in graph.inputs} | set(graph.initializers)
    for node in graph:
        for value in node.outputs:
            if value.name in values and not value.is_graph_output():
                value.name = unused(f"{value.name}_{node.op_type.lower()}", values)
                count += 1
            values.add(value.name)
    return count


def same_shape(a: ir.Value | None, b: ir.Value | None) -> bool:
    """Whether both shapes are known, static and equal."""
    return a is not None and b is not None and shape_of(a) == shape_of(b)
