"""Consecutive linear operators -> one convolution, where that is cheaper.

Conv1x1(Conv3x3(x))  ->  Conv3x3(x)     if MACs drop; never depthwise + pointwise -> dense
Conv(Pad(x))         ->  Conv(x)        with the pads of both
"""

from __future__ import annotations

import onnx_ir as ir

from repedge.graph.values import only_reader
from repedge.passes.fusion.geometry import Refused
from repedge.passes.fusion.linear import Block, Expr
from repedge.passes.fusion.merges import MergePlan
from repedge.passes.fusion.operators import Affine, Conv, Pad, Pool

CHAIN = "chain"


def chains(plan: MergePlan) -> bool:
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
        names = (str(below.name), str(node.name))
        reason = None
        for root in _roots(plan, below):
            expr = plan.expr(node.outputs[0], root)
            reason = _objection(expr, isinstance(inner, Pad))
            if reason is None:
                plan.merge(CHAIN, node.outputs[0], root, expr)
                changed = True
                break
        if reason is not None:
            plan.refuse(CHAIN, names, reason)
    return changed


def _roots(plan: MergePlan, below: ir.Node) -> list[ir.Value]:
    """Where the merged operator could begin, best first; a Pad's border may continue what is before it."""
    root = plan.data(below)
    behind = root.producer()
    if isinstance(plan.op(below), Pad) and behind is not None and plan.op(behind) and only_reader(root):
        return [plan.data(behind), root]
    return [root]


def _objection(expr: Expr, padded: bool) -> str | None:
    """Why the chain should not become one convolution, or None; a Pad may go at equal cost."""
    try:
        macs = expr.geometry.macs
        _ = expr.geometry.pads
    except Refused as why:
        return str(why)
    if macs > expr.cost or (macs == expr.cost and not padded):
        return f"would cost more MACs: {expr.cost} -> {macs}"
    return None
