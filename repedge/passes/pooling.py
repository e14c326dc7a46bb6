"""Means over the whole map become GlobalAveragePool; norms over windows become means of powers."""

from __future__ import annotations

import onnx_ir as ir

from repedge.graph.attrs import attr, pool_attrs
from repedge.graph.values import const, only_reader, shape_of
from repedge.passes.base import floats, input_at, insert, ints, nodes_of, rewrite
from repedge.passes.reshapes import write_reshape

MAP_AXES = (2, 3)


def unify_global_pools(model: ir.Model) -> int:
    """All ways to average a map become GlobalAveragePool.

    They are ReduceMean over H and W (at once, one by one, or of the flattened map) and AveragePool of the
    whole map; a Flatten or Reshape follows where the two axes are not kept.
    """
    count = 0
    for node in nodes_of(model, "ReduceMean", "AveragePool"):
        x = _pooled_map(node) if node.op_type == "ReduceMean" else _whole_map(node)
        if x is not None:
            _write_pool(node, x)
            count += 1
    return count


def _whole_map(node: ir.Node) -> ir.Value | None:
    """What the AveragePool takes the mean of in one window without padding."""
    x = node.inputs[0]
    if x is None or len(shape_of(x)) != 4:
        return None
    pool = pool_attrs(node)
    whole = pool.kernel == shape_of(x)[2:] and pool.dilations == (1, 1) and not any(pool.pads)
    return x if whole and shape_of(node.outputs[0])[2:] == (1, 1) else None


def _pooled_map(node: ir.Node) -> ir.Value | None:
    """The [N, C, H, W] tensor whose mean over exactly H and W the ReduceMean computes."""
    x, axes = node.inputs[0], _axes(node)
    if x is None or axes is None:
        return None
    shape = shape_of(x)
    if len(shape) == 4 and axes == MAP_AXES:
        return x
    inner = x.producer()
    if inner is None or only_reader(x) is not node or inner.inputs[0] is None:
        return None
    source = inner.inputs[0]
    source_shape = shape_of(source)
    if len(source_shape) != 4:
        return None
    if inner.op_type == "ReduceMean":  # the mean of the rows' means
        done = _axes(inner)
        if done is None:
            return None
        left = [a for a in range(4) if a not in done] if not attr(inner, "keepdims", 1) else range(4)
        return source if tuple(sorted({*done, *(left[a] for a in axes)})) == MAP_AXES else None
    if inner.op_type in ("Reshape", "Flatten") and axes == (2,):
        return source if shape == (*source_shape[:2], source_shape[2] * source_shape[3]) else None
    return None


def _axes(node: ir.Node) -> tuple[int, ...] | None:
    """Sorted non-negative axes of a reduction, or None if they are not constant."""
    rank = len(shape_of(node.inputs[0]))
    given = input_at(node, 1)
    axes = const(given).tolist() if const(given) is not None else attr(node, "axes")  # type: ignore[union-attr]
    if given is not None and const(given) is None:
        return None
    if axes is None or len(axes) == 0:
        return () if attr(node, "noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(int(a) % rank for a in axes))


def _write_pool(node: ir.Node, x: ir.Value) -> None:
    n, c = shape_of(x)[:2]
    if shape_of(node.outputs[0]) == (n, c, 1, 1):
        rewrite(node.outputs[0], "GlobalAveragePool", [x])
    else:
        write_reshape(node, insert(node, "GlobalAveragePool", [x], shape=(n, c, 1, 1)))


def spell_norm_pools(model: ir.Model) -> int:
    """LpPool, GlobalLpPool -> (cells * AveragePool(|x| ^ p)) ^ (1 / p); padding counts as zeros."""
    count = 0
    for node in nodes_of(model, "LpPool", "GlobalLpPool"):
        x = node.inputs[0]
        if x is None or len(shape_of(x)) != 4 or any(d != 1 for d in attr(node, "dilations", ())):
            continue
        _spell_norm(node, x)
        count += 1
    return count


def _spell_norm(node: ir.Node, x: ir.Value) -> None:
    p, shape, out = attr(node, "p", 2), shape_of(x), node.outputs[0]
    powers = x
    if p != 2:
        powers = insert(node, "Abs", [x], shape=shape)
        if p != 1:
            powers = insert(node, "Pow", [powers, floats(node, "power", float(p))], shape=shape)
    else:
        powers = insert(node, "Mul", [x, x], shape=shape)
    if node.op_type == "GlobalLpPool":
        total = insert(
            node, "ReduceSum", [powers, ints(node, "axes", MAP_AXES)], {"keepdims": 1}, shape=shape_of(out)
        )
    else:
        pool = pool_attrs(node)
        ends = [
            max(pad, (cells - 1) * stride + kernel - size - first)
            for pad, cells, stride, kernel, size, first in zip(
                pool.pads[2:],
                shape_of(out)[2:],
                pool.strides,
                pool.kernel,
                shape[2:],
                pool.pads[:2],
                strict=True,
            )
        ]  # those of ceil_mode, too
        window = {"kernel_shape": pool.kernel, "strides": pool.strides, "pads": (*pool.pads[:2], *ends)}
        mean = insert(node, "AveragePool", [powers], {**window, "count_include_pad": 1}, shape=shape_of(out))
        cells = floats(node, "cells", float(pool.kernel[0] * pool.kernel[1]))
        total = insert(node, "Mul", [mean, cells], shape=shape_of(out))
    if p == 2:
        rewrite(out, "Sqrt", [total])
    else:
        rewrite(out, "Pow", [total, floats(node, "root", 1 / p)])
