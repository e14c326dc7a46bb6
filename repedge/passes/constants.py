"""Constants become initializers, and whatever depends on constants alone is computed once."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as ir_passes

from repedge.errors import UserError
from repedge.graph.attrs import attr
from repedge.graph.values import add_initializer, const, shape_of
from repedge.passes.base import bypass, ints, nodes_of, rewrite

NEVER_FOLDED = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)

MAX_GROWTH = 1 << 20
"""A folded result may be this many elements larger than what it was computed from (Expand, Tile, ...)."""

MAX_FOLDED = 1 << 26
"""All results together may have this many elements, and `TIMES` as many as the graph's weights had."""

TIMES = 8

BOUNDED = frozenset({"NonZero", "Unique", "Compress"})
"""Operators whose result is not much larger than their operands, though its shape hangs on their values."""

FOLDED = "repedge.folded"
"""In a model's ``meta``: how many elements may still be folded."""


def inline_functions(model: ir.Model) -> int:
    """Replace calls of model-local functions by their bodies."""
    count = len(model.functions)
    if count:
        ir_passes.InlinePass()(model)
        model.functions.clear()
    return count


def undeclare_weights(model: ir.Model) -> int:
    """Take initializers off the list of inputs, where ONNX files before IR version 4 had them."""
    graph = model.graph
    stale = [v for v in graph.inputs if v.name in graph.initializers]
    for value in stale:
        graph.inputs.remove(value)
    return len(stale)


def lift_constants(model: ir.Model) -> int:
    """Constant() -> initializer."""
    count = 0
    for node in nodes_of(model, "Constant"):
        array = const(node.outputs[0])
        if array is None or array.dtype.kind in "OSU":
            continue
        count += _become_constant(model.graph, node, array)
    return count


def fold_shapes(model: ir.Model) -> int:
    """Shape(x), Size(x) of a static x -> initializer."""
    count = 0
    for node in nodes_of(model, "Shape", "Size"):
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        if shape is None or not shape.is_static():
            continue
        dims = np.asarray(shape.numpy(), np.int64)
        if node.op_type == "Size":
            result = np.asarray(dims.prod(), np.int64)
        else:
            start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(dims))
            result = dims[start:end]
        count += _become_constant(model.graph, node, result)
    return count


def fold_constants(model: ir.Model) -> int:
    """f(constants) -> initializer, computed by ONNX Runtime, which is also the float reference.

    Constants are fed to it, not serialised. Results much larger than what they come from stay computed.
    """
    foldable = _affordable(model, _constant_nodes(model.graph))
    if not foldable:
        return 0
    arrays = _evaluate(model, foldable)
    count = 0
    for node in foldable:
        results = [arrays.get(str(v.name)) for v in node.outputs]
        if len(results) == 1 and results[0] is not None:
            count += _become_constant(model.graph, node, results[0])
        elif all(r is not None or not v.uses() for r, v in zip(results, node.outputs, strict=True)):
            for value, result in zip(node.outputs, results, strict=True):
                if result is not None and not value.is_graph_output():
                    value.replace_all_uses_with(add_initializer(model.graph, f"{value.name}_folded", result))
                    count += 1
    return count


def fold_empty(model: ir.Model) -> int:
    """What has no elements is a constant; Concat leaves it out, Split does not give it."""
    count = 0
    for node in nodes_of(model):
        empty = [v for v in node.outputs if v.name and v.shape is not None and 0 in shape_of(v)]
        if len(empty) == len(node.outputs) == 1:
            array = np.zeros(shape_of(empty[0]), (empty[0].dtype or ir.DataType.FLOAT).numpy())
            count += _become_constant(model.graph, node, array)
        elif node.op_type == "Split" and empty:
            count += _split_the_rest(model.graph, node)
        elif node.op_type == "Concat" and any(v is not None and 0 in shape_of(v) for v in node.inputs):
            parts = [v for v in node.inputs if v is not None and 0 not in shape_of(v)]
            rewrite(node.outputs[0], "Concat", parts, {"axis": attr(node, "axis")})
            count += 1
    return count


def _split_the_rest(graph: ir.Graph, node: ir.Node) -> int:
    """Split without the outputs that have no elements, unless one is an output of the graph."""
    axis = attr(node, "axis", 0)
    kept = [v for v in node.outputs if 0 not in shape_of(v)]
    gone = [v for v in node.outputs if 0 in shape_of(v)]
    if any(v.is_graph_output() for v in node.outputs):
        return 0
    for value in gone:
        array = np.zeros(shape_of(value), np.float32)
        value.replace_all_uses_with(add_initializer(graph, f"{value.name}_empty", array))
    sizes = ints(node, "sizes", [shape_of(v)[axis] for v in kept])
    outputs = [ir.Value(name=f"{v.name}_part", shape=v.shape, type=v.type) for v in kept]
    split = ir.node("Split", [node.inputs[0], sizes], {"axis": axis}, outputs=outputs, name=node.name)
    split.metadata_props.update(node.metadata_props)
    graph.insert_before(node, split)
    for old, new in zip(kept, outputs, strict=True):
        old.replace_all_uses_with(new)
    graph.remove(node, safe=True)
    return 1


