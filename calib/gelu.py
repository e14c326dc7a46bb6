"""GELU from operators that integer delegates take: x * sigmoid(a x), in the place of a Gelu node.

XNNPACK has LOGISTIC and MUL in int8, but no GELU. ``a = 1.702`` (Hendrycks and Gimpel, arXiv:1606.08415,
section 2) is at most 0.0204 away from the exact function; in the least-squares sense over an input
distribution another ``a`` may be nearer, so it can be fitted.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from repedge.calib.observe import Statistics
from repedge.graph.values import add_initializer

SLOPE = 1.702


def delegable_gelu(
    model: ir.Model, slopes: Mapping[str, float] | float = SLOPE
) -> tuple[ir.Model, list[str]]:
    """Gelu(x) -> Mul(x, Sigmoid(Mul(x, a))).

    The factor is folded into a copy of nothing: it stays a Mul by a constant of one element, which a
    target may take into the scale of the sigmoid's input at no cost (``q`` stays, the scale is times a).

    Args:
        model: A clean graph; not changed.
        slopes: ``a`` of all nodes, or node name -> ``a``.

    Returns:
        The new model, and the names of the nodes that were replaced. Output names are kept.
    """
    model = model.clone()
    replaced = []
    for node in list(model.graph):
        if node.op_type != "Gelu":
            continue
        slope = slopes if isinstance(slopes, int | float) else slopes.get(str(node.name), SLOPE)
        _replace(model.graph, node, float(slope))
        replaced.append(str(node.name))
    return model, replaced


def _replace(graph: ir.Graph, node: ir.Node, slope: float) -> None:
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    a = add_initializer(graph, f"{node.name}/slope", np.array(slope, np.float32))
    scaled = ir.node("Mul", [x, a], name=f"{node.name}/Mul")
    gate = ir.node("Sigmoid", [scaled.outputs[0]], name=f"{node.name}/Sigmoid")
    product = ir.node("Mul", [x, gate.outputs[0]], name=node.name)
    for n, suffix in ((scaled, "scaled"), (gate, "gate"), (product, "")):
        n.metadata_props.update(node.metadata_props)
        out = n.outputs[0]
        out.shape, out.type = y.shape, y.type
        out.name = f"{y.name}/{suffix}" if suffix else y.name
    graph.insert_before(node, [scaled, gate, product])
    for use in list(y.uses()):
        use.node.replace_input_with(use.idx, product.outputs[0])
    if y.is_graph_output():
        graph.outputs[list(graph.outputs).index(y)] = product.outputs[0]
    graph.remove(node, safe=True)


def fit_slopes(model: ir.Model, stats: Statistics) -> dict[str, float]:
    """The slope of every Gelu node with the least mean square error over its own inputs.

    Args:
        model: A clean graph.
        stats: Of its activations, by `observe` with histograms.

    Returns:
        Node name -> ``a``.
    """
    found = {}
    for node in model.graph:
        if node.op_type != "Gelu" or node.inputs[0] is None:
            continue
        t = stats.tensors.get(str(node.inputs[0].name))
        if t is None or t.histogram is None:
            continue
        edges = np.linspace(-t.edge, t.edge, len(t.histogram) + 1)
        found[str(node.name)] = fit_slope((edges[1:] + edges[:-1]) / 2, t.histogram)
    return found


def fit_slope(x: np.ndarray, weight: np.ndarray) -> float:
    """``a`` that minimises the weighted mean square of ``x sigmoid(a x) - gelu(x)``, to 0.001."""
    from math import erf, sqrt

    exact = x * 0.5 * (1 + np.array([erf(v / sqrt(2)) for v in x]))
    best = 1.4 + 0.001 * np.arange(601)
    with np.errstate(over="ignore"):
        costs = [float(weight @ (x / (1 + np.exp(-a * x)) - exact) ** 2) for a in best]
    return round(float(best[int(np.argmin(costs))]), 3)
