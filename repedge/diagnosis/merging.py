"""What merging branches did to a layer's weights: the range of the sum beside the range of each branch.

A k x k kernel, a 1x1 kernel and an identity add up in the centre tap alone. Where the identity's
normalization has a small variance its diagonal is large, the merged filter's range is that of a few centre
taps, and the others are left with few integers: Ding et al., RepOptimizer, arXiv:2205.15242, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from repedge.passes.fusion.fuse import find_merges
from repedge.passes.fusion.geometry import Refused
from repedge.passes.fusion.linear import Apply, Block, Expr, Input, Sum
from repedge.passes.fusion.operators import Conv, Pool

NEGLIGIBLE = 1e-6
"""A branch (or ring) below this share of the layer's largest weight is taken for absent in that channel."""


@dataclass(frozen=True)
class Branch:
    """One branch of a merged layer.

    Attributes:
        kind: ``3x3``, ``1x1``, ...; ``identity`` or ``average pool``.
        nodes: Names of its nodes in the graph before merging.
        growth: ``max |merged| / max |branch|`` of each output channel where the branch has weights:
            the median over the channels. Above 1, the branch is left with ``log2`` of it fewer bits.
        growth_worst: The greatest of them.
        widest: Whether its kernel is as wide as the merged one.
    """

    kind: str
    nodes: tuple[str, ...]
    growth: float
    growth_worst: float
    widest: bool


def branch_growth(model: ir.Model) -> dict[str, tuple[Branch, ...]]:
    """Look at the branches of every layer that fusing would make of several.

    Args:
        model: The canonical graph before `repedge.passes.fusion.fuse.fuse` (a graph in deploy form has no
            branches); not changed.

    Returns:
        Name of the merged node -> its branches, in the order of execution.
    """
    plan = find_merges(model.clone().graph)
    found = {}
    for node in plan.nodes():
        block = plan.block(node)
        terms = split(block.expr) if block is not None else []
        if block is None or len(terms) < 2:
            continue
        branches = _measure(block.expr, terms)
        if branches:
            found[str(node.name)] = branches
    return found


def split(expr: Expr) -> list[Expr]:
    """The summands of a linear map, each with what comes before and after the sum: f(a + b) -> f(a), f(b)."""
    if isinstance(expr, Sum):
        return [part for _, term in expr.terms for part in split(term)]
    if not isinstance(expr, Apply):
        return [expr]
    before = split(expr.inner)
    if len(before) > 1:
        return [Apply(expr.op, part) for part in before]
    if not isinstance(expr.op, Block):
        return [expr]
    parts = split(expr.op.expr)
    if isinstance(expr.inner, Input):
        return parts if len(parts) > 1 else [expr]
    return [Apply(Block(expr.op.name, expr.op.type, part), expr.inner) for part in parts]


def _measure(sum_: Expr, terms: list[Expr]) -> tuple[Branch, ...]:
    """The branches, or none where one alone equals no convolution (the shift of one ends at a border)."""
    whole = sum_.geometry
    merged = _peaks(sum_.collapse()[0])
    try:
        kernels = [(term, term.geometry.kernel, _peaks(term.collapse()[0])) for term in terms]
    except Refused:
        return ()
    result = []
    for term, kernel, peaks in kernels:
        on = peaks > NEGLIGIBLE * merged.max(initial=0.0)
        ratio = merged[on] / peaks[on] if on.any() else np.ones(1)
        widest = bool(on.any()) and kernel == whole.kernel
        result.append(Branch(_kind(term), term.names, float(np.median(ratio)), float(ratio.max()), widest))
    return tuple(result)


def _peaks(kernel: np.ndarray) -> np.ndarray:
    return np.abs(kernel).reshape(len(kernel), -1).max(1)


def _kind(term: Expr) -> str:
    if any(isinstance(op, Conv) for op in term.ops):
        return "x".join(map(str, term.geometry.kernel))
    return "average pool" if any(isinstance(op, Pool) for op in term.ops) else "identity"
