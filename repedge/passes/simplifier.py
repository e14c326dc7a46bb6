"""The C++ tools that want a protobuf, onnx's shape inference and onnxsim, without serialising weights.

Both get a *light* copy of the graph, in which every big initializer is a graph input: they need its
shape, not its values. The tensors are put back afterwards.
"""

from __future__ import annotations

import contextlib
import math
import re
import sys
from collections import Counter
from typing import TYPE_CHECKING

import onnx_ir as ir

from repedge import native
from repedge.errors import UserError
from repedge.graph.serde import inferred
from repedge.graph.values import shape_of
from repedge.passes.base import nodes_of

if TYPE_CHECKING:
    import onnx

BIG_BYTES = 1024
"""Initializers above this are kept out of the protobuf; shape vectors and scalars are far below it."""

LARGEST_FOLDED = "64MB"
"""onnxsim computes no constants of known shape above this ahead."""

LARGE_CONSTANT = 1 << 22
"""Elements of a value from which onnxsim computes no constants at all ahead: others may come of it."""

ONNXSIM_OPS = ("If", "Loop", "Scan", "Shape", "Size", "NonZero", "Range", "ConstantOfShape")
"""Control flow and shape arithmetic: what onnxsim may resolve where repedge's own folding did not."""

EVERYTHING = re.compile(rb".+", re.DOTALL)
"""onnxsim writes tracebacks of operators that it can't compute ahead, and goes on without; what matters it
raises."""

SKIPPED_OPTIMIZERS = (
    # Every merge of weights belongs to the fusion certificate, so onnxsim must leave these alone.
    "fuse_add_bias_into_conv",
    "fuse_bn_into_conv",
    "fuse_consecutive_concats",
    "fuse_consecutive_log_softmax",
    "fuse_matmul_add_bias_into_gemm",
    "fuse_pad_into_conv",
    "fuse_pad_into_pool",
    "fuse_transpose_into_gemm",
    "fuse_qkv",
)


def infer_shapes(model: ir.Model) -> int:
    """Give every value without a static shape or a dtype the one that onnx's shape inference finds."""
    unknown = [v for node in model.graph for v in node.outputs if v.name and not _is_known(v)]
    if not unknown:
        return 0
    try:
        found = ir.serde.deserialize_model(inferred(_light_proto(model)))
    except UserError:
        raise
    except Exception as err:
        raise UserError(f"the shapes in the graph {model.graph.name!r} contradict each other: {err}") from err
    shapes = ir.convenience.create_value_mapping(found.graph)
    count = 0
    for value in unknown:
        result = shapes.get(str(value.name))
        before = (str(value.shape), value.dtype)
        if result is not None and result.shape is not None:
            value.shape = result.shape.copy()
        if result is not None and result.type is not None:
            value.type = result.type
        count += (str(value.shape), value.dtype) != before
    return count


def run_onnxsim(model: ir.Model) -> int:
    """Let onnxsim resolve control flow and shape arithmetic that is still there.

    Graphs of our own exporter have none, and importing onnxsim costs 1 to 3 s (it imports torch): so
    it runs only where an operator of ``ONNXSIM_OPS`` or a value of unknown shape is left.

    Raises:
        UserError: onnxsim can't read the graph.
    """
    is_resolved = all(_is_known(v) for node in model.graph for v in node.outputs if v.name)
    if is_resolved and next(nodes_of(model, *ONNXSIM_OPS), None) is None:
        return 0
    import onnxsim

    try:
        with native.without(EVERYTHING), contextlib.redirect_stdout(sys.stderr):  # stdout is for --json
            simplified, _ = onnxsim.simplify(
                _light_proto(model),
                check_n=0,
                skipped_optimizers=list(SKIPPED_OPTIMIZERS),
                tensor_size_threshold=LARGEST_FOLDED,
                skip_constant_folding=_has_large_constants(model.graph),
            )
    except Exception as err:
        raise UserError(f"onnxsim can't simplify the graph {model.graph.name!r}: {err}") from err
    before = Counter(_key(node) for node in model.graph)
    graph = ir.serde.deserialize_model(simplified).graph
    after = Counter(_key(node) for node in graph)
    count = (before - after).total()
    if count:
        _restore(model.graph, graph)
        model.graph = graph
    return count


def _has_large_constants(graph: ir.Graph) -> bool:
    """Whether something large is computed from constants alone, which onnxsim would do ahead, and keep."""
    constant = {v for v in graph.initializers.values() if not v.is_graph_input()}
    for node in graph:
        if all(v is None or v in constant for v in node.inputs):
            constant.update(node.outputs)
            if any(_is_known(v) and math.prod(shape_of(v)) > LARGE_CONSTANT for v in node.outputs if v.name):
                return True
    return False


def _is_known(value: ir.Value) -> bool:
    return (
        value.dtype is not None and value.shape is not None and all(isinstance(d, int) for d in value.shape)
    )


def _light_proto(model: ir.Model) -> onnx.ModelProto:
    light = model.clone()
    for name, value in tuple(light.graph.initializers.items()):
        if value.const_value is None or value.const_value.nbytes <= BIG_BYTES or value.is_graph_output():
            continue
        value.shape = ir.Shape(value.const_value.shape.numpy())
        value.type = ir.TensorType(value.const_value.dtype)
        value.const_value = None
        del light.graph.initializers[name]
        if not value.is_graph_input():
            light.graph.inputs.append(value)
    return ir.serde.serialize_model(light)


def _restore(old: ir.Graph, new: ir.Graph) -> None:
    """Turn the inputs that stand for big weights into initializers; hand the nodes' notes over."""
    declared = {v.name for v in old.inputs}
    for value in tuple(new.inputs):
        weight = old.initializers.get(str(value.name))
        if weight is None or value.name in declared or weight.const_value is None:
            continue
        new.inputs.remove(value)
        value.const_value = weight.const_value
        new.register_initializer(value)
    notes = {v.name: node for node in old for v in node.outputs}
    for node in new:
        origin = notes.get(node.outputs[0].name)
        if origin is not None:
            node.metadata_props.update(origin.metadata_props)


def _key(node: ir.Node) -> tuple[str, ...]:
    return (node.op_type, *(str(v.name) for v in node.outputs), *(str(v and v.name) for v in node.inputs))
