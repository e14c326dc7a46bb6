"""Where a network ends and decoding begins: everything behind the last layers with weights."""

from __future__ import annotations

import onnx_ir as ir

from repedge.graph.values import const
from repedge.operators import LAYERS


def last_layers(model: ir.Model) -> tuple[ir.Node, ...]:
    """The layers behind which an output comes without any other layer, in the graph's order.

    Only of outputs that are maps or lists (more than one axis beside that of images): behind a row of class
    scores there is nothing but a Softmax.
    """
    return _walk(model)[0]


def decoding(model: ir.Model) -> tuple[ir.Node, ...]:
    """What lies behind the last layers, in the graph's order: grids, anchors, distance bins, sigmoids.

    What a layer reads as well, as the features that a network gives beside its scores, is none of it.
    """
    return _walk(model)[1]


def _walk(model: ir.Model) -> tuple[tuple[ir.Node, ...], tuple[ir.Node, ...]]:
    into = _read_by_layers(model)
    ends: set[ir.Node] = set()
    behind: set[ir.Node] = set()
    pending = [v for v in model.graph.outputs if v.shape is not None and len(v.shape) > 2]
    while pending:
        value = pending.pop()
        node = value.producer()
        if node is None or node in behind or node in ends:
            continue
        if is_layer(node):
            ends.add(node)
        elif node not in into:
            behind.add(node)
            pending += [v for v in node.inputs if v is not None]
    order = tuple(model.graph)
    return tuple(n for n in order if n in ends), tuple(n for n in order if n in behind)


def is_layer(node: ir.Node) -> bool:
    """Whether a node has weights of its own: a product of two activations has none."""
    return node.op_type in LAYERS and const(node.inputs[1]) is not None


def _read_by_layers(model: ir.Model) -> set[ir.Node]:
    """The nodes from which there is a way to a layer."""
    found: set[ir.Node] = set()
    for node in reversed(list(model.graph)):
        readers = [use.node for v in node.outputs for use in v.uses()]
        if any(is_layer(r) or r in found for r in readers):
            found.add(node)
    return found
