"""What a float16 artifact computes in float32: norms and linear attention, whose sums float16 can't hold.

The square of 256 is beyond float16, and a root mean square over a thousand numbers of 10 passes through a sum
of 100,000. So squares that are summed, and what is done to the sum until it divides (or multiplies) something
else, keep float32; so do norms that are one operator. A vector of zeros over its norm, held above 1e-12 say,
is then 0, too, where float16 would divide 0 by 0.

Linear attention (EfficientViT's, `Cai et al. 2023 <https://arxiv.org/abs/2205.14756>`_) multiplies queries
with sums over all positions of keys times values, and divides by the like without values: both grow with the
number of positions, and only their quotient is of the size of the values.
"""

from __future__ import annotations

import onnx_ir as ir

from repedge.graph.values import const

NORMS = frozenset({"ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"})
"""Reductions whose insides pass float16's range before their results do."""

SUMS = frozenset({"ReduceSum", "ReduceMean", "GlobalAveragePool"})

FOLLOWING = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Max", "Clip", "Pow", "Sqrt", "Reciprocal", "Neg", "Exp", "Log"),
        *("Reshape", "Expand", "Flatten", "Transpose"),
    }
)
"""What is done to a norm before it is used."""

STEPS = 8
"""Operators behind a norm, or ahead of a quotient, that are looked at."""

LEADING = frozenset(
    {
        *("Add", "Max", "Clip", "Slice", "Split", "Transpose"),
        *("Reshape", "Squeeze", "Unsqueeze", "ReduceSum"),
    }
)
"""What is done to sums of products before they are divided."""


def wide_nodes(graph: ir.Graph) -> frozenset[ir.Node]:
    """The nodes of a float32 graph that stay float32 in a float16 artifact of it."""
    found: set[ir.Node] = set()
    for node in graph:
        if node.op_type in NORMS:
            found.add(node)
            _follow(node, found, STEPS)
        elif node.op_type in SUMS and (square := _square(node.inputs[0])) is not None:
            found |= {square, node}
            _follow(node, found, STEPS)
        elif node.op_type == "Div" and any(n.op_type == "MatMul" for n in _sums(node.inputs[1], STEPS)):
            found |= {node, *_sums(node.inputs[0], STEPS), *_sums(node.inputs[1], STEPS)}
    return frozenset(found)


def _sums(value: ir.Value | None, steps: int) -> set[ir.Node]:
    """The products of activations that ``value`` is made of, and what lies between; empty without any."""
    node = None if value is None else value.producer()
    if node is None or steps == 0:
        return set()
    products = node.op_type == "MatMul" and all(const(v) is None for v in node.inputs)
    if not products and node.op_type not in LEADING:
        return set()
    ahead = set().union(*(_sums(v, steps - 1) for v in node.inputs if v is not None))
    return {node, *ahead} if products or ahead else set()


def _square(value: ir.Value | None) -> ir.Node | None:
    """The node that squares a number, if that is what makes ``value``."""
    node = None if value is None else value.producer()
    if node is None:
        return None
    if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        return node
    if node.op_type == "Pow":
        exponent = const(node.inputs[1])
        if exponent is not None and exponent.size == 1 and float(exponent.reshape(())) == 2:
            return node
    return None


def _follow(node: ir.Node, found: set[ir.Node], steps: int) -> None:
    """Add what reads a norm, up to the operator that takes it to something else."""
    for use in node.outputs[0].uses() if steps else ():
        reader = use.node
        if reader.op_type not in FOLLOWING or reader in found:
            continue
        found.add(reader)
        others = [v for i, v in enumerate(reader.inputs) if v is not None and i != use.idx]
        if all(const(v) is not None or v.producer() in found for v in others):
            _follow(reader, found, steps - 1)
