"""Consecutive linear operators -> one convolution, where that is cheaper.

Conv1x1(Conv3x3(x))  ->  Conv3x3(x)     if MACs drop; never depthwise + pointwise -> dense
Conv(Pad(x))         ->  Conv(x)        with the pads of both
"""

from __future__ import annotations

from repedge.graph.values import only_reader
from repedge.passes.geometry import Refused
from repedge.passes.linear import Block
from repedge.passes.operators import Affine, Conv, Pad, Pool
from repedge.passes.plan import Plan

CHAIN = "chain"


def chains(plan: Plan) -> bool:
    """Conv(Conv(x)) -> Conv(x)."""
    changed = False
    for node in plan.nodes():
        op = plan.op(node)
        if op is None or isinstance(op, Affine | Pad):
            continue
        value = plan.data(node)
        below = value.producer()
        inner = plan.op(below)
        if below is None or inner is None or isinstance(inner, Affine) or only_reader(value) is None:
            continue
        if not any(isinstance(o, Conv | Block) for o in (op, inner)) or (
            isinstance(inner, Pad) and isinstance(op, Pool)
        ):
            continue
        root = plan.data(below)
        expr = plan.expr(node.outputs[0], root)
        names = (str(below.name), str(node.name))
        try:
            macs = expr.geometry.macs
            _ = expr.geometry.pads
        except Refused as why:
            plan.refuse(CHAIN, names, str(why))
            continue
        if macs > expr.cost or (macs == expr.cost and not isinstance(inner, Pad)):
            plan.refuse(CHAIN, names, f"would cost more MACs: {expr.cost} -> {macs}")
            continue
        plan.merge(CHAIN, node.outputs[0], root, expr)
        changed = True
    return changed
