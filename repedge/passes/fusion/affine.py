"""Per-channel affine maps into the convolution or fully connected layer before or after them.

after    BatchNormalization(Conv(x, w, b))  ->  Conv(x, s w, s b + t)        always exact
before   Conv(x s + t, w, b)                ->  Conv(x, w s, b + sum w t)    where no padding reads the shift

with ``s = gamma / sqrt(var + eps)``, ``t = beta - mean s``; likewise Mul, Add, Sub, Div and Neg by constants.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import const, only_reader
from repedge.passes.fusion.geometry import Refused
from repedge.passes.fusion.linear import Block
from repedge.passes.fusion.merges import MergePlan
from repedge.passes.fusion.operators import Affine, Conv
from repedge.passes.fusion.read import affine

AFTER, BEFORE = "affine after", "affine before"
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def affine_after(plan: MergePlan) -> bool:
    """BatchNormalization(Conv(x)) -> Conv(x)."""
    changed = False
    for node in plan.nodes():
        parts = affine(node)
        value = node.inputs[parts[0]] if parts else None
        layer = value.producer() if value is not None else None
        if parts is None or value is None or layer is None or layer.op_type not in LAYERS:
            continue
        if only_reader(value) is None:
            names = (str(layer.name), str(node.name))
            plan.refuse(AFTER, names, f"the output of {layer.op_type} {layer.name!r} is read elsewhere")
            continue
        changed |= fold_after(plan, node, layer)
    return changed


def fold_after(plan: MergePlan, node: ir.Node, layer: ir.Node) -> bool:
    """Merge an affine node into the layer that it alone reads; False where that can't be."""
    parts = affine(node)
    assert parts is not None, "only asked of affine nodes"
    if plan.op(layer) is not None and plan.op(node) is not None:
        root = plan.data(layer)
        plan.merge(AFTER, node.outputs[0], root, plan.expr(node.outputs[0], root))
        return True
    return _scale(plan, layer, node, parts[1], parts[2])


def affine_before(plan: MergePlan) -> bool:
    """Conv(BatchNormalization(x)) -> Conv(x)."""
    changed = False
    for node in plan.nodes():
        op = plan.op(node)
        if not isinstance(op, Conv | Block):
            continue
        value = plan.data(node)
        below = value.producer()
        if below is None or not isinstance(plan.op(below), Affine):
            continue
        names = (str(below.name), str(node.name))
        if only_reader(value) is None:
            plan.refuse(BEFORE, names, f"the output of {below.op_type} {below.name!r} is read elsewhere")
            continue
        root = plan.data(below)
        expr = plan.expr(node.outputs[0], root)
        try:
            _ = expr.geometry.pads
        except Refused as why:
            plan.refuse(BEFORE, names, str(why))
            continue
        plan.merge(BEFORE, node.outputs[0], root, expr)
        changed = True
    return changed


# --- layers that are no 2-D convolution of a static map: only their rows are scaled ---------------


@dataclass(frozen=True, eq=False)
class Scaled:
    """A ConvTranspose, a Conv that is not 2-D, or a MatMul over the last axis, with affine maps on top.

    Attributes:
        weight: The layer's own, in the graph's dtype.
        bias: [O] or None.
        transposed: Whether ``weight`` is [I, O / group, ...] rather than [O, I / group, ...]; a MatMul's is.
        group: Groups.
        maps: (scale [O], shift [O]) of each map, innermost first, float64.
        names: Of the nodes merged so far.
    """

    weight: np.ndarray
    bias: np.ndarray | None
    transposed: bool
    group: int
    maps: tuple[tuple[np.ndarray, np.ndarray], ...]
    names: tuple[str, ...]

    def then(self, scale: np.ndarray, shift: np.ndarray, name: str) -> Scaled:
        """One map more, of the node ``name``."""
        return replace(self, maps=(*self.maps, (scale, shift)), names=(*self.names, name))

    def rows(self, weight: np.ndarray) -> np.ndarray:
        """``weight`` as [O, everything that one output channel multiplies], float64."""
        if not self.transposed:
            return weight.reshape(len(weight), -1).astype(np.float64)
        i, o, *taps = weight.shape
        split = weight.reshape(self.group, i // self.group, o, *taps).swapaxes(1, 2)
        return split.reshape(self.group * o, -1).astype(np.float64)

    def collapse(self) -> tuple[np.ndarray, np.ndarray]:
        """Weight in the layer's own shape and bias [O], float64."""
        channels = len(self.maps[0][0])
        scale = np.ones(channels)
        shift = np.zeros(channels) if self.bias is None else self.bias.astype(np.float64)
        for s, t in self.maps:
            scale, shift = scale * s, shift * s + t
        shape = self.weight.shape
        if not self.transposed:
            return self.weight * scale.reshape(-1, *[1] * (len(shape) - 1)), shift
        split = self.weight.reshape(self.group, shape[0] // self.group, *shape[1:])
        split = split * scale.reshape(self.group, 1, shape[1], *[1] * (len(shape) - 2))
        return split.reshape(shape), shift

    def run(self, x: np.ndarray) -> np.ndarray:
        """Layer and maps one by one on ``x`` [everything one output channel multiplies, n]: [O, n]."""
        y = self.rows(self.weight) @ x
        if self.bias is not None:
            y = y + self.bias.astype(np.float64)[:, None]
        for s, t in self.maps:
            y = y * s[:, None] + t[:, None]
        return y


def _scale(plan: MergePlan, layer: ir.Node, node: ir.Node, scale: np.ndarray, shift: np.ndarray) -> bool:
    """Fold one map into a layer that stays where it is; its weights are worked out at the end."""
    names = (str(layer.name), str(node.name))
    if layer.op_type not in ("Conv", "ConvTranspose"):
        return False  # a MatMul of rank 3 has its channels last
    scaled = layer.meta.get("scaled") or _scalable(layer)
    if scaled is None:
        plan.refuse(AFTER, names, f"the weights of {layer.op_type} {layer.name!r} are not constant")
        return False
    layer.meta["scaled"] = scaled.then(scale, shift, str(node.name))
    plan.kinds.setdefault(layer, []).append(AFTER)
    out = layer.outputs[0]
    plan.take_over(node.outputs[0], out)
    plan.remove([node])
    return True


def _scalable(layer: ir.Node) -> Scaled | None:
    weight = const(layer.inputs[1])
    bias = const(layer.inputs[2]) if len(layer.inputs) > 2 else None
    absent = len(layer.inputs) < 3 or layer.inputs[2] is None
    if weight is None or (bias is None and not absent):
        return None
    transposed = layer.op_type == "ConvTranspose"
    return Scaled(weight, bias, transposed, attr(layer, "group", 1), (), (str(layer.name),))
