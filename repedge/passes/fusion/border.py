"""A border of constants around a map, as networks write it: Pad, then ScatterND over its rows and columns.

DBB (arXiv:2103.13425) continues its 1x1 branches, BN included, into the padding of the kernel that
follows: the border holds what the BN makes of zeros. The authors assign slices for that, and
exporters turn each into Transpose, ScatterND, Transpose. Seen as one padding per channel it merges
exactly; a plain zero padding there does not.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import const, only_reader, shape_of
from repedge.passes.fusion.geometry import Refused
from repedge.passes.fusion.merges import MergePlan
from repedge.passes.fusion.operators import Pad
from repedge.passes.fusion.read import feature_map, read

BORDER_TOLERANCE = 1e-5
"""How far a stored border may be from the shift it stands for, relative to the largest shift: it was
computed in float32 from statistics that may cancel. It is then taken to be that shift."""


def borders(plan: MergePlan) -> bool:
    """Transpose(ScatterND(... Pad(x))) with constants -> one Pad with a border per channel."""
    changed = False
    for node in plan.nodes():
        if node.op_type not in ("Transpose", "ScatterND") or plan.op(node) is not None:
            continue
        reader = only_reader(node.outputs[0])
        if reader is not None and reader.op_type in ("Transpose", "ScatterND"):
            continue
        nodes = _span(node)
        source = nodes[-1].inputs[0]
        if nodes[-1].op_type != "Pad" or not any(n.op_type == "ScatterND" for n in nodes):
            continue
        found = _as_pad(nodes)
        roots = plan.roots(source) if found and source is not None else []
        if found is None or source is None or len(roots) != 1:
            continue
        try:
            expr = plan.expr(source, roots[0])
            _ = expr.geometry
        except Refused:
            continue
        pads, border = found
        shift = expr.collapse()[1]
        if np.abs(border - shift).max() <= BORDER_TOLERANCE * np.abs(shift).max():
            border = shift
        plan.adopt(nodes, Pad(str(node.name), "the border", pads, border))
        changed = True
    return changed


def _span(top: ir.Node) -> list[ir.Node]:
    """From ``top`` down to the Pad: Transpose, ScatterND of constants, Pad; nothing else reads between."""
    nodes = [top]
    while True:
        last = nodes[-1]
        value = last.inputs[0]
        below = value.producer() if value is not None else None
        if last.op_type == "Pad" or value is None or below is None or only_reader(value) is None:
            return nodes
        if below.op_type not in ("Transpose", "ScatterND", "Pad"):
            return nodes
        nodes.append(below)


def _as_pad(nodes: list[ir.Node]) -> tuple[tuple[int, int, int, int], np.ndarray] | None:
    """(pads, border [C]) of the nodes, found by running them on two maps without a common number."""
    source, result = nodes[-1].inputs[0], nodes[0].outputs[0]
    if feature_map(source) is None or feature_map(result) is None or len(shape_of(source)) != 4:
        return None
    shape = shape_of(source)
    numbers = np.arange(1.0, 1 + np.prod(shape)).reshape(shape)
    first, second = _run(nodes, numbers), _run(nodes, -numbers)
    if first is None or second is None or first.shape != shape_of(result):
        return None
    inside = first != second  # all that depends on the map
    rows, columns = (np.flatnonzero(inside[0, 0].any(axis)) for axis in (1, 0))
    if not rows.size:
        return None
    top, left = int(rows[0]), int(columns[0])
    height, width = shape[2:]
    middle = (slice(None), slice(None), slice(top, top + height), slice(left, left + width))
    if inside.sum() != numbers.size or not np.array_equal(first[middle], numbers):
        return None
    outside = first[0][:, ~inside[0, 0]]
    if not outside.size or np.ptp(outside, 1).any():
        return None
    pads = (top, left, first.shape[2] - top - height, first.shape[3] - left - width)
    return pads, outside[:, 0]


def _run(nodes: list[ir.Node], x: np.ndarray) -> np.ndarray | None:
    """The nodes on ``x`` by the ONNX specification; None where one is not of the plain kind."""
    for node in reversed(nodes):
        if node.op_type == "Transpose":
            x = np.transpose(x, attr(node, "perm"))
        elif node.op_type == "ScatterND":
            indices, updates = const(node.inputs[1]), const(node.inputs[2])
            if indices is None or updates is None or attr(node, "reduction", "none") != "none":
                return None
            x = x.copy()
            x[tuple(np.moveaxis(indices, -1, 0))] = updates
        else:
            op = read(node)
            if op is None or not isinstance(op[0], Pad) or len(x) != 1:
                return None
            x = op[0].run(x[0], None)[None]
    return x
