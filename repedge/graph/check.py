"""What must hold of a graph between any two passes, and of the clean graph that targets read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from repedge.errors import UserError
from repedge.graph.attrs import attr
from repedge.graph.values import const, shape_of

OPSET = 20
"""Version of the default operator domain that every clean graph uses."""

UNCLEAN_OPS = frozenset(
    {"Constant", "Identity", "Dropout", "Squeeze", "Unsqueeze", "Shape", "If", "Loop", "Scan"}
)
"""Operators that a clean graph never has (an Identity may stay where one tensor is two outputs)."""


TENSOR_TYPES = (ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL)
"""What a network may take beside its image."""


@dataclass(frozen=True)
class Signature:
    """Names, element types and shapes of a graph's inputs and outputs; no pass may change them.

    An input that also has an initializer is left out: it is a weight with an old-fashioned declaration.
    """

    inputs: tuple[tuple[str, str, str], ...]
    outputs: tuple[tuple[str, str, str], ...]

    @classmethod
    def of(cls, graph: ir.Graph) -> Signature:
        """The signature of ``graph``."""
        inputs = [v for v in graph.inputs if v.name not in graph.initializers]
        return cls(tuple(map(_row, inputs)), tuple(map(_row, graph.outputs)))


def _row(value: ir.Value) -> tuple[str, str, str]:
    return (str(value.name), str(value.dtype), str(value.shape))


def first_problem(model: ir.Model, signature: Signature | None = None, static: bool = True) -> str | None:
    """The first broken invariant as a clause for an error message, or None if all hold.

    Args:
        model: The graph to look at; it is not changed.
        signature: What inputs and outputs must still look like; None skips this.
        static: Whether every value must have a static shape and a dtype.
    """
    for problem in _problems(model.graph, signature, static):
        return problem
    return None


def check(model: ir.Model) -> None:
    """Check all invariants of a graph that has static shapes.

    Raises:
        UserError: One does not hold; the message says which and where.
    """
    problem = first_problem(model)
    if problem is not None:
        raise UserError(f"the graph {model.graph.name!r} is not usable: {problem}")


def check_clean(model: ir.Model) -> None:
    """Check the contract of a clean graph, which ``repedge.graph`` spells out.

    Raises:
        UserError: It does not hold; the message says what a target could not have read.
    """
    check(model)
    for problem in _unclean(model):
        raise UserError(f"the graph {model.graph.name!r} can't be compiled: {problem}")


def _problems(graph: ir.Graph, signature: Signature | None, static: bool) -> Iterator[str]:
    names: set[str] = set()
    known: set[ir.Value] = set()
    for value in (*graph.inputs, *(v for v in graph.initializers.values() if not v.is_graph_input())):
        yield from _value_problems(value, names, static)
        known.add(value)
    yield from _initializer_problems(graph)
    yield from _node_names(graph)
    for node in graph:
        for read in node.inputs:
            if read is not None and read not in known and not _from_outer_scope(read, graph):
                yield f"{node.op_type} node {node.name!r} reads {read.name!r} before anything computes it"
        for value in node.outputs:
            if value.name == "" and not value.uses():
                continue  # an optional output that is switched off
            yield from _value_problems(value, names, static)
            known.add(value)
        if not any(v.uses() or v.is_graph_output() for v in node.outputs):
            yield f"nothing reads the {node.op_type} node {node.name!r}"
    yield from (f"nothing computes the output {v.name!r}" for v in graph.outputs if v not in known)
    if signature is not None and Signature.of(graph) != signature:
        yield f"inputs and outputs were {signature} and are now {Signature.of(graph)}"


def _initializer_problems(graph: ir.Graph) -> Iterator[str]:
    for name, value in graph.initializers.items():
        if value.const_value is None:
            yield f"the initializer {name!r} has no data"
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            yield f"nothing reads the initializer {name!r}"


def _node_names(graph: ir.Graph) -> Iterator[str]:
    names: set[str] = set()
    for node in graph:
        if not node.name or node.name in names:
            yield f"two nodes are called {node.name!r}" if node.name else f"a {node.op_type} node has no name"
        names.add(str(node.name))


def _value_problems(value: ir.Value, names: set[str], static: bool) -> Iterator[str]:
    if not value.name:
        yield "a value has no name"
    if value.name in names:
        yield f"two values are called {value.name!r}"
    names.add(str(value.name))
    if static and value.dtype is None:
        yield f"the element type of {value.name!r} is unknown"
    if static and (value.shape is None or not value.shape.is_static()):
        yield f"the shape of {value.name!r} is {value.shape}, not fixed"


def _from_outer_scope(value: ir.Value, graph: ir.Graph) -> bool:
    return value.graph is not None and value.graph is not graph


def _unclean(model: ir.Model) -> Iterator[str]:
    graph = model.graph
    if graph.opset_imports.get("") != OPSET:
        yield f"it uses operator set {graph.opset_imports.get('')}, and {OPSET} is needed"
    if model.functions:
        yield "it still calls model-local functions"
    if not len(graph.inputs):
        yield "it has no input"
    for value in graph.inputs[:1]:
        shape = shape_of(value)
        if len(shape) != 4 or shape[0] != 1 or value.dtype != ir.DataType.FLOAT:
            yield f"the input {value.name!r} is {value.dtype} {value.shape}, and FLOAT [1, C, H, W] is needed"
    for value in graph.inputs[1:]:
        if value.dtype not in TENSOR_TYPES:
            known = ", ".join(t.name for t in TENSOR_TYPES)
            yield f"the input {value.name!r} is {value.dtype}; beside the image there may be {known}"
    for node in graph:
        if node.op_type != "Identity" or not node.outputs[0].is_graph_output():
            yield from _unclean_node(node)


def _unclean_node(node: ir.Node) -> Iterator[str]:
    if node.op_type in UNCLEAN_OPS and node.domain in ("", "ai.onnx"):
        yield f"{node.op_type} node {node.name!r} could not be simplified away"
    if node.op_type == "Reshape" and not _keeps_batch(node):
        yield f"the target shape of Reshape node {node.name!r} is not a constant"
    for value in node.outputs:
        if value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE):
            yield f"{node.op_type} node {node.name!r} computes in {value.dtype}, and float32 is needed"


def _keeps_batch(node: ir.Node) -> bool:
    target = const(node.inputs[1])
    return target is not None and attr(node, "allowzero", 0) == 0
