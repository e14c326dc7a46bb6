"""How large a graph becomes when it is run: a file of a few bytes can ask for terabytes.

Looked at before anything is computed, on what ONNX's shape inference says.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from repedge.errors import UserError

if TYPE_CHECKING:
    import onnx

LARGEST = 1 << 28
"""Elements of one value: 1 GiB of float32, 32 channels of 8192x1024 pixels."""

MOST = 1 << 30
"""Elements of all values that are there at one time."""

LONGEST_VECTOR = 1 << 16
"""Elements of a vector that shape inference computes with; it holds each as a message of its own."""

_FOLLOWED = frozenset(
    {"Identity", "Cast", "Squeeze", "Unsqueeze", "Slice", "Add", "Sub", "Mul", "Gather", "Shape", "Concat"}
)
"""Operators that shape inference computes on small vectors (ONNX, data propagation)."""


def is_short(graph: onnx.GraphProto) -> bool:
    """Whether no vector that ONNX's shape inference would compute is longer than `LONGEST_VECTOR`.

    It computes what `Shape` and constants give, and a chain of Concat doubles it without end.
    """
    length = {t.name: math.prod(t.dims) for t in graph.initializer if len(t.dims) < 2}
    length |= {v.name: _elements(v) for v in graph.input if len(v.type.tensor_type.shape.dim) == 1}
    scalars = {t.name: t for t in graph.initializer if math.prod(t.dims) == 1}
    for node in graph.node:
        if node.op_type == "Range" and all(name in scalars for name in node.input):
            if _range(*(scalars[name] for name in node.input)) > LONGEST_VECTOR:
                return False
            continue
        parts = [length.get(name, 1) for name in node.input]
        if node.op_type not in _FOLLOWED or len(node.output) != 1 or not parts:
            continue
        total = sum(parts) if node.op_type == "Concat" else max(parts)
        if total > LONGEST_VECTOR:
            return False
        length[node.output[0]] = total
    return True


def _range(*limits: onnx.TensorProto) -> float:
    """Elements of a Range of constants; infinite where they make no sense."""
    from onnx import numpy_helper

    start, limit, delta = (float(numpy_helper.to_array(t).item()) for t in limits)
    count = (limit - start) / delta if delta else math.inf
    return math.inf if math.isnan(count) else count


def check_sizes(graph: onnx.GraphProto) -> None:
    """Fail where a value of known shape, or all that are there at one time, would not fit into memory.

    Args:
        graph: After shape inference.

    Raises:
        UserError: Names the node, the shape and the size.
    """
    sizes = {v.name: _elements(v) for v in (*graph.input, *graph.value_info, *graph.output)}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(v.name for v in graph.output)  # they stay until the end
    live = 0
    for node in graph.node:
        for name in node.output:
            size = sizes.get(name, 0)
            live += size
            if size > LARGEST or live > MOST:
                raise UserError(_message(node, name, graph, size if size > LARGEST else live))
        for name in (*node.input, *(o for o in node.output if not uses[o])):
            uses[name] -= 1
            if uses[name] == 0 and name in sizes:
                live -= sizes[name]


def _elements(value: onnx.ValueInfoProto) -> int:
    """0 where the shape is not known."""
    dims = value.type.tensor_type.shape.dim
    return math.prod(d.dim_value for d in dims) if all(d.HasField("dim_value") for d in dims) else 0


def _message(node: onnx.NodeProto, name: str, graph: onnx.GraphProto, size: int) -> str:
    found = next((v for v in (*graph.value_info, *graph.output) if v.name == name), None)
    dims = [] if found is None else [d.dim_value for d in found.type.tensor_type.shape.dim]
    return (
        f"the {node.op_type} node {node.name!r} gives {dims} where {4 * size / 1e9:.1f} GB are needed, more "
        "than a network on a device has; is one of its numbers wrong?"
    )
