"""How much of a tensor's range its readers can tell apart.

Behind ``x * Sigmoid(x)`` all numbers under -8 are 0, behind a Sigmoid all from 6 on are 1. Integers that
stand for such numbers are wasted: with 8 bits, a convolution's -63 to 80 in front of a SiLU has steps of
0.56, and -3 to 80 of 0.33.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch

from repedge.calib.simulation.torch_ops import function_of
from repedge.graph.values import const, shape_of
from repedge.operators import ELEMENTWISE, UNARY

Range = tuple[float, float]

POINTS = 2048
"""Numbers of the range that the function is looked at."""

LEAST = 0.02
"""Share of the range that a flat stretch must be of to be left out."""

MOST = 6
"""Operators that may stand between a tensor and what is made of it."""


def curve(value: ir.Value) -> list[ir.Node]:
    """The operators, in order, that make one function of a tensor's single numbers; empty if there is none.

    Either a function of one number, as Gelu, or one that is spelled with several operators, all of which
    read the tensor, one another and constants per channel: ``x * Sigmoid(x)``. What else reads the tensor
    could tell all its numbers apart.
    """
    made: dict[ir.Value, None] = {value: None}
    nodes: list[ir.Node] = []
    while len(nodes) < MOST:
        open_ends = [
            v for v in made if not v.is_graph_output() and any(u.node not in nodes for u in v.uses())
        ]
        if nodes and len(open_ends) == 1 and open_ends[0] is nodes[-1].outputs[0]:
            return nodes
        ready = [u.node for v in open_ends for u in v.uses() if u.node not in nodes and _ready(u.node, made)]
        if not ready:
            return []
        nodes.append(ready[0])
        made[ready[0].outputs[0]] = None
    return []


def _ready(node: ir.Node, made: dict[ir.Value, None]) -> bool:
    if node.op_type not in UNARY | ELEMENTWISE or len(node.outputs) != 1:
        return False
    return all(v is None or v in made or _per_channel(v) for v in node.inputs)


def _per_channel(value: ir.Value) -> bool:
    array = const(value)
    return (
        array is not None and (array.ndim < 2 or array.size == max(array.shape)) and array.ndim in (0, 3, 4)
    )


def telling(value: ir.Value, low: float, high: float, levels: int, step: float | None = None) -> Range:
    """The part of ``low`` to ``high`` outside of which nothing changes by more than half a step behind it.

    Args:
        value: The tensor.
        low, high: Its range.
        levels: Steps that the integers of what is made of it have.
        step: One such step; None: of the range that it comes to.
    """
    nodes = curve(value)
    if not nodes or not low < high:
        return low, high
    x = np.linspace(low, high, POINTS, dtype=np.float32)
    y = _run(nodes, value, x)
    if not np.isfinite(y).all():
        return low, high
    half = (float(y.max() - min(y.min(), 0.0)) / levels if step is None else step) / 2
    first, after = (n if n > LEAST * POINTS else 0 for n in (_flat(y, half), _flat(y[:, ::-1], half)))
    last = POINTS - 1 - after
    if first >= last:
        return low, high
    return float(x[first]), float(x[last])


def _run(nodes: Sequence[ir.Node], value: ir.Value, x: np.ndarray) -> np.ndarray:
    """What becomes of numbers [points] in each channel, [C or 1, points]."""
    channels = shape_of(value)[1] if len(shape_of(value)) == 4 else 1
    grid = torch.from_numpy(x).reshape(1, 1, 1, -1).expand(1, channels, 1, -1)
    found: dict[ir.Value, torch.Tensor] = {value: grid}
    for node in nodes:
        given = []
        for v in node.inputs:
            array = None if v is None or v in found else const(v)
            given.append(found.get(v) if array is None else torch.from_numpy(np.array(array)))  # type: ignore[arg-type]
        found[node.outputs[0]] = function_of(node)(*given)
    return found[nodes[-1].outputs[0]].reshape(channels, -1).numpy()


def _flat(y: np.ndarray, most: float) -> int:
    """How many numbers from the first on give the same to within ``most``."""
    low, high = np.minimum.accumulate(y, 1), np.maximum.accumulate(y, 1)
    off = (np.maximum(high - y, y - low) > most).any(0)
    return int(off.argmax()) - 1 if off.any() else y.shape[1] - 1
