"""Sums of parallel branches from one tensor -> one convolution (or one fully connected layer).

BN(Conv3x3(x)) + BN(Conv1x1(x)) + BN(x)  ->  Conv3x3(x)
(Gemm(BN(x)) + Gemm(BN(x))) / 2          ->  Gemm(x)

A branch is any chain of linear operators, and may itself hold a sum. The merged convolution has the
union of all taps and the coarsest grouping that all branches fit in; it is made only if it costs no
more multiply-accumulates than the branches do.
"""

from __future__ import annotations

import onnx_ir as ir

from repedge.graph.values import only_reader
from repedge.passes.fusion.geometry import Refused
from repedge.passes.fusion.linear import Expr, Sum
from repedge.passes.fusion.merges import MergePlan, Term, common_source
from repedge.passes.fusion.operators import Affine, Conv

BRANCHES = "branches"


def branches(plan: MergePlan) -> bool:
    """Conv(x) + Conv(x) + x -> Conv(x); where not all summands fit, those that do."""
    changed = False
    for node in plan.nodes():
        reader = only_reader(node.outputs[0])
        if not plan.terms(node) or plan.terms(reader):
            continue  # no sum, or a part of a larger one
        top = node.outputs[0]
        roots = plan.roots(top, through=True)
        reason = None
        if len(roots) == 1:
            expr = plan.expr(top, roots[0])
            reason = _objection(expr)
            if reason is None:
                plan.merge(BRANCHES, top, roots[0], expr)
                changed = True
                continue
        terms, adds = _flat(plan, node, 1.0)
        merged, why = _merge_some(plan, terms, adds)
        changed |= merged
        if not merged:
            reason = reason or why or _apart(plan, terms)
            plan.refuse(BRANCHES, tuple(str(n.name) for n in reversed(adds)), reason)
    return changed


def _objection(expr: Expr) -> str | None:
    """Why the expression should not become one convolution, or None."""
    try:
        geometry = expr.geometry
        _ = geometry.pads
    except Refused as why:
        return str(why)
    if not any(isinstance(op, Conv) for op in expr.ops) and not all(
        isinstance(op, Affine) for op in expr.ops
    ):
        return "there is no convolution among the branches"
    if geometry.macs > expr.cost:
        return f"would cost more MACs: {expr.cost} -> {geometry.macs}"
    return None


def _flat(plan: MergePlan, node: ir.Node, sign: float) -> tuple[list[Term], list[ir.Node]]:
    """All summands of a tree of sums in order, and the sums themselves, outermost first."""
    terms: list[Term] = []
    nodes = [node]
    for term in plan.terms(node):
        producer = term.value.producer()
        if only_reader(term.value) is not None and producer is not None and plan.terms(producer):
            inner, more = _flat(plan, producer, sign * term.sign)
            terms += inner
            nodes += more
        else:
            terms.append(Term(sign * term.sign, term.value))
    return terms, nodes


def _merge_some(plan: MergePlan, terms: list[Term], adds: list[ir.Node]) -> tuple[bool, str | None]:
    """Merge the sets of summands that pay; also the first reason why some from one tensor do not."""
    by_root: dict[ir.Value, list[tuple[Term, Expr]]] = {}
    for term in terms:
        roots = plan.roots(term.value)
        if len(roots) == 1:
            by_root.setdefault(roots[0], []).append((term, plan.expr(term.value, roots[0])))
    reason = None
    sets: list[tuple[ir.Value, list[tuple[Term, Expr]]]] = []
    for root, members in by_root.items():
        found, why = _affordable(members)
        sets += [(root, chosen) for chosen in found]
        reason = reason or why
    if sets:
        _rebuild(plan, terms, adds, sets)
    return bool(sets), reason


def _affordable(
    members: list[tuple[Term, Expr]],
) -> tuple[list[list[tuple[Term, Expr]]], str | None]:
    """Greedy: the most expensive branch takes in whatever makes it no dearer, then the next one does."""
    reason = None
    usable = []
    for term, expr in members:
        try:
            _ = expr.geometry
            usable.append((term, expr))
        except Refused as why:
            reason = reason or str(why)
    usable.sort(key=lambda m: -m[1].cost)
    sets = []
    while usable:
        chosen, rest = [usable[0]], []
        for candidate in usable[1:]:
            objection = _objection(_summed([*chosen, candidate]))
            if objection is None:
                chosen.append(candidate)
            else:
                rest.append(candidate)
                reason = reason or objection
        if len(chosen) > 1:
            sets.append(chosen)
        usable = rest
    return sets, reason


def _summed(members: list[tuple[Term, Expr]]) -> Sum:
    return Sum([(term.sign, expr) for term, expr in members], ())


def _rebuild(
    plan: MergePlan,
    terms: list[Term],
    adds: list[ir.Node],
    sets: list[tuple[ir.Value, list[tuple[Term, Expr]]]],
) -> None:
    """Replace a tree of sums by the merged convolutions plus the summands that stay."""
    top = adds[0].outputs[0]
    left = list(terms)
    old = list(adds)
    summands: list[Term] = []
    for root, members in sets:
        chains = [n for term, _ in members for n in plan.between(term.value, root)]
        node = plan.insert(BRANCHES, adds[0], top, root, _summed(members))
        node.metadata_props.update(common_source(chains))
        for o in chains:
            plan.kinds[node] += plan.kinds.pop(o, [])
        summands.append(Term(1.0, node.outputs[0]))
        old += chains
        for term, _ in members:
            left.remove(term)
    first, *others = [*summands, *left]
    total = first.value
    for i, term in enumerate(others):
        name = plan.fresh(f"{top.name}_sum{i}")
        out = ir.Value(name=name, shape=top.shape, type=top.type)
        op_type = "Add" if term.sign > 0 else "Sub"
        node = ir.node(op_type, [total, term.value], outputs=[out], name=adds[i].name)
        node.metadata_props.update(adds[i].metadata_props)
        plan.graph.insert_before(adds[0], node)
        total = out
    plan.take_over(top, total)
    plan.remove(old)


def _apart(plan: MergePlan, terms: list[Term]) -> str:
    """Why the summands do not come from one tensor."""
    starts = {root: None for term in terms for root in plan.roots(term.value)}
    for root in starts:
        node = root.producer()
        behind = plan.roots(root, through=True)
        if node is not None and plan.inner(root) and len(behind) == 1 and behind[0] in starts:
            return f"the output of {node.op_type} {node.name!r} is read elsewhere"
    bare = [t.value for t in terms]
    for root in sorted(starts, key=lambda v: v in bare):  # the end of a chain says more than a bare summand
        node = root.producer()
        if node is not None and not plan.inner(root):
            return f"the branches start at different tensors: {node.op_type} {node.name!r} is not linear"
    return "the branches start at different tensors: " + ", ".join(repr(v.name) for v in starts)
