"""Lowerings of what normalizes, reduces, compares, converts and picks by index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import const, shape_of
from repedge.targets.coreml.nodes import axis_of, ints, needs_constant

if TYPE_CHECKING:
    from repedge.targets.coreml.lowerer import Lowerer

# ---- normalization -------------------------------------------------------------------------------


def layer_norm(c: Lowerer, n: ir.Node) -> Any:
    rank = len(shape_of(n.inputs[0]))
    return normalized(c, n, c.var(n, 0), list(range(axis_of(n, -1), rank)), c.name(n))


def normalized(c: Lowerer, n: ir.Node, x: Any, axes: list[int], name: str) -> Any:
    """The LayerNormalization ``n`` of ``x`` over ``axes``."""
    shape = [int(x.shape[a]) for a in axes]
    arrays = [None if v is None else const(v) for v in (*n.inputs[1:3], None, None)][:2]
    gamma, beta = (
        None if a is None else c.weight(np.broadcast_to(a, shape), f"{name}_{word}")
        for a, word in zip(arrays, ("gamma", "beta"), strict=True)
    )
    return c.mb.layer_norm(x=x, axes=axes, gamma=gamma, beta=beta, epsilon=epsilon(c, n), name=name)


def epsilon(c: Lowerer, n: ir.Node) -> Any:
    """The node's epsilon in the program's precision, not 0."""
    return max(c.scalar(attr(n, "epsilon", 1e-5)), np.finfo(c.dtype).smallest_subnormal)


def refuse_layer_norm(n: ir.Node) -> str | None:
    if any(v.uses() or v.is_graph_output() for v in n.outputs[1:]):
        return "its mean and deviation are read"
    return needs_constant(1, 2)(n)


def instance_norm(c: Lowerer, n: ir.Node) -> Any:
    gamma, beta = (c.weight(np.asarray(const(v)), str(v.name)) for v in n.inputs[1:3])  # type: ignore[union-attr]
    return c.mb.instance_norm(x=c.var(n, 0), gamma=gamma, beta=beta, epsilon=epsilon(c, n), name=c.name(n))


def refuse_instance_norm(n: ir.Node) -> str | None:
    rank = len(shape_of(n.inputs[0]))
    return needs_constant(1, 2)(n) if rank in (3, 4) else f"it has {rank} axes; Core ML has 3 and 4"


# ---- reductions ----------------------------------------------------------------------------------


def reduced_axes(n: ir.Node) -> list[int]:
    rank = len(shape_of(n.inputs[0]))
    axes = ints(n, 1, ()) or (() if attr(n, "noop_with_empty_axes", 0) else range(rank))
    return sorted(a % rank for a in axes)


def refuse_reduction(n: ir.Node) -> str | None:
    return None if reduced_axes(n) else "it reduces over no axes"


def log_sum(c: Lowerer, n: ir.Node) -> Any:
    name, keep = c.name(n), bool(attr(n, "keepdims", 1))
    total = c.mb.reduce_sum(x=c.var(n, 0), axes=reduced_axes(n), keep_dims=keep, name=c.unique(f"{name}_sum"))
    return c.mb.log(x=total, name=name)


def extreme_place(op: str) -> Any:
    def emit(c: Lowerer, n: ir.Node) -> Any:
        keep = bool(attr(n, "keepdims", 1))
        return getattr(c.mb, op)(x=c.var(n, 0), axis=axis_of(n, 0), keep_dims=keep, name=c.name(n))

    return emit


def refuse_last_place(n: ir.Node) -> str | None:
    return "of equal numbers it wants the last one's place" if attr(n, "select_last_index", 0) else None


def topk(c: Lowerer, n: ir.Node) -> Any:
    (k,) = ints(n, 1, ()) or (1,)
    ascending = not attr(n, "largest", 1)
    found = c.mb.topk(x=c.var(n, 0), k=k, axis=axis_of(n, -1), ascending=ascending, name=c.name(n))
    return found[: len(n.outputs)]


def cumsum(c: Lowerer, n: ir.Node) -> Any:
    (axis,) = ints(n, 1, ()) or (0,)
    flags = {name: bool(attr(n, name, 0)) for name in ("exclusive", "reverse")}
    return c.mb.cumsum(x=c.var(n, 0), axis=axis % len(shape_of(n.inputs[0])), name=c.name(n), **flags)


# ---- functions, comparisons, types ---------------------------------------------------------------


def negative(c: Lowerer, n: ir.Node) -> Any:
    x = c.var(n, 0)
    return c.mb.mul(x=x, y=c.like(-1, x), name=c.name(n))


def reciprocal(c: Lowerer, n: ir.Node) -> Any:
    """A division: MIL's inverse adds an epsilon."""
    return c.mb.real_div(x=c.scalar(1.0), y=c.var(n, 0), name=c.name(n))