def _become_constant(graph: ir.Graph, node: ir.Node, array: np.ndarray) -> int:
    """Put an initializer of the same name where the node's output was; an output of the graph stays."""
    out = node.outputs[0]
    if out.is_graph_output():
        return 0
    name, out.name = str(out.name), None
    bypass(node, add_initializer(graph, name, array))
    return 1


def _constant_nodes(graph: ir.Graph) -> list[ir.Node]:
    """Nodes in order that depend on initializers only and are worth computing ahead."""
    constant: set[ir.Value] = set()
    found = []
    for node in graph:
        inputs = [v for v in node.inputs if v is not None]
        if (
            node.domain not in ("", "ai.onnx")
            or node.op_type in NEVER_FOLDED
            or node.op_type == "Constant"
            or any(
                a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()
            )
            or not all(v in constant or (v.is_initializer() and not v.is_graph_input()) for v in inputs)
            or any(isinstance(v.type, ir.SequenceType | ir.OptionalType) for v in node.outputs)
            or any(v.is_graph_output() for v in node.outputs)
            or _grows(node, inputs)
        ):
            continue
        found.append(node)
        constant.update(node.outputs)
    return found


def _grows(node: ir.Node, inputs: list[ir.Value]) -> bool:
    """Whether a result is, or may be, much larger than its operands.

    Where the shape hangs on an operand that is computed, too, the next round of inference knows it.
    """
    known = all(v.shape is not None and v.shape.is_static() for v in node.outputs if v.name)
    out = sum(_size(v) for v in node.outputs)
    return out > MAX_GROWTH + sum(_size(v) for v in set(inputs)) or not (known or node.op_type in BOUNDED)


def _affordable(model: ir.Model, nodes: list[ir.Node]) -> list[ir.Node]:
    """The first of the nodes, as long as their results are not too much together, now and in other rounds."""
    left = model.meta.setdefault(
        FOLDED, MAX_FOLDED + TIMES * sum(_size(v) for v in model.graph.initializers.values())
    )
    for i, node in enumerate(nodes):
        left -= sum(_size(v) for v in node.outputs)
        if left < 0:
            nodes = nodes[:i]
            break
        model.meta[FOLDED] = left
    return nodes


def _size(value: ir.Value) -> int:
    if value.shape is None or not value.shape.is_static():
        return 0
    return math.prod(value.shape.numpy())


def _evaluate(model: ir.Model, nodes: list[ir.Node]) -> dict[str, np.ndarray]:
    """Run the nodes on their initializers; only what other nodes read comes back."""
    import onnxruntime as ort

    inside = set(nodes)
    feeds = {v.name: v for n in nodes for v in n.inputs if v is not None and v.is_initializer()}
    wanted = [v for n in nodes for v in n.outputs if any(u.node not in inside for u in v.uses())]
    if not wanted:
        return {}
    graph = _subgraph(nodes, list(feeds.values()), wanted, dict(model.graph.opset_imports))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    proto = ir.serde.serialize_model(ir.Model(graph, ir_version=min(model.ir_version, 10)))
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        arrays = session.run(
            [str(v.name) for v in wanted], {str(k): np.asarray(const(v)) for k, v in feeds.items()}
        )
    except Exception as err:
        names = ", ".join(f"{n.op_type} {n.name!r}" for n in nodes[:5])
        raise UserError(f"constants of the graph can't be computed ahead ({names}): {err}") from err
    return dict(zip((str(v.name) for v in wanted), arrays, strict=True))


def _subgraph(
    nodes: list[ir.Node], feeds: list[ir.Value], wanted: list[ir.Value], opsets: dict[str, int]
) -> ir.Graph:
    """A graph of copies of the nodes whose inputs are the ``feeds``."""
    copy: dict[ir.Value, ir.Value] = {}
    for v in feeds:
        copy[v] = ir.Value(name=v.name, shape=v.shape, type=ir.TensorType(v.dtype or ir.DataType.FLOAT))
    copies = []
    for n in nodes:
        outputs = [ir.Value(name=v.name) for v in n.outputs]
        inputs = [None if v is None else copy[v] for v in n.inputs]
        copies.append(ir.node(n.op_type, inputs, dict(n.attributes), outputs=outputs, name=n.name))
        copy.update(zip(n.outputs, outputs, strict=True))
    return ir.Graph(
        [copy[v] for v in feeds],
        [copy[v] for v in wanted],
        nodes=copies,
        opset_imports=opsets,
        name="constants",
    )
