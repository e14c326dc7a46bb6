"""The grid that a plan's integers leave at the outputs."""

from __future__ import annotations

import onnx_ir as ir

from repedge.calib.plan import QuantPlan
from repedge.calib.structure import data_inputs
from repedge.operators import MOVES


def output_steps(model: ir.Model, plan: QuantPlan) -> list[float]:
    """Of each output the scale of the integers that its numbers are; 0 where they are floats.

    Where parts of an output have several scales it is the least of them.
    """
    return [_step(value, plan) for value in model.graph.outputs]


def _step(value: ir.Value, plan: QuantPlan) -> float:
    found = plan.tensors.get(str(value.name))
    if found is not None:
        return found.scale
    node = value.producer()
    if node is None or node.op_type not in MOVES:
        return 0.0
    return min((_step(v, plan) for v in data_inputs(node)), default=0.0)
