"""Fusing: algebra on the graph. Whatever is linear and pays is merged, whoever wrote it.

The rules only plan (`repedge.passes.fusion.merges`); when no rule finds anything more, the weights of each
merged layer are worked out once in float64, checked against the original nodes, and cast once.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from repedge.errors import CheckFailed
from repedge.graph.values import add_initializer, only_reader
from repedge.passes.base import bypass
from repedge.passes.fusion.affine import AFTER, BEFORE, Scaled, affine_after, affine_before
from repedge.passes.fusion.border import borders
from repedge.passes.fusion.branches import BRANCHES, branches
from repedge.passes.fusion.carry import carry
from repedge.passes.fusion.certificate import Fused, Merge
from repedge.passes.fusion.chains import CHAIN, chains
from repedge.passes.fusion.geometry import Geometry
from repedge.passes.fusion.linear import Expr
from repedge.passes.fusion.merges import MergePlan
from repedge.passes.fusion.operators import Kernel, convolve

TOLERANCE = 1e-9
"""Relative error of a merge in float64: rounding is 1e-16 per term, and branches may cancel."""

CAST_TOLERANCE = 1e-4
"""Relative error after rounding the weights to float32 (6e-8 each); far above what rounding can do."""

PATCH_MACS = 4_000_000
"""Work of one check; a wider layer is checked on a random subset of its output channels."""


def drop_identities(plan: MergePlan) -> bool:
    """Identity(x), Dropout(x) -> x."""
    dropped = [
        bypass(node, node.inputs[0])
        for node in plan.nodes()
        if node.op_type in ("Identity", "Dropout")
        and node.domain == ""
        and not any(v.uses() or v.is_graph_output() for v in node.outputs[1:])
        and (node.op_type == "Identity" or len(node.inputs) < 3)
    ]
    return any(dropped)


RULES: tuple[Callable[[MergePlan], bool], ...] = (
    drop_identities,  # first: an Identity between two nodes hides every pattern
    affine_after,  # before affine_before: a BN between two convolutions was trained with the first
    carry,  # after affine_after: what is next to a layer needs no carrying
    borders,  # after affine_after, before branches: it needs the shift, they need the border
    branches,  # before affine_before: a BN that a branch begins with is part of that branch
    affine_before,  # before chains: convolutions with a BN between them are no neighbours yet
    chains,  # last: branches may need a chain merged that would not pay by itself
)
"""After any change the first rule is tried again."""

KINDS = (BRANCHES, CHAIN, BEFORE, AFTER)  # a merge of several rules is named after the first of these


def fuse(model: ir.Model) -> Fused:
    """Merge linear operators of the graph, in place.

    BatchNormalization is taken in inference form. Only float32 values of static [N, C, H, W] or [N, C]
    are merged by branches and chains; any Conv or ConvTranspose takes the affine maps after it. New
    values have the names, shapes and types of those they replace.

    Returns:
        The merges, a list whose ``left`` holds the candidates that stayed, each with the reason.

    Raises:
        CheckFailed: A merge is not exact: a bug in repedge, or weights that are not finite.
    """
    return finish(find_merges(model.graph))


def find_merges(graph: ir.Graph) -> MergePlan:
    """Run the rules to a fixed point; the merged nodes of the graph have no weights yet."""
    plan = MergePlan(graph)
    while True:
        plan.refused.clear()
        if not any(rule(plan) for rule in RULES):  # any() stops at the first that changed something
            break
    _note_idle(plan)
    return plan


def finish(plan: MergePlan) -> Fused:
    """Give the merged nodes their weights.

    Raises:
        CheckFailed: As `fuse`.
    """
    merges = []
    for node in plan.nodes():
        block = plan.block(node)
        if block is not None:
            merges.append(_finish(plan, node, block.expr))
            plan.forget(node)
        elif "scaled" in node.meta:
            merges.append(_finish_scaled(plan, node, node.meta.pop("scaled")))
    return Fused(merges, dict.fromkeys(plan.refused))


def _note_idle(plan: MergePlan) -> None:
    """BatchNormalization that stays and that no rule looked at."""
    seen = {name for r in plan.refused for name in r.nodes}
    for node in plan.nodes():
        if node.op_type == "BatchNormalization" and node.name not in seen:
            plan.refuse("affine", (str(node.name),), "no convolution or fully connected layer is next to it")


# --- weights -----------------------------------------------------------------------------------


def _finish(plan: MergePlan, node: ir.Node, expr: Expr) -> Merge:
    """Work the weights of a planned Conv or Gemm out, check them and put them in."""
    geometry = expr.geometry
    exact = expr.collapse()
    weight, bias = (a.astype(np.float32) for a in exact)
    error, cast = _check(str(node.name), expr, geometry, exact, (weight, bias))
    if node.op_type == "Conv":
        for name, value in (
            ("kernel_shape", geometry.kernel),
            ("strides", geometry.strides),
            ("dilations", geometry.dilations),
            ("pads", geometry.pads),
        ):
            node.attributes[name] = ir.AttrInt64s(name, list(value))
        node.attributes["group"] = ir.AttrInt64("group", geometry.group)
    else:
        weight = weight.reshape(weight.shape[:2])
        node.attributes["transB"] = ir.AttrInt64("transB", 1)
    _put(plan, node, weight, bias)
    return _record(plan, node, expr.names, error, cast)


def _put(plan: MergePlan, node: ir.Node, weight: np.ndarray, bias: np.ndarray) -> None:
    head = node.metadata_props.get("source") or str(node.name)
    for index, (kind, array) in enumerate((("weight", weight), ("bias", bias)), start=1):
        value = add_initializer(plan.graph, f"{head}.{kind}", array)
        node.replace_input_with(index, value)


def _record(plan: MergePlan, node: ir.Node, names: tuple[str, ...], error: float, cast: float) -> Merge:
    for found, limit, what in ((error, TOLERANCE, "in float64"), (cast, CAST_TOLERANCE, "in float32")):
        if not found <= limit:
            raise CheckFailed(
                f"merging {', '.join(names)} into {node.name!r} changes its output by {found:.1e} {what}, "
                f"more than {limit:.0e}; are the weights finite and of a sensible size?"
            )
    kinds = plan.kinds[node]
    return Merge(
        kind=next(k for k in KINDS if k in kinds),
        nodes=names,
        result=str(node.name),
        source=node.metadata_props.get("source"),
        error=error,
        cast_error=cast,
    )


def _check(name: str, expr: Expr, geometry: Geometry, exact: Kernel, rounded: Kernel) -> tuple[float, float]:
    """Errors of a merge in float64 and after the cast to float32, relative per channel.

    Both sides run on a small random map that has all four borders and as much of the middle as one
    window needs; its size leaves the same remainder for the stride as the real one. Layers wider than
    `PATCH_MACS` allows are compared on a random subset of output channels.
    """
    size = []
    for n, k, s, d in zip(geometry.size, geometry.kernel, geometry.strides, geometry.dilations, strict=True):
        least = max((k - 1) * d + 1 + 2 * s, 5)
        size.append(n if n <= least else least + (n - least) % s)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    repeats = max(1, 25 // (size[0] * size[1]))  # a 1x1 map alone would be a single number per channel
    weight = exact[0]
    per_row = weight[0].size * size[0] * size[1] * repeats
    rows = None
    if len(weight) * per_row > PATCH_MACS:
        some = min(len(weight), max(8, PATCH_MACS // per_row))
        rows = np.sort(rng.choice(len(weight), some, replace=False))
    expected: list[np.ndarray] = []
    actual: list[np.ndarray] = []
    cast: list[np.ndarray] = []
    for _ in range(repeats):
        x = rng.standard_normal((geometry.cin, *size))
        expected.append(expr.run(x, rows))
        for results, (w, b) in ((actual, exact), (cast, rounded)):
            results.append(
                convolve(x, w, b, geometry.group, geometry.strides, geometry.dilations, geometry.pads, rows)
            )
        if expected[-1].shape != actual[-1].shape:
            raise CheckFailed(
                f"merging into {name!r} changes the output's shape "
                f"from {expected[-1].shape} to {actual[-1].shape}"
            )
    together = [np.stack(r, -1).reshape(len(r[0]), -1) for r in (expected, actual, cast)]
    return _relative(together[1], together[0]), _relative(together[2], together[0])


def _relative(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the channel's largest value; inf where something is not finite.

    Channels smaller than a millionth of the largest are measured against that.
    """
    largest = np.abs(expected).max(1)
    scale = largest + 1e-6 * largest.max() + np.finfo(np.float64).tiny
    worst = float((np.abs(actual - expected).max(1) / scale).max())
    return worst if np.isfinite(worst) and np.isfinite(largest.max()) else float("inf")


