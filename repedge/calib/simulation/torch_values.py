"""Torch functions of what normalizes, reduces, compares, converts and picks by index; see ``torch_ops``.

With gradients, which calibration's learned steps need of whatever stands behind an integer layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch.nn import functional as F

from repedge.graph.attrs import attr
from repedge.graph.values import const, shape_of

Tensor = torch.Tensor
Function = Callable[..., Any]
TYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.BOOL: torch.bool,
}


def layer_norm(node: ir.Node) -> Function | None:
    if len(node.outputs) > 1:
        return None
    axis, eps = attr(node, "axis", -1), attr(node, "epsilon", 1e-5)

    def run(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        y = F.layer_norm(x, x.shape[axis:], None, None, eps) * w
        return y if b is None else y + b

    return run


def instance_norm(node: ir.Node) -> Function | None:
    eps = attr(node, "epsilon", 1e-5)
    return lambda x, w, b: F.instance_norm(x, None, None, w, b, True, 0.0, eps)


def norm(function: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[[ir.Node], Function | None]:
    """A reduction over constant axes."""

    def row(node: ir.Node) -> Function | None:
        axes = const(node.inputs[1]) if len(node.inputs) > 1 else None
        if axes is None or axes.size == 0:
            return None
        dims, keep = [int(i) for i in axes.reshape(-1)], bool(attr(node, "keepdims", 1))
        return lambda x, _=None: function(x, dims, keep)

    return row


def product(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    y = x
    for dim in dims:
        y = y.prod(dim, keepdim=True)
    return y if keep else y.squeeze([d % x.ndim for d in dims])


def extreme_place(function: Function) -> Callable[[ir.Node], Function | None]:
    def row(node: ir.Node) -> Function | None:
        if attr(node, "select_last_index", 0):
            return None
        axis, keep = attr(node, "axis", 0), bool(attr(node, "keepdims", 1))
        return lambda x: function(x, axis, keepdim=keep)

    return row


def topk(node: ir.Node) -> Function | None:
    count = const(node.inputs[1])
    if count is None:
        return None
    k, axis, largest = int(count.reshape(-1)[0]), attr(node, "axis", -1), bool(attr(node, "largest", 1))

    def run(x: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        values, places = torch.sort(x, dim=axis, descending=largest, stable=True)
        return values.narrow(axis, 0, k), places.narrow(axis, 0, k)

    return run


def cast(node: ir.Node) -> Function | None:
    dtype = TYPES.get(node.outputs[0].dtype)  # type: ignore[arg-type]
    return None if dtype is None else lambda x: x.to(dtype)


def gather(node: ir.Node) -> Function | None:
    index = const(node.inputs[1])
    if index is None:
        return None
    axis = attr(node, "axis", 0) % len(shape_of(node.inputs[0]))

    def run(x: Tensor, i: Tensor) -> Tensor:
        flat = torch.where(i < 0, i + x.shape[axis], i).reshape(-1)
        return x.index_select(axis, flat).reshape(*x.shape[:axis], *i.shape, *x.shape[axis + 1 :])

    return run


def expand(node: ir.Node) -> Function | None:
    target = const(node.inputs[1])
    if target is None:
        return None
    size = [int(n) for n in target.reshape(-1)]
    return lambda x, _: x.expand(torch.broadcast_shapes(x.shape, size))


def tile(node: ir.Node) -> Function | None:
    times = const(node.inputs[1])
    return None if times is None else lambda x, _: x.repeat([int(n) for n in times.reshape(-1)])


def each(function: Function) -> Callable[[ir.Node], Function | None]:
    return lambda node: function


OPS: dict[str, Callable[[ir.Node], Function | None]] = {
    # normalization
    "LayerNormalization": layer_norm,
    "InstanceNormalization": instance_norm,
    # reductions
    "ReduceMin": norm(lambda x, d, k: x.amin(d, keepdim=k)),
    "ReduceProd": norm(product),
    "ReduceL1": norm(lambda x, d, k: x.abs().sum(d, keepdim=k)),
    "ReduceL2": norm(lambda x, d, k: x.square().sum(d, keepdim=k).sqrt()),
    "ReduceSumSquare": norm(lambda x, d, k: x.square().sum(d, keepdim=k)),
    "ReduceLogSum": norm(lambda x, d, k: x.sum(d, keepdim=k).log()),
    "ReduceLogSumExp": norm(lambda x, d, k: torch.logsumexp(x, d, keepdim=k)),
    "ArgMax": extreme_place(torch.argmax),
    "ArgMin": extreme_place(torch.argmin),
    "TopK": topk,
    # functions
    "Reciprocal": each(torch.reciprocal),
    "Log": each(torch.log),
    "Sin": each(torch.sin),
    "Cos": each(torch.cos),
    "Sign": each(torch.sign),
    "Floor": each(torch.floor),
    "Ceil": each(torch.ceil),
    "Round": each(torch.round),
    "Max": each(lambda *xs: functools.reduce(torch.maximum, xs)),
    "Min": each(lambda *xs: functools.reduce(torch.minimum, xs)),
    # comparisons, logic, types
    "Equal": each(torch.eq),
    "Greater": each(torch.gt),
    "GreaterOrEqual": each(torch.ge),
    "Less": each(torch.lt),
    "LessOrEqual": each(torch.le),
    "And": each(torch.logical_and),
    "Or": each(torch.logical_or),
    "Xor": each(torch.logical_xor),
    "Not": each(torch.logical_not),
    "Where": each(torch.where),
    "Cast": cast,
    # indices
    "Gather": gather,
    "Expand": expand,
    "Tile": tile,
}
"""Rows give None for a use that ONNX Runtime has to compute."""
