"""What a graph costs: parameters, multiply-accumulates, operators."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import shape_of


@dataclass(frozen=True)
class Counts:
    """Size of a graph.

    Attributes:
        params: Elements of the float initializers of rank 1 and above, without the running means and
            variances of BatchNormalization: what PyTorch calls parameters.
        macs: Multiply-accumulates of Conv, ConvTranspose, Gemm and MatMul, per image.
        nodes: Number of nodes.
        ops: Nodes per operator type, most frequent first.
    """

    params: int
    macs: int
    nodes: int
    ops: dict[str, int]


def count(model: ir.Model) -> Counts:
    """Count a graph with static shapes.

    Raises:
        UserError: The shape of a convolution's or matrix product's value is not fixed.
    """
    ops = Counter(node.op_type for node in model.graph)
    statistics = {v for n in model.graph if n.op_type == "BatchNormalization" for v in n.inputs[3:5]}
    weights = [v for v in model.graph.initializers.values() if _is_weight(v) and v not in statistics]
    return Counts(
        params=sum(math.prod(shape_of(v)) for v in weights),
        macs=sum(MACS[node.op_type](node) for node in model.graph if node.op_type in MACS),
        nodes=sum(ops.values()),
        ops=dict(ops.most_common()),
    )


def _is_weight(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point() and len(shape_of(value)) > 0


def _batch(node: ir.Node) -> int:
    """Images in the batch, so that counts are per image."""
    graph = node.graph
    if graph is None or not graph.inputs or not shape_of(graph.inputs[0]):
        return 1
    return max(1, shape_of(graph.inputs[0])[0])


def _conv(node: ir.Node) -> int:
    # Each output element sums over its group's input channels and the kernel: weight [O, I/g, kh, kw].
    return math.prod(shape_of(node.outputs[0])) * math.prod(shape_of(node.inputs[1])[1:]) // _batch(node)


def _conv_transpose(node: ir.Node) -> int:
    # Each input element is spread over its group's outputs and the kernel: weight [I, O/g, kh, kw].
    return math.prod(shape_of(node.inputs[0])) * math.prod(shape_of(node.inputs[1])[1:]) // _batch(node)


def _gemm(node: ir.Node) -> int:
    a = shape_of(node.inputs[0])
    inner = a[0] if attr(node, "transA", 0) else a[1]
    return math.prod(shape_of(node.outputs[0])) * inner // _batch(node)


def _matmul(node: ir.Node) -> int:
    return math.prod(shape_of(node.outputs[0])) * shape_of(node.inputs[0])[-1] // _batch(node)


MACS: dict[str, Callable[[ir.Node], int]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}


def macs_of(model: ir.Model) -> dict[str, int]:
    """Node -> its multiply-accumulates for one image."""
    return {str(n.name): MACS[n.op_type](n) for n in model.graph if n.op_type in MACS}