def _finish_scaled(plan: MergePlan, node: ir.Node, scaled: Scaled) -> Merge:
    """The same for a layer of which only the rows were scaled."""
    weight, bias = scaled.collapse()
    rng = np.random.default_rng(zlib.crc32(str(node.name).encode()))
    x = rng.standard_normal((scaled.rows(scaled.weight).shape[1], 8))
    expected = scaled.run(x)
    rounded = weight.astype(np.float32), bias.astype(np.float32)
    errors = [
        _relative(scaled.rows(w) @ x + b.astype(np.float64)[:, None], expected)
        for w, b in ((weight, bias), rounded)
    ]
    add = only_reader(node.outputs[0]) if node.op_type == "MatMul" else None
    old = [v for n in (node, add) if n is not None for v in n.inputs if v is not None and v.is_initializer()]
    if add is not None:
        added = add_initializer(plan.graph, f"{node.name}.bias", rounded[1])
        add.replace_input_with(1 if add.inputs[0] is node.outputs[0] else 0, added)
        node.replace_input_with(1, add_initializer(plan.graph, f"{node.name}.weight", rounded[0]))
    else:
        node.resize_inputs(3)
        _put(plan, node, *rounded)
    plan.drop_unread(old)
    return _record(plan, node, scaled.names, *errors)