def divide(c: Lowerer, n: ir.Node) -> Any:
    """Of whole numbers, the quotient towards zero."""
    name = c.name(n)
    if n.outputs[0].dtype == ir.DataType.FLOAT:
        return c.mb.real_div(x=c.var(n, 0), y=c.var(n, 1), name=name)
    x, y = (c.mb.cast(x=c.var(n, i), dtype="fp32", name=c.unique(f"{name}_fp32")) for i in (0, 1))
    return c.mb.cast(x=c.mb.real_div(x=x, y=y, name=c.unique(f"{name}_real")), dtype="int32", name=name)


def remainder(c: Lowerer, n: ir.Node) -> Any:
    """Mod with the divisor's sign; with the dividend's (fmod): sign(x) * (|x| mod |y|)."""
    x, y, name = c.var(n, 0), c.var(n, 1), c.name(n)
    if not attr(n, "fmod", 0):
        return c.mb.mod(x=x, y=y, name=name)
    sizes = [c.mb.abs(x=v, name=c.unique(f"{name}_size")) for v in (x, y)]
    rest = c.mb.mod(x=sizes[0], y=sizes[1], name=c.unique(f"{name}_rest"))
    return c.mb.mul(x=rest, y=c.mb.sign(x=x, name=c.unique(f"{name}_sign")), name=name)


def where(c: Lowerer, n: ir.Node) -> Any:
    return c.mb.select(cond=c.var(n, 0), a=c.var(n, 1), b=c.var(n, 2), name=c.name(n))


def cast(c: Lowerer, n: ir.Node) -> Any:
    dtype = {ir.DataType.FLOAT: c.float_word, ir.DataType.BOOL: "bool"}.get(n.outputs[0].dtype, "int32")  # type: ignore[arg-type]
    return c.mb.cast(x=c.var(n, 0), dtype=dtype, name=c.name(n))


# ---- indices -------------------------------------------------------------------------------------


def gather(c: Lowerer, n: ir.Node) -> Any:
    axis = axis_of(n, 0)
    at = _indices(c, n, shape_of(n.inputs[0])[axis])
    return c.mb.gather(x=c.var(n, 0), indices=at, axis=axis, name=c.name(n))


def gather_elements(c: Lowerer, n: ir.Node) -> Any:
    """GatherElements -> gather_along_axis, whose indices reach as far as the data on the other axes."""
    axis, name, x = axis_of(n, 0), c.name(n), c.var(n, 0)
    before, wanted = shape_of(n.inputs[0]), shape_of(n.inputs[1])
    size = [b if i == axis else w for i, (b, w) in enumerate(zip(before, wanted, strict=True))]
    if tuple(size) != before:
        x = c.mb.slice_by_size(x=x, begin=[0] * len(size), size=size, name=c.unique(f"{name}_part"))
    at = _indices(c, n, before[axis])
    return c.mb.gather_along_axis(x=x, indices=at, axis=axis, name=name)


def gather_nd(c: Lowerer, n: ir.Node) -> Any:
    lead, shape = int(attr(n, "batch_dims", 0)), shape_of(n.inputs[0])
    sizes = np.array(shape[lead : lead + shape_of(n.inputs[1])[-1]])
    return c.mb.gather_nd(x=c.var(n, 0), indices=_indices(c, n, sizes), batch_dims=lead, name=c.name(n))


def _indices(c: Lowerer, n: ir.Node, size: Any) -> Any:
    """The indices at input 1, constant ones counted from the front."""
    array = const(n.inputs[1])
    if array is None:
        return c.var(n, 1)
    return c.weight(np.where(array < 0, array + size, array), str(n.inputs[1].name))  # type: ignore[union-attr]


def expand(c: Lowerer, n: ir.Node) -> Any:
    """Expand and Tile: a reshape to the output's rank, then a tile."""
    after, name, x = shape_of(n.outputs[0]), c.name(n), c.var(n, 0)
    before = (1,) * (len(after) - len(x.shape)) + tuple(x.shape)
    if len(before) > len(x.shape):
        shape = np.asarray(before, np.int32)
        x = c.mb.reshape(x=x, shape=shape, name=c.unique(f"{name}_rank"))
    return c.mb.tile(x=x, reps=[a // b for a, b in zip(after, before, strict=True)], name=name)
